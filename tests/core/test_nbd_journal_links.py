"""A journal whose file fails or is slow, and one that several links have in common."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from .driver import FLUSH, WRITE, Kind, Outcome
from .files import noise
from .nbd_disk import DEPTH, PAGES, DiskMaker, NbdDisk
from .nbd_journal import (
    JOURNAL_MEMBER,
    OUR_FLUSH,
    ROOM,
    SIZE,
    answer,
    attach,
    check_stored,
    check_written,
    heard,
    is_broken,
    listed,
    lose,
    of,
    write,
    written,
)
from .nbd_server import Store

MAX_AGAIN = 128
"""As in group_impl.h: tries of one member."""


@pytest.fixture
def disk(new_disk: DiskMaker) -> NbdDisk:
    return new_disk(journal_bytes=ROOM)


# --- the file ---------------------------------------------------------------


@pytest.mark.parametrize("pages", [name for name, it in PAGES.items() if not it.gather_bytes])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EFBIG])
def test_a_write_that_it_cannot_take_is_no_failure_but_breaks_it(
    new_disk: DiskMaker, pages: str, error: int
) -> None:
    disk = new_disk(pages=PAGES[pages], journal_bytes=ROOM)
    server = attach(disk)
    disk.driver.script(0, JOURNAL_MEMBER, [Outcome(Kind.INSTEAD, -error)])
    write(disk, 0, 1)
    answer(disk, server, 0, 1)
    check_written(disk, 0, 1)
    check_stored(server, 0, 1)
    assert is_broken(disk)
    assert disk.status.losses == 0
    write(disk, 0, 1, 2, 3)
    assert heard(server) == [0, 1, 2, 3]
    answer(disk, server, 0, 1, 2, 3)
    check_written(disk, 0, 1, 2, 3)


def test_those_that_wait_for_room_go_on_when_it_breaks(disk: NbdDisk) -> None:
    server = attach(disk)
    disk.driver.script(1, JOURNAL_MEMBER, [Outcome(Kind.INSTEAD, -errno.EIO)])
    write(disk, 0, 2, 1, 3)
    assert heard(server) == [0, 2]
    answer(disk, server, 0)
    answer(disk, server, OUR_FLUSH)
    assert heard(server) == [2, 1, 3]
    assert is_broken(disk)


def test_a_file_that_never_takes_it_breaks_it_as_well(disk: NbdDisk) -> None:
    server = attach(disk)
    disk.driver.script(0, JOURNAL_MEMBER, [Outcome(Kind.INSTEAD, -errno.EAGAIN)] * MAX_AGAIN)
    write(disk, 0)
    answer(disk, server, 0)
    check_written(disk, 0)
    assert is_broken(disk)
    assert disk.status.losses == 0


def test_a_file_that_takes_it_in_the_end_does_not(disk: NbdDisk) -> None:
    server = attach(disk)
    again = [Outcome(Kind.INSTEAD, -error) for error in (errno.EAGAIN, errno.EINTR)] * 10
    disk.driver.script(0, JOURNAL_MEMBER, again)
    write(disk, 0)
    answer(disk, server, 0)
    assert listed(disk) == [written(0)]
    assert not is_broken(disk)


@pytest.mark.parametrize("first", [1, 512, SIZE - 1])
def test_a_short_write_into_it_goes_on(disk: NbdDisk, first: int) -> None:
    server = attach(disk)
    disk.driver.script(0, JOURNAL_MEMBER, [Outcome(Kind.CUT, first)])
    write(disk, 0)
    answer(disk, server, 0)
    check_written(disk, 0)
    assert listed(disk) == [written(0)]
    assert not is_broken(disk)


@pytest.fixture
def stuck(new_disk: DiskMaker) -> Iterator[tuple[NbdDisk, Callable[[], None]]]:
    """A disk whose journal cannot be written, and what changes that."""
    end, journal = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(journal, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(journal, bytes(SIZE))
    os.set_blocking(journal, True)

    def release() -> None:
        os.set_blocking(end, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.read(end, 1 << 20)

    disk = new_disk(journal_bytes=ROOM, journal=journal)
    yield disk, release
    release()
    disk.close()
    os.close(end)
    os.close(journal)


Stuck = tuple[NbdDisk, Callable[[], None]]


def count(disk: NbdDisk) -> int:
    return int(disk.lib.nbd_journal(disk.links, disk.core.ffi.NULL, 0))


def test_a_write_is_not_in_it_before_its_data_is(stuck: Stuck) -> None:
    disk, release = stuck
    server = attach(disk)
    write(disk, 0)
    server.answer(of(server, 0))
    disk.begin(3, FLUSH)
    disk.settle()
    answer(disk, server, 3)  # which is not told of what is not done
    assert not disk.committed(0)
    assert count(disk) == 0
    release()
    check_written(disk, 0)
    assert count(disk) == 1
    assert disk.lib.nbd_unflushed(disk.links)


def test_its_room_is_nobody_elses_as_long(stuck: Stuck) -> None:
    disk, release = stuck
    server = attach(disk)
    write(disk, 0, 1, 2)
    server.answer_all()
    disk.begin(3, FLUSH)
    disk.settle()
    answer(disk, server, 3)
    assert heard(server) == []
    release()
    check_written(disk, 0, 1)
    disk.until_asked(server)
    answer(disk, server, OUR_FLUSH)
    disk.until(lambda: 2 in heard(server))
    answer(disk, server, 2)


def test_what_is_lost_before_its_data_is_there_is_written_once_more(stuck: Stuck) -> None:
    disk, release = stuck
    server = attach(disk)
    write(disk, 0)
    answered = of(server, 0)
    server.answer(answered)
    disk.settle()
    lose(disk, server)
    assert count(disk) == 0
    server = disk.attach(Store(bytes(DEPTH * SIZE)))
    disk.settle()
    assert not disk.committed(0)
    release()
    disk.until_asked(server)
    assert count(disk) == 0
    answer(disk, server, 0)
    check_stored(server, 0)
    assert count(disk) == 1


def test_what_shall_fail_before_its_data_is_there_fails(stuck: Stuck) -> None:
    disk, release = stuck
    server = attach(disk)
    write(disk, 0)
    server.answer(of(server, 0))
    disk.settle()
    disk.fail()
    disk.settle()
    release()
    check_written(disk, 0, result=-errno.EIO)
    assert count(disk) == 0
    assert disk.status.unanswered == 0


# --- two links --------------------------------------------------------------


@dataclass
class Two:
    """Links of one disk, which have the journal in common."""

    one: NbdDisk
    other: NbdDisk

    def settle(self) -> None:
        for _ in range(3):  # each may wake the other
            self.one.settle()
            self.other.settle()


@pytest.fixture
def two(new_disk: DiskMaker) -> Two:
    one = new_disk(journal_bytes=ROOM)
    return Two(one, new_disk(beside=one, link=0))


def test_an_acknowledgement_of_the_other_link_lets_one_make_room(two: Two) -> None:
    one, other = attach(two.one), attach(two.other)
    write(two.other, 0, 1)
    write(two.one, 2)
    two.settle()
    assert (heard(one), heard(other)) == ([], [0, 1])
    answer(two.other, other, 0)
    two.settle()
    assert (heard(one), heard(other)) == ([OUR_FLUSH], [1])
    answer(two.one, one, OUR_FLUSH, 2)
    answer(two.other, other, 1)
    assert sorted(e.offset for e in listed(two.one)) == [SIZE, 2 * SIZE]


def test_a_refusal_of_the_other_link_makes_room(two: Two) -> None:
    one, other = attach(two.one), attach(two.other)
    write(two.other, 0, 1)
    write(two.one, 2)
    answer(two.other, other, 0, 1, error=28)
    two.settle()
    answer(two.one, one, 2)
    assert listed(two.one) == [written(2)]


def test_a_flush_of_the_other_link_makes_room(two: Two) -> None:
    """Done before this one has come to send its own."""
    one, other = attach(two.one), attach(two.other)
    write(two.other, 0, 1)
    write(two.one, 2)
    answer(two.other, other, 0, 1)
    two.other.begin(3, FLUSH)
    two.other.settle()
    answer(two.other, other, 3)
    assert listed(two.one) == []
    two.settle()
    answer(two.one, one, 2)
    assert listed(two.one) == [written(2)]


def test_when_the_other_link_breaks_the_journal_one_goes_on(two: Two) -> None:
    one, other = attach(two.one), attach(two.other)
    write(two.other, 0)
    two.one.fill(2, noise(ROOM))
    two.one.begin(2, WRITE, 0, ROOM)
    two.settle()
    assert heard(one) == []
    two.other.driver.script(1, JOURNAL_MEMBER, [Outcome(Kind.INSTEAD, -errno.EIO)])
    write(two.other, 1)
    two.settle()
    assert is_broken(two.one)
    assert heard(one) == [2]
    answer(two.one, one, 2)
    answer(two.other, other, 0, 1)


def test_links_that_take_each_others_room_all_come_to_an_end(two: Two) -> None:
    disks = two.one, two.other
    servers = [attach(disk) for disk in disks]
    for _ in range(30):
        for disk in disks:
            write(disk, 0, 1, 2, 3)
        two.settle()
        while not all(disk.committed(tag) for disk in disks for tag in range(DEPTH)):
            for server in servers:
                if server.asked:
                    server.answer(server.asked[-1])
            two.settle()
        for disk in disks:
            check_written(disk, 0, 1, 2, 3)
    for server in servers:
        check_stored(server, 0, 1, 2, 3)
