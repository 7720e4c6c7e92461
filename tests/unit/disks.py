"""Disks of bytes for tests, and how they are served without a kernel."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.unit.engine import Engine, install
from ublkd._core import lib
from ublkd.target import BytesTarget
from ublkd.target.bridge import Bridge

FUA = lib.UBLK_IO_F_FUA
WAIT = 30  # seconds, for what comes at once


class Disk(BytesTarget):
    """In memory, with every method; ``log`` has the calls."""

    size = 1 << 20

    def __init__(self) -> None:
        self.data = bytearray(self.size)
        self.log: list[tuple[Any, ...]] = []

    def read(self, offset: int, into: memoryview) -> int | None:
        self.log.append(("read", offset, len(into)))
        into[:] = self.data[offset : offset + len(into)]
        return None

    def write(self, offset: int, data: memoryview) -> int | None:
        self.log.append(("write", offset, len(data)))
        self.data[offset : offset + len(data)] = data
        return None

    def flush(self) -> None:
        self.log.append(("flush",))

    def discard(self, offset: int, length: int) -> None:
        self.log.append(("discard", offset, length))

    def write_zeroes(self, offset: int, length: int) -> None:
        self.log.append(("write_zeroes", offset, length))
        self.data[offset : offset + length] = bytes(length)


class AsyncDisk(BytesTarget):
    """The same as coroutines that wait for ``gate``; ``began`` hears of each."""

    size = 1 << 20

    def __init__(self) -> None:
        self.data = bytearray(self.size)
        self.gate: asyncio.Event | None = None
        self.began = threading.Semaphore(0)
        self.cancelled = 0
        self.threads: set[str] = set()

    async def _pass(self) -> None:
        self.threads.add(threading.current_thread().name)
        self.gate = self.gate or asyncio.Event()
        self.began.release()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    def open(self) -> None:
        """From any thread, once a method has begun."""
        assert self.gate is not None
        loop = self.__dict__["_BytesTarget__loop"]
        loop._loop.call_soon_threadsafe(self.gate.set)

    async def read(self, offset: int, into: memoryview) -> int | None:
        await self._pass()
        into[:] = self.data[offset : offset + len(into)]
        return None

    async def write(self, offset: int, data: memoryview) -> int | None:
        await self._pass()
        self.data[offset : offset + len(data)] = data
        return None


class Served:
    """A target behind its bridge; answers can be waited for."""

    def __init__(self, engine: Engine, target: BytesTarget) -> None:
        self.engine, self.target = engine, target
        self.native = Bridge(target, "toy").native
        self.answered = threading.Semaphore(0)
        plain = engine.__getattr__

        def answer(raw: Any, moved: int) -> None:
            plain("group_answer")(raw, moved)
            self.answered.release()

        engine.__dict__["group_answer"] = answer

    def turn(self, *requests: tuple[int, ...]) -> list[int]:
        """What has been answered when it is over."""
        self.engine.turn(self.native, [self.engine.request(*request) for request in requests])
        return self.engine.answers()

    def wait(self, answers: int) -> list[int]:
        for _ in range(answers):
            assert self.answered.acquire(timeout=WAIT)
        return self.engine.answers()


@contextmanager
def serving_disks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[BytesTarget], Served]]:
    """All that it serves is closed in the end, and no thread is left."""
    engine, made = install(monkeypatch), list[Served]()

    def make(target: BytesTarget) -> Served:
        made.append(Served(engine, target))
        return made[-1]

    yield make
    for served in made:
        served.target.close()
    gc.collect()
    assert not [t.name for t in threading.enumerate() if t.name == "ublk-asyncio"]


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]
