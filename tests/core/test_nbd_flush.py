"""What a flush has to cover, and the one that fails because a server has forgotten."""

from __future__ import annotations

import errno

import pytest

from .driver import DISCARD, FLUSH, FUA, READ, WRITE, WRITE_ZEROES
from .files import noise
from .nbd_disk import DiskMaker, NbdDisk
from .nbd_server import Server, Store

SIZE = 4096
CHANGES = [WRITE, DISCARD, WRITE_ZEROES]


def unflushed(disk: NbdDisk) -> bool:
    return bool(disk.lib.nbd_unflushed(disk.links))


@pytest.fixture
def disk(new_disk: DiskMaker) -> NbdDisk:
    made = new_disk()
    made.attach(Store(noise(1 << 16)))
    return made


def serve(disk: NbdDisk, op: int, flags: int = 0, error: int = 0) -> int:
    """One request on tag 3, by the last server."""
    server = disk.servers[-1]
    disk.begin(3, op, 0, SIZE * (op != FLUSH), flags)
    disk.until(lambda: disk.committed(3) or any(a.tag == 3 for a in server.asked))
    for asked in [a for a in server.asked if a.tag == 3]:
        server.answer(asked, error)
    disk.until_committed(3)
    return disk.result(3)


@pytest.mark.parametrize("op", CHANGES)
def test_what_was_acknowledged_is_unflushed_until_a_flush(disk: NbdDisk, op: int) -> None:
    assert not unflushed(disk)
    serve(disk, op)
    assert unflushed(disk)
    serve(disk, READ)
    assert unflushed(disk)
    assert serve(disk, FLUSH) == 0
    assert not unflushed(disk)


@pytest.mark.parametrize("op", CHANGES)
def test_what_the_next_daemon_must_know_of_it_stands_in_the_counters(
    disk: NbdDisk, op: int
) -> None:
    def told() -> tuple[int, int]:
        return disk.driver.stats.acked_writes, disk.driver.stats.flushed_writes

    assert told() == (0, 0)
    serve(disk, op)
    serve(disk, op)
    assert told() == (2, 0)
    serve(disk, FLUSH, error=5)
    assert told() == (2, 0)
    serve(disk, FLUSH)
    assert told() == (2, 2)
    serve(disk, op)
    assert told() == (3, 2)


def test_what_a_dead_daemon_left_is_flushed_with_what_comes_later(disk: NbdDisk) -> None:
    disk.lib.nbd_inherit(disk.links, 7, 5)
    assert unflushed(disk)
    disk.lib.nbd_fail_flush(disk.links)
    serve(disk, WRITE)
    assert disk.driver.stats.acked_writes == 8
    assert serve(disk, FLUSH) == -errno.EIO
    assert serve(disk, FLUSH) == 0
    assert disk.driver.stats.flushed_writes == 8


@pytest.mark.parametrize("op", CHANGES)
def test_what_is_durable_by_itself_needs_no_flush(disk: NbdDisk, op: int) -> None:
    serve(disk, op, FUA)
    assert not unflushed(disk)


@pytest.mark.parametrize("journal_bytes", [0, 1 << 20], ids=["strict", "replay"])
@pytest.mark.parametrize("op", CHANGES)
def test_the_next_daemon_does_not_doubt_what_is_durable_by_itself(
    new_disk: DiskMaker, op: int, journal_bytes: int
) -> None:
    """Data, a flush, a durable write: so a filesystem's journal leaves a disk whenever it rests."""
    disk = new_disk(journal_bytes=journal_bytes)
    disk.attach(Store(noise(1 << 16)))
    serve(disk, WRITE)
    assert serve(disk, FLUSH) == 0
    serve(disk, op, FUA)
    stats = disk.driver.stats
    disk.lib.nbd_inherit(disk.links, stats.acked_writes, stats.flushed_writes)
    assert not unflushed(disk)
    serve(disk, op)
    disk.lib.nbd_inherit(disk.links, stats.acked_writes, stats.flushed_writes)
    assert unflushed(disk)


def test_a_server_that_refuses_a_flush_makes_no_success_of_it(disk: NbdDisk) -> None:
    """As "not supported" would: blkdev_fsync()."""
    serve(disk, WRITE)
    assert serve(disk, FLUSH, error=95) == -errno.EIO
    assert unflushed(disk)


