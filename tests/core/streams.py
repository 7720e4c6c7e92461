"""Requests over stream sockets: plays them, and says what became of every byte on every stream."""

from __future__ import annotations

import errno
import os
import random
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st

from .core import Core
from .driver import FLUSH, LEND, READ, WRITE, Driver, Kind, Member, Op, Outcome, Request
from .model import Played, committed, play
from .peer import Peer, unix_pair
from .strategies import HUGE, MAX_SIZE
from .world import DEPTH, MAX_IO, QID, SQES, Way, position

MEMORY = 1
"""Stands in a member for the address of memory, which a test does not know yet."""

MSG_MORE, MSG_WAITALL = 0x8000, 0x100
FIXED_BUF = 1 << 2  # IORING_RECVSEND_FIXED_BUF
READ_FIXED, WRITE_FIXED, SEND, RECV, SEND_ZC = 4, 5, 26, 27, 47  # IORING_OP_*


@dataclass(frozen=True)
class Traffic:
    """Requests that are served together, the sockets, and how the other ends go about it."""

    requests: dict[int, Request]
    lanes: int
    block: int
    align: int
    batched: bool
    fixed_streams: bool
    room: int | None
    gulps: tuple[int, ...]
    sips: tuple[int, ...]
    seed: int


# --- of every shape -----------------------------------------------------------------------------


