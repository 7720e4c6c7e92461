"""A disk that goes on with another daemon: the last flush of this one, before it lets go."""

from __future__ import annotations

import pytest

from .driver import FLUSH, WRITE
from .files import noise
from .nbd_disk import DiskMaker, NbdDisk
from .nbd_server import Command, Server, Store
from .world import QID

SIZE = 4096


@pytest.fixture(params=[0, 1 << 20], ids=["strict", "replay"])
def disk(new_disk: DiskMaker, request: pytest.FixtureRequest) -> NbdDisk:
    made = new_disk(journal_bytes=request.param, flushes=True)
    made.attach(Store(noise(1 << 16)))
    return made


def server_of(disk: NbdDisk) -> Server:
    return disk.servers[-1]


def written(disk: NbdDisk, op: int = WRITE) -> None:
    disk.fill(3, noise(SIZE))
    disk.begin(3, op, 0, SIZE * (op != FLUSH))
    disk.until_asked(server_of(disk))
    server_of(disk).answer_all()
    disk.until_committed(3)
    assert disk.result(3) >= 0


def test_it_covers_what_was_acknowledged(disk: NbdDisk) -> None:
    written(disk)
    assert disk.doubts
    assert disk.driver.winds_up()
    disk.until_asked(server_of(disk))
    assert [asked.command for asked in server_of(disk).asked] == [Command.FLUSH]
    assert disk.driver.winds_up()  # the answer is not there
    assert disk.doubts
    server_of(disk).answer_all()
    disk.until(lambda: not disk.driver.winds_up())
    assert not disk.doubts


def test_it_is_not_sent_where_there_is_nothing_to_cover(disk: NbdDisk) -> None:
    assert not disk.driver.winds_up()
    written(disk)
    written(disk, FLUSH)
    assert not disk.driver.winds_up()
    disk.settle()
    assert not server_of(disk).asked


def test_one_that_is_refused_covers_nothing_and_is_not_tried_again(disk: NbdDisk) -> None:
    written(disk)
    assert disk.driver.winds_up()
    disk.until_asked(server_of(disk))
    server_of(disk).answer(server_of(disk).asked[0], 5)
    disk.until(lambda: not disk.driver.winds_up())
    assert not server_of(disk).asked
    assert disk.doubts


def test_a_server_that_is_lost_meanwhile_is_not_waited_for(disk: NbdDisk) -> None:
    written(disk)
    assert disk.driver.winds_up()
    disk.until_asked(server_of(disk))
    server_of(disk).shut()
    disk.until(lambda: not disk.driver.winds_up())
    disk.attach(Store(noise(1 << 16)))
    disk.until_connected()  # it may be another one: its flush would say nothing
    assert disk.doubts


def test_a_silent_server_is_waited_for_but_not_for_ever(disk: NbdDisk) -> None:
    written(disk)
    assert disk.driver.winds_up()
    disk.until_asked(server_of(disk))
    disk.until(lambda: not disk.driver.winds_up())
    assert disk.doubts


def test_a_disk_that_goes_for_good_needs_none(disk: NbdDisk) -> None:
    written(disk)
    disk.lib.nbd_stopping(disk.links, True)
    assert not disk.driver.winds_up()
    disk.settle()
    assert not server_of(disk).asked
    disk.lib.nbd_stopping(disk.links, False)  # it lives on: somebody has it open
    assert disk.driver.winds_up()
    disk.until_asked(server_of(disk))
    server_of(disk).answer_all()


def test_nobody_waits_for_one_any_longer_when_the_disk_goes_for_good(disk: NbdDisk) -> None:
    written(disk)
    assert disk.driver.winds_up()
    disk.until_asked(server_of(disk))
    disk.lib.nbd_stopping(disk.links, True)
    assert not disk.driver.winds_up()


def test_a_server_without_flush_is_not_asked_for_one(new_disk: DiskMaker) -> None:
    disk = new_disk(flushes=False)
    disk.attach(Store(noise(1 << 16)))
    written(disk)
    assert not disk.driver.winds_up()


def test_it_does_not_cover_up_a_loss_that_nobody_has_been_told_of(disk: NbdDisk) -> None:
    written(disk)
    disk.lib.nbd_fail_flush(disk.links)
    written(disk)
    assert not disk.driver.winds_up()
    assert disk.doubts


def test_another_links_writes_are_for_its_own_flush(new_disk: DiskMaker) -> None:
    one = new_disk(flushes=True, link=QID)
    one.attach(Store(noise(1 << 16)))
    other = new_disk(flushes=True, link=0, beside=one)
    other.attach(Store(noise(1 << 16)))
    written(one)
    assert one.driver.winds_up()
    one.until_asked(server_of(one))
    written(other)
    server_of(one).answer_all()
    one.until(lambda: not one.driver.winds_up())
    assert one.lib.nbd_unflushed(one.links)
    assert other.driver.winds_up()
    other.until_asked(server_of(other))
    server_of(other).answer_all()
    other.until(lambda: not other.driver.winds_up())
    assert not other.lib.nbd_unflushed(other.links)
