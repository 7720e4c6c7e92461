"""Requests that go out in one piece: which, with what, and what there is beside them."""

from __future__ import annotations

import pytest

from .driver import FLUSH, READ, WRITE
from .files import noise
from .nbd_disk import DEPTH, GATHERED, MAX_IO, PAGES, DiskMaker, NbdDisk, Pages
from .nbd_journal import OUR_FLUSH, answer, attach, heard, write
from .nbd_server import Server, Store, reply_to
from .peer import unix_pair
from .world import QID

SIZE = 4096
SEND = 26  # IORING_OP_SEND
SOON = 50_000_000
"""Nanoseconds."""
OUT_BYTES, HEADER = 256 << 10, 28


@pytest.fixture(params=["copy, gathered", "auto, gathered"])
def pages(request: pytest.FixtureRequest) -> Pages:
    return PAGES[request.param]


def sends(disk: NbdDisk) -> list[int]:
    """The lengths of all that was sent."""
    return [sqe.len for sqe in disk.driver.issued() if sqe.opcode == SEND]


def serve(disk: NbdDisk, server: Server, *tags: int) -> None:
    disk.until_asked(server, len(tags))
    server.answer_all()
    disk.until_committed(*tags)
    for tag in tags:
        op, _, size = disk.begun[tag]
        assert disk.result(tag) == (size if op in (READ, WRITE) else 0)


def test_what_one_turn_brings_goes_out_at_once(new_disk: DiskMaker, pages: Pages) -> None:
    disk = new_disk(pages=pages)
    server = attach(disk)
    disk.fill(0, noise(SIZE, 1))
    disk.fill(3, noise(512, 2))
    disk.begin(0, WRITE, 0, SIZE)
    disk.begin(1, READ, SIZE, SIZE)
    disk.begin(2, FLUSH)
    disk.begin(3, WRITE, 3 * SIZE, 512)
    serve(disk, server, 0, 1, 2, 3)
    assert sends(disk) == [4 * HEADER + SIZE + 512]
    assert server.store.content[:SIZE] == noise(SIZE, 1)
    assert server.store.content[3 * SIZE :][:512] == noise(512, 2)


@pytest.mark.parametrize("size", [GATHERED, GATHERED + 512])
def test_a_large_write_leaves_from_its_own_pages(
    new_disk: DiskMaker, pages: Pages, size: int
) -> None:
    disk = new_disk(pages=pages)
    server = disk.attach(Store(bytes(MAX_IO)))
    disk.until_connected()
    disk.fill(0, noise(size))
    disk.begin(0, WRITE, 0, size)
    serve(disk, server, 0)
    assert sends(disk) == ([HEADER + size] if size == GATHERED else [HEADER, size])
    assert server.store.content[:size] == noise(size)


def test_a_copy_is_made_anew_for_the_next_connection(new_disk: DiskMaker, pages: Pages) -> None:
    disk = new_disk(pages=pages)
    server = attach(disk)
    write(disk, 0, 1)
    disk.until_asked(server, 2)
    server.answer(server.asked[0])
    server.shut()
    disk.until_lost()
    disk.settle()
    server = attach(disk)
    disk.fill(1, noise(SIZE, 77))  # whatever is in the pages then
    disk.until_asked(server)
    disk.settle()
    serve(disk, server, 1)


def test_pages_that_cannot_be_copied_are_sent_themselves(new_disk: DiskMaker) -> None:
    disk = new_disk(pages=PAGES["auto, gathered"])
    server = attach(disk)
    disk.fill(0, noise(SIZE))
    disk.hide_pages()
    disk.begin(0, WRITE, 0, SIZE)
    serve(disk, server, 0)
    assert sends(disk) == [HEADER, SIZE]
    assert server.store.content[:SIZE] == noise(SIZE)


