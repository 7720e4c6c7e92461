"""A journal that cannot have everything, and one that several links have in common."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from .driver import FLUSH, WRITE
from .files import noise
from .nbd_disk import DEPTH, PAGES, DiskMaker, NbdDisk
from .nbd_journal import (
    OUR_FLUSH,
    ROOM,
    SIZE,
    answer,
    attach,
    check_stored,
    check_written,
    data_of,
    heard,
    is_broken,
    listed,
    write,
    written,
)

# --- what cannot be copied --------------------------------------------------

LENT = {name: PAGES[name] for name in ("auto", "register", "group", "auto, gathered")}


@pytest.mark.parametrize("pages", LENT)
def test_a_write_that_it_cannot_have_is_no_failure_but_breaks_it(
    new_disk: DiskMaker, pages: str
) -> None:
    disk = new_disk(pages=PAGES[pages], journal_bytes=ROOM)
    server = attach(disk)
    disk.fill(0, data_of(0))
    disk.hide_pages()
    disk.begin(0, WRITE, 0, SIZE)
    disk.settle()
    assert is_broken(disk)
    write(disk, 1)
    answer(disk, server, 0, 1)
    check_written(disk, 0, 1)
    check_stored(server, 0, 1)
    assert disk.status.losses == 0
    assert disk.lib.nbd_unflushed(disk.links)
    write(disk, 0, 1, 2, 3)
    assert heard(server) == [0, 1, 2, 3]
    answer(disk, server, 0, 1, 2, 3)
    check_written(disk, 0, 1, 2, 3)


@pytest.mark.parametrize("pages", LENT)
def test_what_it_does_not_have_is_not_in_it_when_it_is_whole_again(
    new_disk: DiskMaker, pages: str
) -> None:
    disk = new_disk(pages=PAGES[pages], journal_bytes=ROOM)
    server = attach(disk)
    disk.fill(0, data_of(0))
    disk.hide_pages()
    disk.begin(0, WRITE, 0, SIZE)
    disk.settle()
    disk.lib.nbd_fail_flush(disk.links)
    answer(disk, server, 0)
    assert not is_broken(disk)
    assert listed(disk) == []
    assert disk.lib.nbd_unflushed(disk.links)


def test_those_that_wait_for_room_go_on_when_it_breaks(new_disk: DiskMaker) -> None:
    disk = new_disk(pages=PAGES["auto"], journal_bytes=ROOM)
    server = attach(disk)
    write(disk, 0, 2, 1, 3)
    assert heard(server) == [0, 2]
    answer(disk, server, 0)
    disk.hide_pages()
    answer(disk, server, OUR_FLUSH)
    assert heard(server) == [2, 1, 3]
    assert is_broken(disk)


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
    one = new_disk(pages=PAGES["auto"], journal_bytes=ROOM)
    return Two(one, new_disk(pages=PAGES["auto"], beside=one, link=0))


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
    two.other.fill(1, noise(SIZE))
    two.other.hide_pages()
    two.other.begin(1, WRITE, SIZE, SIZE)
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
