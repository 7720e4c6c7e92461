"""The nbd target behind the fake driver, one link of it, and the servers that it meets."""

from __future__ import annotations

import mmap
import os
import select
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .core import Core
from .driver import Driver
from .nbd_server import Server, Store
from .peer import Pair, unix_pair
from .world import QID, WAYS, Way, position

if TYPE_CHECKING:
    from ublkd.targets.nbd.keeper import Keeper

DEPTH, MAX_IO, GATHERED = 4, 64 << 10, 16 << 10
PATIENCE = 60.0
"""Seconds: what takes longer never comes."""


@dataclass(frozen=True)
class Pages:
    """How a request's pages are reached, and whether SEND and RECV take those that are lent."""

    way: Way
    fixed_streams: bool = True
    gather_bytes: int = 0
    """Of the largest write that goes out as a copy."""


PAGES = {
    "copy": Pages(WAYS["copy"]),
    "auto": Pages(WAYS["auto"]),
    "auto, READ_FIXED": Pages(WAYS["auto"], fixed_streams=False),
    "register": Pages(WAYS["register"]),
    "register, READ_FIXED": Pages(WAYS["register"], fixed_streams=False),
    "group": Pages(WAYS["group"]),
    "user-copy": Pages(WAYS["user-copy"]),
    "copy, gathered": Pages(WAYS["copy"], gather_bytes=GATHERED),
    "auto, gathered": Pages(WAYS["auto"], gather_bytes=GATHERED),
}


@dataclass(frozen=True)
class Status:
    state: int
    loss: int
    err: int
    attached: int
    unanswered: int
    ended: int
    losses: int
    may_still_write: int


