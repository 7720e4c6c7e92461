"""The counters."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from .core import Core
from .driver import (
    DISCARD,
    FLUSH,
    FUA,
    LEND,
    NEED_REG_BUF,
    READ,
    WRITE,
    DriverMaker,
    Member,
    Op,
    Request,
    cut,
    instead,
)
from .files import FileMaker, noise

SIZE = 4096


@pytest.fixture
def stats(core: Core) -> Any:
    return core.ffi.new("struct queue_stats *")


@pytest.mark.parametrize(
    ("ns", "bucket"),
    [
        (0, 0),
        (1, 0),
        (2, 1),
        (3, 1),
        (4, 2),
        (1023, 9),
        (1024, 10),
        ((1 << 39) - 1, 38),
        (1 << 39, 39),
        (1 << 40, 39),
        ((1 << 64) - 1, 39),
    ],
)
def test_a_latency_goes_to_the_bucket_of_its_highest_bit(
    core: Core, stats: Any, ns: int, bucket: int
) -> None:
    core.lib.stats_begin(stats, 0)
    core.lib.stats_end(stats, READ, SIZE, SIZE, ns)
    assert [b for b in range(core.lib.STATS_BUCKETS) if stats.latency[READ][b]] == [bucket]
    assert stats.latency[READ][bucket] == 1


def test_bytes_are_those_committed_and_errors_have_none(core: Core, stats: Any) -> None:
    for result in (SIZE, 512, -errno.EIO):
        core.lib.stats_begin(stats, 0)
        core.lib.stats_end(stats, WRITE, SIZE, result, 1)
    assert stats.requests[WRITE] == 3
    assert stats.bytes[WRITE] == SIZE + 512
    assert stats.errors[WRITE] == 1
    assert stats.requeues == 1
    assert stats.in_flight == 0


def test_success_without_data_counts_the_whole_range(core: Core, stats: Any) -> None:
    for result in (0, -errno.EIO):
        core.lib.stats_begin(stats, 0)
        core.lib.stats_end(stats, DISCARD, 5 << 30, result, 1)
    assert (stats.bytes[DISCARD], stats.errors[DISCARD], stats.requeues) == (5 << 30, 1, 0)


def test_an_operation_without_a_column_only_ends(core: Core, stats: Any) -> None:
    before = bytes(core.ffi.buffer(stats))
    core.lib.stats_begin(stats, 0)
    assert stats.in_flight == 1
    core.lib.stats_end(stats, core.lib.STATS_OPS, SIZE, 0, 1)
    assert bytes(core.ffi.buffer(stats)) == before


def test_requests_are_in_flight_until_they_are_committed(
    new_driver: DriverMaker, new_file: FileMaker
) -> None:
    driver = new_driver([new_file(noise(SIZE))])
    request = Request(READ, SIZE, [Member(Op.READ, len=SIZE)])
    driver.begin({0: request, 1: request, 2: Request(FLUSH, answer=0), 3: Request(READ, SIZE)})
    assert driver.stats.in_flight == 2
    assert driver.run() == 0
    assert driver.stats.in_flight == 0
    assert list(driver.stats.requests) == [3, 0, 1, 0, 0, 0]
    assert list(driver.stats.errors) == [1, 0, 0, 0, 0, 0]
    assert [sum(row) for row in driver.stats.latency] == [3, 0, 1, 0, 0, 0]


def test_shorts_agains_and_requeues_are_counted(
    new_driver: DriverMaker, new_file: FileMaker
) -> None:
    driver = new_driver([new_file(noise(SIZE))])
    steps = cut(10, 20) + instead(-errno.EINTR, -errno.EAGAIN) + cut(1000) + instead(-errno.EIO)
    assert driver.serve(Request(READ, SIZE, [Member(Op.READ, len=SIZE)], {0: steps})) == 1024
    stats = driver.stats
    assert (stats.short_members, stats.again_members, stats.requeues) == (3, 2, 1)


@pytest.mark.parametrize("lease", ["AUTO", "REGISTER", "GROUP", "COPY", "USER_COPY"])
@pytest.mark.parametrize("flags", [0, NEED_REG_BUF])
@pytest.mark.parametrize("refused", [False, True])
def test_requests_whose_bytes_we_carry_against_our_will_are_counted(
    new_driver: DriverMaker, new_file: FileMaker, lease: str, flags: int, refused: bool
) -> None:
    driver = new_driver([new_file(noise(SIZE))], lease=lease, dev_fd=new_file())
    outcomes = {LEND: instead(-errno.EBUSY)} if refused else {}
    for op, member in ((READ, Op.READ), (WRITE, Op.WRITE), (FLUSH, Op.FSYNC)):
        driver.serve(Request(op, SIZE, [Member(member, len=SIZE)], outcomes, flags=flags))
    by_hand = lease == "REGISTER" or (lease == "AUTO" and flags)
    assert driver.stats.fallbacks == (2 if by_hand and refused else 0)


def test_durable_requests_are_counted(new_driver: DriverMaker) -> None:
    driver = new_driver()
    for flags in (FUA, 0, FUA):
        driver.serve(Request(WRITE, SIZE, answer=SIZE, flags=flags))
    assert driver.stats.fua == 2
