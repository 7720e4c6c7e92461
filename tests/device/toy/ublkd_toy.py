"""Targets as somebody with a free afternoon would write them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Self

from ublkd.target import API_VERSION, BytesTarget, Group, IoDesc, Op, Option, OptionValue, Params

SIZE = Option(name="size", help="bytes", kind="size", default=64 << 20)


class MemoryTarget(BytesTarget):
    """A disk in this process's memory."""

    options = (SIZE,)

    def __init__(self, size: int) -> None:
        self.size = size
        self.bytes = bytearray(size)

    def read(self, offset: int, into: memoryview) -> None:
        into[:] = memoryview(self.bytes)[offset : offset + len(into)]

    def write(self, offset: int, data: memoryview) -> None:
        self.bytes[offset : offset + len(data)] = data

    def flush(self) -> None:
        pass

    def discard(self, offset: int, length: int) -> None:
        self.bytes[offset : offset + length] = bytes(length)


class SlowTarget(MemoryTarget):
    """The same, but each request waits, many at a time."""

    async def read(self, offset: int, into: memoryview) -> int:  # type: ignore[override]
        await asyncio.sleep(0.01)
        super().read(offset, into)
        return len(into)

    async def write(self, offset: int, data: memoryview) -> None:  # type: ignore[override]
        await asyncio.sleep(0.01)
        super().write(offset, data)


class ClumsyTarget(MemoryTarget):
    """Fails in every way that Python knows, by the megabyte."""

    timeout = 1.0

    def read(self, offset: int, into: memoryview) -> Any:
        megabyte = offset >> 20
        if megabyte == 1:
            raise ZeroDivisionError("a mistake")
        if megabyte == 2:
            raise OSError(errno.ENOSPC, "full")
        if megabyte == 3:
            return len(into) + 1
        if megabyte == 4:
            return "all of it"
        if megabyte == 5:
            return 512
        if megabyte == 6:
            return asyncio.sleep(100)
        return super().read(offset, into)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = socket.create_connection(server.getsockname())
        there, _ = server.accept()
    for end in (here, there):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return here, there


class PairTarget:
    """A disk at the other end of a socket, whose bytes go there from the request's own pages.

    The other end is a thread; all goes in order, so an answer needs no name.
    """

    api_version = API_VERSION
    options = (
        SIZE,
        Option(name="tcp", help="not a unix socket, and sends without a copy", kind="flag"),
    )

    def __init__(self, size: int, tcp: bool | None = False) -> None:
        self._tcp = bool(tcp)
        self.params = Params(size=size, max_members=3, max_queues=1, zero_copy_sends=self._tcp)
        self._here, self._there = tcp_pair() if tcp else socket.socketpair()
        self._store = bytearray(size)
        threading.Thread(target=self._serve, daemon=True).start()

    @classmethod
    def from_options(cls, options: Mapping[str, OptionValue]) -> Self:
        return cls(**options)  # type: ignore[arg-type]

    def files(self) -> Sequence[int]:
        return (self._here.fileno(),)

    def describe(self) -> Mapping[str, OptionValue]:
        return {}

    def close(self) -> None:
        self._here.close()
        self._there.close()

    def submit(self, io: IoDesc, group: Group) -> None:
        name = b"r" if io.op is Op.READ else b"w"
        header = b"%c%015d%016d" % (name, io.offset, io.length)
        if io.op is Op.READ:
            group.send_bytes(0, header)
            group.recv(0, io.length)
        else:
            group.send_bytes(0, header, more=True)
            group.send(0, io.length, zero_copy=self._tcp)
            group.expect(0, b"ok")

    def _serve(self) -> None:
        with contextlib.suppress(OSError), self._there.makefile("rwb") as stream:
            while header := stream.read(32):
                offset, length = int(header[1:16]), int(header[16:])
                if header[:1] == b"r":
                    stream.write(memoryview(self._store)[offset : offset + length])
                else:
                    self._store[offset : offset + length] = stream.read(length)
                    stream.write(b"ok")
                stream.flush()