def _hindered(member: Member) -> st.SearchStrategy[list[Outcome]]:
    """Short, again and again, and done in the end."""
    short = st.integers(1, member.len)
    transient = st.sampled_from([-errno.EAGAIN, -errno.EINTR])
    step = st.one_of(
        short.map(lambda n: Outcome(Kind.CUT, n)),
        short.map(lambda n: Outcome(Kind.CUT, max(1, n // 7))),
        transient.map(lambda e: Outcome(Kind.INSTEAD, e)),
    )
    return st.lists(step, max_size=5)


def _failing(member: Member) -> st.SearchStrategy[list[Outcome]]:
    """All of one meaning for the block layer, so that it does not matter which comes first."""
    last = st.sampled_from([-errno.EIO, -errno.EPIPE, -errno.ECONNRESET, 0, HUGE])
    return st.tuples(_hindered(member), last).map(lambda t: [*t[0], Outcome(Kind.INSTEAD, t[1])])


@st.composite
def _members(draw: st.DrawFn, op: int, size: int, lanes: int, ops: list[Op]) -> list[Member]:
    """Headers of memory, and parts of the request in ascending order, with a gap here and there."""
    members: list[Member] = []
    end = 0
    for _ in range(draw(st.sampled_from([1, 2, 2, 3, 8]))):
        lane, way = draw(st.integers(1, lanes)), draw(st.sampled_from(ops))
        flags = draw(st.sampled_from([0, 0, MSG_MORE])) if way == Op.SEND else 0
        mine = (op == READ and way == Op.RECV) or (op == WRITE and way == Op.SEND)
        if mine and end < size and draw(st.integers(0, 2)):
            length = draw(st.one_of(st.just(size - end), st.integers(1, size - end)))
            members.append(Member(way, lane, 0, end, length, flags))
            end += length + draw(st.sampled_from([0] * 15 + [1]))
        else:
            length = draw(st.sampled_from([1, 28, 511, 5000, 40000]))
            members.append(Member(way, lane, MEMORY, 0, length, flags))
    return members


@st.composite
def traffic(draw: st.DrawFn, ops: tuple[Op, ...], failing: bool = False) -> Traffic:
    """
    `ops` are the ways that bytes go. What fails does so in the place of the kernel; for how far it
    has come then, nothing but the script may cut it short, as READ_FIXED and WRITE_FIXED would be.
    """
    lanes, block = draw(st.integers(1, 3)), draw(st.sampled_from([512, 4096]))
    requests = {}
    for tag in draw(st.permutations(range(DEPTH)))[: draw(st.integers(1, DEPTH))]:
        op = draw(st.sampled_from([READ, READ, WRITE, WRITE, FLUSH]))
        size = 0 if op == FLUSH else draw(st.integers(1, MAX_SIZE // block)) * block
        members = draw(_members(op, size, lanes, list(ops)))
        outcomes = {}
        for i in draw(st.sets(st.integers(0, len(members) - 1), max_size=3)):
            bad = failing and draw(st.booleans())
            outcomes[i] = draw((_failing if bad else _hindered)(members[i]))
        requests[tag] = Request(op, size, tuple(members), outcomes)
    pace = st.lists(st.sampled_from([1, 7, 512, 4097]), max_size=4).map(lambda p: (*p, 65536))
    return Traffic(
        requests,
        lanes,
        block,
        draw(st.sampled_from([1, 512, 4096])),
        draw(st.booleans()),
        draw(st.just(True) if failing and len(ops) == 1 else st.booleans()),
        draw(st.sampled_from([None, 1, 16384])),
        draw(pace),
        draw(pace),
        draw(st.integers(0, 1 << 16)),
    )


# --- a round --------------------------------------------------------------------------------------

Line = list[tuple[int, int]]
"""Who stands in it: tag and number of the member."""


class Round:
    """One round of traffic on sockets and a driver of its own."""

    def __init__(self, core: Core, way: Way, t: Traffic) -> None:
        self.way, self.t = way, t
        self._undo = ExitStack()
        self.pairs = [unix_pair(t.room) for _ in range(t.lanes)]
        for pair in self.pairs:
            self._undo.callback(pair[0].close)
        self._dev = os.memfd_create("ublkc")
        self._undo.callback(os.close, self._dev)
        self.driver = Driver(
            core,
            [ours.fileno() for ours, _ in self.pairs],
            lease=way.lease,
            depth=DEPTH,
            max_io=MAX_IO,
            block=t.block,
            sqes=SQES,
            dev_fd=self._dev,
            qid=QID,
            fixed_streams=t.fixed_streams,
            batched=t.batched,
        )
        self._undo.callback(self.driver.close)
        self.driver.env.align = t.align
        rng = random.Random(t.seed)
        self.pages = [rng.randbytes(MAX_IO) for _ in range(DEPTH)]
        for tag, data in enumerate(self.pages):
            if way.carries:
                os.pwrite(self._dev, data, position(tag))
            else:
                self.driver.pages(tag)[:] = data
        self.memory: dict[tuple[int, int], Any] = {}
        self.texts: dict[tuple[int, int], bytes] = {}
        self.requests = {tag: self._placed(tag, r, rng) for tag, r in t.requests.items()}
        said = [0] * t.lanes
        for _, _, m in self._everybody():
            said[m.file - 1] += m.len if m.op == Op.RECV else 0
        self.says = [rng.randbytes(n) for n in said]

    def close(self) -> None:
        self._undo.close()

    def _placed(self, tag: int, request: Request, rng: random.Random) -> Request:
        """With memory that is there, and as it comes on this way."""
        ffi = self.driver.ffi
        members = list(request.members)
        for i, m in enumerate(members):
            self.texts[tag, i] = self.pages[tag][m.buf : m.buf + m.len]
            if m.offset:
                self.texts[tag, i] = rng.randbytes(m.len)
                text = bytes(m.len) if m.op == Op.RECV else self.texts[tag, i]
                self.memory[tag, i] = ffi.new("char[]", text)
                address = int(ffi.cast("uintptr_t", self.memory[tag, i]))
                members[i] = replace(m, offset=address)
        outcomes = dict(request.outcomes or {})
        if self.way.refused:
            outcomes[LEND] = [Outcome(Kind.INSTEAD, self.way.refused)]
        return request.but(members=members, outcomes=outcomes, flags=self.way.flags)

    def _everybody(self) -> Iterator[tuple[int, int, Member]]:
        for tag, request in self.t.requests.items():
            yield from ((tag, i, m) for i, m in enumerate(request.members))

    def play(self) -> Peer:
        """Runs it, and returns the peer once it has seen the ends of all streams."""
        theirs = [pair[1] for pair in self.pairs]
        with Peer(theirs, self.says, self.t.gulps, self.t.sips) as peer:
            self.driver.begin(self.requests)
            ret = self.driver.run()
            assert ret == 0, os.strerror(-ret)
            for lane, (ours, _) in enumerate(self.pairs):
                if not self.driver.env.lanes[lane + 1].error:
                    ours.shutdown(socket.SHUT_WR)
            peer.wait()
        return peer

    # --- what should have become of it ------------------------------------------------------

    def lines(self, ops: Sequence[Op]) -> list[Line]:
        """For each lane who stands in line, in the order in which the target was called."""
        lent = {e.tag: e.order for e in self.driver.everything() if e.member == LEND}
        lines: list[Line] = [[] for _ in range(self.t.lanes)]
        for tag in sorted(self.t.requests, key=lambda tag: lent.get(tag, 0)):
            for i, m in enumerate(self.t.requests[tag].members):
                if m.op in ops:
                    lines[m.file - 1].append((tag, i))
        return lines

    def member(self, who: tuple[int, int]) -> Member:
        return self.t.requests[who[0]].members[who[1]]

    def played(self, line: Line) -> dict[tuple[int, int], Played]:
        """One after the other; behind one that fails nobody gets on."""
        played: dict[tuple[int, int], Played] = {}
        broken: int | None = None
        for tag, i in line:
            steps = (self.t.requests[tag].outcomes or {}).get(i, ())
            p = Played(error=broken) if broken else play(self.member((tag, i)), steps, None)
            broken = p.error
            played[tag, i] = p
        return played

    def result(self, tag: int, played: Mapping[tuple[int, int], Played]) -> int:
        request = self.t.requests[tag]
        mine = {i: played[tag, i] for i in range(len(request.members))}
        return committed(
            request,
            mine,
            dict.fromkeys(mine, 0),
            block=self.t.block,
            max_members=self.driver.max_members,
            in_memory=self.way.in_memory,
        )

    def seen(self, tag: int, received: Mapping[tuple[int, int], bytes]) -> bytes:
        """What the request's own pages should hold."""
        pages = bytearray(self.pages[tag])
        for (of, i), text in received.items():
            m = self.member((of, i))
            if of == tag and m.carries:
                pages[m.buf : m.buf + len(text)] = text
        if not self.way.carries:
            return bytes(pages)
        request = self.t.requests.get(tag)
        arrived = max(0, self.driver.result(tag)) if request and request.op == READ else 0
        return bytes(pages[:arrived]) + self.pages[tag][arrived:]

    def found(self, tag: int) -> bytes:
        if self.way.carries:
            return os.pread(self._dev, MAX_IO, position(tag))
        return bytes(self.driver.pages(tag)[:])

    # --- what was asked of the kernel -------------------------------------------------------

    def check_issues(self) -> None:
        """Every issue asks for all that is missing, in the one way that this lease has."""
        done: dict[tuple[int, int], int] = {}
        for e in self.driver.issued():
            who = (e.tag, e.member)
            m, placed = self.member(who), self.requests[e.tag].members[e.member]
            here = done.get(who, 0)
            assert (e.fd, e.len, e.off) == (m.file, m.len - here, 0)
            base = placed.offset or (m.buf if self._by_offset else self._arena(e.tag) + m.buf)
            assert e.addr == base + here
            assert (e.opcode, e.ioprio, e.op_flags) == self._asked(m)
            done[who] = here + max(0, e.res)

    @property
    def _lent(self) -> bool:
        return self.way.lease in ("AUTO", "REGISTER") and not self.way.refused

    @property
    def _by_offset(self) -> bool:
        return self._lent or self.way.lease == "GROUP"

    def _arena(self, tag: int) -> int:
        driver = self.driver
        return int(driver.ffi.cast("uintptr_t", driver.env.leases.arena)) + tag * MAX_IO

    def _asked(self, m: Member) -> tuple[int, int, int]:
        """Opcode, ioprio and flags."""
        receives = m.op == Op.RECV
        opcode, ioprio, flags = RECV if receives else SEND, 0, m.flags | MSG_WAITALL
        if m.op == Op.SEND_ZC and not self.t.batched and self.way.lease != "GROUP":
            opcode = SEND_ZC
        if m.offset or not self._lent:
            return opcode, ioprio, flags
        if self.t.fixed_streams or opcode == SEND_ZC:
            return opcode, FIXED_BUF, flags
        return READ_FIXED if receives else WRITE_FIXED, 0, 0
