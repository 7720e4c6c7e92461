"""A disk from coroutines: many requests at a time, time limits, and its end."""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable
from typing import Any, Self

import pytest

from tests.unit.disks import FUA, WAIT, AsyncDisk, Disk, Served, lines
from ublkd.target import BytesTarget, Op

# --- at the same time -------------------------------------------------------


def test_requests_of_a_coroutine_are_under_way_together(
    serve: Callable[[BytesTarget], Served],
) -> None:
    disk = AsyncDisk()
    disk.data[512:1024] = b"r" * 512
    served = serve(disk)
    assert served.turn((Op.READ, 512, 512), (Op.READ, 0, 512), (Op.READ, 0, 512)) == []
    for _ in range(3):
        assert disk.began.acquire(timeout=WAIT)
    assert served.engine.answers() == []
    disk.open()
    assert served.wait(3) == [512, 512, 512]
    assert disk.threads == {"ublk-asyncio"}
    assert [call[0] for call in served.engine.calls].count("group_hold") == 3


def test_a_request_that_takes_too_long_is_cancelled_and_fails_alone(
    serve: Callable[[BytesTarget], Served], caplog: pytest.LogCaptureFixture
) -> None:
    disk = AsyncDisk()
    disk.timeout = 0.01
    served = serve(disk)
    served.turn((Op.WRITE, 0, 512))
    assert served.wait(1) == [-errno.ETIMEDOUT]
    assert disk.cancelled == 1
    disk.open()
    served.turn((Op.WRITE, 512, 512))
    assert served.wait(1) == [-errno.ETIMEDOUT, 512]
    assert lines(caplog) == []


def test_plain_methods_beside_coroutines_run_in_their_thread(
    serve: Callable[[BytesTarget], Served],
) -> None:
    class Mixed(AsyncDisk):
        def flush(self) -> None:
            self.threads.add(threading.current_thread().name)

    disk = Mixed()
    served = serve(disk)
    served.turn((Op.WRITE, 0, 512, FUA))
    assert disk.began.acquire(timeout=WAIT)
    disk.open()
    assert served.wait(1) == [512]
    served.turn((Op.FLUSH,))
    assert served.wait(1) == [512, 0]
    assert disk.threads == {"ublk-asyncio"}


def test_a_method_that_keeps_its_bytes_or_goes_on_meets_no_other_request(
    serve: Callable[[BytesTarget], Served],
) -> None:
    kept: list[memoryview] = []

    class Keeps(Disk):
        def read(self, offset: int, into: memoryview) -> None:
            kept.append(into)

        def write(self, offset: int, data: memoryview) -> None:
            kept.append(data)

    served = serve(Keeps())
    assert served.engine.pages is not None
    served.engine.pages[:512] = b"a" * 512
    assert served.turn((Op.WRITE, 0, 512), (Op.READ, 0, 512)) == [512, 512]
    assert served.engine.pages[:512] == bytes(512), "what nobody filled is zeroes"
    kept[1][0] = 1
    assert served.engine.pages[:512] == bytes(512)
    assert kept[0] == b"a" * 512


def test_close_cancels_what_is_under_way_and_every_request_has_its_answer(
    serve: Callable[[BytesTarget], Served], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    disk = AsyncDisk()
    served = serve(disk)
    served.turn((Op.READ, 0, 512), (Op.WRITE, 0, 512))
    for _ in range(2):
        assert disk.began.acquire(timeout=WAIT)
    disk.close()
    assert disk.cancelled == 2
    assert served.engine.answers() == [-errno.EIO, -errno.EIO]
    disk.close()  # once more does no harm


def test_a_disk_that_served_nothing_is_closed_without_a_thread() -> None:
    before = set(threading.enumerate())
    AsyncDisk().close()
    Disk().close()
    assert set(threading.enumerate()) <= before


def test_two_queues_share_one_event_loop(serve: Callable[[BytesTarget], Served]) -> None:
    disk = AsyncDisk()
    first, second = serve(disk), serve(disk)
    first.turn((Op.READ, 0, 512))
    second.turn((Op.READ, 0, 512))
    for _ in range(2):
        assert disk.began.acquire(timeout=WAIT)
    assert [t.name for t in threading.enumerate()].count("ublk-asyncio") == 1
    disk.open()
    second.wait(2)


def test_a_subclass_may_say_what_it_is(serve: Callable[[BytesTarget], Served]) -> None:
    class Told(Disk):
        @classmethod
        def from_options(cls, options: Any) -> Self:
            return cls()

        def describe(self) -> dict[str, str]:
            return {"backing": "memory"}

    served = serve(Told.from_options({}))
    assert served.turn((Op.FLUSH,)) == [0]
    assert served.target.describe() == {"backing": "memory"}
