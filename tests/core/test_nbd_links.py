"""The keeper's wishes, in any order: connections come, are given up, and are done without."""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Callable

import pytest

from .core import Core
from .driver import DISCARD, FLUSH, READ, WRITE, WRITE_ZEROES, Kind, Outcome
from .files import noise
from .nbd_disk import DEPTH, PAGES, DiskMaker, NbdDisk
from .nbd_server import Server, Store
from .peer import Pair, tcp_pair, unix_pair

SIZE = 4096
CONTENT = noise(DEPTH * SIZE, 1)
LARGE = 1 << 20


def ended(server: Server) -> bool:
    server.work()
    return server.ended


def check_served(disk: NbdDisk, server: Server, tag: int = 3) -> None:
    """By this one, and by no other."""
    disk.begin(tag, READ, tag * SIZE, SIZE)
    disk.until_asked(server)
    server.answer_all()
    disk.until_committed(tag)
    assert disk.result(tag) == SIZE
    assert disk.held(tag, SIZE) == CONTENT[tag * SIZE :][:SIZE]


def check_fails(disk: NbdDisk, op: int = READ, tag: int = 3) -> None:
    disk.begin(tag, op, 0, SIZE * (op != FLUSH))
    disk.until_committed(tag)
    assert disk.result(tag) == -errno.EIO


# --- one after the other ----------------------------------------------------


def test_of_two_connections_at_once_the_later_one_is_used(new_disk: DiskMaker) -> None:
    disk = new_disk()
    first, second = disk.attach(Store(CONTENT)), disk.attach(Store(CONTENT))
    assert ended(first)
    check_served(disk, second)
    assert (disk.status.attached, disk.status.losses) == (2, 0)


@pytest.mark.parametrize("busy", [False, True])
def test_a_connection_that_comes_too_soon_waits_for_the_end_of_the_other(
    new_disk: DiskMaker, busy: bool
) -> None:
    disk = new_disk()
    first = disk.attach(Store(CONTENT))
    disk.until_connected()
    if busy:
        disk.begin(0, READ, 0, SIZE)
        disk.until_asked(first)
    second = disk.attach(Store(CONTENT))
    disk.settle()
    assert (disk.status.attached, ended(second)) == (1, False)
    if not busy:
        check_served(disk, first)
    first.shut()
    disk.until(lambda: disk.status.attached == 2)
    disk.until_connected()
    if busy:
        disk.until_asked(second)
        second.answer_all()
        disk.until_committed(0)
        assert disk.result(0) == SIZE
    check_served(disk, second)


def test_of_several_that_come_too_soon_the_last_is_used(new_disk: DiskMaker) -> None:
    disk = new_disk()
    first = disk.attach(Store(CONTENT))
    disk.until_connected()
    others = []
    for _ in range(3):
        others.append(disk.attach(Store(CONTENT)))
        disk.settle()
    assert [ended(other) for other in others] == [True, True, False]
    assert disk.status.attached == 3
    first.shut()
    disk.until(lambda: disk.status.attached == 4)
    check_served(disk, others[-1])


# --- given up ---------------------------------------------------------------


def test_a_break_gives_the_connection_up_and_keeps_what_was_asked(new_disk: DiskMaker) -> None:
    disk = new_disk()
    first = disk.attach(Store(CONTENT))
    disk.begin(0, READ, 0, SIZE)
    disk.until_asked(first)
    disk.break_off()
    disk.until_lost()
    assert (disk.status.loss, disk.status.err) == (disk.lib.NBD_LOST_TOLD, 0)
    disk.until_ended(first)
    disk.break_off()  # there is nothing any more
    disk.settle()
    assert (disk.status.losses, disk.status.unanswered) == (1, 1)
    second = disk.attach(Store(CONTENT))
    disk.until_asked(second)
    second.answer_all()
    disk.until_committed(0)
    assert disk.result(0) == SIZE


def test_a_break_without_a_connection_is_no_loss(new_disk: DiskMaker) -> None:
    disk = new_disk()
    disk.break_off()
    disk.settle()
    assert (disk.status.losses, disk.status.attached) == (0, 0)
    assert disk.status.state == disk.lib.NBD_WAITING
    check_served(disk, disk.attach(Store(CONTENT)))


def not_begun(disk: NbdDisk, connected: bool) -> Server:
    """A connection that waits behind another, or has not been looked at yet."""
    if connected:
        disk.attach(Store(CONTENT))
        disk.until_connected()
    waiting = disk.attach(Store(CONTENT))
    if connected:
        disk.settle()
    return waiting