@dataclass
class NbdDisk:
    """`begin` requests, `attach` servers, and go on `until` something is the case."""

    core: Core
    pages: Pages = PAGES["copy"]
    depth: int = DEPTH
    max_io: int = MAX_IO
    timeout_ns: int = 0
    sqes: int = 512
    link: int = QID
    journal_bytes: int = 0
    journal: int = -1
    """The file of it, if it has one; without one given it is made here."""
    flushes: bool = False
    """Whether a last flush is sent when it ends."""
    beside: NbdDisk | None = None
    """Another link of the same disk; it ends later."""
    keeper: Keeper | None = None
    """Whose links they are, if not made here."""
    servers: list[Server] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.links: Any
        self.lost: int
        self._map: Any = self.core.ffi.NULL
        # No turn waits here, so nobody has to be woken; and a transfer that a signal disturbs goes
        # on in a worker of the kernel, so that one could not tell when all is done that can be.
        signal.setitimer(signal.ITIMER_REAL, 0)
        lib, ffi = self.core.lib, self.core.ffi
        self.lib = lib
        self._undo = ExitStack()
        self._open = True
        self._dev = os.memfd_create("ublkc")
        self._undo.callback(os.close, self._dev)
        if self.keeper:
            self._begin_kept(self.keeper)
        elif self.beside:
            self._begin_beside(self.beside)
        else:
            self._begin_links(ffi)
        self.driver = Driver(
            self.core,
            [self.journal, -1] if self.journal_bytes else [-1],
            lease=self.pages.way.lease,
            depth=self.depth,
            max_io=self.max_io,
            max_members=3,
            sqes=self.sqes,
            dev_fd=self._dev,
            qid=self.link,
            ops=lib.nbd_ops(),
            target=self.links,
            fixed_streams=self.pages.fixed_streams,
        )
        self._undo.callback(self.driver.close)
        self.begun: dict[int, tuple[int, int, int]] = {}
        """Operation, offset and size, by tag."""

    def _begin_beside(self, other: NbdDisk) -> None:
        self.links, self.lost, self._map = other.links, other.lost, other._map
        self.journal, self.journal_bytes = other.journal, other.journal_bytes

    def _begin_kept(self, keeper: Keeper) -> None:
        self.links, self.lost = keeper.links, -1
        if keeper.journal:
            self.journal, self.journal_bytes = keeper.journal.fd, keeper.journal.bytes

    def _begin_links(self, ffi: Any) -> None:
        self.lost = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._undo.callback(os.close, self.lost)
        if self.journal_bytes and self.journal < 0:
            self.journal = os.memfd_create("journal")
            self._undo.callback(os.close, self.journal)
            os.truncate(self.journal, self.journal_bytes)
            memory = mmap.mmap(self.journal, self.journal_bytes)
            self._undo.callback(memory.close)
            self._map = ffi.from_buffer(memory)
            self._undo.callback(ffi.release, self._map)
        config = {
            "nr_links": QID + 1,
            "timeout_ns": self.timeout_ns,
            "lost_fd": self.lost,
            "gather_bytes": self.pages.gather_bytes,
            "journal_bytes": self.journal_bytes,
            "journal": self._map,
            "flushes": self.flushes,
        }
        self.links = self.lib.nbd_new(ffi.new("struct nbd_config *", config))
        assert self.links
        self._undo.callback(self.lib.nbd_free, self.links)

    def close(self) -> None:
        """May be called again."""
        if not self._open:
            return
        self._open = False
        try:
            assert self.driver.end() == 0
            assert self.driver.in_flight == 0
        finally:
            for server in self.servers:
                server.close()
            self._undo.close()

    def __enter__(self) -> NbdDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- connections -------------------------------------------------------

    def attach(
        self, store: Store | None = None, of: Callable[[], Pair] = unix_pair, **server: Any
    ) -> Server:
        ours, theirs = of()
        self.servers.append(Server(theirs, store))
        for name, value in server.items():
            setattr(self.servers[-1], name, value)
        self.lib.nbd_attach(self.links, self.link, ours.detach())
        return self.servers[-1]

    def break_off(self) -> None:
        self.lib.nbd_break(self.links, self.link)

    def fail(self) -> None:
        self.lib.nbd_fail(self.links, self.link)

    @property
    def doubts(self) -> bool:
        """Whether the next daemon would fail a flush."""
        stats = self.driver.stats
        return bool(stats.acked_writes > stats.flushed_writes)

    @property
    def status(self) -> Status:
        told = self.core.ffi.new("struct nbd_status *")
        self.lib.nbd_look(self.links, self.link, told)
        return Status(**{k: int(getattr(told, k)) for k in Status.__dataclass_fields__})

    def heard_of_losses(self) -> int:
        """Since it was last asked."""
        try:
            return os.eventfd_read(self.lost)
        except BlockingIOError:
            return 0

    def forget_the_past(self) -> None:
        """What was issued, and the servers that are gone: a long test has many."""
        assert self.driver.in_flight == 0
        self.driver.script(0, 0, [])
        for server in self.servers:
            server.close()
        self.servers.clear()

    # --- requests ----------------------------------------------------------

    def begin(self, tag: int, op: int, offset: int = 0, size: int = 0, flags: int = 0) -> None:
        self.driver.arrive(tag, op, offset, size, flags | self.pages.way.flags)
        self.begun[tag] = op, offset, size

    def fill(self, tag: int, data: bytes) -> None:
        """The request's pages."""
        if not self.pages.way.carries:
            self.driver.pages(tag)[: len(data)] = data
        os.pwrite(self._dev, data, position(tag))  # where lent pages can be copied from, too

    def hide_pages(self) -> None:
        """They cannot be copied from /dev/ublkcN any more; lent they are as before."""
        os.ftruncate(self._dev, 0)

    def held(self, tag: int, size: int) -> bytes:
        if self.pages.way.carries:
            return os.pread(self._dev, size, position(tag))
        return bytes(self.driver.pages(tag)[:size])

    def result(self, tag: int = 0) -> int:
        """Committed, and that once."""
        return self.driver.result(tag)

    def committed(self, tag: int = 0) -> bool:
        return self.driver.commits(tag) > 0

    # --- time --------------------------------------------------------------

    def settle(self) -> None:
        """Goes on while there is something to do at once."""
        while self.driver.turn() or any(server.work() for server in self.servers):
            pass

    def until(self, done: Callable[[], object]) -> None:
        """Goes on, and waits where it must, for what `done` says."""
        end = time.monotonic() + PATIENCE
        while not done():
            self.settle()
            if done():
                return
            self._wait(end)

    def until_committed(self, *tags: int) -> None:
        self.until(lambda: all(self.committed(tag) for tag in tags))

    def until_lost(self, losses: int = 1) -> None:
        self.until(lambda: self.status.losses >= losses)

    def until_connected(self) -> None:
        self.until(lambda: self.status.state == self.lib.NBD_CONNECTED)

    def until_waiting(self) -> None:
        self.until(lambda: self.status.state == self.lib.NBD_WAITING)

    def until_ended(self, server: Server) -> None:
        """Until it has seen the end of its stream."""
        self.until(lambda: server.ended)

    def until_asked(self, server: Server, number: int = 1) -> None:
        self.until(lambda: len(server.asked) >= number)

    def _wait(self, end: float) -> None:
        left = end - time.monotonic()
        assert left > 0, f"it never comes: {self.status}"
        alive = [s for s in self.servers if s.end.fileno() >= 0]
        listening = [s.end.fileno() for s in alive if s.listens]
        saying = [s.end.fileno() for s in alive if s.wants_to_say]
        # the kernel may not tell the one of the other: an eventfd within the wake-up of an eventfd
        ready = [self.driver.ready_fd, self.driver.wake_fd]
        select.select([*ready, *listening], saying, [], left)


DiskMaker = Callable[..., NbdDisk]
