"""Stands where C and the queues stand for a keeper, and where its clock and its servers do."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ublkd._core import lib
from ublkd.errors import UblkdError
from ublkd.targets.nbd.connect import Connection
from ublkd.targets.nbd.export import Export
from ublkd.targets.nbd.stream import Stopped
from ublkd.targets.nbd.wire import ExportFlag

PATIENCE = 30
"""Seconds: no wait here is meant to be this long."""

FLAGS = ExportFlag.HAS_FLAGS | ExportFlag.SEND_FLUSH | ExportFlag.CAN_MULTI_CONN
EXPORT = Export(name="", size=1 << 20, flags=FLAGS)


LOOKED_AT = "state", "loss", "err", "attached", "unanswered", "slow", "may_still_write", "ended"


@dataclass
class Link:
    state: int = lib.NBD_WAITING
    loss: int = lib.NBD_NO_LOSS
    err: int = 0
    attached: int = 0
    unanswered: int = 0
    slow: int = 0
    may_still_write: bool = False
    ended: int = 0
    answers: int = 0
    """So many requests will be answered yet: one with every look."""
    fd: int = -1


class Links:
    """``lib`` for keeper.py: what is wished of a link is done at once, unless its queue is slow."""

    def __init__(self, number: int, clock: Clock) -> None:
        self.link = [Link() for _ in range(number)]
        self.did: list[str] = []
        self.when: list[float] = []
        """By the clock, of each of these."""
        self._clock = clock
        self.unflushed = False
        self.journal_broken = False
        self.slow = False
        """Whether queues leave a break undone."""
        self._news = threading.Condition()
        self._lost_fd = -1
        self.freed = False
        self.stopping = False

    def __getattr__(self, name: str) -> Any:
        return getattr(lib, name)  # the constants

    def until(self, done: Callable[[], object]) -> None:
        """Wait for what the keeper shall do."""
        end = time.monotonic() + PATIENCE
        with self._news:
            while not done():  # nobody tells of what is no wish of the keeper's
                assert time.monotonic() < end, self.did
                self._news.wait(0.02)

    def notice(self) -> None:
        with self._news:
            self._news.notify_all()

    def _tell(self, what: str) -> None:
        with self._news:
            self.did.append(what)
            self.when.append(self._clock.monotonic())
            self._news.notify_all()

    def lose(self, number: int, loss: int = lib.NBD_LOST_SOCKET, err: int = -104) -> None:
        """A queue has found a connection dead."""
        self.link[number].loss, self.link[number].err = loss, err
        self._drop(self.link[number], lib.NBD_WAITING)
        os.eventfd_write(self._lost_fd, 1)

    def wake(self) -> None:
        os.eventfd_write(self._lost_fd, 1)

    def _drop(self, link: Link, state: int) -> None:
        if link.fd >= 0:
            os.close(link.fd)
        link.fd, link.state = -1, state

    # --- what keeper.py calls ----------------------------------------------

    def nbd_new(self, config: Any) -> object:
        assert config.nr_links == len(self.link)
        self.timeout_ns, self.window_ns = int(config.timeout_ns), int(config.window_ns)
        self.journal_bytes = int(config.journal_bytes)
        self._lost_fd = int(config.lost_fd)
        return self

    def nbd_free(self, links: object) -> None:
        assert links is self
        for link in self.link:
            self._drop(link, lib.NBD_WAITING)
        self.freed = True

    def nbd_attach(self, _links: object, number: int, fd: int) -> None:
        link = self.link[number]
        self._drop(link, lib.NBD_CONNECTED)
        link.fd = fd
        link.attached += 1
        self._tell(f"attach {number}")

    def nbd_break(self, _links: object, number: int) -> None:
        link = self.link[number]
        if link.state == lib.NBD_CONNECTED and not self.slow:
            self._drop(link, lib.NBD_WAITING)
            link.loss = lib.NBD_LOST_TOLD
            os.eventfd_write(self._lost_fd, 1)
        self._tell(f"break {number}")

    def nbd_fail(self, _links: object, number: int) -> None:
        self._drop(self.link[number], lib.NBD_FAILING)
        self.link[number].unanswered = 0
        self._tell(f"fail {number}")

    def nbd_look(self, _links: object, number: int, out: Any) -> None:
        link = self.link[number]
        if link.answers:
            link.answers -= 1
            link.ended += 1
        for name in LOOKED_AT:
            setattr(out, name, getattr(link, name))

    def nbd_stopping(self, _links: object, is_so: bool) -> None:
        self.stopping = is_so

    def nbd_limits(self, _links: object, timeout_ns: int, window_ns: int) -> None:
        self.timeout_ns, self.window_ns = timeout_ns, window_ns

    def nbd_unflushed(self, _links: object) -> bool:
        return self.unflushed

    def nbd_journal_broken(self, _links: object) -> bool:
        return self.journal_broken

    def nbd_inherit(self, _links: object, acked: int, flushed: int) -> None:
        self._tell(f"inherit {acked} {flushed}")
        self.unflushed = acked != flushed

    def nbd_fail_flush(self, _links: object) -> None:
        self._tell("fail flush")

    def nbd_note_flush(self, _links: object, order: int) -> None:
        self._tell(f"flushed {order}")


class Clock:
    """``time``, ``random`` and ``select`` for keeper.py: what it waits for a while ends at once."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.naps: list[float] = []
        self.jitter = 1.0
        self.napped: Callable[[], None] = lambda: None

    def monotonic(self) -> float:
        return self.now

    def uniform(self, low: float, high: float) -> float:
        assert (low, high) == (0.8, 1.2)
        return self.jitter

    def select(
        self, reads: Sequence[int], _writes: object, _errors: object, seconds: float | None = None
    ) -> tuple[list[int], object, object]:
        if seconds is None:
            return select.select(reads, [], [], PATIENCE)
        ready = select.select(reads, [], [], 0)
        if not ready[0]:
            self.now += seconds
            self.naps.append(seconds)
            self.napped()
        return ready


