"""Bytes to and from a socket, with one deadline for all of them and a way to end the wait."""

from __future__ import annotations

import select
import ssl
import time
from collections.abc import Callable
from socket import socket
from typing import Self, TypeVar

from ublkd.errors import UblkdError

CHUNK = 64 << 10
"""Bytes: the most that is read at once."""

MAX_POLL_MS = (1 << 31) - 1

Result = TypeVar("Result")


class TimedOut(Exception):
    """The deadline is over."""


class Stopped(UblkdError):
    """Somebody ended the wait."""


class Patience:
    """How long to wait in all; ``stop`` is a descriptor that ends it when it can be read."""

    def __init__(self, seconds: float, stop: int | None = None) -> None:
        """It starts now."""
        self.seconds = seconds
        self._until = time.monotonic() + seconds
        self._stop = stop

    @property
    def left(self) -> float:
        """Seconds, never less than 0."""
        return max(0.0, self._until - time.monotonic())

    def share(self, parts: int) -> Self:
        """A new one with an equal part of what is left."""
        return type(self)(self.left / parts, self._stop)

    def wait(self, fd: int, events: int) -> None:
        """Until ``fd`` is ready. Raises TimedOut or Stopped."""
        poll = select.poll()
        poll.register(fd, events)
        if self._stop is not None:
            poll.register(self._stop, select.POLLIN)
        while left := self.left:
            ready = dict(poll.poll(min(int(left * 1000) + 1, MAX_POLL_MS)))
            if self._stop is not None and self._stop in ready:
                raise Stopped("told to stop before the server was reached")
            if ready:
                return
        raise TimedOut

    def pause(self, seconds: float) -> None:
        """For a moment. Raises TimedOut or Stopped."""
        if not self.left:
            raise TimedOut
        stops = [] if self._stop is None else [self._stop]
        if select.select(stops, [], [], min(seconds, self.left))[0]:
            raise Stopped("told to stop before the server was reached")


class Stream:
    """A socket that does not block, plain or in TLS."""

    def __init__(self, sock: socket, patience: Patience) -> None:
        """Both stay the caller's."""
        self.socket = sock
        self._patience = patience

    def send(self, data: bytes | memoryview) -> None:
        """All of it."""
        left = memoryview(data)
        while left:
            left = left[self.patiently(self.socket.send, left, blocked=select.POLLOUT) :]

    def recv(self) -> bytes:
        """What has come; empty at the end."""
        return self.patiently(self.socket.recv, CHUNK, blocked=select.POLLIN)

    def patiently(self, call: Callable[..., Result], *words: object, blocked: int) -> Result:
        """The result of a call that may have to be made again.

        ``blocked`` is what to wait for if the plain socket would block.
        """
        while True:
            if not self._patience.left:  # or who always has one more byte would never be late
                raise TimedOut
            try:
                return call(*words)
            except ssl.SSLWantReadError:
                events = select.POLLIN
            except ssl.SSLWantWriteError:
                events = select.POLLOUT
            except BlockingIOError:
                events = blocked
            self._patience.wait(self.socket.fileno(), events)
