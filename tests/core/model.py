"""The requeue rule a second time, byte by byte and without io_uring: what the engine should do."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .driver import FLUSH, READ, WRITE, Kind, Member, Op, Outcome, Request

AGAIN = (-errno.EAGAIN, -errno.EINTR)
PATIENCE = 128
ZEROES = 1 << 20

PASSED_ON = {
    errno.ENOSPC,
    errno.EOPNOTSUPP,
    errno.ENODATA,
    errno.EILSEQ,
    errno.ENOLINK,
    errno.EREMOTEIO,
    errno.ETIMEDOUT,
}
FULL = {errno.EDQUOT, errno.EFBIG}


def sanitised(op: int, error: int) -> int:
    """A negative errno as the block layer may see it."""
    if -error == errno.EOPNOTSUPP and op in (READ, WRITE, FLUSH):
        return -errno.EIO  # io_uring would repeat a transfer for ever, and fsync() succeed
    if -error in FULL:
        return -errno.ENOSPC
    return error if -error in PASSED_ON else -errno.EIO


@dataclass
class Played:
    """What became of one member."""

    done: int = 0
    """Bytes that it may claim."""
    touched: int = 0
    """Bytes that were really written, if only by a kernel that said otherwise."""
    error: int | None = None
    issues: list[tuple[int, int, bool]] = field(default_factory=list)
    """Offset in the file, bytes asked, whether a worker shall wait."""
    shorts: int = 0
    agains: int = 0


def play(member: Member, outcomes: Sequence[Outcome], end_of_file: int | None) -> Played:
    """Issues a member until it is done or has failed. `end_of_file` bounds what can be read."""
    p = Played()
    steps = iter(outcomes)
    moves = member.carries or member.on_lane or member.op == Op.ZEROES
    patience = PATIENCE
    while True:
        asked = member.len - p.done
        if member.op == Op.ZEROES:
            asked = min(asked, ZEROES)
        at = member.offset + p.done
        p.issues.append((at, asked, patience < PATIENCE))

        step = next(steps, Outcome(Kind.PASS))
        possible = min(asked, step.value) if step.kind == Kind.CUT else asked
        if not moves or step.kind == Kind.INSTEAD:
            possible = 0
        elif member.op == Op.READ and end_of_file is not None:
            possible = min(possible, max(0, end_of_file - at))
        p.touched = max(p.touched, p.done + possible)
        told = possible
        if step.kind == Kind.INSTEAD:
            told = step.value
        elif step.kind == Kind.DENY:
            told = min(told, step.value)

        if told in AGAIN:
            p.agains += 1
            patience -= 1
            if patience:
                continue
            p.error = told
        elif told < 0:
            p.error = told
        elif moves and not 0 < told <= asked:
            p.error = -errno.EIO
        elif moves:
            p.shorts += told < asked
            p.done += told
            patience = PATIENCE
            if p.done < member.len:
                continue
        return p


def committed(
    request: Request,
    played: Mapping[int, Played],
    completions: Mapping[int, int],
    *,
    block: int,
    max_members: int,
    in_memory: bool,
) -> int:
    """
    The result of a request; `completions` says when each member's last one was seen, `in_memory`
    whether a target can reach the request's bytes itself.
    """
    accepted = request.members[:max_members]
    refused = request.members[max_members:]
    failed = {i: p.error for i, p in played.items() if p.error is not None}

    errors = [-errno.EIO for m in refused if not m.carries]
    if request.answer is not None and request.answer < 0:
        errors.append(request.answer)
    if request.returns < 0:
        errors.append(request.returns)
    voided = bool(errors) or any(not accepted[i].carries for i in failed)
    errors += [failed[i] for i in sorted(failed, key=lambda i: completions[i])]

    if request.op in (READ, WRITE):
        moved = 0 if voided else _prefix(request, accepted, refused, played, in_memory)
        moved -= moved % block
        if moved:
            return moved
        return sanitised(request.op, errors[0]) if errors else -errno.EIO
    if not accepted and request.answer is None:
        errors.append(-errno.EIO)
    return sanitised(request.op, errors[0]) if errors else 0


def _prefix(
    request: Request,
    accepted: Sequence[Member],
    refused: Sequence[Member],
    played: Mapping[int, Played],
    in_memory: bool,
) -> int:
    """Bytes from 0 on that somebody moved and that nobody who should have has left out."""
    if request.answer is not None and not any(m.carries for m in request.members):
        if request.op == READ and not in_memory:
            return 0  # nobody can have filled it
        return min(request.answer, request.size)
    here, missing = bytearray(request.size + 1), bytearray(request.size + 1)
    for i, m in enumerate(accepted):
        if m.carries:
            _mark(here, m.buf, m.buf + m.len)
            _mark(missing, m.buf + played[i].done, m.buf + m.len)
    for m in refused:
        _mark(missing, m.buf, m.buf + m.len)
    return next(i for i in range(request.size + 1) if missing[i] or not here[i])


def _mark(marks: bytearray, start: int, end: int) -> None:
    end = min(end, len(marks) - 1)
    if start < end:
        marks[start:end] = b"\1" * (end - start)