@dataclass
class Servers:
    """``dial`` by a script: exports, failures, seconds that pass, or what is called with ``stop``.

    Behind its last step it waits to be stopped.
    """

    clock: Clock
    script: list[Export | BaseException | float | Callable[[], object]] = field(
        default_factory=list
    )
    patience: list[float] = field(default_factory=list)
    when: list[float] = field(default_factory=list)
    """By the clock, of each try."""
    ends: list[socket.socket] = field(default_factory=list)
    waiting: threading.Event = field(default_factory=threading.Event)
    """Whether the script is over."""

    def new(self, export: Export = EXPORT) -> Connection:
        ours, theirs = socket.socketpair()
        self.ends.append(theirs)
        return Connection(ours, export)

    def dial(self, seconds: float, stop: int | None) -> Connection:
        assert stop is not None
        self.patience.append(seconds)
        self.when.append(self.clock.monotonic())
        while self.script:
            step = self.script.pop(0)
            if isinstance(step, BaseException):
                raise step
            if isinstance(step, Export):
                return self.new(step)
            if isinstance(step, float):
                self.clock.now += step
            else:
                step()
        self.waiting.set()
        assert select.select([stop], [], [], PATIENCE)[0]
        raise Stopped("told to stop")

    def closed(self) -> list[bool]:
        """Which of all connections are, by now."""
        gone = []
        for end in self.ends:
            end.setblocking(False)
            try:
                gone.append(end.recv(1) == b"")
            except BlockingIOError:
                gone.append(False)
        return gone

    def close(self) -> None:
        for end in self.ends:
            with contextlib.suppress(OSError):
                end.close()


def refused(words: str = "nobody there") -> UblkdError:
    return UblkdError(words)
