"""Requests of an NBD disk on the wire and back: what is asked, what is answered, what is told."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from .core import Core
from .driver import DISCARD, FLUSH, FUA, NOUNMAP, READ, WRITE, WRITE_ZEROES, Driver
from .files import noise
from .nbd_disk import PAGES, DiskMaker, Pages
from .nbd_server import WIRE_FUA, WIRE_NO_HOLE, Command, Store, reply_to
from .peer import Pair, tcp_pair, unix_pair
from .world import QID

SIZE, AT = 8192, 3 * 4096


@pytest.fixture(params=PAGES)
def pages(request: pytest.FixtureRequest) -> Pages:
    return PAGES[request.param]


# --- one at a time ----------------------------------------------------------

REQUESTS = {
    "READ": (READ, 0, Command.READ, 0),
    "READ, as if it were FUA": (READ, FUA, Command.READ, 0),
    "WRITE": (WRITE, 0, Command.WRITE, 0),
    "WRITE with FUA": (WRITE, FUA, Command.WRITE, WIRE_FUA),
    "FLUSH": (FLUSH, 0, Command.FLUSH, 0),
    "FLUSH, as if it were FUA": (FLUSH, FUA, Command.FLUSH, 0),
    "DISCARD": (DISCARD, 0, Command.TRIM, 0),
    "DISCARD with FUA": (DISCARD, FUA, Command.TRIM, WIRE_FUA),
    "WRITE_ZEROES": (WRITE_ZEROES, 0, Command.WRITE_ZEROES, 0),
    "WRITE_ZEROES that keeps its space": (
        WRITE_ZEROES, FUA | NOUNMAP, Command.WRITE_ZEROES, WIRE_FUA | WIRE_NO_HOLE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("of", [unix_pair, tcp_pair])
@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_is_asked_and_answered_to_the_byte(
    new_disk: DiskMaker, pages: Pages, name: str, of: Callable[[], Pair]
) -> None:
    op, flags, command, told = REQUESTS[name]
    disk = new_disk(pages=pages)
    server = disk.attach(Store(noise(1 << 16, 1)), of)
    disk.fill(1, noise(SIZE, 2))
    is_flush = op == FLUSH
    disk.begin(1, op, 0 if is_flush else AT, 0 if is_flush else SIZE, flags)
    disk.until_asked(server)
    (asked,) = server.asked
    assert (asked.command, asked.flags, asked.tag) == (command, told, 1)
    assert (asked.offset, asked.length) == ((0, 0) if is_flush else (AT, SIZE))
    assert asked.data == (noise(SIZE, 2) if op == WRITE else b"")
    assert len(server.heard) == 28 + len(asked.data)
    assert not disk.committed(1)
    assert disk.status.unanswered == 1
    server.answer(asked)
    disk.until_committed(1)
    assert disk.result(1) == (SIZE if op in (READ, WRITE) else 0)
    want = noise(1 << 16, 1)[AT : AT + SIZE] if op == READ else noise(SIZE, 2)
    assert disk.held(1, SIZE) == want
    status = disk.status
    assert (status.state, status.attached) == (disk.lib.NBD_CONNECTED, 1)
    assert (status.unanswered, status.ended, status.losses) == (0, 1, 0)
    assert disk.driver.in_flight == 1  # the next reply is awaited


def test_what_names_more_bytes_than_there_is_memory_is_asked_whole(new_disk: DiskMaker) -> None:
    disk = new_disk()
    server = disk.attach()
    most = 0xFFFFFFFF // 512 * 512
    for tag, op in enumerate((DISCARD, WRITE_ZEROES)):
        disk.begin(tag, op, 1 << 62, most)
        disk.until_asked(server)
        asked = server.asked.pop()
        assert (asked.offset, asked.length) == (1 << 62, most)
        server.say(reply_to(asked.cookie))
        disk.until_committed(tag)
        assert disk.result(tag) == 0


def test_another_operation_is_refused_and_nothing_of_it_is_sent(new_disk: DiskMaker) -> None:
    disk = new_disk()
    server = disk.attach()
    disk.begin(0, 9, 0, 512)  # UBLK_IO_OP_WRITE_SAME and the like
    disk.until_committed(0)
    assert disk.result(0) == -errno.EOPNOTSUPP
    disk.settle()
    assert server.heard == b""
    assert disk.status.unanswered == 0


# --- errors -----------------------------------------------------------------

ERRORS = {
    1: -errno.EIO,
    5: -errno.EIO,
    12: -errno.EIO,
    22: -errno.EIO,
    28: -errno.ENOSPC,
    75: -errno.EIO,
    95: None,
    107: -errno.EIO,
    0xFFFFFFFF: -errno.EIO,
}


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("op", [READ, WRITE, FLUSH, DISCARD, WRITE_ZEROES])
def test_an_error_of_the_server_is_told_and_the_next_reply_is_read_right(
    new_disk: DiskMaker, op: int, error: int
) -> None:
    """The reply of a READ that failed has no payload."""
    disk = new_disk()
    server = disk.attach(Store(noise(1 << 16, 1)))
    disk.begin(0, op, AT * (op != FLUSH), SIZE * (op != FLUSH))
    disk.begin(1, READ, AT, SIZE)
    disk.until_asked(server, 2)
    by_tag = {asked.tag: asked for asked in server.asked}
    server.answer(by_tag[0], error)
    server.answer(by_tag[1])
    disk.until_committed(0, 1)
    unsupported = -errno.EIO if op in (READ, WRITE, FLUSH) else -errno.EOPNOTSUPP
    assert disk.result(0) == ERRORS[error] or (ERRORS[error] is None and
                                               disk.result(0) == unsupported)  # fmt: skip
    assert disk.result(1) == SIZE
    assert disk.held(1, SIZE) == noise(1 << 16, 1)[AT : AT + SIZE]
    assert (disk.status.losses, disk.status.ended) == (0, 2)
    assert not disk.lib.nbd_unflushed(disk.links)


# --- many at once -----------------------------------------------------------


@pytest.mark.parametrize("last_first", [False, True])
def test_replies_come_in_any_order(new_disk: DiskMaker, pages: Pages, last_first: bool) -> None:
    depth = 16
    disk = new_disk(pages=pages, depth=depth, sqes=8)
    store = Store(noise(1 << 20, 1))
    server = disk.attach(store)
    want = bytearray(store.content)
    cookies = set()
    for turn in range(3):
        for tag in range(depth):
            data = noise(SIZE, 100 * turn + tag)
            disk.fill(tag, data)
            disk.begin(tag, (READ, WRITE)[(tag + turn) % 2], tag * SIZE, SIZE)
        disk.until_asked(server, depth)
        cookies |= {asked.cookie for asked in server.asked}
        if last_first:
            server.asked.reverse()
        server.answer_all()
        disk.until_committed(*range(depth))
        for tag in range(depth):
            assert disk.result(tag) == SIZE
            held, at = disk.held(tag, SIZE), tag * SIZE
            if (tag + turn) % 2:
                assert held == noise(SIZE, 100 * turn + tag)
                want[at : at + SIZE] = held
            assert held == want[at : at + SIZE]
    assert store.content == want
    assert len(cookies) == 3 * depth
    assert disk.status.ended == 3 * depth


def test_requests_that_come_before_a_connection_wait_for_it(
    new_disk: DiskMaker, pages: Pages
) -> None:
    disk = new_disk(pages=pages)
    disk.fill(0, noise(SIZE))
    for tag, op in enumerate((WRITE, FLUSH)):
        disk.begin(tag, op, 0, SIZE * (op == WRITE))
    disk.settle()
    assert disk.driver.in_flight == 0
    assert (disk.status.state, disk.status.unanswered) == (disk.lib.NBD_WAITING, 2)
    server = disk.attach(Store(bytes(SIZE)))
    disk.until_asked(server, 2)
    server.answer_all()
    disk.until_committed(0, 1)
    assert (disk.result(0), disk.result(1)) == (SIZE, 0)
    assert server.store.content == noise(SIZE)


def test_a_socket_that_takes_little_at_a_time_gets_whole_requests(
    new_disk: DiskMaker, pages: Pages
) -> None:
    """What does not fit waits in the kernel and goes on in its place."""
    disk = new_disk(pages=pages, max_io=1 << 20)
    size = 1 << 20
    server = disk.attach(Store(bytes(4 * size)), lambda: unix_pair(room=1))
    for tag in range(4):
        disk.fill(tag, noise(size, tag))
        disk.begin(tag, WRITE, tag * size, size)
    disk.until_asked(server, 4)
    server.answer_all()
    disk.until_committed(*range(4))
    assert [disk.result(tag) for tag in range(4)] == [size] * 4
    assert bytes(server.store.content) == b"".join(noise(size, tag) for tag in range(4))


# --- a queue's own ----------------------------------------------------------


def test_a_queue_beyond_the_links_does_not_begin(core: Core) -> None:
    lib, ffi = core.lib, core.ffi
    links = lib.nbd_new(ffi.new("struct nbd_config *", {"nr_links": QID, "lost_fd": -1}))
    with pytest.raises(OSError, match="Invalid"):
        Driver(core, [-1], qid=QID, ops=lib.nbd_ops(), target=links, max_members=2)
    lib.nbd_free(links)


@pytest.mark.parametrize("number", [0, 65])
def test_there_are_no_links_without_a_number_that_can_be(core: Core, number: int) -> None:
    config = core.ffi.new("struct nbd_config *", {"nr_links": number, "lost_fd": -1})
    assert not core.lib.nbd_new(config)


def test_the_end_of_a_queue_leaves_nothing_in_flight(new_disk: DiskMaker) -> None:
    disk = new_disk(timeout_ns=10**12)
    server = disk.attach(Store(bytes(SIZE)))
    disk.begin(0, READ, 0, SIZE)
    disk.until_asked(server)
    server.answer_all()
    disk.until_committed(0)
    assert disk.driver.in_flight == 2  # the next reply, and the clock
    assert disk.driver.end() == 0
    assert disk.driver.in_flight == 0


def test_a_connection_that_no_queue_takes_is_closed_with_the_disk_or_by_a_break(
    new_disk: DiskMaker,
) -> None:
    disk = new_disk()
    assert disk.driver.end() == 0
    first = disk.attach()
    second = disk.attach()
    first.work()
    second.work()
    assert (first.ended, second.ended, disk.status.attached) == (True, False, 1)
    disk.break_off()
    second.work()
    assert (second.ended, disk.status.attached) == (True, 2)
    disk.attach()  # the fixture sees whether it stays
