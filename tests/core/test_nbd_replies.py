"""Replies that come together: when they are taken at once, and that nothing else is."""

from __future__ import annotations

import pytest

from .driver import FLUSH, READ
from .files import noise
from .nbd_disk import DEPTH, PAGES, DiskMaker, NbdDisk, Pages
from .nbd_journal import SIZE, answer, attach, data_of, of, write
from .nbd_server import REPLY, Server, reply_to

RECV = 27  # IORING_OP_RECV
TAGS = range(DEPTH)


@pytest.fixture(params=["copy", "auto, gathered"])
def pages(request: pytest.FixtureRequest) -> Pages:
    return PAGES[request.param]


def receives(disk: NbdDisk) -> int:
    """How often something was waited for on the socket."""
    return sum(sqe.opcode == RECV for sqe in disk.driver.issued())


def all_asked(disk: NbdDisk) -> Server:
    """A server that has heard a write of each tag, and said nothing."""
    server = attach(disk)
    write(disk, *TAGS)
    disk.until_asked(server, DEPTH)
    return server


def test_replies_that_have_come_together_are_taken_at_once(
    new_disk: DiskMaker, pages: Pages
) -> None:
    disk = new_disk(pages=pages)
    server = all_asked(disk)
    before = receives(disk)
    server.say(b"".join(server.done(of(server, tag)) for tag in TAGS))
    disk.until_committed(*TAGS)
    assert [disk.result(tag) for tag in TAGS] == [SIZE] * DEPTH
    assert receives(disk) == before + 1, "the next one"
    write(disk, 0)
    answer(disk, server, 0)


@pytest.mark.parametrize("cut", range(REPLY.size + 1, DEPTH * REPLY.size))
def test_one_that_has_come_in_part_goes_on_at_its_byte(
    new_disk: DiskMaker, pages: Pages, cut: int
) -> None:
    disk = new_disk(pages=pages)
    server = all_asked(disk)
    replies = b"".join(server.done(of(server, tag)) for tag in TAGS)
    server.say(replies[:cut])
    disk.settle()
    assert [disk.committed(tag) for tag in TAGS] == [(tag + 1) * REPLY.size <= cut for tag in TAGS]
    server.say(replies[cut:])
    disk.until_committed(*TAGS)
    assert disk.status.losses == 0


@pytest.mark.parametrize("first", TAGS)
def test_the_data_behind_a_reply_is_not_taken_for_one(
    new_disk: DiskMaker, pages: Pages, first: int
) -> None:
    """Two writes, a read and a flush, whichever is answered first."""
    disk = new_disk(pages=pages)
    server = attach(disk)
    server.store.content[3 * SIZE : 4 * SIZE] = noise(SIZE, 9)
    write(disk, 0, 1)
    disk.begin(2, READ, 3 * SIZE, SIZE)
    disk.begin(3, FLUSH)
    disk.until_asked(server, DEPTH)
    order = [*TAGS[first:], *TAGS[:first]]
    server.say(b"".join(server.done(of(server, tag)) for tag in order))
    disk.until_committed(*TAGS)
    assert disk.held(2, SIZE) == noise(SIZE, 9)
    assert disk.status.losses == 0


def test_a_read_that_is_sent_behind_a_reply_in_part_is_no_harm(
    new_disk: DiskMaker, pages: Pages
) -> None:
    disk = new_disk(pages=pages)
    server = all_asked(disk)
    replies = b"".join(server.done(of(server, tag)) for tag in TAGS)
    server.say(replies[: 2 * REPLY.size + 5])
    disk.until_committed(0, 1)
    disk.begin(0, READ, 0, SIZE)
    disk.until_asked(server)
    server.say(replies[2 * REPLY.size + 5 :])
    server.answer_all()
    disk.until_committed(0, 2, 3)
    assert disk.held(0, SIZE) == data_of(0)
    assert disk.status.losses == 0


@pytest.mark.parametrize("bad", ["magic", "cookie", "end"])
def test_a_bad_one_among_them_ends_the_connection_there(
    new_disk: DiskMaker, pages: Pages, bad: str
) -> None:
    disk = new_disk(pages=pages)
    server = all_asked(disk)
    good = b"".join(server.done(of(server, tag)) for tag in (0, 1))
    says = {"magic": bytes(REPLY.size), "cookie": reply_to(1 << 48), "end": b""}[bad]
    server.say(good + says)
    if not says:
        server.shut()
    disk.until_lost()
    disk.settle()
    assert [disk.committed(tag) for tag in TAGS] == [True, True, False, False]
    again = attach(disk)
    disk.until_asked(again, 2)
    again.answer_all()
    disk.until_committed(2, 3)