def test_while_one_piece_goes_out_the_next_one_fills_and_then_none_waits(
    new_disk: DiskMaker, pages: Pages
) -> None:
    """More than both hold; the rest goes by itself, and all of it arrives whole."""
    depth = 2 * (OUT_BYTES // (GATHERED + HEADER)) + 4
    disk = new_disk(pages=pages, depth=depth, max_io=GATHERED)
    server = disk.attach(Store(bytes(depth * GATHERED)), lambda: unix_pair(room=1), hears=0)
    disk.until_connected()
    for tag in range(depth):
        disk.fill(tag, noise(GATHERED, tag))
        disk.begin(tag, WRITE, tag * GATHERED, GATHERED)
        if tag == 0:
            disk.driver.turn()
    disk.settle()
    server.hears = None
    serve(disk, server, *range(depth))
    assert bytes(server.store.content) == b"".join(noise(GATHERED, tag) for tag in range(depth))
    assert {HEADER, GATHERED, HEADER + GATHERED} < set(sends(disk))


def stuck(new_disk: DiskMaker, pages: Pages, hears: int) -> tuple[NbdDisk, Server]:
    """A disk with a large write that its server takes so many bytes of."""
    disk = new_disk(pages=pages, max_io=1 << 18)
    server = disk.attach(Store(bytes(1 << 20)), lambda: unix_pair(room=1), hears=hears)
    disk.until_connected()
    disk.fill(0, noise(1 << 18))
    disk.begin(0, WRITE, 0, 1 << 18)
    return disk, server


def test_what_was_gathered_and_not_sent_is_not_sent_to_the_next_server(
    new_disk: DiskMaker, pages: Pages
) -> None:
    disk, first = stuck(new_disk, pages, hears=0)
    disk.begin(1, READ, 0, SIZE)
    disk.settle()
    disk.begin(2, READ, SIZE, SIZE)  # behind the one that is stuck
    disk.settle()
    first.shut()
    disk.until_lost()
    server = disk.attach(Store(bytes(1 << 20)))
    disk.until_asked(server, 3)
    assert sorted(heard(server)) == [0, 1, 2]
    serve(disk, server, 0, 1, 2)


def test_an_answer_to_what_has_not_left_yet_ends_it_and_the_late_header_is_no_harm(
    new_disk: DiskMaker, pages: Pages
) -> None:
    """Only a liar knows the cookie; its connection is over when the true answer comes."""
    disk, server = stuck(new_disk, pages, hears=28)
    disk.until(lambda: len(server.heard) == 28)
    write(disk, 1)
    cookie = int.from_bytes(server.heard[8:16])
    server.say(reply_to(cookie & ~0xFFFF | 1))
    disk.until_committed(1)
    assert disk.result(1) == SIZE
    server.hears = None
    disk.until_asked(server, 2)
    server.answer_all()
    disk.until_lost()
    assert disk.status.loss == disk.lib.NBD_LOST_COOKIE


def test_a_flush_of_ours_that_is_never_answered_is_late(new_disk: DiskMaker) -> None:
    """Though no request is under way: they all wait for it."""
    disk = new_disk(pages=PAGES["copy, gathered"], journal_bytes=2 * SIZE)
    server = attach(disk)
    write(disk, 0, 1)
    answer(disk, server, 0, 1)
    write(disk, 2)
    assert heard(server) == [OUR_FLUSH]
    disk.lib.nbd_limits(disk.links, SOON, 0)  # not before: others would be late as well
    disk.until_lost()
    assert disk.status.loss == disk.lib.NBD_LOST_TIMEOUT


def test_both_links_gather_for_themselves(new_disk: DiskMaker, pages: Pages) -> None:
    one = new_disk(pages=pages, link=QID, journal_bytes=DEPTH * 2 * SIZE)
    other = new_disk(pages=pages, beside=one, link=0)
    servers = [attach(disk) for disk in (one, other)]
    for disk in (one, other):
        write(disk, 0, 1)
    for disk, server in zip((one, other), servers, strict=True):
        serve(disk, server, 0, 1)
        assert sends(disk) == [2 * (HEADER + SIZE)]
