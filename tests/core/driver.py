"""The fake driver, from Python."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, Self

from .core import Core

SECTOR = 512
TURNS = 100_000

READ, WRITE, FLUSH, DISCARD, WRITE_ZEROES = 0, 1, 2, 3, 5  # UBLK_IO_OP_*
FUA, NOUNMAP, NEED_REG_BUF = 1 << 13, 1 << 15, 1 << 17  # UBLK_IO_F_*
# AT_*: in the place of a member's number
LEND, UNLEND, LEAD, CANCEL = 0xFFFF, 0xFFFE, 0xFFFD, 0xFFFC


class Op(IntEnum):
    """`enum member_op`."""

    READ = 0
    WRITE = 1
    ZEROES = 2
    FSYNC = 3
    FALLOCATE = 4
    DISCARD = 5
    SEND = 7
    SEND_ZC = 8
    RECV = 9


class Kind(IntEnum):
    """`enum outcome_kind`."""

    PASS = 0
    CUT = 1
    INSTEAD = 2
    DENY = 3


@dataclass(frozen=True)
class Outcome:
    kind: Kind
    value: int = 0


@dataclass(frozen=True)
class Member:
    """Offsets and lengths in bytes; on a lane `offset` is 0 or the address of memory."""

    op: Op
    file: int = 1
    offset: int = 0
    buf: int = 0
    len: int = 0
    flags: int = 0

    @property
    def on_lane(self) -> bool:
        return self.op >= Op.SEND

    @property
    def carries(self) -> bool:
        """Whether it moves bytes of the request."""
        return self.op in (Op.READ, Op.WRITE) or (self.on_lane and not self.offset)


@dataclass(frozen=True)
class Reaction:
    """What the scripted target's on_cqe does once: another result, another member, or both."""

    member: int
    result: int | None = None
    add: Member | None = None


@dataclass(frozen=True)
class Issued:
    """An SQE and its end."""

    tag: int
    member: int
    opcode: int
    flags: int
    fd: int
    off: int
    addr: int
    len: int
    op_flags: int
    addr3: int
    ioprio: int
    res: int
    order: int


Outcomes = Mapping[int, Sequence[Outcome]]


@dataclass(frozen=True)
class Request:
    """One request, and what the scripted target and the kernel do with it."""

    op: int
    size: int = 0
    members: Sequence[Member] = ()
    outcomes: Outcomes | None = None
    reactions: Sequence[Reaction] = ()
    answer: int | None = None
    returns: int = 0
    holds: int = 0
    flags: int = 0
    offset: int = 0

    def but(self, **changes: Any) -> Self:
        return replace(self, **changes)


def instead(*values: int) -> list[Outcome]:
    return [Outcome(Kind.INSTEAD, value) for value in values]


def cut(*values: int) -> list[Outcome]:
    return [Outcome(Kind.CUT, value) for value in values]


