"""TLS for an engine that knows plain sockets only: a thread carries the bytes both ways."""

from __future__ import annotations

import contextlib
import math
import select
import ssl
import threading
import time
from collections.abc import Callable
from socket import AF_UNIX, SHUT_RDWR, SOCK_STREAM, socket, socketpair

ROOM = 128 << 10
"""Bytes that wait in each direction, besides what the kernel keeps for the sockets."""

LINGER = 0.5
"""Seconds: once one side has ended, how long what came from it may take to reach the other."""

GONE = select.POLLHUP | select.POLLERR | select.POLLNVAL


class _Way:
    """One direction: what has left its source and has not yet reached its sink."""

    def __init__(self, source: socket, sink: socket) -> None:
        self._source, self._sink = source, sink
        self._bytes = memoryview(bytearray(ROOM))
        self._start = self._end = 0
        self.ended = False
        """Whether nothing more comes."""
        self.broken = False
        """Whether nothing more is taken."""
        # What of their sockets the next recv() and send() wait for; 0: try. In TLS either may
        # wait for either.
        self.reads = self.writes = 0

    @property
    def _hungry(self) -> bool:
        return self._end < ROOM and not (self.ended or self.broken)

    @property
    def _full(self) -> bool:
        return self._start < self._end and not self.broken

    @property
    def source_wanted(self) -> int:
        """What to poll the source for."""
        return self.reads if self._hungry else 0

    @property
    def sink_wanted(self) -> int:
        """What to poll the sink for."""
        return self.writes if self._full else 0

    @property
    def ready(self) -> bool:
        """Whether there is something to do without a poll, as with what TLS has read ahead."""
        return (self._hungry and not self.reads) or (self._full and not self.writes)

    @property
    def over(self) -> bool:
        """Whether all that came has been handed on."""
        return self.ended and self._start == self._end

    def move(self) -> None:
        """As much as has room, without waiting."""
        while self._hungry and not self.reads:
            self._take()
        while self._full and not self.writes:
            self._give()
        if self._start == self._end:
            self._start = self._end = 0

    def _take(self) -> None:
        length, self.reads, failed = _tried(
            lambda: self._source.recv_into(self._bytes[self._end :]), select.POLLIN
        )
        self._end += length
        self.ended = failed or not (length or self.reads)

    def _give(self) -> None:
        length, self.writes, self.broken = _tried(
            lambda: self._sink.send(self._bytes[self._start : self._end]), select.POLLOUT
        )
        self._start += length


def _tried(call: Callable[[], int], blocked: int) -> tuple[int, int, bool]:
    """Bytes moved, what to poll the socket for before the next try, and whether it failed."""
    try:
        return call(), 0, False
    except ssl.SSLWantReadError:
        return 0, select.POLLIN, False
    except ssl.SSLWantWriteError:
        return 0, select.POLLOUT, False
    except BlockingIOError:
        return 0, blocked, False
    except OSError:  # all of TLS's are
        return 0, 0, True


class Relay:
    """Carries bytes between a socket in TLS and a local one, until one of the two ends.

    What came from the side that ended still goes to the other, for at most ``LINGER`` seconds;
    then both are closed. An engine that closes its end behind a last request takes its leave in
    order so; ``close()`` does not, and drops what is under way.
    """

    def __init__(self, sock: ssl.SSLSocket) -> None:
        """Takes ``sock`` over; its handshake is done, and it does not block."""
        self.end, self._near = socketpair(AF_UNIX, SOCK_STREAM)
        """The engine's: a plain socket that blocks. It belongs to the caller."""
        self._near.setblocking(False)
        self._far = sock
        self._told = False
        self._closing = threading.Lock()
        self._up, self._down = _Way(self._near, sock), _Way(sock, self._near)
        self._thread = threading.Thread(target=self._run, name="nbd-tls", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until it has ended because one side has: little more than ``LINGER`` seconds."""
        self._thread.join(2 * LINGER)

    def close(self) -> None:
        """End it now, whatever is under way. May be called again."""
        with self._closing:
            self._told = True
            _shut(self._near)  # wakes the thread
        self._thread.join()

    def _run(self) -> None:
        try:
            self._carry()
        finally:
            self._finish()

    def _finish(self) -> None:
        if self._up.over and not self._told:
            with contextlib.suppress(OSError):
                self._far.unwrap()  # says that this is the end; waits for no answer
        self._far.close()
        _shut(self._near)
        with contextlib.suppress(OSError):
            while self._near.recv(ROOM):
                pass  # a socket closed over what nobody has read would reset the engine's
        with self._closing:
            self._near.close()

    def _carry(self) -> None:
        poll = _Poll(self._near, self._far)
        until = 0.0
        while not self._told:
            self._move()
            if self._up.over or self._down.over:
                return
            if not until and (poll.gone or self._leaving):
                until = time.monotonic() + LINGER
            left = until - time.monotonic() if until else None
            if left is not None and left <= 0:
                return
            self._wait(poll, 0 if self._ready else left)

    def _move(self) -> None:
        self._down.move()
        if self._up.writes == select.POLLIN:
            self._up.writes = 0  # what it waits for may have been read just now
        self._up.move()

    @property
    def _ready(self) -> bool:
        return self._up.ready or self._down.ready

    @property
    def _leaving(self) -> bool:
        return any(way.ended or way.broken for way in (self._up, self._down))

    def _wait(self, poll: _Poll, seconds: float | None) -> None:
        up, down = self._up, self._down
        near, far = poll.wait(
            up.source_wanted | down.sink_wanted, down.source_wanted | up.sink_wanted, seconds
        )
        if near & (select.POLLIN | GONE):
            up.reads = 0
        if near & (select.POLLOUT | GONE):
            down.writes = 0
        if far:
            down.reads = up.writes = 0


class _Poll:
    """Two sockets; one that is gone is heard of even if nothing is wanted of it, but once."""

    def __init__(self, *sockets: socket) -> None:
        self._poll = select.poll()
        self._fds = [sock.fileno() for sock in sockets]
        self.gone: set[int] = set()

    def wait(self, near: int, far: int, seconds: float | None) -> list[int]:
        """The events of both."""
        for fd, events in zip(self._fds, (near, far), strict=True):
            self._poll.register(fd, events)
            if fd in self.gone and not events:
                self._poll.unregister(fd)
        ready = dict(self._poll.poll(None if seconds is None else math.ceil(seconds * 1000)))
        self.gone |= {fd for fd, events in ready.items() if events & GONE}
        return [ready.get(fd, 0) for fd in self._fds]


def _shut(sock: socket) -> None:
    with contextlib.suppress(OSError):  # closed, or its peer is gone
        sock.shutdown(SHUT_RDWR)
