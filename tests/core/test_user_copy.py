"""Carrying bytes by pread and pwrite: a sparse file stands for /dev/ublkcN."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path
from typing import Any

import pytest

from .driver import (
    FLUSH,
    LEND,
    NEED_REG_BUF,
    READ,
    WRITE,
    Driver,
    DriverMaker,
    Member,
    Op,
    Request,
    instead,
)
from .files import FileMaker, content, limit, noise

SIZE = 8192
QID = 3
TAG = 2
AT = 0x80000000 + (QID << 41) + (TAG << 25)
"""Where request (QID, TAG) begins, by the kernel's numbers."""

READER = Request(READ, SIZE, [Member(Op.READ, len=SIZE)])
WRITER = Request(WRITE, SIZE, [Member(Op.WRITE, len=SIZE)])

REFUSED = {LEND: instead(-errno.EBUSY)}
LEASES = pytest.mark.parametrize(
    ("lease", "how"),
    [
        ("USER_COPY", {}),
        ("AUTO", {"flags": NEED_REG_BUF, "outcomes": REFUSED}),
        ("REGISTER", {"outcomes": REFUSED}),
    ],
    ids=["user-copy", "auto-refused", "register-refused"],
)
How = dict[str, Any]
"""What makes a request end up with a user copy."""


def serve(driver: Driver, request: Request) -> int:
    driver.begin({TAG: request})
    assert driver.run() == 0
    return driver.result(TAG)


def arena(driver: Driver) -> Any:
    leases = driver.env.leases
    return driver.ffi.buffer(leases.arena + TAG * driver.max_io, driver.max_io)


@LEASES
def test_what_was_read_is_carried_to_the_request(
    new_driver: DriverMaker, new_file: FileMaker, lease: str, how: How
) -> None:
    dev = new_file()
    os.pwrite(dev, b"\xaa" * 2 * SIZE, AT - SIZE // 2)
    driver = new_driver([new_file(noise(SIZE))], lease=lease, dev_fd=dev, qid=QID)
    assert serve(driver, READER.but(**how)) == SIZE
    edge = b"\xaa" * (SIZE // 2)
    assert os.pread(dev, 2 * SIZE, AT - SIZE // 2) == edge + noise(SIZE) + edge


@LEASES
def test_what_is_written_is_fetched_from_the_request(
    new_driver: DriverMaker, new_file: FileMaker, lease: str, how: How
) -> None:
    dev, disk = new_file(), new_file()
    os.pwrite(dev, noise(SIZE), AT)
    driver = new_driver([disk], lease=lease, dev_fd=dev, qid=QID)
    assert serve(driver, WRITER.but(**how)) == SIZE
    assert content(disk) == noise(SIZE)
    assert os.pread(dev, SIZE + 1, AT) == noise(SIZE)


@LEASES
def test_only_what_was_filled_is_carried(
    new_driver: DriverMaker, new_file: FileMaker, lease: str, how: How
) -> None:
    dev = new_file()
    os.pwrite(dev, b"\xaa" * SIZE, AT)
    driver = new_driver([new_file(noise(1500))], lease=lease, dev_fd=dev, qid=QID)
    assert serve(driver, READER.but(**how)) == 1024
    assert os.pread(dev, SIZE, AT) == noise(1500)[:1024] + b"\xaa" * (SIZE - 1024)


def test_a_request_that_gives_fewer_bytes_than_it_has_is_not_written(
    new_driver: DriverMaker, new_file: FileMaker
) -> None:
    dev, disk = new_file(), new_file()
    os.pwrite(dev, noise(SIZE)[: SIZE - 1], AT)
    driver = new_driver([disk], lease="USER_COPY", dev_fd=dev, qid=QID)
    assert serve(driver, WRITER) == -errno.EIO
    assert driver.issued() == []
    assert content(disk) == b""


@pytest.mark.parametrize(("room", "committed"), [(1024, 1024), (1500, 1024), (500, -errno.EIO)])
def test_a_request_that_takes_fewer_bytes_is_committed_up_to_there(
    new_driver: DriverMaker, new_file: FileMaker, room: int, committed: int
) -> None:
    dev = new_file()
    driver = new_driver([new_file(noise(SIZE))], lease="USER_COPY", dev_fd=dev, qid=QID)
    with limit(resource.RLIMIT_FSIZE, AT + room):
        assert serve(driver, READER) == committed
    assert os.pread(dev, SIZE, AT) == noise(SIZE)[:room]


def test_a_request_that_takes_nothing_is_an_error(
    new_driver: DriverMaker, new_file: FileMaker
) -> None:
    dev = new_file()
    driver = new_driver([new_file(noise(SIZE))], lease="USER_COPY", dev_fd=dev, qid=QID)
    with limit(resource.RLIMIT_FSIZE, AT):
        assert serve(driver, READER) == -errno.ENOSPC


def test_a_device_that_cannot_be_read_or_written_is_an_error(
    new_driver: DriverMaker, new_file: FileMaker, tmp_path: Path
) -> None:
    disk = new_file(noise(SIZE))
    (tmp_path / "ublkc").touch()
    for mode, request in ((os.O_WRONLY, WRITER), (os.O_RDONLY, READER)):
        dev = os.open(tmp_path / "ublkc", mode)
        try:
            driver = new_driver([disk], lease="USER_COPY", dev_fd=dev, qid=QID)
            assert serve(driver, request) == -errno.EIO  # EBADF
        finally:
            os.close(dev)
    assert content(disk) == noise(SIZE)


@LEASES
@pytest.mark.parametrize("op", [READ, WRITE])
def test_a_request_beyond_its_buffer_is_refused(
    new_driver: DriverMaker, new_file: FileMaker, lease: str, how: How, op: int
) -> None:
    dev = new_file()
    os.pwrite(dev, noise(SIZE), AT)
    driver = new_driver([new_file()], lease=lease, dev_fd=dev, qid=QID, max_io=SIZE - 512)
    arena(driver)[:] = bytes(driver.max_io)
    assert serve(driver, Request(op, SIZE, answer=SIZE, **how)) == -errno.EIO
    assert arena(driver)[:] == bytes(driver.max_io)


def test_a_request_without_data_carries_none(new_driver: DriverMaker, new_file: FileMaker) -> None:
    driver = new_driver([new_file()], lease="USER_COPY", dev_fd=-1, qid=QID)
    assert serve(driver, Request(FLUSH, SIZE, [Member(Op.FSYNC)])) == 0
