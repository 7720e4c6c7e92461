"""Targets that get in one call all requests that one turn has brought."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest
from hypothesis import given

from .core import Core
from .driver import (
    FLUSH,
    LEND,
    READ,
    UNLEND,
    WRITE,
    Driver,
    DriverMaker,
    Member,
    Op,
    Request,
    cut,
    instead,
)
from .files import FileMaker, content, noise
from .profile import searching
from .strategies import Round, rounds
from .world import WAYS, Way, World

SIZE = 8192
READER = Request(READ, SIZE, [Member(Op.READ, len=SIZE)])
WRITER = Request(WRITE, SIZE, [Member(Op.WRITE, len=SIZE)])
FLUSHER = Request(FLUSH, 0, [Member(Op.FSYNC)])


def reached(way: Way, request: Request) -> Request:
    """The request as it comes on this way."""
    refused = {LEND: instead(way.refused)} if way.refused else {}
    return request.but(flags=way.flags, outcomes={**(request.outcomes or {}), **refused})


def serve(driver: Driver, requests: dict[int, Request]) -> list[int]:
    """What was committed, in the order of the tags."""
    driver.begin(requests)
    assert driver.run() == 0
    return [driver.result(tag) for tag in sorted(requests)]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Way:
    return WAYS[request.param]


@pytest.fixture
def batched(new_driver: DriverMaker, new_file: FileMaker, way: Way) -> Driver:
    """Slot 1 is a file of 8 KiB."""
    dev = new_file()
    os.ftruncate(dev, 1 << 33)  # all requests' bytes, as zeroes
    return new_driver([new_file(noise(SIZE))], lease=way.lease, dev_fd=dev, batched=True, depth=8)


# --- one call for each turn -------------------------------------------------


def test_all_that_a_turn_brings_is_one_call(batched: Driver, way: Way) -> None:
    for n in (1, 3, 8):
        requests = {tag: reached(way, READER) for tag in range(n)}
        assert serve(batched, requests) == [SIZE] * n
        assert batched.batches == 1


def test_pages_lent_by_hand_come_with_the_turn_that_has_lent_them(
    batched: Driver, way: Way
) -> None:
    both = {0: reached(way, READER), 1: FLUSHER, 2: reached(way, READER), 3: FLUSHER}
    assert serve(batched, both) == [SIZE, 0, SIZE, 0]
    assert batched.batches == (2 if way.by_hand else 1)


def test_turns_that_bring_nothing_new_call_nobody(batched: Driver, way: Way) -> None:
    slow = reached(way, READER.but(outcomes={0: [*cut(1, 700), *instead(-errno.EAGAIN), *cut(9)]}))
    assert serve(batched, {0: slow, 5: slow}) == [SIZE, SIZE]
    assert batched.batches == 1


def test_a_request_that_was_never_lent_nor_carried_is_in_no_batch(
    new_driver: DriverMaker, new_file: FileMaker
) -> None:
    driver = new_driver([new_file(noise(SIZE))], lease="REGISTER", dev_fd=-1, batched=True)
    failing = WRITER.but(outcomes={LEND: instead(-errno.ENOMEM)})
    assert serve(driver, {0: failing}) == [-errno.EIO]
    assert driver.batches == 0
    assert serve(driver, {0: failing, 1: READER, 2: failing}) == [-errno.EIO, SIZE, -errno.EIO]
    assert driver.batches == 1


def test_a_batch_holds_every_tag_of_a_deep_queue(
    new_driver: DriverMaker, new_file: FileMaker
) -> None:
    depth = 512
    driver = new_driver(
        [new_file(noise(512))], batched=True, depth=depth, max_io=4096, max_members=2
    )
    small = Request(READ, 512, [Member(Op.READ, len=512)])
    for _ in range(2):
        assert serve(driver, dict.fromkeys(range(depth), small)) == [512] * depth
        assert driver.batches == 1


# --- what the call does -----------------------------------------------------


def test_one_call_may_end_its_requests_in_every_way(batched: Driver, way: Way) -> None:
    plans = {
        0: READER,
        1: WRITER.but(members=(), answer=SIZE),
        2: WRITER.but(members=(), answer=-errno.ENOSPC),
        3: READER.but(members=()),  # neither a member nor an answer
        4: FLUSHER.but(members=()),
        5: FLUSHER.but(members=(), answer=0),
        6: READER.but(returns=-errno.ENOLINK),  # and has a member all the same
        7: WRITER.but(members=(), answer=1024),
    }
    results = serve(batched, {tag: reached(way, request) for tag, request in plans.items()})
    eio = -errno.EIO
    assert results == [SIZE, SIZE, -errno.ENOSPC, eio, eio, 0, -errno.ENOLINK, 1024]
    for tag in range(8):
        mine = [e.member for e in batched.everything() if e.tag == tag]
        lends = way.by_hand and plans[tag].op != FLUSH
        assert mine.count(LEND) == lends
        assert mine.count(UNLEND) == (lends and not way.refused)
    assert batched.stats.in_flight == 0


def test_a_request_that_is_over_within_the_call_does_not_end_its_neighbours(
    new_driver: DriverMaker, new_file: FileMaker
) -> None:
    fd = new_file()
    driver = new_driver([fd], batched=True)
    driver.pages(1)[:SIZE] = noise(SIZE)
    answered = WRITER.but(members=(), answer=SIZE)
    driver.begin({0: answered, 1: WRITER, 2: answered})
    assert driver.run(turns=0) == -errno.ETIME
    assert [driver.commits(tag) for tag in range(3)] == [1, 0, 1]
    driver.begin({0: answered})
    assert driver.run() == 0
    assert [driver.result(tag) for tag in range(3)] == [SIZE] * 3
    assert content(fd) == noise(SIZE)


def test_a_target_that_stands_before_a_batched_one_calls_it_with_one(
    core: Core, new_driver: DriverMaker, new_file: FileMaker
) -> None:
    faulty = core.ffi.new("struct faulty *", {"block": 512, "over": core.lib.batched_ops()})
    driver = new_driver([new_file(noise(SIZE))], ops=core.lib.faulty_ops(), target=faulty)
    faulty.over_target = driver._script
    assert serve(driver, {0: READER, 1: READER, 2: READER.but(members=(), answer=512)}) == [
        SIZE,
        SIZE,
        512,
    ]
    assert driver.batches == 3


# --- any plan ---------------------------------------------------------------


@pytest.fixture
def world(core: Core, way: Way) -> Iterator[World]:
    made = World(core, way, batched=True)
    yield made
    made.close()


@searching
@given(r=rounds())
def test_every_byte_moves_once_and_the_result_obeys_the_rule_in_batches_too(
    world: World, r: Round
) -> None:
    world.check(r)
