"""The null target."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from .core import Core
from .driver import DISCARD, FLUSH, FUA, READ, WRITE, WRITE_ZEROES, Driver, DriverMaker, Request

SIZE = 64 << 10
WRITE_SAME = 4


@pytest.fixture
def null(core: Core, new_driver: DriverMaker) -> Iterator[Driver]:
    zero = os.open("/dev/zero", os.O_RDONLY)
    yield new_driver([zero], ops=core.lib.null_ops())
    os.close(zero)


def test_reads_are_zeroes_whatever_the_pages_held_before(null: Driver) -> None:
    null.pages()[:] = b"\xaa" * null.max_io
    assert null.serve(Request(READ, SIZE, offset=1 << 40)) == SIZE
    assert null.pages()[:] == bytes(SIZE) + b"\xaa" * (null.max_io - SIZE)


def test_writes_vanish(null: Driver) -> None:
    assert null.serve(Request(WRITE, SIZE, flags=FUA)) == SIZE
    assert null.issued() == []


@pytest.mark.parametrize("op", [FLUSH, DISCARD, WRITE_ZEROES])
def test_all_else_succeeds_without_a_member(null: Driver, op: int) -> None:
    assert null.serve(Request(op, SIZE)) == 0
    assert null.issued() == []


def test_what_it_does_not_know_is_not_supported(null: Driver) -> None:
    assert null.serve(Request(WRITE_SAME, SIZE)) == -errno.EOPNOTSUPP
