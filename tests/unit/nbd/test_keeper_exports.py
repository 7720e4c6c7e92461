"""What a keeper takes for the export that was lost, and what it does for writes that are."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

from tests.unit.nbd.keeping import PARAMS, FakeJournal, World
from tests.unit.nbd.links import EXPORT, FLAGS, refused
from ublkd.target import Params
from ublkd.targets.nbd.export import BlockSizes, Export, Refusal, worse
from ublkd.targets.nbd.target import NbdTarget
from ublkd.targets.nbd.wire import ExportFlag

OLD = Export(
    name="",
    size=1 << 20,
    flags=FLAGS | ExportFlag.SEND_FUA | ExportFlag.SEND_TRIM | ExportFlag.SEND_WRITE_ZEROES,
    sizes=BlockSizes(512, 4096, 1 << 20),
)


def without(flag: ExportFlag) -> Export:
    return dataclasses.replace(OLD, flags=OLD.flags & ~flag)


WORSE: dict[str, tuple[Export, str]] = {
    "larger": (dataclasses.replace(OLD, size=2 << 20), "it has 2097152 bytes and had 1048576"),
    "smaller": (dataclasses.replace(OLD, size=1 << 19), "it has 524288 bytes and had 1048576"),
    "read-only": (
        dataclasses.replace(OLD, flags=OLD.flags | ExportFlag.READ_ONLY), "it is read-only now",
    ),
    "larger blocks": (
        dataclasses.replace(OLD, sizes=BlockSizes(4096, 4096, 1 << 20)),
        "it wants blocks of 4096 bytes now and had 512",
    ),
    "shorter requests": (
        dataclasses.replace(OLD, sizes=BlockSizes(512, 4096, 1 << 15)),
        "it takes 32768 bytes at once now, and the disk asks for up to 65536",
    ),
    "no flush": (without(ExportFlag.SEND_FLUSH), "it cannot flush any more"),
    "no FUA": (without(ExportFlag.SEND_FUA), "it cannot fua any more"),
    "no trim": (without(ExportFlag.SEND_TRIM), "it cannot trim any more"),
    "no zeroes": (without(ExportFlag.SEND_WRITE_ZEROES), "it cannot write zeroes any more"),
    "one connection": (
        without(ExportFlag.CAN_MULTI_CONN),
        "it cannot be reached over several connections any more",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WORSE)
def test_what_is_worse_cannot_stand_for_what_was(name: str) -> None:
    new, words = WORSE[name]
    assert worse(new, OLD, PARAMS, 2) == words


@pytest.mark.parametrize(
    "new",
    [
        OLD,
        dataclasses.replace(OLD, flags=OLD.flags | ExportFlag.ROTATIONAL),
        dataclasses.replace(OLD, size=(1 << 20) + 511),
        dataclasses.replace(OLD, sizes=None),
        dataclasses.replace(OLD, sizes=BlockSizes(1, 512, 1 << 16)),
        dataclasses.replace(OLD, description="another day"),
    ],
)
def test_what_is_no_worse_can(new: Export) -> None:
    assert worse(new, OLD, PARAMS, 2) == ""


def test_what_a_single_connection_does_not_need_may_be_gone() -> None:
    assert worse(without(ExportFlag.CAN_MULTI_CONN), OLD, PARAMS, 1) == ""


def test_what_was_read_only_may_be_writable() -> None:
    read_only = dataclasses.replace(OLD, flags=OLD.flags | ExportFlag.READ_ONLY)
    assert worse(OLD, read_only, PARAMS, 2) == ""


def test_a_disk_that_is_never_written_may_have_become_read_only() -> None:
    read_only = dataclasses.replace(OLD, flags=OLD.flags | ExportFlag.READ_ONLY)
    assert worse(read_only, OLD, dataclasses.replace(PARAMS, read_only=True), 2) == ""


@pytest.mark.parametrize(
    "params",
    [
        dataclasses.replace(PARAMS, max_io=1 << 20),
        dataclasses.replace(PARAMS, max_discard=1 << 20),
        dataclasses.replace(PARAMS, max_write_zeroes=1 << 20),
    ],
)
def test_the_longest_request_that_the_kernel_may_send_has_to_fit(params: Params) -> None:
    shorter = dataclasses.replace(OLD, sizes=BlockSizes(512, 4096, 1 << 19))
    assert worse(OLD, OLD, params, 2) == ""
    assert worse(shorter, OLD, params, 2) == (
        "it takes 524288 bytes at once now, and the disk asks for up to 1048576"
    )


def test_an_export_that_has_changed_is_left_until_it_is_what_it_was(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    other = dataclasses.replace(EXPORT, size=EXPORT.size * 2)
    links = world.keep(other, other, 60.0, other, EXPORT)
    links.lose(0)
    world.until_attached(2)
    assert world.servers.closed() == [True, True, True, True, False]
    assert links.did == ["attach 0", "break 0", "fail 0", "attach 0"]
    assert caplog.text.count("the export is not what it was: it has 2097152 bytes") == 1


def test_all_connections_must_be_had_or_none_is_used(world: World) -> None:
    links = world.keep(EXPORT, EXPORT, refused(), EXPORT, EXPORT, EXPORT, connections=3)
    links.lose(2)
    world.until_attached(2, link=2)
    assert world.servers.closed() == [True] * 5 + [False] * 3
    assert links.did.count("attach 0") == 2


# --- writes that may be lost ------------------------------------------------


@pytest.mark.parametrize(
    ("unflushed", "after", "fails"),
    [(True, "strict", 1), (True, "trust", 0), (False, "strict", 0), (False, "trust", 0)],
)
def test_the_next_flush_fails_where_writes_may_be_lost(
    world: World, unflushed: bool, after: str, fails: int, caplog: pytest.LogCaptureFixture
) -> None:
    links = world.keep(refused(), EXPORT, after_reconnect=after)
    assert links.journal_bytes == 0
    links.unflushed = unflushed
    links.lose(0)
    world.until_attached(2)
    assert links.did == ["attach 0", "break 0", *["fail flush"] * fails, "attach 0"]
    assert ("the next flush fails" in caplog.text) == bool(fails)
    assert world.replayed == []


def test_they_are_written_again_before_anything_else(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    links = world.keep(EXPORT, EXPORT, connections=2, after_reconnect="replay", open_timeout=7.0)
    assert links.journal_bytes == FakeJournal.bytes
    links.unflushed = True
    seen: list[list[str]] = []
    world.on_replay = lambda: seen.append(list(links.did))
    links.lose(0)
    world.until_attached(2, link=1)
    assert world.replayed == [(list(FakeJournal.kept), 7.0)]
    assert seen == [["attach 0", "attach 1", "break 0", "break 1"]]
    assert "fail flush" not in links.did
    assert "3 writes that no flush has covered were written again" in caplog.text


@pytest.mark.parametrize("flushed", ["all", "no cache"])
def test_nothing_is_written_again_that_cannot_be_lost(world: World, flushed: str) -> None:
    durable = dataclasses.replace(EXPORT, flags=FLAGS & ~ExportFlag.SEND_FLUSH)
    export = EXPORT if flushed == "all" else durable
    links = world.keep(export, export=export, after_reconnect="replay")
    links.unflushed = flushed != "all"
    links.lose(0)
    world.until_attached(2)
    assert world.replayed == []
    assert "fail flush" not in links.did


def test_with_a_broken_journal_the_next_flush_fails(world: World) -> None:
    links = world.keep(EXPORT, after_reconnect="replay")
    links.unflushed = links.journal_broken = True
    links.lose(0)
    world.until_attached(2)
    assert world.replayed == []
    assert links.did == ["attach 0", "break 0", "fail flush", "attach 0"]


@pytest.mark.parametrize("error", [Refusal("it refuses"), ConnectionResetError(104, "reset")])
def test_a_server_that_does_not_take_them_is_no_server(world: World, error: Exception) -> None:
    links = world.keep(*[EXPORT] * 6, connections=2, after_reconnect="replay")
    links.unflushed = True
    world.replays = [error, error, None]
    links.lose(0)
    world.until_attached(2, link=1)
    assert len(world.replayed) == 3
    assert world.servers.closed() == [True] * 6 + [False] * 2
    assert links.did.count("attach 0") == 2


@pytest.mark.parametrize("mode", ["replay", "strict", "trust"])
@pytest.mark.parametrize(("acked", "flushed"), [(7, 7), (7, 5), (0, 0)])
def test_after_a_dead_daemon_a_flush_tells_of_writes_that_nobody_can_vouch_for(
    world: World, mode: str, acked: int, flushed: int
) -> None:
    links = world.keep(after_reconnect=mode)
    assert world.keeper
    world.keeper.recovered(acked, flushed)
    assert f"inherit {acked} {flushed}" in links.did
    assert ("fail flush" in links.did) == (acked != flushed and mode != "trust")


def test_what_a_dead_daemon_had_acknowledged_is_looked_up_in_all_its_queues() -> None:
    told: list[tuple[int, int]] = []
    made = NbdTarget.__new__(NbdTarget)
    made._keeper = SimpleNamespace(recovered=lambda *orders: told.append(orders))  # type: ignore[assignment]
    counters = [{"acked_writes": 3, "flushed_writes": 9}, {"acked_writes": 9, "flushed_writes": 2}]
    made.recovered(counters)
    made.recovered([])  # nobody knows
    assert told == [(9, 9), (1, 0)]
