"""EAGAIN and EINTR: issued again, but not for ever."""

from __future__ import annotations

import errno
import os

import pytest

from .driver import FLUSH, READ, DriverMaker, Kind, Member, Op, Outcome, Request, cut, instead
from .files import FileMaker, noise

SIZE = 4096
PATIENCE = 128
ASYNC = 1 << 4  # IOSQE_ASYNC
READER = Request(READ, SIZE, [Member(Op.READ, len=SIZE)])
FLUSHER = Request(FLUSH, 0, [Member(Op.FSYNC)])


@pytest.mark.parametrize("error", [errno.EAGAIN, errno.EINTR])
@pytest.mark.parametrize("request_", [READER, FLUSHER], ids=["read", "flush"])
def test_a_member_may_ask_for_patience_127_times(
    new_driver: DriverMaker, new_file: FileMaker, request_: Request, error: int
) -> None:
    driver = new_driver([new_file(noise(SIZE))])
    patient = request_.but(outcomes={0: instead(*[-error] * (PATIENCE - 1))})
    assert driver.serve(patient) == request_.size
    assert len(driver.issued()) == PATIENCE
    assert driver.stats.again_members == PATIENCE - 1


@pytest.mark.parametrize("error", [errno.EAGAIN, errno.EINTR])
@pytest.mark.parametrize("request_", [READER, FLUSHER], ids=["read", "flush"])
def test_the_128th_time_in_a_row_is_a_failure(
    new_driver: DriverMaker, new_file: FileMaker, request_: Request, error: int
) -> None:
    driver = new_driver([new_file(noise(SIZE))])
    endless = request_.but(outcomes={0: instead(*[-error] * PATIENCE)})
    assert driver.serve(endless) == -errno.EIO
    assert len(driver.issued()) == PATIENCE


def test_every_byte_of_progress_renews_the_patience(
    new_driver: DriverMaker, new_file: FileMaker
) -> None:
    data = noise(SIZE)
    driver = new_driver([new_file(data)])
    slow = (instead(*[-errno.EAGAIN] * (PATIENCE - 1)) + cut(1)) * 3
    assert driver.serve(READER.but(outcomes={0: slow})) == SIZE
    assert driver.pages()[:SIZE] == data


def test_patience_does_not_pass_from_one_request_to_the_next(
    new_driver: DriverMaker, new_file: FileMaker
) -> None:
    driver = new_driver([new_file(noise(SIZE))])
    for _ in range(3):
        assert driver.serve(READER.but(outcomes={0: instead(*[-errno.EINTR] * 100)})) == SIZE


def test_only_a_member_that_was_refused_waits_in_a_worker(
    new_driver: DriverMaker, new_file: FileMaker
) -> None:
    driver = new_driver([new_file(noise(SIZE))])
    steps = [*cut(100), *instead(-errno.EAGAIN), *cut(100), Outcome(Kind.PASS)]
    assert driver.serve(READER.but(outcomes={0: steps})) == SIZE
    waits = [bool(e.flags & ASYNC) for e in driver.issued()]
    assert waits == [False, False, True, False]


def test_a_file_that_has_nothing_yet_is_waited_for(new_driver: DriverMaker) -> None:
    """Kernels differ in whether a non-blocking pipe waits at once or says EAGAIN first."""
    reading, writing = os.pipe2(os.O_NONBLOCK)
    try:
        driver = new_driver([reading])
        driver.begin({0: READER})
        assert driver.run(turns=1) == -errno.ETIME
        os.write(writing, noise(SIZE))
        assert driver.run() == 0
        assert driver.result(0) == SIZE
        assert driver.pages()[:SIZE] == noise(SIZE)
        assert driver.stats.again_members < PATIENCE
    finally:
        os.close(reading)
        os.close(writing)
