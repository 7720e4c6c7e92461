"""Disks whose methods are coroutines: together, in time, and to an end."""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Iterator

import pytest

from tests.unit.bytes_disks import WAIT, AsyncDisk, Disk, ServedMaker, lines, serving_disks
from ublkd._core import lib
from ublkd.target import Op, bytes_target

FUA = lib.UBLK_IO_F_FUA


@pytest.fixture
def serve() -> Iterator[ServedMaker]:
    with serving_disks() as make:
        yield make


def test_requests_of_a_coroutine_are_under_way_together(
    serve: ServedMaker,
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
    serve: ServedMaker, caplog: pytest.LogCaptureFixture
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
    serve: ServedMaker,
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


def test_bytes_are_out_of_reach_when_the_request_is_answered(
    serve: ServedMaker,
) -> None:
    kept: list[memoryview] = []

    class Keeps(Disk):
        async def read(self, offset: int, into: memoryview) -> None:  # type: ignore[override]
            kept.append(into)

    served = serve(Keeps())
    served.turn((Op.READ, 0, 512))
    served.wait(1)
    with pytest.raises(ValueError, match="released"):
        kept[0][0] = 1


def test_close_cancels_what_is_under_way_and_every_request_has_its_answer(
    serve: ServedMaker, caplog: pytest.LogCaptureFixture
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
    before = threading.active_count()
    AsyncDisk().close()
    Disk().close()
    assert threading.active_count() == before


def test_two_queues_share_one_event_loop(serve: ServedMaker) -> None:
    disk = AsyncDisk()
    first, second = serve(disk), serve(disk)
    first.turn((Op.READ, 0, 512))
    second.turn((Op.READ, 0, 512))
    for _ in range(2):
        assert disk.began.acquire(timeout=WAIT)
    assert [t.name for t in threading.enumerate()].count("ublk-asyncio") == 1
    disk.open()
    second.wait(2)


def test_two_queues_that_begin_at_the_same_moment_make_one_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arrived, lock, made = threading.Semaphore(0), threading.Lock(), []

    class Door:
        def __enter__(self) -> None:
            arrived.release()
            lock.acquire()

        def __exit__(self, *_: object) -> None:
            lock.release()

    class Loop:
        def __init__(self, timeout: float) -> None:
            made.append(self)
            if len(made) == 1:  # the other one stands before the door by now
                assert arrived.acquire(timeout=WAIT)
                assert arrived.acquire(timeout=WAIT)

    monkeypatch.setattr(bytes_target, "_MAKING", Door())
    monkeypatch.setattr(bytes_target, "_EventLoop", Loop)
    disk = AsyncDisk()
    threads = [threading.Thread(target=disk._event_loop) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
