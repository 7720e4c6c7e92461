"""A target that reads and writes bytes: for what is not in a file or behind a socket."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from ublkd.target.group import Group, IoDesc
from ublkd.target.protocol import API_VERSION, Option, OptionValue, Params
from ublkd.uapi import Op

if TYPE_CHECKING:
    from ublkd.target.event_loop import EventLoop

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

    Each may be ``async def``; then all run on one event loop, many requests at a time (so a plain
    method beside it must not wait), else one by one. ``read`` and ``write`` return how many bytes
    they did, or None for all; what ``read`` does not fill is zeroes. ``data`` is a copy, to keep
    if you like. A method that is there is a capability of the disk; one that is not there is
    never asked for. An OSError is its errno for the program on the disk, any other exception EIO
    and a line in the log.
    """

    api_version: ClassVar[int] = API_VERSION
    options: ClassVar[Sequence[Option]] = ()
    size: int
    """Bytes of the disk."""
    block_size: int = 512
    """Bytes of a logical block: every offset and length is a multiple of it."""
    recovery: Literal["none", "queue", "reissue", "fail"] = "none"
    """As in Params: ``none`` unless the bytes outlive the daemon."""
    timeout: float = 30.0
    """Seconds after which an ``async def`` method is cancelled and its request fails; well below
    60, which is how long a stop waits. A cancelled method must not write any more.
    """

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
            recovery=self.recovery,
            read_only=not self._can(Op.WRITE),
            volatile_cache=self._can(Op.FLUSH),
            fua=self._can(Op.FLUSH),
            discard_granularity=block,  # the driver wants one for write-zeroes as well
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
        loop, self.__loop = self.__loop, None
        if loop is not None:
            loop.close()

    # --- serving ----------------------------------------------------------------------------

    __loop: EventLoop | None = None
    __is_async: bool | None = None

    def submit(self, io: IoDesc, group: Group) -> None:
        """Serve a request: at once, or on an event loop of its own."""
        memory = group.memory if io.op in (Op.READ, Op.WRITE) else memoryview(b"")
        work = self.__serve(io, memory)
        if self.__has_async():
            self.__event_loop().run(work, group.hold())
        else:
            group.complete(_at_once(work))

    async def __serve(self, io: IoDesc, memory: memoryview) -> int | None:
        """The methods get bytes of their own: one that goes on when its request is over, or
        keeps what it was given, must not meet the next request's.
        """
        method = getattr(self, METHODS[io.op])
        done = None
        if io.op is Op.READ:
            into = bytearray(io.length)
            done = _count(await _result(method(io.offset, memoryview(into))), io)
            memory[:done] = into[:done]
        elif io.op is Op.WRITE:
            done = _count(await _result(method(io.offset, memoryview(bytes(memory)))), io)
        elif io.op is Op.FLUSH:
            await _result(method())
        else:
            await _result(method(io.offset, io.length))
        if io.fua and io.op in (Op.WRITE, Op.WRITE_ZEROES):
            await _result(getattr(self, METHODS[Op.FLUSH])())
        return done

    def _can(self, op: Op) -> bool:
        return callable(getattr(self, METHODS[op], None))

    def __has_async(self) -> bool:
        if self.__is_async is None:
            methods = [getattr(self, name, None) for name in METHODS.values()]
            self.__is_async = any(map(inspect.iscoroutinefunction, methods))
        return self.__is_async

    def __event_loop(self) -> EventLoop:
        with _MAKING:  # of two queues one makes it
            if self.__loop is None:
                from ublkd.target.event_loop import EventLoop  # asyncio is slow to load

                self.__loop = EventLoop(self.timeout)
            return self.__loop


_MAKING = threading.Lock()


async def _result(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def _count(done: Any, io: IoDesc) -> int:
    """How many bytes a method says that it did. Raises TypeError or ValueError for nonsense."""
    if done is None:
        return io.length
    if not isinstance(done, int):
        raise TypeError(f"{METHODS[io.op]}() returned {type(done).__name__}")
    if not 0 <= done <= io.length:
        raise ValueError(f"{METHODS[io.op]}() returned {done}, of {io.length} bytes")
    return done


def _at_once(work: Coroutine[Any, Any, int | None]) -> int | None:
    """The result of a coroutine that awaits nothing."""
    try:
        work.send(None)
    except StopIteration as end:
        moved: int | None = end.value
        return moved
    work.close()
    raise TypeError("a method that is no 'async def' returned something to wait for")