@pytest.mark.parametrize("connected", [False, True])
def test_a_break_also_gives_up_what_has_not_begun(new_disk: DiskMaker, connected: bool) -> None:
    disk = new_disk()
    waiting = not_begun(disk, connected)
    disk.break_off()
    disk.settle()
    disk.until_ended(waiting)
    assert disk.status.state == disk.lib.NBD_WAITING
    assert (disk.status.losses, disk.status.attached) == (connected, 1 + connected)
    check_served(disk, disk.attach(Store(CONTENT)))


@pytest.mark.parametrize("room", [None, 1])
def test_a_break_and_a_connection_at_once_are_done_in_that_order(
    new_disk: DiskMaker, room: int | None
) -> None:
    """Though what was under way has to end first."""
    disk = new_disk(max_io=LARGE, pages=PAGES["auto"])
    first = disk.attach(Store(bytes(LARGE)), lambda: unix_pair(room), hears=0 if room else None)
    disk.fill(0, noise(LARGE))
    disk.begin(0, WRITE, 0, LARGE)
    if room:
        disk.settle()
    else:
        disk.until_asked(first)
    disk.break_off()
    second = disk.attach(Store(bytes(LARGE)))
    disk.until_asked(second)
    second.answer_all()
    disk.until_committed(0)
    assert disk.result(0) == LARGE
    assert second.store.content == noise(LARGE)
    assert disk.status.losses == 1


@pytest.mark.parametrize("of", [unix_pair, tcp_pair])
@pytest.mark.parametrize("pages", ["copy", "auto", "auto, READ_FIXED", "register"])
def test_whoever_made_it_can_hear_the_server_out(
    core: Core, new_disk: DiskMaker, of: Callable[[], Pair], pages: str
) -> None:
    """Nothing of ours is under way any more by then, not even half an answer."""
    disk = new_disk(pages=PAGES[pages])
    ours, theirs = of()
    with ours.dup() as kept:
        server = disk.attach(Store(CONTENT), lambda: (ours, theirs))
        disk.begin(0, READ, 0, SIZE)
        disk.begin(1, WRITE, SIZE, SIZE)
        disk.until_asked(server, 2)
        (read,) = [asked for asked in server.asked if asked.tag == 0]
        server.say(server.done(read)[:100])
        disk.settle()
        disk.break_off()
        disk.until_ended(server)
        disk.until(lambda: disk.driver.in_flight == 0)
        server.say(b"what is left of it")
        heard = b""  # over TCP the half answer may come only now
        while not heard.endswith(b"what is left of it"):
            heard += kept.recv(100) or pytest.fail(f"it ends after {heard!r}")
        core.lib.stream_abort(kept.fileno())
        both = select.poll()
        both.register(theirs, 0)
        assert both.poll(5000) != []
    check_reread(disk)


def check_reread(disk: NbdDisk) -> None:
    server = disk.attach(Store(CONTENT))
    disk.until_asked(server, 2)
    server.answer_all()
    disk.until_committed(0, 1)
    assert disk.result(0) == disk.result(1) == SIZE
    assert disk.held(0, SIZE) == CONTENT[:SIZE]


@pytest.mark.parametrize("op", [READ, WRITE])
def test_a_server_that_only_stops_listening_is_lost(new_disk: DiskMaker, op: int) -> None:
    disk = new_disk()
    server = disk.attach(Store(CONTENT))
    disk.until_connected()
    server.end.shutdown(socket.SHUT_RD)
    disk.begin(0, op, 0, SIZE)
    disk.until_lost()
    assert (disk.status.loss, disk.status.err) == (disk.lib.NBD_LOST_SOCKET, -errno.EPIPE)
    disk.until(lambda: disk.driver.in_flight == 0)


@pytest.mark.parametrize(
    ("op", "may"), [(READ, 0), (WRITE, 1), (FLUSH, 0), (DISCARD, 1), (WRITE_ZEROES, 1)]
)
def test_it_is_known_whether_a_server_may_still_write(
    new_disk: DiskMaker, op: int, may: int
) -> None:
    disk = new_disk()
    server = disk.attach(Store(CONTENT))
    for tag in range(2):
        disk.begin(tag, op, 0, SIZE * (op != FLUSH))
        disk.until_asked(server)
        if tag == 0:
            server.answer_all()
            disk.until_committed(0)
    server.shut()
    disk.until_lost()
    assert disk.status.may_still_write == may
    server = disk.attach(Store(CONTENT))
    disk.until_asked(server)
    server.answer_all()
    disk.until_committed(1)
    server.shut()
    disk.until_lost(2)
    assert disk.status.may_still_write == 0


# --- done without -----------------------------------------------------------


