"""The faulty target over others: what a request that waited comes to."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .core import Core
from .driver import (
    DISCARD,
    FLUSH,
    READ,
    WRITE,
    Driver,
    DriverMaker,
    Kind,
    Member,
    Op,
    Outcome,
    Request,
    instead,
)

SIZE = 64 << 10
ALWAYS = 1 << 32

Over = Callable[..., Driver]


@pytest.fixture
def over(core: Core, new_driver: DriverMaker) -> Iterator[Over]:
    zero = os.open("/dev/zero", os.O_RDONLY)

    def make(ops: Any = None, **rates: int) -> Driver:
        """Before the scripted target, unless told otherwise."""
        told = {"delay": ALWAYS, "delay_ns": 1000, "block": 512} | rates
        faulty = core.ffi.new("struct faulty *", told)
        faulty.over = core.lib.scripted_ops() if ops is None else ops
        driver = new_driver([zero], ops=core.lib.faulty_ops(), target=faulty)
        faulty.over_target = driver._script if ops is None else core.ffi.NULL
        return driver

    yield make
    os.close(zero)


def test_null_serves_all_that_waited(core: Core, over: Over) -> None:
    driver = over(core.lib.null_ops())
    driver.pages()[:] = b"\xaa" * driver.max_io
    assert driver.serve(Request(WRITE, SIZE)) == SIZE
    assert driver.serve(Request(READ, SIZE)) == SIZE
    assert driver.pages()[:SIZE] == bytes(SIZE)
    for op in (FLUSH, DISCARD):
        assert driver.serve(Request(op, 0 if op == FLUSH else SIZE)) == 0


@pytest.mark.parametrize("op", [READ, WRITE, DISCARD])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("delay", [0, ALWAYS])
def test_what_the_inner_target_refuses_fails_whether_it_waited_or_not(
    over: Over, op: int, error: int, delay: int
) -> None:
    driver = over(delay=delay)
    assert driver.serve(Request(op, SIZE, returns=-error)) == -error
    assert driver.stats.in_flight == 0


def test_members_before_the_refusal_do_not_save_the_request(over: Over) -> None:
    members = (Member(Op.READ, 1, 0, 0, SIZE),)
    driver = over()
    assert driver.serve(Request(READ, SIZE, members, returns=-errno.ENOSPC)) == -errno.ENOSPC


@pytest.mark.parametrize(("sector", "cut"), [(1, 1), (511, 511), (8191, 8191), (8193, 1)])
def test_a_walk_moves_no_byte_behind_its_cut_the_first_time(
    over: Over, sector: int, cut: int
) -> None:
    size = 8192
    driver = over(delay=0, walk=True)
    driver.pages()[:] = b"\xaa" * driver.max_io
    members = (Member(Op.READ, 1, 0, 0, size),)
    request = Request(READ, size, members, offset=sector * 512)
    assert driver.serve(request) == size
    assert [(e.off, e.len) for e in driver.issued()] == [(0, cut), (cut, size - cut)]
    assert driver.stats.short_members == 1
    driver.pages()[:] = b"\xaa" * driver.max_io
    failing = request.but(outcomes={0: [Outcome(Kind.PASS), *instead(-errno.EIO)]})
    moved = cut // 512 * 512
    assert driver.serve(failing) == (moved or -errno.EIO)
    assert driver.pages()[:size] == bytes(cut) + b"\xaa" * (size - cut)


def test_a_walk_leaves_whole_what_starts_at_a_multiple_of_its_length(over: Over) -> None:
    driver = over(delay=0, walk=True)
    members = (Member(Op.READ, 1, 0, 0, 8192),)
    assert driver.serve(Request(READ, 8192, members, offset=8192 * 512)) == 8192
    assert driver.stats.short_members == 0


@pytest.mark.parametrize(
    ("sector", "lengths"), [(700, [700, 700, 3396, 4096]), (5000, [904, 3192, 4096, 4096])]
)
def test_a_walk_cuts_the_one_member_that_has_the_place_also_if_it_stumbled(
    over: Over, sector: int, lengths: list[int]
) -> None:
    driver = over(delay=0, walk=True)
    members = tuple(Member(Op.READ, 1, 0, at, 4096) for at in (0, 4096))
    stumbles = {0: instead(-errno.EAGAIN)}
    request = Request(READ, 8192, members, offset=sector * 512, outcomes=stumbles)
    assert driver.serve(request) == 8192
    assert sorted(e.len for e in driver.issued()) == lengths
    assert driver.stats.short_members == 1


def test_a_walk_over_direct_io_moves_whole_blocks_and_tells_less(over: Over) -> None:
    driver = over(delay=0, walk=True)
    driver.env.align = 512
    members = (Member(Op.READ, 1, 0, 0, 8192),)
    assert driver.serve(Request(READ, 8192, members, offset=700 * 512)) == 8192
    assert [(e.off, e.len) for e in driver.issued()] == [(0, 1024), (512, 7680)]


def test_a_walk_does_not_disturb_what_moves_no_bytes(over: Over) -> None:
    driver = over(delay=0, walk=True)
    flush = Request(FLUSH, 0, (Member(Op.FSYNC, 1),), outcomes={0: instead(0)}, offset=512)
    assert driver.serve(flush) == 0
