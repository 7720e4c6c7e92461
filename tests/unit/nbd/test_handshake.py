"""The negotiation, from tables and with any split of the stream."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.unit.helpers import is_one_line
from tests.unit.nbd.streams import (
    ABORT,
    ACK,
    CORPUS,
    DISC,
    EXPORT_NAME,
    GIB,
    GO,
    GOOD_FLAGS,
    HELLO,
    INFO,
    LIST,
    STARTTLS,
    UNSUP,
    Played,
    asking,
    export_info,
    go,
    greeting,
    listing,
    offer,
    option,
    pieces,
    played,
    reply,
    sizes_info,
    text_info,
)
from ublkd.targets.nbd.export import BlockSizes, Export
from ublkd.targets.nbd.handshake import Goal, Handshake, Offer, Phase
from ublkd.targets.nbd.wire import ExportFlag


def served(stream: bytes) -> Export:
    ran = played(Goal.SERVE, stream)
    assert ran.refusal is None, ran.complaint
    assert isinstance(ran.result, Export)
    return ran.result


# --- the good ways --------------------------------------------------------------------------


def test_go_brings_an_export_and_the_next_byte_is_a_request_s() -> None:
    stream = go(export_info(), sizes_info(1, 4096, 32 << 20), text_info(2, b"a disk"))
    ran = played(Goal.SERVE, stream)
    assert ran.result == Export(
        name="disk",
        size=GIB,
        flags=ExportFlag(GOOD_FLAGS),
        sizes=BlockSizes(1, 4096, 32 << 20),
        description="a disk",
    )
    assert ran.sent == HELLO + asking(GO)
    assert ran.handshake.phase is Phase.TRANSMISSION


def test_a_look_ends_with_abort() -> None:
    ran = played(Goal.LOOK, greeting() + export_info(option=INFO) + reply(INFO, ACK))
    assert isinstance(ran.result, Export)
    assert ran.sent == HELLO + asking(INFO) + ABORT
    assert ran.handshake.phase is Phase.OVER


def test_a_look_that_finds_nothing_asks_again_as_if_to_serve() -> None:
    stream = greeting() + export_info(0, option=INFO) + reply(INFO, ACK)
    ran = played(Goal.LOOK, stream + export_info() + reply(GO, ACK))
    assert isinstance(ran.result, Export)
    assert ran.result.size == GIB
    assert ran.sent == HELLO + asking(INFO) + asking(GO) + DISC


def test_a_list_ends_with_abort_and_its_answer_is_ignored() -> None:
    ran = Played(Goal.LIST, [listing(offer(b"a", b"first"), offer(b"")), reply(2, ACK)])
    assert ran.result == [Offer(b"a", "first"), Offer(b"")]
    assert ran.sent == HELLO + option(LIST) + ABORT


@pytest.mark.parametrize(("flags", "padding"), [(3, 0), (1, 124)])
def test_only_a_server_without_go_is_asked_the_old_way(flags: int, padding: int) -> None:
    stream = greeting(flags) + reply(GO, UNSUP) + struct.pack(">QH", GIB, GOOD_FLAGS)
    ran = played(Goal.SERVE, stream + bytes(padding))
    assert isinstance(ran.result, Export)
    assert ran.result.sizes is None
    assert ran.sent == struct.pack(">I", flags) + asking(GO) + option(EXPORT_NAME, b"disk")
    assert ran.handshake.phase is Phase.TRANSMISSION


def test_a_look_at_a_server_without_info_ends_with_a_disconnect() -> None:
    ran = played(Goal.LOOK, greeting() + reply(INFO, UNSUP) + struct.pack(">QH", GIB, GOOD_FLAGS))
    assert isinstance(ran.result, Export)
    assert ran.sent == HELLO + asking(INFO) + option(EXPORT_NAME, b"disk") + DISC


def test_tls_is_asked_for_first_and_all_else_goes_through_it() -> None:
    handshake = Handshake(Goal.SERVE, b"disk", tls=True)
    handshake.receive(greeting() + reply(STARTTLS, ACK))
    assert handshake.phase is Phase.TLS
    assert handshake.data_to_send() == HELLO + option(STARTTLS)
    handshake.tls_started()
    assert handshake.data_to_send() == asking(GO)
    handshake.receive(export_info() + reply(GO, ACK))
    assert isinstance(handshake.result, Export)


def test_infos_that_nobody_knows_are_passed_over() -> None:
    assert served(go(text_info(77, b"?"), export_info(), text_info(1, b"other"))).size == GIB


def test_a_server_may_say_the_same_thing_twice() -> None:
    assert served(go(export_info(), export_info())).size == GIB


# --- what becomes of it as a disk -----------------------------------------------------------


@pytest.mark.parametrize(
    ("infos", "block", "preferred", "most"),
    [
        ([], 512, 512, 32 << 20),
        ([sizes_info(1, 512, 0xFFFFFFFF)], 512, 512, 0xFFFFFFFF // 512 * 512),
        ([sizes_info(1, 4096, 32 << 20)], 512, 4096, 32 << 20),
        ([sizes_info(4096, 4096, 4096)], 4096, 4096, 4096),
        ([sizes_info(512, 65536, 1 << 20)], 512, 65536, 1 << 20),
        ([sizes_info(2, 512, 100_000)], 512, 512, 99_840),
    ],
)
def test_block_sizes_are_obeyed(infos: list[bytes], block: int, preferred: int, most: int) -> None:
    export = served(go(export_info(), *infos))
    assert (export.block, export.preferred, export.maximum) == (block, preferred, most)


@pytest.mark.parametrize(
    ("size", "disk", "left_out"),
    [(512, 512, 0), (1_000_001, 999_936, 65), ((1 << 63) - 1, (1 << 63) - 512, 511)],
)
def test_a_size_is_rounded_down_to_whole_blocks(size: int, disk: int, left_out: int) -> None:
    export = served(go(export_info(size)))
    assert (export.disk_size, export.left_out) == (disk, left_out)


@pytest.mark.parametrize(
    ("flags", "can"),
    [
        (0x01, []),
        (0x05, ["flush"]),
        (0x09, []),  # FUA without FLUSH
        (0x0D, ["flush", "fua"]),
        (0x61, ["trim", "write_zeroes"]),
        (0x63, ["read_only"]),
        (0x111, ["multi_conn", "rotational"]),
        (0xFFFF, ["flush", "fua", "multi_conn", "read_only", "rotational"]),
    ],
)
def test_what_the_flags_allow(flags: int, can: list[str]) -> None:
    export = served(go(export_info(flags=flags)))
    names = ["flush", "fua", "multi_conn", "read_only", "rotational", "trim", "write_zeroes"]
    assert [name for name in names if getattr(export, name)] == can


# --- any split ------------------------------------------------------------------------------


@pytest.mark.parametrize(("goal", "tls", "stream"), CORPUS)
def test_byte_by_byte_or_at_once_makes_no_difference(goal: Goal, tls: bool, stream: bytes) -> None:
    whole = Played(goal, [stream], tls=tls)
    single = Played(goal, [stream[i : i + 1] for i in range(len(stream))], tls=tls)
    assert single.outcome == whole.outcome
    for cut in range(len(stream)):
        assert Played(goal, list(pieces(stream, [cut])), tls=tls).outcome == whole.outcome


@given(st.sampled_from(CORPUS), st.lists(st.integers(0, 400)), st.binary(max_size=30))
@example(CORPUS[0], [18], b"\0")
def test_any_split_has_the_same_outcome(
    known: tuple[Goal, bool, bytes], cuts: list[int], behind: bytes
) -> None:
    goal, tls, stream = known
    whole = Played(goal, [stream + behind], tls=tls)
    assert Played(goal, list(pieces(stream + behind, cuts)), tls=tls).outcome == whole.outcome
    if whole.refusal:
        assert is_one_line(whole.refusal.message)
        assert is_one_line(whole.refusal.hint)


infos = st.lists(
    st.one_of(
        st.builds(export_info, st.integers(0, (1 << 64) - 1), st.integers(0, 0xFFFF)),
        st.builds(sizes_info, *[st.integers(0, 0xFFFFFFFF) | st.sampled_from([1, 512, 4096])] * 3),
        st.builds(text_info, st.integers(0, 5), st.binary(max_size=20)),
    ),
    max_size=5,
)


@given(infos, st.lists(st.integers(0, 200)))
def test_whatever_is_told_of_an_export_is_a_disk_that_can_be_or_a_refusal(
    told: list[bytes], cuts: list[int]
) -> None:
    ran: Any = Played(Goal.SERVE, list(pieces(go(*told), cuts)))
    if ran.refusal:
        return
    export = ran.result
    assert export.block in (512, 1024, 2048, 4096)
    assert 0 < export.disk_size <= export.size < 1 << 63
    assert export.disk_size % export.block == 0
    assert export.maximum % export.block == 0
    assert export.maximum >= export.block
    assert export.preferred >= export.block
