"""Replies that cannot be believed: the first ends the connection, and what was asked is kept."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from .driver import FLUSH, READ, WRITE
from .files import noise
from .nbd_disk import DEPTH, PAGES, DiskMaker, NbdDisk, Pages
from .nbd_server import ESHUTDOWN, REPLY, REPLY_MAGIC, Server, Store, reply_to

SIZE = 4096
CONTENT = noise(DEPTH * SIZE, 1)


@pytest.fixture(params=["copy", "auto", "register, READ_FIXED"])
def pages(request: pytest.FixtureRequest) -> Pages:
    return PAGES[request.param]


def reading(disk: NbdDisk, *tags: int) -> Server:
    """A server that was asked for the blocks of these tags."""
    server = disk.attach(Store(CONTENT))
    for tag in tags:
        disk.begin(tag, READ, tag * SIZE, SIZE)
    disk.until_asked(server, len(tags))
    return server


def check_asked_again(disk: NbdDisk, *tags: int) -> None:
    """Nothing but these was kept, and an honest server answers them."""
    disk.settle()
    assert disk.driver.in_flight == 0
    assert disk.status.unanswered == len(tags)
    assert not any(disk.committed(tag) for tag in tags)
    server = disk.attach(Store(CONTENT))
    disk.until_asked(server, len(tags))
    assert sorted(asked.tag for asked in server.asked) == sorted(tags)
    server.answer_all()
    disk.until_committed(*tags)
    for tag in tags:
        assert disk.result(tag) == SIZE
        assert disk.held(tag, SIZE) == CONTENT[tag * SIZE :][:SIZE]


# --- what is no reply -------------------------------------------------------


@pytest.mark.parametrize(
    "magic",
    [
        0,
        0xFFFFFFFF,
        REPLY_MAGIC ^ 1,
        REPLY_MAGIC ^ 1 << 31,
        0x98664467,  # in the other order
        0x668E33EF,  # of a structured reply
        0x6E8A278C,  # of an extended one
        0x25609513,  # of a request
    ],
)
def test_another_magic_is_no_reply(new_disk: DiskMaker, pages: Pages, magic: int) -> None:
    disk = new_disk(pages=pages)
    server = reading(disk, 0, 1)
    server.say(REPLY.pack(magic, 0, server.asked[0].cookie) + CONTENT[:SIZE])
    disk.until_lost()
    assert (disk.status.loss, disk.status.err) == (disk.lib.NBD_LOST_MAGIC, 0)
    disk.until_ended(server)
    check_asked_again(disk, 0, 1)


COOKIES: dict[str, Callable[[int], int]] = {
    "of the generation before": lambda cookie: cookie - (1 << 32),
    "of the next generation": lambda cookie: cookie + (1 << 32),
    "of an earlier use of the tag": lambda cookie: (cookie - (1 << 16)) % (1 << 64),
    "of a later use of the tag": lambda cookie: cookie + (1 << 16),
    "of a tag that is free": lambda cookie: cookie + 2,
    "of the tag behind the last": lambda cookie: cookie & ~0xFFFF | DEPTH,
    "of the last tag that can be named": lambda cookie: cookie | 0xFFFF,
    "in the other order": lambda cookie: int.from_bytes(cookie.to_bytes(8, "little")),
    "0": lambda _: 0,
    "all ones": lambda _: (1 << 64) - 1,
}


@pytest.mark.parametrize("error", [0, 5, ESHUTDOWN])
@pytest.mark.parametrize("name", COOKIES)
def test_a_cookie_that_nobody_waits_for_is_a_lie(
    new_disk: DiskMaker, pages: Pages, name: str, error: int
) -> None:
    disk = new_disk(pages=pages)
    server = reading(disk, 0, 1)
    cookie = COOKIES[name](server.asked[0].cookie)
    assert cookie not in [asked.cookie for asked in server.asked]
    server.say(reply_to(cookie, error, CONTENT[:SIZE]))
    disk.until_lost()
    assert (disk.status.loss, disk.status.err) == (disk.lib.NBD_LOST_COOKIE, 0)
    check_asked_again(disk, 0, 1)


@pytest.mark.parametrize("op", [READ, WRITE, FLUSH])
@pytest.mark.parametrize("error", [0, 5])
def test_a_second_reply_is_a_lie_and_the_first_counts(
    new_disk: DiskMaker, pages: Pages, op: int, error: int
) -> None:
    disk = new_disk(pages=pages)
    server = disk.attach(Store(CONTENT))
    disk.begin(0, op, 0, SIZE * (op != FLUSH))
    disk.begin(1, READ, SIZE, SIZE)
    disk.until_asked(server, 2)
    reply = server.done(server.asked[0], error)
    server.say(2 * reply)
    disk.until_lost()
    assert disk.status.loss == disk.lib.NBD_LOST_COOKIE
    disk.until_committed(0)
    done = SIZE if op != FLUSH else 0
    assert disk.result(0) == (-errno.EIO if error else done)
    check_asked_again(disk, 1)


def test_a_second_reply_while_the_first_one_s_payload_arrives_is_part_of_it(
    new_disk: DiskMaker, pages: Pages
) -> None:
    disk = new_disk(pages=pages)
    server = reading(disk, 0)
    reply = reply_to(server.asked.pop().cookie)
    server.say(reply + (reply + bytes(SIZE))[:SIZE])
    disk.until_committed(0)
    assert disk.held(0, SIZE) == (reply + bytes(SIZE))[:SIZE]
    assert disk.status.losses == 0


def test_a_reply_of_the_last_connection_is_a_lie_on_the_next(new_disk: DiskMaker) -> None:
    disk = new_disk()
    server = reading(disk, 0)
    old = server.asked[0].cookie
    server.shut()
    disk.until_lost()
    second = disk.attach(Store(CONTENT))
    disk.until_asked(second)
    assert second.asked[0].cookie >> 32 == (old >> 32) + 1  # the generation
    second.say(reply_to(old, 0, CONTENT[:SIZE]))
    disk.until_lost(2)
    assert disk.status.loss == disk.lib.NBD_LOST_COOKIE
    check_asked_again(disk, 0)


def test_an_answer_before_there_was_a_question_is_a_lie(new_disk: DiskMaker) -> None:
    disk = new_disk()
    server = disk.attach()
    server.say(reply_to(1 << 32 | 1 << 16))
    disk.until_lost()
    assert disk.status.loss == disk.lib.NBD_LOST_COOKIE
    check_asked_again(disk)


# --- a server that ends -----------------------------------------------------


@pytest.mark.parametrize("op", [READ, WRITE, FLUSH])
def test_a_server_that_says_that_it_ends_is_left_and_no_request_fails(
    new_disk: DiskMaker, pages: Pages, op: int
) -> None:
    """A stock server answers what it has not done so when it is told to end."""
    disk = new_disk(pages=pages)
    server = disk.attach(Store(CONTENT))
    for tag in range(DEPTH):
        disk.fill(tag, noise(SIZE, tag))
        disk.begin(tag, op, tag * SIZE * (op != FLUSH), SIZE * (op != FLUSH))
    disk.until_asked(server, DEPTH)
    server.answer(server.asked[0])
    server.say(b"".join(reply_to(asked.cookie, ESHUTDOWN) for asked in server.asked))
    disk.until_lost()
    assert (disk.status.loss, disk.status.losses) == (disk.lib.NBD_LOST_SHUTDOWN, 1)
    disk.until_committed(0)
    second = disk.attach(server.store)
    disk.until_asked(second, DEPTH - 1)
    second.answer_all()
    disk.until_committed(*range(DEPTH))
    for tag in range(DEPTH):
        assert disk.result(tag) == SIZE * (op != FLUSH)
    if op == WRITE:
        assert server.store.content == b"".join(noise(SIZE, tag) for tag in range(DEPTH))


# --- what is told of it -----------------------------------------------------


def test_every_loss_is_heard_of_once_and_counted(new_disk: DiskMaker) -> None:
    disk = new_disk()
    for losses in range(1, 4):
        server = disk.attach(Store(CONTENT))
        server.say(bytes(100))
        disk.until_lost(losses)
        disk.settle()
        assert disk.heard_of_losses() == 1
        assert disk.driver.stats.lost_connections == losses
        assert disk.driver.stats.without_connection == 1
    disk.attach(Store(CONTENT))
    disk.until_connected()
    assert disk.driver.stats.without_connection == 0
    assert disk.heard_of_losses() == 0
    assert disk.status.attached == 4


def test_a_descriptor_that_is_no_stream_is_a_loss_and_is_closed(new_disk: DiskMaker) -> None:
    disk = new_disk()
    disk.begin(0, READ, 0, SIZE)
    disk.lib.nbd_attach(disk.links, disk.link, os.memfd_create("no socket"))
    disk.until_lost()
    assert (disk.status.loss, disk.status.err) == (disk.lib.NBD_LOST_SOCKET, -errno.ENOTSOCK)
    check_asked_again(disk, 0)
