"""A disk from read() and write(): what its methods say of it, and how they are called."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.engine import Engine, install
from ublkd._core import lib
from ublkd.target import BytesTarget, Op
from ublkd.target.bridge import Bridge

FUA = lib.UBLK_IO_F_FUA
WAIT = 10  # seconds, for what comes at once


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
        self.__dict__["_loop"]._loop.call_soon_threadsafe(self.gate.set)

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


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[BytesTarget], Served]]:
    engine, made = install(monkeypatch), []

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


# --- what the methods say of the disk ---------------------------------------


@given(methods=st.sets(st.sampled_from(["read", "write", "flush", "discard", "write_zeroes"])))
def test_a_method_that_is_there_is_a_capability(methods: set[str]) -> None:
    has = {name: getattr(Disk, name) for name in methods}
    made = type("Made", (BytesTarget,), {"size": 5000, "block_size": 1024, **has})()
    params = made.params
    assert params.in_memory
    assert (params.size, params.logical_block) == (4096, 1024)
    assert params.read_only == ("write" not in methods)
    assert params.volatile_cache == params.fua == ("flush" in methods)
    assert (params.max_discard > 0) == (params.discard_granularity > 0) == ("discard" in methods)
    assert (params.max_write_zeroes > 0) == ("write_zeroes" in methods)
    assert params.max_discard % 4096 == 0
    assert params.max_discard < 1 << 32
    assert (made.files(), made.describe()) == ((), {})


def test_options_become_keywords() -> None:
    class Sized(BytesTarget):
        def __init__(self, size: int, name: str) -> None:
            self.size, self.name = size, name

    made = Sized.from_options({"size": 8192, "name": "x"})
    assert (made.params.size, made.name) == (8192, "x")


# --- one after the other ----------------------------------------------------


def test_every_method_gets_what_its_request_names(
    serve: Callable[[BytesTarget], Served],
) -> None:
    disk = Disk()
    served = serve(disk)
    assert served.engine.pages is not None
    served.engine.pages[:4096] = b"w" * 4096
    requests = [
        (Op.WRITE, 8192, 4096), (Op.READ, 4096, 1024), (Op.FLUSH,),
        (Op.DISCARD, 0, 1 << 19), (Op.WRITE_ZEROES, 8192, 512),
    ]  # fmt: skip
    assert served.turn(*requests) == [4096, 1024, 0, 1 << 19, 512]
    assert disk.log == [
        ("write", 8192, 4096), ("read", 4096, 1024), ("flush",),
        ("discard", 0, 1 << 19), ("write_zeroes", 8192, 512),
    ]  # fmt: skip
    assert disk.data[8192:12288] == bytes(512) + b"w" * 3584
    assert served.engine.pages[:4096] == bytes(1024) + b"w" * 3072
    assert not [call for call in served.engine.calls if call[0] == "group_hold"]


def test_what_is_to_be_written_cannot_be_changed(serve: Callable[[BytesTarget], Served]) -> None:
    seen = []

    class Checks(Disk):
        def write(self, offset: int, data: memoryview) -> None:
            seen.append(data.readonly)

    assert serve(Checks()).turn((Op.WRITE, 0, 512)) == [512]
    assert seen == [True]


@pytest.mark.parametrize("op", [Op.WRITE, Op.WRITE_ZEROES])
def test_what_must_be_durable_is_flushed_after_it_was_written(
    serve: Callable[[BytesTarget], Served], op: Op
) -> None:
    disk = Disk()
    served = serve(disk)
    served.turn((op, 0, 512, FUA), (op, 0, 512), (Op.READ, 0, 512, FUA))
    assert [call[0] for call in disk.log] == [METHOD[op], "flush", METHOD[op], "read"]


METHOD = {Op.WRITE: "write", Op.WRITE_ZEROES: "write_zeroes"}


def test_a_flush_that_fails_fails_what_should_be_durable(
    serve: Callable[[BytesTarget], Served],
) -> None:
    class Unsafe(Disk):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "no room")

    assert serve(Unsafe()).turn((Op.WRITE, 0, 512, FUA)) == [-errno.ENOSPC]


@pytest.mark.parametrize("op", [Op.READ, Op.WRITE])
@pytest.mark.parametrize(
    ("returned", "answer", "said"),
    [
        (None, 4096, ""),
        (4096, 4096, ""),
        (1000, 1000, ""),
        (0, 0, ""),
        (4097, -errno.EIO, "4097 bytes of 4096"),
        (-1, -errno.EIO, "-1 bytes of 4096"),
        ("all", -errno.EIO, "returned str"),
        (b"bytes", -errno.EIO, "returned bytes"),
    ],
)
def test_a_method_says_how_much_it_did(
    serve: Callable[[BytesTarget], Served],
    caplog: pytest.LogCaptureFixture,
    op: Op,
    returned: Any,
    answer: int,
    said: str,
) -> None:
    class Returns(Disk):
        def read(self, offset: int, into: memoryview) -> Any:
            return returned

        def write(self, offset: int, data: memoryview) -> Any:
            return returned

    assert serve(Returns()).turn((op, 0, 4096)) == [answer]
    assert len(lines(caplog)) == bool(said)
    assert said in "".join(lines(caplog))


@pytest.mark.parametrize(
    ("error", "answer", "logged"),
    [
        (OSError(errno.ENODATA, "none"), -errno.ENODATA, 0),
        (TimeoutError(), -errno.ETIMEDOUT, 0),
        (ZeroDivisionError("oops"), -errno.EIO, 1),
    ],
)
@pytest.mark.parametrize("how", ["sync", "async"])
def test_an_exception_is_the_requests_failure_and_the_next_one_is_served(
    serve: Callable[[BytesTarget], Served],
    caplog: pytest.LogCaptureFixture,
    how: str,
    error: BaseException,
    answer: int,
    logged: int,
) -> None:
    class Raises(Disk):
        def read(self, offset: int, into: memoryview) -> None:
            if offset == 0:
                raise error

    class RaisesLater(Disk):
        async def read(self, offset: int, into: memoryview) -> None:  # type: ignore[override]
            if offset == 0:
                raise error

    served = serve(Raises() if how == "sync" else RaisesLater())
    served.turn((Op.READ, 0, 512), (Op.READ, 512, 512))
    if how == "async":
        served.wait(2)
    assert served.engine.answers() == [answer, 512]
    assert len(lines(caplog)) == logged


def test_a_plain_method_that_returns_something_to_wait_for_is_a_mistake_and_said(
    serve: Callable[[BytesTarget], Served], caplog: pytest.LogCaptureFixture
) -> None:
    class Never:
        def __await__(self) -> Iterator[None]:
            yield

    class Hidden(Disk):
        def read(self, offset: int, into: memoryview) -> Any:
            return Never()

    assert serve(Hidden()).turn((Op.READ, 0, 512)) == [-errno.EIO]
    assert "async def" in "".join(lines(caplog))


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


def test_bytes_are_out_of_reach_when_the_request_is_answered(
    serve: Callable[[BytesTarget], Served],
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
    before = threading.active_count()
    AsyncDisk().close()
    Disk().close()
    assert threading.active_count() == before


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
