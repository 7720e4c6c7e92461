"""Replies in pieces of any size, and requests that leave in pieces: the bytes are the same."""

from __future__ import annotations

import random
import signal
from itertools import cycle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from .core import Core
from .driver import FLUSH, READ, WRITE, Kind, Outcome
from .files import noise
from .nbd_disk import DEPTH, PAGES, NbdDisk
from .nbd_server import Command, Store
from .peer import unix_pair
from .profile import searching

PLACE = 16 << 10
"""Of a tag, in the export."""

sizes = st.sampled_from([1, 2, 8, 17]).map(lambda blocks: blocks * 512)
requests = st.lists(
    st.tuples(st.sampled_from([READ, READ, READ, WRITE, FLUSH]), sizes), min_size=1, max_size=DEPTH
)
pieces = st.lists(st.sampled_from([1, 2, 15, 16, 17, 100, 511, 4000]), min_size=1, max_size=5)


@pytest.mark.parametrize("pages", PAGES)
@searching
@given(
    asked=requests,
    sips=pieces,
    cuts=st.lists(st.integers(1, 40), max_size=6),
    room=st.sampled_from([None, 1]),
    order=st.randoms(use_true_random=False),
)
def test_it_does_not_matter_in_which_pieces_bytes_travel(
    core: Core,
    pages: str,
    asked: list[tuple[int, int]],
    sips: list[int],
    cuts: list[int],
    room: int | None,
    order: random.Random,
) -> None:
    with NbdDisk(core, PAGES[pages], sqes=8) as disk:
        store = Store(noise(DEPTH * PLACE, 1))
        content = bytes(store.content)
        server = disk.attach(store, lambda: unix_pair(room))
        disk.driver.script(len(asked) - 1, 0, [Outcome(Kind.CUT, cut) for cut in cuts])
        for tag, (op, size) in enumerate(asked):
            disk.fill(tag, noise(size, 2 + tag))
            place, length = (0, 0) if op == FLUSH else (tag * PLACE, size)
            disk.begin(tag, op, place, length)
        disk.until_asked(server, len(asked))
        order.shuffle(server.asked)
        text = b"".join(server.done(a) for a in list(server.asked))
        sip, least = cycle(sips), len(text) // 200
        while text:
            length = max(next(sip), least)
            server.say(text[:length])
            text = text[length:]
            disk.settle()
            assert disk.status.losses == 0
        disk.until_committed(*range(len(asked)))
        for tag, (op, size) in enumerate(asked):
            assert disk.result(tag) == (0 if op == FLUSH else size)
            here = content[tag * PLACE :][:size]
            assert disk.held(tag, size) == (here if op == READ else noise(size, 2 + tag))
            if op == WRITE:
                assert store.content[tag * PLACE :][:size] == noise(size, 2 + tag)


@pytest.mark.parametrize("pages", PAGES)
def test_byte_by_byte(core: Core, pages: str) -> None:
    """So often woken, a transfer goes on in a worker of the kernel."""
    with NbdDisk(core, PAGES[pages]) as disk:
        store = Store(noise(DEPTH * 512, 1))
        server = disk.attach(store)
        for tag in range(DEPTH):
            disk.begin(tag, READ, tag * 512, 512)
        disk.until_asked(server, DEPTH)
        for asked in reversed(list(server.asked)):
            assert asked.command == Command.READ
            for byte in server.done(asked):
                assert not disk.committed(asked.tag)
                server.say(bytes([byte]))
                disk.settle()
            disk.until_committed(asked.tag)
            assert disk.held(asked.tag, 512) == store.content[asked.offset :][:512]


@pytest.mark.parametrize("pages", PAGES)
def test_signals_disturb_nothing(core: Core, pages: str) -> None:
    """They move transfers to workers of the kernel, or end them early."""
    with NbdDisk(core, PAGES[pages]) as disk:
        store = Store(noise(DEPTH * PLACE, 1))
        server = disk.attach(store, lambda: unix_pair(room=1))
        server.trickle = lambda: 700
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        try:
            for turn in range(20):
                for tag in range(DEPTH):
                    disk.fill(tag, noise(PLACE, turn + tag))
                    disk.begin(tag, READ if turn % 2 else WRITE, tag * PLACE, PLACE)
                disk.until_asked(server, DEPTH)
                server.answer_all()
                disk.until_committed(*range(DEPTH))
                for tag in range(DEPTH):
                    assert disk.result(tag) == PLACE
                    assert disk.held(tag, PLACE) == store.content[tag * PLACE :][:PLACE]
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        assert disk.status.losses == 0
