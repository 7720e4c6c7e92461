"""What a server may say that cannot be lived with, and the limits of all that is kept."""

from __future__ import annotations

import struct

import pytest

from tests.unit.nbd.streams import (
    ABORT,
    ACK,
    DISC,
    EXT,
    GO,
    HELLO,
    INFO_REPLY,
    INVALID,
    LIST,
    PLATFORM,
    POLICY,
    SERVER,
    SHUTDOWN,
    SIZE_REQD,
    STARTTLS,
    TLS_REQD,
    TOO_BIG,
    UNKNOWN,
    UNSUP,
    Played,
    asking,
    export_info,
    go,
    greeting,
    listing,
    offer,
    option,
    played,
    reply,
    sizes_info,
    text_info,
)
from ublkd.targets.nbd.export import Export
from ublkd.targets.nbd.handshake import Goal, Offer, Phase

LONG = b"x" * 4097
IN_OPTIONS = [
    (reply(GO, POLICY, b"not\nyou"), r"policy refuses the export: not\\nyou"),
    (reply(GO, INVALID), "finds our question for the export invalid"),
    (reply(GO, PLATFORM), "platform cannot give the export"),
    (reply(GO, TLS_REQD), "insists on TLS"),
    (reply(GO, SHUTDOWN), "shutting down"),
    (reply(GO, SIZE_REQD), "insists on block sizes"),
    (reply(GO, TOO_BIG), "too long"),
    (reply(GO, EXT), "extended headers"),
    (reply(GO, 0x80000063, b"odd"), "refuses the export with error 99: odd"),
    (reply(GO, 0x80000063, LONG), r"error 99: x{256}\.\.\.$"),
    (reply(GO, UNKNOWN) + reply(LIST, POLICY), "no export 'disk'"),
    (reply(GO, UNKNOWN) + reply(LIST, ACK), "no export 'disk'"),
    (reply(LIST, ACK), "answers option 3, and was asked GO"),
    (reply(GO, 7), "a reply of kind 7"),
    (reply(GO, SERVER), "a reply of kind 2"),
    (reply(GO, INFO_REPLY, b"x"), "a reply of kind 3"),
    (b"x" * 20, "where a reply begins otherwise"),
    (struct.pack(">QIII", 0x3E889045565A9, GO, INFO_REPLY, 65537), "has 65537 bytes"),
    (struct.pack(">QIII", 0x3E889045565A9, GO, POLICY, 0xFFFFFFFF), "has 4294967295 bytes"),
    (text_info(9, b"") * 65, "more than 64 things"),
    (export_info(1) + export_info(2), "contradicts itself"),
    (sizes_info(1, 512, 512) + sizes_info(512, 512, 512), "contradicts itself"),
]
AFTER_GO = [
    ([], "does not tell the size"),
    ([text_info(0, b"short")], "does not tell the size"),
    ([export_info(), text_info(3, b"short")], "block sizes in 5 bytes"),
    ([export_info(0)], "the export is empty"),
    ([export_info(511)], "511 bytes, less than one block of 512"),
    ([export_info(4095), sizes_info(4096, 4096, 4096)], "less than one block of 4096"),
    ([export_info(1 << 63)], "2\\^63 or more"),
    ([export_info((1 << 64) - 1)], "2\\^63 or more"),
    ([export_info(flags=0)], "0x0, without HAS_FLAGS"),
    ([export_info(flags=0x4)], "0x4, without HAS_FLAGS"),
    ([export_info(), sizes_info(0, 512, 512)], "cannot be: 0 at least"),
    ([export_info(), sizes_info(3, 512, 513)], "cannot be: 3 at least"),
    ([export_info(), sizes_info(131072, 131072, 131072)], "cannot be: 131072 at least"),
    ([export_info(), sizes_info(8192, 8192, 65536)], "blocks of 8192 bytes, and a disk here"),
    ([export_info(), sizes_info(65536, 65536, 65536)], "blocks of 65536 bytes, and a disk here"),
    ([export_info(), sizes_info(1, 0, 4096)], "cannot be: 0 preferred"),
    ([export_info(), sizes_info(1, 256, 4096)], "cannot be: 256 preferred"),
    ([export_info(), sizes_info(4096, 512, 4096)], "cannot be: 512 preferred"),
    ([export_info(), sizes_info(1, 3000, 4096)], "cannot be: 3000 preferred"),
    ([export_info(), sizes_info(1, 4096, 0)], "cannot be: 0 at most"),
    ([export_info(), sizes_info(512, 512, 1000)], "cannot be: 1000 at most"),
    ([export_info(), sizes_info(1, 4096, 2048)], "cannot be: 2048 at most"),
    ([export_info(600), sizes_info(1, 4096, 600)], None),
]


