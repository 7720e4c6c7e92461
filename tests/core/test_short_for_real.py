"""Transfers that the kernel itself cuts short: ends of files, pipes, limits, full devices."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import threading
import time
from collections.abc import Iterator

import pytest

from .driver import READ, WRITE, DriverMaker, Member, Op, Request
from .files import FileMaker, content, limit, noise

SIZE = 8192
READER = Request(READ, SIZE, [Member(Op.READ, len=SIZE)])
WRITER = Request(WRITE, SIZE, [Member(Op.WRITE, len=SIZE)])


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        try:
            os.close(fd)
        except OSError as e:
            assert e.errno == errno.EBADF  # the test has closed it


# --- files ------------------------------------------------------------------


@pytest.mark.parametrize(("block", "prefix"), [(512, 4608), (4096, 4096)])
def test_a_file_that_ends_early_gives_its_whole_blocks_and_then_an_error(
    new_driver: DriverMaker, new_file: FileMaker, block: int, prefix: int
) -> None:
    data = noise(5000)
    driver = new_driver([new_file(data)], block=block)
    assert driver.serve(READER) == prefix
    assert driver.pages()[:prefix] == data[:prefix]
    rest = Request(
        READ, SIZE - prefix, [Member(Op.READ, offset=prefix, len=SIZE - prefix)], offset=prefix
    )
    assert driver.serve(rest) == -errno.EIO


def test_a_file_that_was_truncated_fails_and_one_that_grew_again_serves(
    new_driver: DriverMaker, new_file: FileMaker
) -> None:
    fd = new_file(noise(SIZE))
    driver = new_driver([fd])
    assert driver.serve(READER) == SIZE
    os.ftruncate(fd, 0)
    assert driver.serve(READER) == -errno.EIO
    os.pwrite(fd, noise(SIZE, 1), 0)
    assert driver.serve(READER) == SIZE
    assert driver.pages()[:SIZE] == noise(SIZE, 1)


def test_a_file_that_grows_between_two_issues_is_read_on(
    new_driver: DriverMaker, new_file: FileMaker
) -> None:
    fd = new_file(noise(SIZE)[:100])
    driver = new_driver([fd])
    driver.begin({0: READER})
    assert driver.run(turns=1) == -errno.ETIME  # the first issue has found the end
    os.pwrite(fd, noise(SIZE), 0)
    assert driver.run() == 0
    assert driver.result(0) == SIZE
    assert driver.pages()[:SIZE] == noise(SIZE)


def test_a_write_up_to_the_file_size_limit_is_committed_up_to_there(
    new_driver: DriverMaker, new_file: FileMaker
) -> None:
    fd = new_file()
    driver = new_driver([fd])
    driver.pages()[:SIZE] = noise(SIZE)
    with limit(resource.RLIMIT_FSIZE, 5000):
        assert driver.serve(WRITER) == 4608
        beyond = Member(Op.WRITE, offset=SIZE, len=SIZE)
        assert driver.serve(WRITER.but(members=[beyond])) == -errno.ENOSPC
    assert content(fd) == noise(SIZE)[:5000]


def test_a_full_device_is_no_space(new_driver: DriverMaker) -> None:
    fd = os.open("/dev/full", os.O_RDWR)
    try:
        assert new_driver([fd]).serve(WRITER) == -errno.ENOSPC
    finally:
        os.close(fd)


# --- pipes ------------------------------------------------------------------


def test_a_read_that_comes_in_pieces_is_put_together(
    new_driver: DriverMaker, pipe: tuple[int, int]
) -> None:
    reading, writing = pipe
    data = noise(SIZE)
    pieces = [data[:100], data[100:101], data[101:4000], data[4000:]]
    os.write(writing, pieces[0])

    def write_the_rest() -> None:
        for piece in pieces[1:]:
            time.sleep(0.01)
            os.write(writing, piece)

    writer = threading.Thread(target=write_the_rest)
    driver = new_driver([reading])
    driver.begin({0: READER})
    while not driver.stats.short_members:  # the first piece has been taken
        assert driver.run(turns=1) == -errno.ETIME
    writer.start()
    try:
        assert driver.run() == 0
    finally:
        writer.join()
    assert driver.result() == SIZE
    assert driver.pages()[:SIZE] == data
    assert driver.stats.short_members >= 1


def test_a_pipe_that_ends_gives_its_whole_blocks(
    new_driver: DriverMaker, pipe: tuple[int, int]
) -> None:
    reading, writing = pipe
    os.write(writing, noise(1500))
    os.close(writing)
    driver = new_driver([reading])
    assert driver.serve(READER) == 1024
    assert driver.pages()[:1024] == noise(1500)[:1024]


def test_a_write_that_is_taken_in_pieces_is_finished(
    new_driver: DriverMaker, pipe: tuple[int, int]
) -> None:
    reading, writing = pipe
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    size = 64 << 10
    taken = bytearray()

    def drain() -> None:
        while len(taken) < size and (piece := os.read(reading, 3000)):
            taken.extend(piece)

    reader = threading.Thread(target=drain, daemon=True)
    driver = new_driver([writing])
    driver.pages()[:size] = noise(size)
    reader.start()
    assert driver.serve(Request(WRITE, size, [Member(Op.WRITE, len=size)])) == size
    reader.join(timeout=10)
    assert bytes(taken) == noise(size)


def test_a_pipe_without_a_reader_fails_the_write(
    new_driver: DriverMaker, pipe: tuple[int, int]
) -> None:
    reading, writing = pipe
    os.close(reading)
    assert new_driver([writing]).serve(WRITER) == -errno.EIO