@pytest.mark.parametrize("op", [READ, WRITE, FLUSH])
def test_without_a_connection_for_too_long_requests_fail(new_disk: DiskMaker, op: int) -> None:
    disk = new_disk()
    for tag in range(DEPTH - 1):
        disk.begin(tag, op, 0, SIZE * (op != FLUSH))
    disk.settle()
    for _ in range(2):
        disk.fail()
        disk.until_committed(*range(DEPTH - 1))
        assert [disk.result(tag) for tag in range(DEPTH - 1)] == [-errno.EIO] * (DEPTH - 1)
        assert disk.status.state == disk.lib.NBD_FAILING
        check_fails(disk, op)
    assert (disk.status.losses, disk.status.unanswered) == (0, 0)
    check_served_once_connected(disk)


def check_served_once_connected(disk: NbdDisk) -> None:
    server = disk.attach(Store(CONTENT))
    disk.until_connected()
    check_served(disk, server)


def test_a_connection_is_given_up_for_it(new_disk: DiskMaker) -> None:
    disk = new_disk()
    server = disk.attach(Store(CONTENT))
    disk.begin(0, READ, 0, SIZE)
    disk.until_asked(server)
    disk.fail()
    disk.until_committed(0)
    assert disk.result(0) == -errno.EIO
    assert (disk.status.loss, disk.status.losses) == (disk.lib.NBD_LOST_TOLD, 1)
    disk.until_ended(server)
    check_fails(disk)
    check_served_once_connected(disk)


def test_a_connection_that_comes_at_the_same_time_saves_the_requests(new_disk: DiskMaker) -> None:
    disk = new_disk()
    disk.begin(0, READ, 0, SIZE)
    disk.fail()
    server = disk.attach(Store(CONTENT))
    disk.until_asked(server)
    server.answer_all()
    disk.until_committed(0)
    assert disk.result(0) == SIZE


@pytest.mark.parametrize("connected", [False, True])
def test_what_has_not_begun_is_given_up_for_it_as_well(
    new_disk: DiskMaker, connected: bool
) -> None:
    """Else a disk that shall end would have a connection again, and requests that wait on it."""
    disk = new_disk()
    waiting = not_begun(disk, connected)
    disk.begin(0, READ, 0, SIZE)
    disk.fail()
    disk.until_committed(0)
    assert disk.result(0) == -errno.EIO
    disk.until_ended(waiting)
    disk.settle()
    assert disk.status.state == disk.lib.NBD_FAILING
    assert disk.status.attached == 1 + connected
    check_fails(disk)
    check_served_once_connected(disk)


def test_requests_whose_members_end_later_fail_then(new_disk: DiskMaker) -> None:
    disk = new_disk(max_io=LARGE)
    disk.attach(Store(bytes(LARGE)), lambda: unix_pair(room=1), hears=0)
    for tag in range(DEPTH):
        disk.begin(tag, WRITE, 0, LARGE)
    disk.settle()
    disk.fail()
    disk.until_committed(*range(DEPTH))
    assert [disk.result(tag) for tag in range(DEPTH)] == [-errno.EIO] * DEPTH
    assert disk.status.unanswered == 0


def test_they_do_not_fail_with_what_the_socket_says(new_disk: DiskMaker) -> None:
    """ETIMEDOUT would go through to the application: it means something to the block layer."""
    disk = new_disk(max_io=LARGE)
    disk.attach(Store(bytes(LARGE)), lambda: unix_pair(room=1), hears=0)
    disk.driver.script(0, 1, [Outcome(Kind.DENY, -errno.ETIMEDOUT)])
    disk.begin(0, WRITE, 0, LARGE)
    disk.settle()
    disk.fail()
    disk.until_committed(0)
    assert [issued.res for issued in disk.driver.issued() if issued.member] == [-errno.ETIMEDOUT]
    assert disk.result(0) == -errno.EIO


# --- the ends ---------------------------------------------------------------


def test_a_queue_may_end_with_requests_that_wait(core: Core) -> None:
    """When the driver is gone."""
    for failing in (False, True):
        disk = NbdDisk(core)
        disk.begin(0, READ, 0, SIZE)
        disk.settle()
        if failing:
            disk.fail()
        disk.close()


def test_links_that_no_queue_uses_can_be_told_anything(core: Core) -> None:
    lib, ffi = core.lib, core.ffi
    links = lib.nbd_new(ffi.new("struct nbd_config *", {"nr_links": 64, "lost_fd": -1}))
    ours, theirs = unix_pair()
    told = ffi.new("struct nbd_status *")
    with theirs:
        for link in (0, 63):
            lib.nbd_fail(links, link)
            lib.nbd_break(links, link)
            lib.nbd_look(links, link, told)
            assert (told.state, told.attached, told.losses) == (lib.NBD_WAITING, 0, 0)
        lib.nbd_attach(links, 63, ours.detach())
        lib.nbd_free(links)
        assert theirs.recv(1) == b""
