"""
Requests, servers and a keeper that do anything at any time, against what an NBD disk promises.

Every tag has a part of the export to itself, so what is there is known after every answer.
"""

from __future__ import annotations

import errno
import select
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from .core import Core
from .driver import DISCARD, FLUSH, FUA, READ, WRITE, WRITE_ZEROES
from .files import noise, open_fds
from .nbd_disk import DEPTH, MAX_IO, PAGES, NbdDisk
from .nbd_server import ESHUTDOWN, Asked, Server, Store, reply_to
from .peer import unix_pair
from .profile import searching

BLOCK = 512
ERRORS = {28: -errno.ENOSPC, 95: -errno.EOPNOTSUPP}
"""None of these is EIO, which the disk itself says."""

seeds = st.integers(0, 1 << 16)
settles = st.sampled_from([True, True, False])
asked = st.tuples(
    st.sampled_from([READ, READ, WRITE, WRITE, FLUSH, DISCARD, WRITE_ZEROES]),
    st.integers(0, 7),
    st.sampled_from([1, 2, 8, 120]),
    st.booleans(),
    seeds,
)
"""Operation, block, number of blocks, whether it is FUA, and what is written."""


@dataclass
class Served:
    """A request, and what servers have answered to it, whole."""

    op: int
    offset: int
    size: int
    wrote: bytes
    results: set[int] = field(default_factory=set)
    payloads: list[bytes] = field(default_factory=list)
    failed: bool = False
    """Whether it may fail because the disk was told so."""


