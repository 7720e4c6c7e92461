"""Servers that take too long: the connection is given up, whatever they do meanwhile."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

import pytest

from .driver import DISCARD, FLUSH, READ, WRITE, WRITE_ZEROES
from .files import noise
from .nbd_disk import DEPTH, PAGES, DiskMaker, NbdDisk, Pages
from .nbd_server import Server, Store, reply_to
from .peer import Pair, tcp_pair, unix_pair

SOON, LATER, NEVER = 50_000_000, 400_000_000, 10**12
"""Nanoseconds: not to wait long for them; for what should come before; and for ever."""
LARGE = 1 << 18
TIMEOUT = 11  # IORING_OP_TIMEOUT


@pytest.fixture(params=["copy", "auto", "auto, READ_FIXED"])
def pages(request: pytest.FixtureRequest) -> Pages:
    return PAGES[request.param]


def served_by_others(disk: NbdDisk, store: Store, *tags: int) -> bool:
    """By as many as it takes: on a busy machine the honest may be too slow as well."""
    status = disk.status
    if status.state == disk.lib.NBD_WAITING and status.attached == len(disk.servers):
        disk.attach(store)
    disk.servers[-1].answer_all()
    return all(disk.committed(tag) for tag in tags)


def check_late(disk: NbdDisk, server: Server, *tags: int) -> None:
    """It was given up for that, and all of it has ended; the next server has all to do again."""
    disk.until_lost()
    assert disk.heard_of_losses() == 1
    status = disk.status
    assert (status.loss, status.err) == (disk.lib.NBD_LOST_TIMEOUT, -errno.ETIMEDOUT)
    assert (status.state, status.unanswered) == (disk.lib.NBD_WAITING, len(tags))
    disk.until(lambda: disk.driver.in_flight == 0)
    assert not any(disk.committed(tag) for tag in tags)
    store = Store(bytes(server.store.content))
    disk.until(lambda: served_by_others(disk, store, *tags))
    for tag in tags:
        op, offset, size = disk.begun[tag]
        assert disk.result(tag) == (size if op in (READ, WRITE) else 0)
        if op in (READ, WRITE):
            assert disk.held(tag, size) == store.content[offset : offset + size]


@pytest.mark.parametrize("op", [READ, WRITE, FLUSH, DISCARD, WRITE_ZEROES])
def test_a_silent_server(new_disk: DiskMaker, pages: Pages, op: int) -> None:
    disk = new_disk(pages=pages, timeout_ns=SOON)
    server = disk.attach(Store(noise(1 << 16)))
    disk.begin(2, op, 4096 * (op != FLUSH), 4096 * (op != FLUSH))
    check_late(disk, server, 2)


def test_a_server_that_answers_all_but_one(new_disk: DiskMaker) -> None:
    disk = new_disk(timeout_ns=SOON)
    server = disk.attach(Store(noise(1 << 16)))
    disk.begin(0, READ, 0, 4096)
    disk.until_asked(server)

    def answered_and_asked() -> bool:
        """One after the other on another tag, as long as it lasts."""
        for asked in [asked for asked in server.asked if asked.tag == 1]:
            server.answer(asked)
        if disk.status.losses == 0 and (1 not in disk.begun or disk.committed(1)):
            disk.begin(1, READ, 4096, 4096)
        return disk.status.losses > 0

    disk.until(answered_and_asked)
    left = [tag for tag in disk.begun if not disk.committed(tag)]
    assert 0 in left
    check_late(disk, server, *left)


def small_tcp_pair() -> Pair:
    ours, theirs = tcp_pair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    return ours, theirs


@pytest.mark.parametrize("of", [lambda: unix_pair(room=1), small_tcp_pair], ids=["unix", "tcp"])
def test_a_server_that_does_not_read(
    new_disk: DiskMaker, pages: Pages, of: Callable[[], Pair]
) -> None:
    """More than the socket takes: the first is cut off within, the others have not begun."""
    disk = new_disk(pages=pages, timeout_ns=LATER, max_io=LARGE)
    server = disk.attach(Store(bytes(DEPTH * LARGE)), of, hears=0)
    for tag in range(DEPTH):
        disk.fill(tag, noise(LARGE, tag))
        disk.begin(tag, WRITE, tag * LARGE, LARGE)
    check_late(disk, server, *range(DEPTH))


@pytest.mark.parametrize("where", ["reply", "payload"])
def test_a_server_that_trickles(new_disk: DiskMaker, pages: Pages, where: str) -> None:
    """A byte now and then is no answer."""
    size = 64 << 10
    disk = new_disk(pages=pages, timeout_ns=SOON)
    server = disk.attach(Store(noise(size)))
    disk.begin(0, READ, 0, size)
    disk.until_asked(server)
    whole = server.done(server.asked[0])
    server.say(whole[: 0 if where == "reply" else 16])
    rest = iter(whole[0 if where == "reply" else 16 :][: 10 if where == "reply" else size])

    def one_more() -> bool:
        """With every tick of the clock."""
        server.say(bytes(b for b in [next(rest, None)] if b is not None))
        return disk.status.losses > 0

    disk.until(one_more)
    check_late(disk, server, 0)


@pytest.mark.parametrize("error", [0, 28])
def test_a_server_that_answers_what_it_has_not_heard(
    new_disk: DiskMaker, pages: Pages, error: int
) -> None:
    """It may: but a request is not over before its bytes have left."""
    disk = new_disk(pages=pages, max_io=LARGE)
    server = disk.attach(Store(bytes(LARGE)), lambda: unix_pair(room=1), hears=28)
    disk.fill(0, noise(LARGE))
    disk.begin(0, WRITE, 0, LARGE)
    disk.until(lambda: len(server.heard) == 28)
    server.say(reply_to(int.from_bytes(server.heard[8:16]), error))
    disk.settle()
    disk.lib.nbd_limits(disk.links, SOON, 0)  # not before it has been heard
    if not error:
        check_late(disk, server, 0)
        return
    disk.until_lost()
    assert disk.status.loss == disk.lib.NBD_LOST_TIMEOUT
    disk.until_committed(0)
    assert disk.result(0) == -errno.ENOSPC


def test_the_clock_stands_still_where_nothing_is_asked(new_disk: DiskMaker) -> None:
    disk = new_disk(timeout_ns=8_000_000_000)  # whose clock ticks once a second
    server = disk.attach(Store(noise(4096)))
    for _ in range(2):
        disk.begin(0, READ, 0, 4096)
        disk.until_asked(server)
        server.answer_all()
        disk.until_committed(0)
        assert disk.driver.in_flight == 2
        disk.until(lambda: disk.driver.in_flight == 1)
    assert disk.status.losses == 0


def test_without_a_deadline_there_is_no_clock(new_disk: DiskMaker) -> None:
    disk = new_disk(timeout_ns=0)
    server = disk.attach(Store(noise(4096)))
    disk.begin(0, READ, 0, 4096)
    disk.until_asked(server)
    assert disk.driver.in_flight == 1


def test_a_deadline_that_comes_later_is_for_what_waits_already(new_disk: DiskMaker) -> None:
    disk = new_disk(timeout_ns=0)
    server = disk.attach(Store(noise(1 << 16)))
    disk.begin(2, READ, 4096, 4096)
    disk.until_asked(server)
    disk.lib.nbd_limits(disk.links, SOON, 0)
    check_late(disk, server, 2)


def test_a_deadline_that_is_taken_away_ends_no_connection(new_disk: DiskMaker) -> None:
    disk = new_disk(timeout_ns=8_000_000_000)  # whose clock ticks once a second
    server = disk.attach(Store(noise(1 << 16)))
    disk.begin(2, READ, 4096, 4096)
    disk.until_asked(server)
    disk.lib.nbd_limits(disk.links, 0, 0)
    disk.until(lambda: disk.driver.in_flight == 1)  # the clock has stopped
    assert disk.status.losses == 0
    server.answer_all()
    disk.until_committed(2)
    assert disk.result(2) == 4096


def test_the_end_does_not_wait_for_the_clock(new_disk: DiskMaker) -> None:
    disk = new_disk(timeout_ns=NEVER)
    server = disk.attach(Store(noise(4096)))
    disk.begin(0, READ, 0, 4096)
    disk.until_asked(server)
    server.answer_all()
    disk.until_committed(0)
    assert disk.driver.in_flight == 2
    assert disk.driver.end() == 0
    (tick,) = [e for e in disk.driver.issued() if e.opcode == TIMEOUT]
    assert tick.res == -errno.ECANCELED