@pytest.mark.parametrize(("answer", "told"), IN_OPTIONS, ids=[told for _, told in IN_OPTIONS])
def test_a_bad_answer_is_refused_with_abort(answer: bytes, told: str) -> None:
    ran = played(Goal.SERVE, greeting() + answer)
    with pytest.raises(AssertionError, match=told):
        raise AssertionError(ran.complaint)
    assert ran.refusal is not None
    assert ran.refusal.hint
    assert ran.result is None
    assert ran.sent.endswith(ABORT)
    assert ran.handshake.phase is Phase.OVER


@pytest.mark.parametrize(("infos", "told"), AFTER_GO, ids=[str(told) for _, told in AFTER_GO])
def test_an_export_that_cannot_be_a_disk_is_refused_with_a_disconnect(
    infos: list[bytes], told: str | None
) -> None:
    ran = played(Goal.SERVE, go(*infos))
    if told is None:
        assert isinstance(ran.result, Export)
        return
    with pytest.raises(AssertionError, match=told):
        raise AssertionError(ran.complaint)
    assert ran.result is None
    assert ran.sent == HELLO + asking(GO) + DISC


def test_sizes_of_less_than_a_sector_cannot_be_a_disk() -> None:
    ran = played(Goal.SERVE, go(export_info(300), sizes_info(1, 512, 300)))
    assert "300 at most, less than a block of 512" in ran.complaint


def test_a_missing_export_names_what_the_server_offers() -> None:
    names = [b"a", b"b\n", *(b"%d" % number for number in range(20))]
    stream = reply(GO, UNKNOWN) + b"".join(map(offer, names)) + reply(LIST, ACK)
    ran = played(Goal.SERVE, greeting() + stream)
    assert ran.complaint == "the server has no export 'disk'"
    assert ran.refusal is not None
    assert ran.refusal.hint.startswith(r"it offers 'a', 'b\\n', '0', '1'")
    assert ran.refusal.hint.endswith("'7' and 12 more")
    assert ran.sent == HELLO + asking(GO) + option(LIST) + ABORT


@pytest.mark.parametrize(
    ("start", "told"),
    [
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", "speaks SSH, not NBD"),
        (b"HTTP/1.1 408 Request Timeout\r\n", "speaks HTTP, not NBD"),
        (b"<html><body>", "speaks HTTP, not NBD"),
        (b"\x15\x03\x01\x00\x02\x02\x28\x00", "speaks TLS, not NBD"),
        (b"220 mail.example.com ESMTP\r\n", "speaks SMTP or FTP, not NBD"),
        (b"\xff\xfd\x18\xff\xfd\x20\xff\xfd", r"does not speak NBD: it begins with"),
        (b"NBDMAGIC" + struct.pack(">Q", 0x00420281861253), "oldstyle"),
        (b"NBDMAGIC\0\0\0\0\0\0\0\7", "no negotiation of NBD that is known (0x7)"),
        (greeting(0), "before it was fixed"),
        (greeting(2), "before it was fixed"),
    ],
)
def test_a_server_that_greets_otherwise_is_told_apart_and_gets_no_answer(
    start: bytes, told: str
) -> None:
    ran = played(Goal.SERVE, start)
    assert told in ran.complaint
    assert ran.sent == b""


