"""The ring: an SQE can always be had, and a ring that fails says so for ever."""

from __future__ import annotations

import errno
import fcntl
import os
import resource

import pytest

from .core import Core
from .driver import READ, WRITE, Driver, DriverMaker, Member, Op, Request
from .files import FileMaker, content, limit, noise, open_fds

MANY = 4096
PIECE = 64


def pieces(op: Op) -> list[Member]:
    return [Member(op, 1, i * PIECE, i * PIECE, PIECE) for i in range(MANY)]


@pytest.mark.parametrize("sqes", [1, 2, 64])
def test_4096_members_pass_through_a_tiny_queue(
    new_driver: DriverMaker, new_file: FileMaker, sqes: int
) -> None:
    size = MANY * PIECE
    fd = new_file(noise(size))
    driver = new_driver([fd], depth=2, max_members=MANY, max_io=size, sqes=sqes, watch=False)
    for tag in (0, 1):
        driver.begin({tag: Request(READ, size, pieces(Op.READ))})
    assert driver.run() == 0
    for tag in (0, 1):
        assert driver.result(tag) == size
        assert driver.pages(tag)[:] == noise(size)

    driver.pages()[:] = noise(size, 1)
    assert driver.serve(Request(WRITE, size, pieces(Op.WRITE))) == size
    assert content(fd) == noise(size, 1)


def test_a_tiny_queue_keeps_the_order(new_driver: DriverMaker) -> None:
    """What is written into a pipe stands there in the order in which it was submitted."""
    reading, writing = os.pipe()
    size = MANY * PIECE
    try:
        if fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, size) < size:
            pytest.skip("no pipe of this size")
        try:
            os.pwritev(writing, [b"x"], -1, os.RWF_NOWAIT)
        except OSError as e:
            pytest.skip(f"this kernel writes pipes in parallel workers: {e.strerror}")
        os.read(reading, 1)
        driver = new_driver([writing], max_members=MANY, max_io=size, sqes=2, watch=False)
        driver.pages()[:] = noise(size)
        assert driver.serve(Request(WRITE, size, pieces(Op.WRITE))) == size
        assert os.read(reading, size + 1) == noise(size)
    finally:
        os.close(reading)
        os.close(writing)


def test_a_broken_ring_is_reported_and_stays_so(
    new_driver: DriverMaker, new_file: FileMaker
) -> None:
    """With the SQ full, SQEs go nowhere; nothing crashes and nothing waits."""
    driver = new_driver([new_file()], max_members=64, sqes=4, watch=False)
    members = [Member(Op.READ, len=512)] * 64
    driver.break_ring()
    driver.begin({0: Request(READ, 512, members)})
    first = driver.run()
    assert first in (-errno.EBADF, -errno.EINVAL)
    driver.begin({1: Request(READ, 512, members)})
    assert driver.run() == first
    driver.break_ring(False)  # too late: some SQEs are lost
    assert driver.run() == first


def test_a_ring_that_breaks_before_the_queue_is_full_is_reported(
    new_driver: DriverMaker, new_file: FileMaker
) -> None:
    driver = new_driver([new_file()])
    driver.break_ring()
    driver.begin({0: Request(READ, 512, [Member(Op.READ, len=512)])})
    assert driver.run() in (-errno.EBADF, -errno.EINVAL)


def test_a_file_that_is_not_open_is_refused_and_nothing_is_left(core: Core) -> None:
    before = open_fds()
    with pytest.raises(OSError) as caught:
        Driver(core, [9999])
    assert caught.value.errno == errno.EBADF
    assert open_fds() == before


def test_without_a_descriptor_left_there_is_no_ring(core: Core) -> None:
    lowest = os.dup(0)
    os.close(lowest)
    with limit(resource.RLIMIT_NOFILE, lowest), pytest.raises(OSError) as caught:
        Driver(core)
    assert caught.value.errno == errno.EMFILE


def test_a_ring_takes_no_descriptor_with_it(core: Core) -> None:
    before = open_fds()
    for lease in ("AUTO", "REGISTER", "GROUP", "COPY", "USER_COPY"):
        Driver(core, lease=lease).close()
    assert open_fds() == before
