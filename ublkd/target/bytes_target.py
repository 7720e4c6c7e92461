"""A target that reads and writes bytes: for what is not in a file or behind a socket."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, ClassVar, Self

from ublkd.target.group import Group, Held, IoDesc
from ublkd.target.protocol import API_VERSION, Option, OptionValue, Params
from ublkd.uapi import Op

MOST = 0xFFFFFFFF // 4096 * 4096
"""Bytes: the most that one request without data can name."""

METHODS = {
    Op.READ: "read",
    Op.WRITE: "write",
    Op.FLUSH: "flush",
    Op.DISCARD: "discard",
    Op.WRITE_ZEROES: "write_zeroes",
}


class BytesTarget:
    """Subclass it, set ``size``, and write the methods that your disk can do.

    =================================  ==========================================================
    ``read(offset, into)``             fill the memoryview ``into``
    ``write(offset, data)``            keep the memoryview ``data``; without it: a read-only disk
    ``flush()``                        what was written is durable when this returns
    ``discard(offset, length)``        these bytes are not needed
    ``write_zeroes(offset, length)``   these bytes are zeroes
    =================================  ==========================================================

    Each may be ``async def``; then requests are served at the same time, else one by one. ``read``
    and ``write`` return how many bytes they did, or None for all. A method that is there is a
    capability of the disk; one that is not there is never asked for. An OSError is its errno for
    the program on the disk, any other exception EIO and a line in the log. Neither ``into`` nor
    ``data`` may be used after the method has returned.
    """

    api_version: ClassVar[int] = API_VERSION
    options: ClassVar[Sequence[Option]] = ()
    size: int
    """Bytes of the disk."""
    block_size: int = 512
    """Bytes of a logical block: every offset and length is a multiple of it."""
    timeout: float = 30.0
    """Seconds after which an ``async def`` method is cancelled and its request fails."""

    @classmethod
    def from_options(cls, options: Mapping[str, OptionValue]) -> Self:
        """Make it of its options, given as keywords."""
        return cls(**options)

    @property
    def params(self) -> Params:
        """What the methods say of the disk."""
        block, size = self.block_size, self.size // self.block_size * self.block_size
        return Params(
            size=size,
            logical_block=block,
            physical_block=block,
            io_min=block,
            io_opt=block,
            in_memory=True,
            read_only=not self._can(Op.WRITE),
            volatile_cache=self._can(Op.FLUSH),
            fua=self._can(Op.FLUSH),
            discard_granularity=block if self._can(Op.DISCARD) else 0,
            max_discard=MOST if self._can(Op.DISCARD) else 0,
            max_write_zeroes=MOST if self._can(Op.WRITE_ZEROES) else 0,
        )

    def files(self) -> Sequence[int]:
        """None: it has no members."""
        return ()

    def describe(self) -> Mapping[str, OptionValue]:
        """Nothing, unless a subclass has something to tell."""
        return {}

    def close(self) -> None:
        """End what is still under way. A subclass that has more to let go of calls this first."""
        loop = self.__dict__.pop("_loop", None)
        if loop is not None:
            loop.close()

    # --- serving ----------------------------------------------------------------------------

    def submit(self, io: IoDesc, group: Group) -> None:
        """Serve a request: at once, or on an event loop of its own."""
        memory = group.memory if io.op in (Op.READ, Op.WRITE) else None
        work = self._serve(io, memory)
        if self._is_async():
            self._event_loop().run(work, group.hold(), memory)
        else:
            group.complete(_at_once(work))

    async def _serve(self, io: IoDesc, memory: memoryview | None) -> int | None:
        method = getattr(self, METHODS[io.op])
        if memory is None:
            await _result(method() if io.op is Op.FLUSH else method(io.offset, io.length))
            done = None
        else:
            data = memory if io.op is Op.READ else memory.toreadonly()
            done = await _result(method(io.offset, data))
            if done is not None and not isinstance(done, int):
                raise TypeError(f"{METHODS[io.op]}() returned {type(done).__name__}")
        if io.fua and io.op in (Op.WRITE, Op.WRITE_ZEROES):
            await _result(getattr(self, METHODS[Op.FLUSH])())
        return done

    def _can(self, op: Op) -> bool:
        return callable(getattr(self, METHODS[op], None))

    def _is_async(self) -> bool:
        found = self.__dict__.get("_async")
        if found is None:
            methods = [getattr(self, name, None) for name in METHODS.values()]
            found = self.__dict__["_async"] = any(map(inspect.iscoroutinefunction, methods))
        return bool(found)

    def _event_loop(self) -> _EventLoop:
        loop = self.__dict__.get("_loop")
        if loop is None:
            with _MAKING:  # of two queues one makes it
                loop = self.__dict__.setdefault("_loop", None) or _EventLoop(self.timeout)
                self.__dict__["_loop"] = loop
        return loop


_MAKING = threading.Lock()


async def _result(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def _at_once(work: Coroutine[Any, Any, int | None]) -> int | None:
    """The result of a coroutine that awaits nothing."""
    try:
        work.send(None)
    except StopIteration as end:
        moved: int | None = end.value
        return moved
    work.close()
    raise TypeError("a method that is no 'async def' returned something to wait for")


class _EventLoop:
    """An event loop in a thread of its own."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="ublk-asyncio", daemon=True
        )
        self._thread.start()

    def run(
        self, work: Coroutine[Any, Any, int | None], held: Held, memory: memoryview | None
    ) -> None:
        """Run it, and answer with its result."""
        self._loop.call_soon_threadsafe(self._start, work, held, memory)

    def _start(
        self, work: Coroutine[Any, Any, int | None], held: Held, memory: memoryview | None
    ) -> None:
        task = self._loop.create_task(self._answer(work, held, memory))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(
        self, work: Coroutine[Any, Any, int | None], held: Held, memory: memoryview | None
    ) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                moved = await work
            _let_go(memory)
            held.complete(moved)
        except BaseException as error:
            _let_go(memory)
            held.fail(error)

    def close(self) -> None:
        """Cancel what is under way, and end the thread."""
        asyncio.run_coroutine_threadsafe(self._cancel(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    async def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _let_go(memory: memoryview | None) -> None:
    """The bytes are the next request's from now on."""
    if memory is not None:
        with contextlib.suppress(BufferError):
            memory.release()
