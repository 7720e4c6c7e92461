"""A link with a journal: every write that a server has acknowledged is in it until a flush is."""

from __future__ import annotations

import errno

import pytest

from .driver import DISCARD, FLUSH, FUA, NOUNMAP, READ, WRITE, WRITE_ZEROES
from .nbd_disk import DEPTH, PAGES, DiskMaker, NbdDisk
from .nbd_journal import (
    OUR_FLUSH,
    ROOM,
    SIZE,
    Entry,
    answer,
    attach,
    check_stored,
    check_written,
    data_of,
    heard,
    is_broken,
    listed,
    of,
    write,
    written,
)
from .nbd_server import WIRE_FUA, WIRE_NO_HOLE, Command, Server


@pytest.fixture
def disk(new_disk: DiskMaker) -> NbdDisk:
    return new_disk(journal_bytes=ROOM)


# --- what is in it ----------------------------------------------------------


@pytest.mark.parametrize("pages", PAGES)
def test_it_has_every_acknowledged_write_in_the_order_of_the_acknowledgements(
    new_disk: DiskMaker, pages: str
) -> None:
    disk = new_disk(pages=PAGES[pages], journal_bytes=DEPTH * SIZE)
    server = attach(disk)
    write(disk, 0, 1, 2, 3)
    assert listed(disk) == []
    answer(disk, server, 2, 0, 3)
    check_written(disk, 2, 0, 3)
    assert listed(disk) == [written(2), written(0), written(3)]
    answer(disk, server, 1)
    check_written(disk, 1)
    assert listed(disk) == [written(2), written(0), written(3), written(1)]
    check_stored(server, 0, 1, 2, 3)


def test_trims_and_zeroes_are_in_it_with_their_flags(disk: NbdDisk) -> None:
    server = attach(disk)
    write(disk, 0)
    disk.begin(1, DISCARD, 0, SIZE, FUA)
    disk.begin(2, WRITE_ZEROES, SIZE, 1 << 15, NOUNMAP)
    disk.begin(3, READ, 0, SIZE)
    disk.settle()
    answer(disk, server, 2, 1, 0, 3)
    assert listed(disk) == [
        Entry(Command.WRITE_ZEROES, WIRE_NO_HOLE, SIZE, b""),
        Entry(Command.TRIM, WIRE_FUA, 0, b""),
        written(0),
    ]


def test_a_durable_write_is_in_it_as_it_may_stand_behind_one_that_is_not(disk: NbdDisk) -> None:
    server = attach(disk)
    disk.fill(0, data_of(0))
    disk.begin(0, WRITE, 0, SIZE, FUA)
    disk.settle()
    answer(disk, server, 0)
    assert listed(disk) == [Entry(Command.WRITE, WIRE_FUA, 0, data_of(0))]
    assert disk.lib.nbd_unflushed(disk.links)


def test_what_was_refused_is_not_in_it(disk: NbdDisk) -> None:
    server = attach(disk)
    for _ in range(3):  # and its room is back
        write(disk, 0, 1)
        answer(disk, server, 0, 1, error=28)
        check_written(disk, 0, 1, result=-errno.ENOSPC)
        assert listed(disk) == []
    assert not disk.lib.nbd_unflushed(disk.links)


def test_a_flush_empties_it_of_what_was_acknowledged_before(disk: NbdDisk) -> None:
    server = attach(disk)
    write(disk, 0, 1)
    answer(disk, server, 0)
    disk.begin(2, FLUSH)
    disk.settle()
    answer(disk, server, 1)
    assert listed(disk) == [written(0), written(1)]
    answer(disk, server, 2)
    assert listed(disk) == [written(1)]
    disk.begin(2, FLUSH)
    disk.settle()
    answer(disk, server, 2, error=5)
    assert listed(disk) == [written(1)]
    disk.begin(2, FLUSH)
    disk.settle()
    answer(disk, server, 2)
    assert listed(disk) == []


# --- without room -----------------------------------------------------------


def test_without_room_requests_wait_for_a_flush_of_ours(disk: NbdDisk) -> None:
    server = attach(disk)
    write(disk, 0, 1, 2, 3)
    assert heard(server) == [0, 1]  # nothing is acknowledged: a flush would make no room
    assert disk.status.unanswered == 4
    answer(disk, server, 0)
    assert heard(server) == [1, OUR_FLUSH]
    flush = of(server, OUR_FLUSH)
    assert (flush.command, flush.flags, flush.offset, flush.length) == (Command.FLUSH, 0, 0, 0)
    assert listed(disk) == [written(0)]
    answer(disk, server, OUR_FLUSH)
    assert heard(server) == [1, 2]
    assert listed(disk) == []
    answer(disk, server, 2, 1)  # room comes from the oldest on
    assert heard(server) == [OUR_FLUSH]
    answer(disk, server, OUR_FLUSH)  # which 1 came too late for
    assert listed(disk) == [written(1)]
    answer(disk, server, OUR_FLUSH)
    answer(disk, server, 3)
    check_written(disk, 0, 1, 2, 3)
    check_stored(server, 0, 1, 2, 3)
    assert listed(disk) == [written(3)]
    assert not is_broken(disk)
    assert disk.status.unanswered == 0


