"""Whatever a server sends: it is believed to the first lie, byte by byte, and then it is left."""

from __future__ import annotations

import random

import pytest

from .driver import DISCARD, FLUSH, READ, WRITE, WRITE_ZEROES
from .nbd_disk import PAGES, DiskMaker, NbdDisk
from .nbd_lies import NASTY, believed, hostile
from .nbd_server import Server, reply_to

SIZE, MARK = 1024, b"\xa5"
STREAMS = 2000
"""In each of ten batches."""


def play(disk: NbdDisk, server: Server, stream: bytes, pieces: random.Random | None) -> None:
    """Says it and ends; then nothing may be otherwise than the stream told."""
    asked = list(server.asked)
    want = believed(stream, asked)
    before = disk.status
    while pieces and stream:
        at = pieces.choice([1, 3, 16, 100, 1000])
        server.say(stream[:at])
        stream = stream[at:]
        disk.settle()
    server.say(stream)
    server.shut()
    disk.settle()
    status = disk.status
    assert status.loss == getattr(disk.lib, want.loss)
    assert (status.state, status.losses) == (disk.lib.NBD_WAITING, before.losses + 1)
    assert status.unanswered == len(asked) - len(want.results)
    assert status.ended == before.ended + len(want.results)
    assert disk.driver.in_flight == 0
    for a in asked:
        if a.tag not in want.results:
            assert not disk.committed(a.tag)
            continue
        assert disk.result(a.tag) == want.results[a.tag]
        if a.tag in want.data:
            assert disk.held(a.tag, SIZE + 1) == want.data[a.tag] + MARK


def begin_some(disk: NbdDisk, rng: random.Random) -> None:
    """On every tag that is free: most of them READs."""
    for tag in range(disk.depth):
        if tag in disk.begun and not disk.committed(tag):
            continue
        op = rng.choice([READ, READ, READ, WRITE, FLUSH, DISCARD, WRITE_ZEROES])
        disk.fill(tag, MARK * (SIZE + 1))
        disk.begin(
            tag, op, 0, 0 if op == FLUSH else rng.choice([512, SIZE]) if op != READ else SIZE
        )


@pytest.mark.parametrize("seed", range(10))
def test_random_streams(new_disk: DiskMaker, seed: int) -> None:
    rng = random.Random(seed)
    disk = new_disk(pages=list(PAGES.values())[seed % len(PAGES)])
    for _ in range(STREAMS):
        server = disk.attach()
        begin_some(disk, rng)
        disk.until_asked(server, disk.depth)
        stream = hostile(rng, server.asked)
        play(disk, server, stream, rng if rng.random() < 0.1 else None)
        disk.forget_the_past()


@pytest.mark.parametrize("pages", PAGES)
@pytest.mark.parametrize("name", NASTY)
def test_nasty_streams(new_disk: DiskMaker, name: str, pages: str) -> None:
    disk = new_disk(pages=PAGES[pages])
    server = disk.attach()
    disk.fill(0, MARK * (SIZE + 1))
    disk.begin(0, READ, 0, SIZE)
    disk.until_asked(server)
    assert server.asked[0].cookie == 0x1_0001_0000
    play(disk, server, NASTY[name], None)


def test_a_server_that_never_stops_talking_is_not_listened_to(new_disk: DiskMaker) -> None:
    """What nobody waits for stays where it is."""
    disk = new_disk()
    server = disk.attach()
    disk.begin(0, READ, 0, SIZE)
    disk.until_asked(server)
    cookie = server.asked[0].cookie
    server.say(reply_to(cookie, 0, bytes(SIZE)) + bytes(1 << 26))
    disk.until_lost()
    disk.settle()
    assert disk.status.loss == disk.lib.NBD_LOST_MAGIC
    assert disk.result(0) == SIZE
    assert disk.driver.in_flight == 0
    assert not any(e.len > SIZE for e in disk.driver.everything())
