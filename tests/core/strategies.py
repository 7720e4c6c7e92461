"""Requests of every shape for hypothesis: plans of members, and how each issue ends."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from itertools import chain

from hypothesis import strategies as st

from .driver import DISCARD, FLUSH, READ, WRITE, WRITE_ZEROES, Kind, Member, Op, Outcome, Request

NR_FILES = 4
SOURCES, SINKS = (1, 2), (3, 4)
"""Files that are read and files that are written: the end of none of them moves under a reader."""

MAX_SIZE = 64 << 10
HUGE = 1 << 30


@dataclass(frozen=True)
class Round:
    """Requests that are served together, by tag, and the environment they are served in."""

    requests: dict[int, Request]
    block: int
    max_members: int
    seed: int
    """Of all bytes in files and pages."""
    sizes: tuple[int, ...]
    """Bytes in each file before."""


class Cursor:
    """Hands out places in files, so that no two members meet in one."""

    def __init__(self) -> None:
        self.end = [0] * (NR_FILES + 1)

    def place(self, file: int, length: int, gap: int) -> int:
        at = self.end[file] + gap
        self.end[file] = at + length
        return at


def outcomes_of(member: Member) -> st.SearchStrategy[list[Outcome]]:
    transient = st.sampled_from([-errno.EAGAIN, -errno.EINTR])
    failing = st.one_of(st.sampled_from([-errno.EIO, -errno.ENOSPC]), st.integers(-133, -1))
    steps = [
        st.tuples(transient, st.integers(1, 40)).map(
            lambda t: [Outcome(Kind.INSTEAD, t[0])] * t[1]
        ),
        failing.map(lambda e: [Outcome(Kind.INSTEAD, e)]),
    ]
    if member.op in (Op.READ, Op.WRITE, Op.ZEROES):
        short = st.integers(1, member.len)
        steps += [
            short.map(lambda n: [Outcome(Kind.CUT, n)]),
            short.map(lambda n: [Outcome(Kind.CUT, max(1, n // 7))] * 3),
            short.map(lambda n: [Outcome(Kind.DENY, n)]),
            transient.map(lambda e: [Outcome(Kind.DENY, e)]),
            st.sampled_from([0, HUGE]).map(lambda n: [Outcome(Kind.INSTEAD, n)]),
        ]
    script = st.lists(st.one_of(steps), max_size=4).map(lambda runs: [*chain(*runs)])
    return st.one_of(st.just([]), script)


@st.composite
def data_members(draw: st.DrawFn, op: Op, size: int, cursor: Cursor) -> list[Member]:
    """In ascending order of `buf`: one after the other, with gaps, mirrored, overlapping."""
    shapes = ["next"] * 6 + ["gap"] + (["mirror", "overlap"] if op == Op.WRITE else [])
    typical = draw(st.sampled_from([size, size // 3 + 1, size // 64 + 1]))
    members: list[Member] = []
    end = 0
    for _ in range(draw(st.sampled_from([0, 0, 1, 2, 3, 8, 64, 70]))):
        shape = draw(st.sampled_from(shapes))
        buf, length = end, draw(st.one_of(st.just(typical), st.integers(1, typical)))
        if shape == "gap":
            buf += draw(st.integers(1, 600))
        elif shape == "mirror" and members:
            buf, length = members[-1].buf, members[-1].len
        elif shape == "overlap" and members:
            buf = members[-1].buf + draw(st.integers(0, members[-1].len))
        length = min(length, size - buf)
        if length < 1:
            break
        file = draw(st.sampled_from(SOURCES if op == Op.READ else SINKS))
        at = cursor.place(file, length, draw(st.sampled_from([0, 0, 1, 511])))
        members.append(Member(op, file, at, buf, length))
        end = max(end, buf + length)
    return members


@st.composite
def other_members(draw: st.DrawFn, op: int, cursor: Cursor) -> list[Member]:
    """Those that carry none of the request's bytes."""
    members = []
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 3]))):
        file = draw(st.sampled_from(SINKS))
        if op == READ or draw(st.booleans()):
            members.append(Member(Op.FSYNC, file))
        else:
            length = draw(st.integers(1, 5000))
            members.append(Member(Op.ZEROES, file, cursor.place(file, length, 0), 0, length))
    return members


@st.composite
def requests(draw: st.DrawFn, block: int, cursor: Cursor) -> Request:
    op = draw(st.sampled_from([READ, READ, WRITE, WRITE, FLUSH, DISCARD, WRITE_ZEROES]))
    size = 0 if op == FLUSH else draw(st.integers(1, MAX_SIZE // block)) * block
    members: list[Member] = []
    if op in (READ, WRITE):
        members = draw(data_members(Op.READ if op == READ else Op.WRITE, size, cursor))
    members += draw(other_members(op, cursor))
    outcomes = {}
    for i in draw(st.sets(st.integers(0, max(0, len(members) - 1)), max_size=5)):
        if members:
            outcomes[i] = draw(outcomes_of(members[i]))
    answers = [0, 5, -errno.ENOSPC, size, size + 4096, None] + [None] * 7 * bool(members)
    return Request(
        op,
        size,
        tuple(members),
        outcomes,
        answer=draw(st.sampled_from(answers)),
        returns=draw(st.sampled_from([0] * 8 + [5, -errno.EIO, -errno.ENODATA])),
    )


@st.composite
def rounds(draw: st.DrawFn) -> Round:
    block = draw(st.sampled_from([512, 4096]))
    cursor = Cursor()
    tags = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True))
    made = {tag: draw(requests(block, cursor)) for tag in tags}
    sizes = [
        end if draw(st.integers(0, 3)) else draw(st.integers(0, end)) for end in cursor.end[1:]
    ]
    return Round(
        made,
        block,
        draw(st.sampled_from([64, 64, 64, 1, 2, 7])),
        draw(st.integers(0, 1 << 16)),
        tuple(sizes),
    )