class Driver:
    """A ring, its tags and their pages. `files` become slots 1, 2, ..."""

    def __init__(
        self,
        core: Core,
        files: Sequence[int] = (),
        *,
        lease: str = "COPY",
        depth: int = 4,
        max_io: int = 256 << 10,
        block: int = SECTOR,
        max_members: int = 64,
        sqes: int = 512,
        dev_fd: int = -1,
        qid: int = 0,
        ops: Any = None,
        target: Any = None,
        watch: bool = True,
        fixed_streams: bool = True,
        batched: bool = False,
    ) -> None:
        self.core = core
        self.ffi, self.lib = core.ffi, core.lib
        self.depth, self.max_io, self.max_members = depth, max_io, max_members
        self._files = self.ffi.new("int[]", list(files))
        self._plans = self.ffi.new("struct plan[]", depth)
        self._script = self.ffi.new("struct script *", {"plans": self._plans})
        self._members: dict[int, Any] = {}
        self._memory: list[Any] = [target]
        config = self.ffi.new("struct fake_config *")
        config.depth, config.max_members, config.sqes = depth, max_members, sqes
        config.max_io, config.block, config.watch = max_io, block, watch
        config.lease = getattr(self.lib, f"LEASE_{lease}")
        config.dev_fd, config.qid = dev_fd, qid
        config.files, config.nr_files = self._files, len(files)
        config.fixed_streams = fixed_streams
        scripted = self.lib.batched_ops() if batched else self.lib.scripted_ops()
        config.ops = scripted if ops is None else ops
        native = self.ffi.NULL if target is None else target
        config.target = self._script if ops is None else native
        out = self.ffi.new("struct fake **")
        if ret := self.lib.fake_new(config, out):
            raise OSError(-ret, os.strerror(-ret))
        self._fake: Any = out[0]

    def close(self) -> None:
        self.lib.fake_free(self._fake)
        self._fake = None

    @property
    def env(self) -> Any:
        return self.lib.fake_env(self._fake)

    @property
    def stats(self) -> Any:
        return self.env.stats

    def pages(self, tag: int = 0) -> Any:
        """The request's pages as a buffer, where they are memory."""
        return self.ffi.buffer(self.lib.fake_pages(self._fake, tag), self.max_io)

    def memory(self, tag: int = 0) -> Any:
        """What a target gets of the request where its pages are not lent."""
        table = self.env.leases
        return self.ffi.buffer(table.arena + tag * self.max_io, self.max_io)

    # --- a round: requests that are in service together -----------------

    def begin(self, requests: Mapping[int, Request]) -> None:
        """They arrive in the order of the mapping, tag by tag."""
        self._write_script(requests)
        for tag, request in requests.items():
            assert request.size % SECTOR == request.offset % SECTOR == 0
            ret = self.lib.fake_begin(
                self._fake,
                tag,
                request.op | request.flags,
                request.offset // SECTOR,
                request.size // SECTOR,
            )
            assert ret == 0, os.strerror(-ret)

    def run(self, turns: int = TURNS) -> int:
        """Whatever the test is about: no SQE may have broken a rule."""
        ret = int(self.lib.fake_run(self._fake, turns))
        if broken := self.lib.fake_broken(self._fake):
            raise AssertionError(self.ffi.string(broken).decode())
        return ret

    def serve(self, request: Request) -> int:
        """One request on tag 0, to its end: what was committed."""
        self.begin({0: request})
        ret = self.run()
        assert ret == 0, f"not committed: {os.strerror(-ret)}"
        return self.result(0)

    def arrive(self, tag: int, op: int, offset: int = 0, size: int = 0, flags: int = 0) -> None:
        """One request, whatever else is under way; no script is for it."""
        at, sectors = offset // SECTOR, size // SECTOR
        ret = self.lib.fake_begin(self._fake, tag, op | flags, at, sectors)
        assert ret == 0, os.strerror(-ret)

    def script(self, tag: int, member: int, steps: Sequence[Outcome]) -> None:
        """How the next issues of one member shall end; whatever was written down before."""
        outcomes = [{"tag": tag, "member": member, "kind": s.kind, "value": s.value} for s in steps]
        self._memory[1:] = [self.ffi.new("struct outcome[]", outcomes)]
        self.lib.fake_script(self._fake, self._memory[1], len(outcomes))

    def turn(self, ns: int = 0) -> int:
        """One turn, which waits for `ns` at most: how much has completed."""
        ret = int(self.lib.fake_turn(self._fake, ns))
        if broken := self.lib.fake_broken(self._fake):
            raise AssertionError(self.ffi.string(broken).decode())
        assert ret >= 0, os.strerror(-ret)
        return ret

    @property
    def ready_fd(self) -> int:
        """Readable when a turn may bring something: of a target with a part of its own."""
        return int(self.lib.fake_fd(self._fake))

    @property
    def wake_fd(self) -> int:
        """Readable when another thread has something to tell that no turn has heard yet."""
        return int(self.lib.groups_wake_fd(self.env))

    @property
    def in_flight(self) -> int:
        """Members and commands, the target's own ones among them."""
        return int(self.lib.fake_in_flight(self._fake))

    def winds_up(self) -> bool:
        """Whether the target wants one more turn before its own part ends."""
        return bool(self.lib.fake_winds_up(self._fake))

    def end(self) -> int:
        """Of the target's own part."""
        return int(self.lib.fake_end(self._fake))

    @property
    def batches(self) -> int:
        """How often a batched target was called."""
        return int(self._script.batches)

    def group(self, tag: int = 0) -> Any:
        """For what other threads do with it."""
        return self.lib.fake_group(self._fake, tag)

    def held(self, requests: Mapping[int, Request]) -> None:
        """They arrive, and the target has seen them: from here on they can be answered."""
        self.begin(requests)
        self.lib.groups_turn(self.env)

    def answer_all(self, threads: int, answer: int) -> int:
        """Each of so many threads answers every tag, all at once; what `run` would say."""
        return int(self.lib.fake_answer_all(self._fake, threads, answer))

    def commits(self, tag: int = 0) -> int:
        """How often its last request was committed."""
        return int(self.lib.fake_commits(self._fake, tag))

    def result(self, tag: int = 0) -> int:
        assert self.commits(tag) == 1
        return int(self.lib.fake_result(self._fake, tag))

    def added(self, tag: int = 0) -> list[int]:
        """What the plan's calls returned."""
        return [m.added for m in self._members[tag]]

    def issued(self) -> list[Issued]:
        """The members' SQEs since the round began."""
        return [e for e in self.everything() if e.member < CANCEL]

    def unlent(self) -> list[int]:
        """Failures of UNREGISTER that were reported: the last one's errno for each."""
        res = self.ffi.new("int *")
        n = int(self.lib.fake_unlent(self._fake, res))
        return n * [int(res[0])]

    def everything(self) -> list[Issued]:
        """All SQEs since the round began, in their order."""
        out = self.ffi.new("struct issued **")
        n = self.lib.fake_issued(self._fake, out)
        names = Issued.__dataclass_fields__
        return [Issued(**{k: getattr(out[0][i], k) for k in names}) for i in range(n)]

    def break_ring(self, broken: bool = True) -> None:
        """Whether every submission fails from here on."""
        self.lib.fake_break_ring(self._fake, broken)

    def _write_script(self, requests: Mapping[int, Request]) -> None:
        outcomes, reactions = [], []
        for tag, request in requests.items():
            self._members[tag] = self.ffi.new(
                "struct plan_member[]", [_plan_member(m) for m in request.members]
            )
            plan = self._plans[tag]
            plan.members, plan.nr_members = self._members[tag], len(request.members)
            plan.answers, plan.answer = request.answer is not None, request.answer or 0
            plan.returns, plan.holds = request.returns, request.holds
            for member, steps in (request.outcomes or {}).items():
                outcomes += [
                    {"tag": tag, "member": member, "kind": s.kind, "value": s.value} for s in steps
                ]
            reactions += [_reaction(tag, r) for r in request.reactions]
        kept = (
            self.ffi.new("struct outcome[]", outcomes),
            self.ffi.new("struct reaction[]", reactions),
        )
        self._memory[1:] = kept
        self._script.reactions, self._script.nr_reactions = kept[1], len(reactions)
        self._script.batches = 0
        self.lib.fake_script(self._fake, kept[0], len(outcomes))


DriverMaker = Callable[..., Driver]


def _plan_member(m: Member) -> dict[str, int]:
    return {k: getattr(m, k) for k in ("op", "file", "offset", "buf", "len", "flags")}


def _reaction(tag: int, r: Reaction) -> dict[str, Any]:
    made: dict[str, Any] = {"tag": tag, "member": r.member, "replaces": r.result is not None}
    made["result"] = r.result or 0
    made["adds"] = r.add is not None
    if r.add is not None:
        made["add"] = _plan_member(r.add)
    return made