class Machine(RuleBasedStateMachine):
    core: Core

    def __init__(self) -> None:
        super().__init__()
        self.before = open_fds()
        self.store = Store(noise(DEPTH * MAX_IO, 1))
        self.serving: dict[int, Served] = {}
        self.attaches = 0
        self.ended = self.perhaps_ended = 0
        self.lost = 0
        self.causes = 0
        """Why a connection may be lost."""
        self.fails_flush = False
        self.told_to_fail = False
        """And the queue may not have heard of it."""
        self.shall_fail = False
        """And no connection has come since."""
        self.settled = True

    @initialize(pages=st.sampled_from(list(PAGES)))
    def begin_disk(self, pages: str) -> None:
        self.disk = NbdDisk(self.core, PAGES[pages], sqes=8)

    # --- requests ----------------------------------------------------------

    @precondition(lambda self: len(self.serving) < DEPTH)
    @rule(asked=st.lists(asked, min_size=1, max_size=DEPTH), settles=settles)
    def begin(self, asked: list[tuple[int, int, int, bool, int]], settles: bool) -> None:
        free = [tag for tag in range(DEPTH) if tag not in self.serving]
        for tag, (op, where, blocks, fua, seed) in zip(free, asked, strict=False):
            size = 0 if op == FLUSH else blocks * BLOCK
            offset = 0 if op == FLUSH else tag * MAX_IO + where * BLOCK
            data = noise(size, seed)
            self.disk.fill(tag, data)
            self.serving[tag] = Served(op, offset, size, data if op == WRITE else bytes(size))
            self.serving[tag].failed = self._may_fail or (op == FLUSH and self.fails_flush)
            self.disk.begin(tag, op, offset, size, FUA * fua)
        self._and_then(settles)

    def _and_then(self, settles: bool) -> None:
        """The queue goes on as far as it can, or not yet."""
        self.settled = False
        if settles:
            self.settle()

    @property
    def _may_fail(self) -> bool:
        return self.told_to_fail or self.disk.status.state == self.disk.lib.NBD_FAILING

    # --- the keeper --------------------------------------------------------

    @rule(
        room=st.sampled_from([None, None, 1]),
        hears=st.sampled_from([None, None, None, 0, 30, 5000]),
        settles=settles,
    )
    def attach(self, room: int | None, hears: int | None, settles: bool) -> None:
        self.attaches += 1
        self.shall_fail = False
        self.disk.attach(self.store, lambda: unix_pair(room), hears=hears)
        self._and_then(settles)

    @precondition(lambda self: self.disk.status.state == self.disk.lib.NBD_CONNECTED)
    @rule(settles=settles)
    def break_off_connection(self, settles: bool) -> None:
        self.break_off(settles)

    @rule(
        wish=st.sampled_from(["break_off", "break_off", "fail", "fail_flush"]),
        sure=st.integers(0, 2),
        settles=settles,
    )
    def wish(self, wish: str, sure: int, settles: bool) -> None:
        if sure == 0:  # or little would come between them
            getattr(self, wish)(settles)

    def break_off(self, settles: bool) -> None:
        self.disk.break_off()
        self.causes += 1
        self._and_then(settles)

    def fail(self, settles: bool) -> None:
        for served in self.serving.values():
            served.failed = True
        self.disk.fail()
        self.causes += 1
        self.told_to_fail = self.shall_fail = True
        self._and_then(settles)

    def fail_flush(self, settles: bool) -> None:
        self.disk.lib.nbd_fail_flush(self.disk.links)
        self.fails_flush = True
        for served in self.serving.values():
            served.failed |= served.op == FLUSH
        self._and_then(settles)

    # --- servers -----------------------------------------------------------

    def _current(self) -> Server | None:
        """The one that has the connection, if anybody has."""
        poll = select.poll()
        for server in self.disk.servers:
            if server.end.fileno() >= 0 and server.asked:
                poll.register(server.end, select.POLLRDHUP)
                gone = poll.poll(0)
                poll.unregister(server.end)
                if not gone:
                    return server
        return None

    def _done(self, server: Server, asked: Asked, error: int) -> bytes:
        served = self.serving[asked.tag]
        text = server.done(asked, error)
        if error:
            unsupported = error == 95 and served.op in (READ, WRITE, FLUSH)
            served.results.add(-errno.EIO if unsupported else ERRORS[error])
        else:
            served.results.add(served.size if served.op in (READ, WRITE) else 0)
            served.payloads.append(text[16:])
        return text

    @precondition(lambda self: self._current())
    @rule(
        which=st.lists(st.integers(0, DEPTH - 1), min_size=1, max_size=DEPTH),
        error=st.sampled_from([0, 0, 0, 28, 95]),
        piece=st.sampled_from([None, None, 1, 7, 600]),
        share=st.sampled_from([1, 1, 1, 0.999, 0.5, 0.01]),
        settles=settles,
    )
    def answer(
        self, which: list[int], error: int, piece: int | None, share: float, settles: bool
    ) -> None:
        """Whole; or the last one in part, and then the end."""
        server = self._current()
        assert server is not None
        for i, number in enumerate(which):
            if not server.asked:
                break
            asked = server.asked[number % len(server.asked)]
            plain = self.serving[asked.tag].op in (READ, WRITE, FLUSH)
            text = self._done(server, asked, 28 if error == 95 and plain else error)
            last = i + 1 == len(which) or not server.asked
            self._say(server, text[: int(share * len(text)) if last else None], piece)
            if last:  # whatever has been asked meanwhile: nothing comes behind a part
                break
        if share < 1:
            server.shut()
            self.causes += 1
        self._and_then(settles)

    def _say(self, server: Server, text: bytes, piece: int | None) -> None:
        # woken 128 times, a transfer goes to a worker of the kernel, for which nobody waits
        least = max(piece or len(text), len(text) // 50)
        while text:
            server.say(text[:least])
            text = text[least:]
            if piece:
                self.disk.settle()

    @precondition(lambda self: self._current())
    @rule(lie=st.sampled_from(["magic", "cookie", "the end", "noise"]), seed=seeds, settles=settles)
    def lie(self, lie: str, seed: int, settles: bool) -> None:
        server = self._current()
        assert server is not None
        self.causes += 1
        cookie = server.asked[0].cookie
        server.say(
            {
                "magic": b"\0" + reply_to(cookie)[1:],
                "cookie": reply_to(cookie ^ 1 << 40),
                "the end": reply_to(cookie, ESHUTDOWN),
                "noise": b"\1" + noise(100, seed),
            }[lie]
        )
        self._and_then(settles)

    @rule(which=st.integers(0, 3), close=st.booleans(), settles=settles)
    def cut(self, which: int, close: bool, settles: bool) -> None:
        alive = [s for s in self.disk.servers if s.end.fileno() >= 0]
        if alive:
            (Server.close if close else Server.shut)(alive[which % len(alive)])
            self.causes += 1
            self._and_then(settles)

    @precondition(lambda self: any(s.hears is not None for s in self.disk.servers))
    @rule(more=st.sampled_from([1, 28, 30000, None]))
    def hear_on(self, more: int | None) -> None:
        for server in self.disk.servers:
            server.hears = more
        self.settled = False

    @precondition(lambda self: not self.settled)
    @rule(turns=st.integers(1, 3))
    def turn(self, turns: int) -> None:
        """So far and no further."""
        for _ in range(turns):
            self.disk.driver.turn()
        self._look()

    @precondition(lambda self: not self.settled)
    @rule()
    def settle(self) -> None:
        self.disk.settle()
        self.settled, self.told_to_fail = True, False
        self._look()

    # --- what must hold ----------------------------------------------------

    def _look(self) -> None:
        """What has been committed since."""
        for tag in [tag for tag in self.serving if self.disk.committed(tag)]:
            served, result = self.serving.pop(tag), self.disk.result(tag)
            if result not in served.results:
                assert result == -errno.EIO
                assert served.failed
                # a flush that was answered, and tells of what was learnt of meanwhile
                self.perhaps_ended += served.op == FLUSH and bool(served.results)
                continue
            self.ended += 1
            if result < 0:
                continue
            if served.op == READ:
                assert self.disk.held(tag, served.size) in served.payloads
            else:
                end = served.offset + served.size
                assert self.store.content[served.offset : end] == served.wrote

    @invariant()
    def nothing_is_committed_twice(self) -> None:
        if hasattr(self, "disk"):
            for tag in self.disk.begun:
                assert self.disk.driver.commits(tag) <= 1

    @precondition(lambda self: self.settled)
    @invariant()
    def the_counters_are_right(self) -> None:
        if not hasattr(self, "disk"):
            return
        status, lib = self.disk.status, self.disk.lib
        assert status.unanswered == len(self.serving)
        assert self.ended <= status.ended <= self.ended + self.perhaps_ended
        self.ended, self.perhaps_ended = status.ended, 0
        connected = status.state == lib.NBD_CONNECTED
        assert self.attaches - status.attached in ((0, 1) if connected else (0,))
        assert self.disk.driver.stats.without_connection == (not connected)
        assert self.disk.driver.stats.lost_connections == status.losses <= self.causes
        assert self.disk.driver.stats.in_flight == len(self.serving)
        assert self.disk.heard_of_losses() == status.losses - self.lost
        self.lost = status.losses
        if not connected:
            assert self.disk.driver.in_flight == 0
        if self.shall_fail:
            assert status.state == lib.NBD_FAILING
            assert not self.serving

    # --- the end -----------------------------------------------------------

    def teardown(self) -> None:
        if not hasattr(self, "disk"):
            return
        try:
            self._serve_the_rest()
        finally:
            self.disk.close()
        assert open_fds() == self.before

    def _serve_the_rest(self) -> None:
        """By an honest server; and a flush covers all."""
        self.settle()
        self.break_off(True)
        server = self.disk.attach(self.store)
        self.attaches += 1
        self.shall_fail = False
        self.disk.until_connected()
        self.disk.settle()
        for asked in list(server.asked):
            server.say(self._done(server, asked, 0))
        self.disk.settle()
        self._look()
        assert not self.serving
        for may_fail in (self.fails_flush, False):
            self.serving[0] = Served(FLUSH, 0, 0, b"", failed=may_fail)
            self.disk.begin(0, FLUSH)
            self.disk.settle()
            for asked in list(server.asked):
                server.say(self._done(server, asked, 0))
            self.disk.until_committed(0)
            self._look()
        assert not self.disk.lib.nbd_unflushed(self.disk.links)
        self.settled = True
        self.the_counters_are_right()


def test_whatever_happens_every_request_ends_once_and_as_it_was_answered(core: Core) -> None:
    Machine.core = core
    run_state_machine_as_test(Machine, settings=settings(searching, stateful_step_count=60))