def test_reads_and_flushes_do_not_wait_for_room(disk: NbdDisk) -> None:
    server = attach(disk)
    write(disk, 0, 1, 2)
    disk.begin(3, READ, 0, SIZE)
    disk.settle()
    answer(disk, server, 3)
    check_written(disk, 3)
    disk.begin(3, FLUSH)
    disk.settle()
    answer(disk, server, 0, 1)
    assert heard(server) == [3, OUR_FLUSH]


def test_after_a_flush_of_the_kernels_none_of_ours_is_needed(disk: NbdDisk) -> None:
    server = attach(disk)
    for _ in range(3):
        write(disk, 0, 1)
        answer(disk, server, 0, 1)
        disk.begin(3, FLUSH)
        disk.settle()
        answer(disk, server, 3)
    assert disk.status.ended == 9


def test_a_refusal_makes_room_and_those_that_wait_hear_of_it(disk: NbdDisk) -> None:
    """Nothing is acknowledged then, so there is nothing to flush."""
    server = attach(disk)
    write(disk, 0, 1, 2, 3)
    answer(disk, server, 0, 1, error=28)
    check_written(disk, 0, 1, result=-errno.ENOSPC)
    assert heard(server) == [2, 3]
    answer(disk, server, 2, 3)
    check_written(disk, 2, 3)


def flushed(disk: NbdDisk, tag: int = 3) -> int:
    """How the kernel's flush ends, if no server is asked."""
    disk.begin(tag, FLUSH)
    disk.until_committed(tag)
    return disk.result(tag)


@pytest.mark.parametrize("error", [5, 22, 28, 95])
def test_a_flush_of_ours_that_is_refused_is_told_by_the_kernels_next_one(
    disk: NbdDisk, error: int
) -> None:
    server = attach(disk)
    write(disk, 0, 1, 2, 3)
    answer(disk, server, 0)
    answer(disk, server, OUR_FLUSH, error=error)
    assert not is_broken(disk)
    assert heard(server) == [1, 2]
    answer(disk, server, 1)
    answer(disk, server, OUR_FLUSH)  # the server says it once
    answer(disk, server, 2, 3)
    check_written(disk, 0, 1, 2, 3)
    check_stored(server, 0, 1, 2, 3)
    assert disk.doubts
    assert flushed(disk, 0) == -errno.EIO
    assert not server.asked
    disk.begin(0, FLUSH)
    disk.settle()
    answer(disk, server, 0)
    assert disk.result(0) == 0
    assert not disk.doubts


def two_flushes(disk: NbdDisk) -> Server:
    """Under way: ours, and that of tag 3 behind it."""
    server = attach(disk)
    write(disk, 0, 1, 2)
    answer(disk, server, 0)
    disk.begin(3, FLUSH)
    disk.settle()
    assert heard(server) == [1, OUR_FLUSH, 3]
    return server


def test_so_it_is_by_one_that_is_under_way(disk: NbdDisk) -> None:
    server = two_flushes(disk)
    answer(disk, server, OUR_FLUSH, error=5)
    answer(disk, server, 3)
    assert disk.result(3) == -errno.EIO
    answer(disk, server, 1, 2)
    check_written(disk, 0, 1, 2)
    assert flushed(disk) == -errno.EIO  # the other one may not have covered what is lost


def test_a_flush_that_was_answered_before_does_not_cover_it_up(disk: NbdDisk) -> None:
    server = two_flushes(disk)
    answer(disk, server, 3)
    assert disk.result(3) == 0
    assert not disk.doubts
    answer(disk, server, OUR_FLUSH, error=5)
    assert disk.doubts
    answer(disk, server, 1, 2)
    check_written(disk, 0, 1, 2)
    assert flushed(disk) == -errno.EIO


def test_one_that_makes_room_covers_up_no_loss(disk: NbdDisk) -> None:
    server = attach(disk)
    write(disk, 0)
    answer(disk, server, 0)
    disk.lib.nbd_fail_flush(disk.links)  # the daemon before has lost writes
    write(disk, 0, 1, 2)
    answer(disk, server, 0)
    answer(disk, server, OUR_FLUSH)
    assert disk.doubts  # and so would the next one, if this one died now
    answer(disk, server, 1, 2)
    check_written(disk, 0, 1, 2)
    assert flushed(disk) == -errno.EIO


def test_a_flush_that_tells_of_lost_writes_makes_it_whole(disk: NbdDisk) -> None:
    server = attach(disk)
    write(disk, 0, 1, 2)
    answer(disk, server, 0, 1)
    disk.lib.nbd_fail_flush(disk.links)
    assert not is_broken(disk)
    assert listed(disk) == []
    answer(disk, server, OUR_FLUSH, 2)
    disk.lib.nbd_fail_flush(disk.links)
    assert flushed(disk) == -errno.EIO
    write(disk, 0, 1, 2)
    assert heard(server) == [0, 1]
    answer(disk, server, 0, 1)
    assert listed(disk) == [written(0), written(1)]
    answer(disk, server, OUR_FLUSH)
    answer(disk, server, 2)
    check_written(disk, 0, 1, 2)