@pytest.mark.parametrize("op", CHANGES)
def test_what_has_failed_needs_no_flush(disk: NbdDisk, op: int) -> None:
    assert serve(disk, op, error=5) == -errno.EIO
    assert not unflushed(disk)


def test_what_is_read_needs_no_flush(disk: NbdDisk) -> None:
    serve(disk, READ, FUA)
    assert not unflushed(disk)


def test_a_flush_that_fails_covers_nothing(disk: NbdDisk) -> None:
    serve(disk, WRITE)
    assert serve(disk, FLUSH, error=5) == -errno.EIO
    assert unflushed(disk)
    assert serve(disk, FLUSH) == 0
    assert not unflushed(disk)


def asked_for(disk: NbdDisk, server: Server, tag: int, op: int) -> None:
    disk.begin(tag, op, 0, SIZE * (op != FLUSH))
    disk.until(lambda: any(a.tag == tag for a in server.asked))


def answered(disk: NbdDisk, server: Server, tag: int) -> None:
    server.answer(next(a for a in server.asked if a.tag == tag))
    disk.until_committed(tag)


def test_a_flush_covers_only_what_was_acknowledged_before_it_was_sent(disk: NbdDisk) -> None:
    server = disk.servers[-1]
    asked_for(disk, server, 0, WRITE)
    asked_for(disk, server, 1, FLUSH)
    answered(disk, server, 0)
    answered(disk, server, 1)
    assert unflushed(disk)
    serve(disk, FLUSH)
    assert not unflushed(disk)


def test_flushes_that_overtake_each_other_cover_what_the_later_one_does(disk: NbdDisk) -> None:
    server = disk.servers[-1]
    asked_for(disk, server, 0, FLUSH)
    serve(disk, WRITE)
    asked_for(disk, server, 1, FLUSH)
    answered(disk, server, 1)
    assert not unflushed(disk)
    answered(disk, server, 0)
    assert not unflushed(disk)


def test_a_flush_that_is_sent_again_covers_what_was_acknowledged_before_that(
    disk: NbdDisk,
) -> None:
    server = disk.servers[-1]
    asked_for(disk, server, 0, FLUSH)
    serve(disk, WRITE)
    server.shut()
    disk.until_lost()
    assert unflushed(disk)
    server = disk.attach(Store(noise(1 << 16)))
    disk.until_asked(server)
    answered(disk, server, 0)
    assert not unflushed(disk)


# --- a server that has forgotten --------------------------------------------


def test_the_next_flush_fails_once_and_is_not_sent(disk: NbdDisk) -> None:
    serve(disk, WRITE)
    disk.lib.nbd_fail_flush(disk.links)
    heard = len(disk.servers[-1].heard)
    assert serve(disk, FLUSH) == -errno.EIO
    assert len(disk.servers[-1].heard) == heard
    assert not unflushed(disk)  # told of once, which is enough
    serve(disk, WRITE)
    assert unflushed(disk)
    assert disk.status.unanswered == 0
    assert serve(disk, FLUSH) == 0
    assert not unflushed(disk)


@pytest.mark.parametrize("op", [READ, *CHANGES])
def test_no_other_request_fails_in_its_place(disk: NbdDisk, op: int) -> None:
    disk.lib.nbd_fail_flush(disk.links)
    assert serve(disk, op) == (SIZE if op in (READ, WRITE) else 0)
    assert serve(disk, op, FUA) == (SIZE if op in (READ, WRITE) else 0)
    assert serve(disk, FLUSH) == -errno.EIO


def test_two_warnings_before_a_flush_are_one(disk: NbdDisk) -> None:
    disk.lib.nbd_fail_flush(disk.links)
    disk.lib.nbd_fail_flush(disk.links)
    assert serve(disk, FLUSH) == -errno.EIO
    assert serve(disk, FLUSH) == 0


def test_a_flush_that_was_under_way_fails_as_well(disk: NbdDisk) -> None:
    server = disk.servers[-1]
    serve(disk, WRITE)
    asked_for(disk, server, 0, FLUSH)
    server.shut()
    disk.until_lost()
    disk.lib.nbd_fail_flush(disk.links)
    disk.attach(Store(noise(1 << 16)))
    disk.until_committed(0)
    assert disk.result(0) == -errno.EIO
    assert serve(disk, FLUSH) == 0
