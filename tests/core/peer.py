"""The other ends of stream sockets, in a thread of their own and at a pace of their own."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Sequence
from itertools import cycle
from types import TracebackType
from typing import Self

DEADLINE = 120.0
"""Seconds: a peer that waits longer has been forgotten."""


class Peer(threading.Thread):
    """
    Reads all that comes until the streams end, and writes `says` meanwhile, one text for each
    socket; `gulps` and `sips` are the bytes of one read and of one write, again and again.
    """

    def __init__(
        self,
        ends: Sequence[socket.socket],
        says: Sequence[bytes],
        gulps: Sequence[int] = (65536,),
        sips: Sequence[int] = (65536,),
    ) -> None:
        super().__init__(name="peer")
        self.got = [bytearray() for _ in ends]
        self.ended = [False for _ in ends]
        """Whether the stream has been seen to end."""
        self._ends = ends
        self._says = [memoryview(text) for text in says]
        self._gulps, self._sips = cycle(gulps), cycle(sips)
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._serve()
        except BaseException as error:
            self._error = error

    def wait(self) -> None:
        """Until all streams have ended."""
        self.join()
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self.join()
        for end in self._ends:
            end.close()

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            for number, end in enumerate(self._ends):
                end.setblocking(False)
                selector.register(end, selectors.EVENT_READ | selectors.EVENT_WRITE, number)
            while selector.get_map():
                events = selector.select(DEADLINE)
                assert events, "nobody has ended the streams"
                for key, ready in events:
                    self._turn(selector, key.data, ready)

    def _turn(self, selector: selectors.BaseSelector, number: int, ready: int) -> None:
        end = self._ends[number]
        if ready & selectors.EVENT_READ and self._hear(number):
            selector.unregister(end)
            return
        if ready & selectors.EVENT_WRITE and not self._say(number):
            selector.modify(end, selectors.EVENT_READ, number)

    def _hear(self, number: int) -> bool:
        """Whether it was the last."""
        try:
            data = self._ends[number].recv(next(self._gulps))
        except ConnectionResetError:
            data = b""
        self.got[number] += data
        self.ended[number] = not data
        return not data

    def _say(self, number: int) -> bool:
        """Whether there is more to say."""
        rest = self._says[number]
        if rest:
            try:
                sent = self._ends[number].send(rest[: next(self._sips)])
            except (BrokenPipeError, ConnectionResetError):
                sent = len(rest)
            self._says[number] = rest[sent:]
        return len(self._says[number]) > 0


Pair = tuple[socket.socket, socket.socket]


def unix_pair(room: int | None = None) -> Pair:
    """`room` is what the kernel shall keep of what nobody has read, in bytes."""
    pair = socket.socketpair()
    if room is not None:
        for end in pair:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room)
    return pair


def tcp_pair() -> Pair:
    """Over the loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    for end in (ours, theirs):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return ours, theirs
