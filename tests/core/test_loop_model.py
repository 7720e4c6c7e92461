"""A loop disk under an unreliable kernel is still a disk."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from .core import Core
from .driver import (
    DISCARD,
    FLUSH,
    FUA,
    NOUNMAP,
    READ,
    WRITE,
    WRITE_ZEROES,
    DriverMaker,
    Kind,
    Outcome,
    Request,
)
from .files import FileMaker, content, noise
from .loop_disk import LoopDisk
from .profile import searching

DISK = 64 << 10
OPS = {
    READ: [0],
    WRITE: [0, FUA],
    FLUSH: [0],
    DISCARD: [0],
    WRITE_ZEROES: [0, NOUNMAP, FUA, NOUNMAP | FUA],
}
OFFSET = 4096
"""Bytes of the backing before the disk."""


@pytest.fixture
def backing(new_file: FileMaker) -> int:
    return new_file()


@pytest.fixture
def disk(core: Core, new_driver: DriverMaker, backing: int) -> LoopDisk:
    return LoopDisk(core, new_driver, backing, offset=OFFSET)


@dataclass(frozen=True)
class Step:
    op: int
    flags: int
    at: int
    size: int
    hiccups: dict[int, list[Outcome]]
    """Of the first member: nothing that a server may not survive."""


def hiccups(op: int) -> st.SearchStrategy[dict[int, list[Outcome]]]:
    again = st.sampled_from([-errno.EAGAIN, -errno.EINTR]).map(lambda e: Outcome(Kind.INSTEAD, e))
    one = [again]
    if op in (READ, WRITE):
        one.append(st.integers(1, DISK).map(lambda n: Outcome(Kind.CUT, n)))
        one.append(st.integers(1, DISK).map(lambda n: Outcome(Kind.DENY, n)))
    if op == WRITE_ZEROES:
        one.append(st.just(Outcome(Kind.INSTEAD, -errno.EOPNOTSUPP)))
    return st.lists(st.one_of(one), max_size=4).map(lambda outcomes: {0: outcomes})


@st.composite
def steps(draw: st.DrawFn) -> Step:
    op = draw(st.sampled_from(list(OPS)))
    at = draw(st.integers(0, DISK // 512 - 1)) * 512
    size = draw(st.integers(1, (DISK - at) // 512)) * 512
    if op == FLUSH:
        at = size = 0
    return Step(op, draw(st.sampled_from(OPS[op])), at, size, draw(hiccups(op)))


def apply(step: Step, disk: bytearray, written: bytes) -> None:
    if step.op == WRITE:
        disk[step.at : step.at + step.size] = written
    elif step.op in (DISCARD, WRITE_ZEROES):
        disk[step.at : step.at + step.size] = bytes(step.size)


@searching
@given(history=st.lists(steps(), min_size=1, max_size=12), seed=st.integers(0, 1 << 16))
def test_a_loop_disk_holds_what_was_written(
    disk: LoopDisk, backing: int, history: list[Step], seed: int
) -> None:
    want = bytearray(noise(DISK, seed))
    os.ftruncate(backing, 0)
    os.pwrite(backing, bytes(want), OFFSET)
    for i, step in enumerate(history):
        written = noise(step.size, seed + i + 1)
        disk.driver.pages()[: step.size] = written
        disk.loop.backing.no_punch_hole = disk.loop.backing.no_zero_range = False
        r = Request(step.op, step.size, (), step.hiccups, flags=step.flags, offset=step.at)
        assert disk.serve(r) == (step.size if step.op in (READ, WRITE) else 0)
        apply(step, want, written)
        if step.op == READ:
            assert disk.driver.pages()[: step.size] == want[step.at : step.at + step.size]
    assert content(backing) == bytes(OFFSET) + bytes(want)
