"""Connections that are lost in every state of a journal."""

from __future__ import annotations

import errno

import pytest

from .driver import Kind, Outcome
from .nbd_disk import DiskMaker, NbdDisk
from .nbd_journal import (
    JOURNAL_MEMBER,
    OUR_FLUSH,
    ROOM,
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


@pytest.fixture
def disk(new_disk: DiskMaker) -> NbdDisk:
    return new_disk(journal_bytes=ROOM)


def check_all_is_written(disk: NbdDisk, *tags: int) -> None:
    """Over a new connection, and with every flush of ours."""
    server = attach(disk)
    while not all(disk.committed(tag) for tag in tags):
        disk.until(lambda: server.asked)
        answer(disk, server, heard(server)[0])
    check_written(disk, *tags)
    check_stored(server, *tags)
    assert disk.status.unanswered == 0


def test_what_was_not_acknowledged_gives_its_room_back(disk: NbdDisk) -> None:
    server = attach(disk)
    write(disk, 0, 1)
    answer(disk, server, 1)
    lose(disk, server)
    assert listed(disk) == [written(1)]
    server = attach(disk)
    answer(disk, server, 0)
    check_written(disk, 0)
    assert listed(disk) == [written(1), written(0)]


def test_a_loss_while_requests_wait_for_room(disk: NbdDisk) -> None:
    server = attach(disk)
    write(disk, 0, 1, 2, 3)
    lose(disk, server)
    assert disk.status.unanswered == 4
    check_all_is_written(disk, 0, 1, 2, 3)


@pytest.mark.parametrize("answered", [False, True])
def test_a_loss_while_a_flush_of_ours_is_under_way(disk: NbdDisk, answered: bool) -> None:
    server = attach(disk)
    write(disk, 0, 1, 2, 3)
    answer(disk, server, 0)
    if answered:  # in part
        server.say(server.done(of(server, OUR_FLUSH))[:15])
        disk.settle()
    lose(disk, server)
    assert listed(disk) == [written(0)]
    assert disk.lib.nbd_unflushed(disk.links)
    check_all_is_written(disk, 1, 2, 3)


def test_a_flush_of_ours_that_was_lost_is_not_answered_by_the_next_server(disk: NbdDisk) -> None:
    server = attach(disk)
    write(disk, 0, 1, 2)
    answer(disk, server, 0)
    late = server.done(of(server, OUR_FLUSH))
    lose(disk, server)
    server = attach(disk)
    server.say(late)
    disk.until_lost(2)
    assert disk.status.loss == disk.lib.NBD_LOST_COOKIE


def test_a_loss_when_it_is_broken(disk: NbdDisk) -> None:
    server = attach(disk)
    disk.driver.script(0, JOURNAL_MEMBER, [Outcome(Kind.INSTEAD, -errno.EIO)])
    write(disk, 0, 1, 2, 3)
    answer(disk, server, 0)
    lose(disk, server)
    assert is_broken(disk)
    disk.lib.nbd_fail_flush(disk.links)
    check_all_is_written(disk, 1, 2, 3)
    assert not is_broken(disk)


@pytest.mark.parametrize("flushing", [False, True])
def test_requests_that_wait_for_room_fail_with_the_others(disk: NbdDisk, flushing: bool) -> None:
    server = attach(disk)
    write(disk, 0, 1, 2, 3)
    if flushing:
        answer(disk, server, 0)
    disk.fail()
    disk.until_committed(0, 1, 2, 3)
    assert [disk.result(tag) for tag in (1, 2, 3)] == [-errno.EIO] * 3
    assert disk.status.unanswered == 0
    write(disk, 1)
    check_written(disk, 1, result=-errno.EIO)
    server = attach(disk)
    write(disk, 1)
    for asked in (1,) if 1 in heard(server) else (OUR_FLUSH, 1):
        answer(disk, server, asked)
    check_written(disk, 1)
