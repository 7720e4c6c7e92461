"""The faulty target over others: what a request that waited comes to."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .core import Core
from .driver import DISCARD, FLUSH, READ, WRITE, Driver, DriverMaker, Member, Op, Request

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
