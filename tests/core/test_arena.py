"""The arena: memory for every tag, but only where a request has used it."""

from __future__ import annotations

import mmap

import pytest

from .driver import READ, WRITE, Driver, DriverMaker, Member, Op, Request
from .files import FileMaker, noise

DEPTH = 32
MAX_IO = 64 << 10  # what is lent counts as locked memory, of which users have little
SIZE = 8192


def resident(driver: Driver) -> int:
    """Pages of the arena that have memory behind them."""
    leases = driver.env.leases
    pages = leases.arena_bytes // mmap.PAGESIZE
    present = driver.ffi.new("unsigned char[]", pages)
    assert driver.core.libc.mincore(leases.arena, leases.arena_bytes, present) == 0
    return sum(page & 1 for page in driver.ffi.buffer(present)[:])


@pytest.mark.parametrize("lease", ["AUTO", "REGISTER", "GROUP", "COPY", "USER_COPY"])
def test_the_arena_costs_nothing_before_its_first_request(
    new_driver: DriverMaker, lease: str
) -> None:
    driver = new_driver(lease=lease, depth=DEPTH, max_io=MAX_IO, max_members=1)
    assert driver.env.leases.arena_bytes == DEPTH * MAX_IO
    assert resident(driver) == 0


def test_a_request_costs_the_pages_that_it_uses(
    new_driver: DriverMaker, new_file: FileMaker
) -> None:
    driver = new_driver([new_file(noise(SIZE))], depth=DEPTH, max_io=MAX_IO, max_members=1)
    request = Request(READ, SIZE, [Member(Op.READ, len=SIZE)])
    for _ in range(3):
        assert driver.serve(request) == SIZE
    assert resident(driver) == -(-SIZE // mmap.PAGESIZE)


@pytest.mark.parametrize("lease", ["AUTO", "REGISTER", "GROUP"])
def test_lent_pages_leave_the_arena_alone(
    new_driver: DriverMaker, new_file: FileMaker, lease: str
) -> None:
    driver = new_driver(
        [new_file(noise(SIZE))], lease=lease, depth=DEPTH, max_io=MAX_IO, max_members=1
    )
    for op, member in ((READ, Op.READ), (WRITE, Op.WRITE)):
        assert driver.serve(Request(op, SIZE, [Member(member, len=SIZE)])) == SIZE
    assert resident(driver) == 0
