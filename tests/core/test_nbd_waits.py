"""How long a request waits for a connection that is lost."""

from __future__ import annotations

import errno
import time

import pytest

from .driver import FLUSH, READ, WRITE
from .nbd_disk import DiskMaker
from .nbd_server import Store

SIZE = 4096


@pytest.mark.parametrize("how", ["the window is over", "a flush has to fail"])
def test_what_failed_before_does_not_count_for_the_next_request_of_its_tag(
    new_disk: DiskMaker, how: str
) -> None:
    window = 0.2
    disk = new_disk()
    disk.lib.nbd_limits(disk.links, 0, int(window * 1e9))
    first = disk.attach(Store(bytes(1 << 16)))
    op = READ if how == "the window is over" else FLUSH
    disk.begin(0, op, 0, SIZE * (op != FLUSH))
    disk.until_asked(first)
    first.shut()
    disk.until_lost()
    lost = time.monotonic()
    if how == "the window is over":
        disk.fail()
    else:
        disk.lib.nbd_fail_flush(disk.links)
        disk.attach(Store(bytes(1 << 16)))
    disk.until_committed(0)
    assert disk.result(0) == -errno.EIO
    while (left := lost + 2 * window - time.monotonic()) > 0:
        time.sleep(left)
    if how == "the window is over":
        disk.attach(Store(bytes(1 << 16)))
    disk.until_connected()
    for tag in (0, 1):
        disk.begin(tag, WRITE, tag * SIZE, SIZE)
    disk.until_asked(disk.servers[-1], 2)
    disk.servers[-1].shut()
    disk.until_lost(2)
    disk.settle()
    assert not disk.committed(0)
    third = disk.attach(Store(bytes(1 << 16)))
    disk.until_asked(third, 2)
    third.answer_all()
    disk.until_committed(0, 1)
    assert disk.result(0) == disk.result(1) == SIZE