@pytest.mark.parametrize("kind", [UNSUP, POLICY, INVALID, PLATFORM])
def test_a_server_without_tls_is_left(kind: int) -> None:
    ran = played(Goal.SERVE, greeting() + reply(STARTTLS, kind), tls=True)
    assert ran.complaint == "the server does not do TLS"
    assert ran.sent == HELLO + option(STARTTLS) + ABORT


@pytest.mark.parametrize("rest", [b"\0", reply(GO, ACK), export_info()])
def test_plain_text_where_tls_must_begin_is_refused(rest: bytes) -> None:
    for stream in ([greeting() + reply(STARTTLS, ACK) + rest],
                   [greeting() + reply(STARTTLS, ACK), rest]):  # fmt: skip
        ran = Played(Goal.SERVE, stream, tls=True)
        assert "plain text where TLS had to begin" in ran.complaint
        assert ran.sent == HELLO + option(STARTTLS)


def test_what_nobody_asked_for_is_refused() -> None:
    for stream in ([go(export_info()) + b"\0"], [go(export_info()), b"\0"]):
        ran = Played(Goal.SERVE, stream)
        assert "what nobody asked for" in ran.complaint
        assert ran.result is None
        assert ran.sent.endswith(DISC)


# --- limits ---------------------------------------------------------------------------------


def test_a_list_has_ten_thousand_lines_at_most() -> None:
    ran = played(Goal.LIST, listing(*[offer(b"x")] * 10_000))
    assert isinstance(ran.result, list)
    assert len(ran.result) == 10_000
    assert (
        "more than 10000 exports" in played(Goal.LIST, listing(*[offer(b"x")] * 10_001)).complaint
    )


def test_names_have_4096_bytes_at_most_and_descriptions_are_cut() -> None:
    ran = played(Goal.LIST, listing(offer(b"n" * 4096, b"d" * 4097)))
    assert ran.result == [Offer(b"n" * 4096, "d" * 4096 + "...")]
    assert "has 4097 bytes" in played(Goal.LIST, listing(offer(LONG))).complaint
    beyond = reply(LIST, SERVER, struct.pack(">I", 5) + b"four")
    assert "has 5 bytes" in played(Goal.LIST, greeting() + beyond).complaint
    assert "kind 2" in played(Goal.LIST, greeting() + reply(LIST, SERVER, b"abc")).complaint


def test_all_that_a_server_says_has_a_limit() -> None:
    ran = played(Goal.LIST, listing(*[offer(b"x", bytes(60_000))] * 100))
    assert "more than 4194304 bytes" in ran.complaint


@pytest.mark.parametrize("most", [65536, 65537])
def test_an_answer_has_64_kib_at_most(most: int) -> None:
    ran = played(Goal.LIST, listing(offer(b"x", bytes(most - 5))))
    assert (ran.refusal is None) is (most == 65536)


# --- the end of the stream ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("heard", "told"),
    [
        (b"", "closed the connection without a word"),
        (b"NBD", "before it had sent a greeting"),
        (b"NBDMAGICIHA", "before it had sent a greeting"),
        (b"SSH", "speaks"),
        (b"421 no", "does not speak NBD"),
        (greeting(), "before it had sent an answer about the export"),
        (greeting() + reply(GO, UNKNOWN), "before it had sent its list of exports"),
        (greeting() + reply(GO, UNSUP), "no export 'disk'"),
        (greeting() + reply(GO, UNSUP) + b"\0", "before it had sent an answer to EXPORT_NAME"),
    ],
)
def test_a_server_that_hangs_up_is_told_by_what_it_owed(heard: bytes, told: str) -> None:
    ran = played(Goal.SERVE, heard)
    assert ran.refusal is None
    refusal = ran.handshake.end_of_stream()
    assert told in refusal.message or (told == "speaks" and "SSH" in refusal.message)
    assert refusal.hint
    assert ran.handshake.data_to_send() == b""
