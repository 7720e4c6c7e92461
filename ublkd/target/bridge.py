"""The way from the C engine into a target in Python: one call per turn of the loop."""

from __future__ import annotations

import errno
import time
from collections import deque
from typing import Any

from ublkd._core import ffi, lib
from ublkd.errors import printable, told
from ublkd.target.group import Group, IoDesc, error_number, is_plain
from ublkd.target.protocol import Native, Target
from ublkd.uapi import Op

LINES, SECONDS = 20, 60.0
"""At most so many lines about failed requests in such a time: a disk may see many of them."""

MODIFY = (Op.WRITE, Op.DISCARD, Op.WRITE_ZEROES)


def serving(target: Target, name: str) -> Native:
    """How a target is served: by C functions of its own, or by its ``submit`` in Python.

    ``name`` stands before whatever is reported of it.
    """
    native = getattr(target, "native", None)
    return native() if native is not None else Bridge(target, name).native


class Bridge:
    """Stands in C for a target in Python. ``native`` keeps it alive."""

    def __init__(self, target: Any, name: str) -> None:
        """``target`` has ``submit``."""
        self._submit = target.submit
        self._name = name
        self._files = len(target.files())
        self._read_only: bool = target.params.read_only
        self._kept: dict[Any, list[Any]] = {}
        self._lines: deque[float] = deque(maxlen=LINES)
        self._unsaid = 0
        self._text = ffi.new("char[]", name.encode(errors="replace"))
        ops = ffi.new("struct ublkd_target_ops *")
        ops.abi = lib.UBLKD_TARGET_ABI
        ops.flags = lib.UBLKD_ANSWERS_LATE
        if target.params.zero_copy_sends:
            ops.flags |= lib.UBLKD_SENDS_ZC
        ops.name = self._text
        ops.submit_all = lib.python_submit_all
        handle = ffi.new_handle(self)
        self.native = Native(ops, handle, keep=self)

    def turn(self, groups: Any, count: int) -> None:
        """Serve what one turn of a queue has brought. Never raises."""
        for number in range(count):
            raw = groups[number]
            if self._kept:
                self._kept.pop(raw, None)
            try:
                io = _described(raw.iod)
            except ValueError:  # an op that only a newer kernel has
                lib.group_complete(raw, -errno.EOPNOTSUPP)
                continue
            self._serve(raw, io)

    def _serve(self, raw: Any, io: IoDesc) -> None:
        def keep(what: Any) -> None:
            self._kept.setdefault(raw, []).append(what)

        group = Group(raw, io, self._files, keep, self.report)
        try:
            if self._read_only and io.op in MODIFY:
                raise PermissionError(errno.EROFS, "the disk is read-only")
            self._submit(io, group)
            if not group.used:
                raise RuntimeError("submit() neither added a member nor answered")
        except BaseException as error:
            lib.group_abandon(raw, -error_number(error))
            if not is_plain(error):
                self.report(io, error)
        finally:
            group.over()

    def report(self, io: IoDesc, error: BaseException) -> None:
        """Log why a request failed, in one line. Never raises."""
        import logging  # slow to load, and seldom needed

        now = time.monotonic()
        if len(self._lines) == LINES and now - self._lines[0] < SECONDS:
            self._unsaid += 1
            return
        self._lines.append(now)
        more, self._unsaid = self._unsaid, 0
        logging.getLogger(__name__).error(
            "target %s: %s of %d bytes at byte %d failed: %s%s%s",
            self._name, io.op.name, io.length, io.offset,
            told(error), _where(error),
            f"; {more} failures before it were not logged" if more else "",
        )  # fmt: skip


def _described(iod: Any) -> IoDesc:
    flags = iod.op_flags
    return IoDesc(
        Op(flags & 0xFF),
        iod.start_sector << 9,
        iod.nr_sectors << 9,
        bool(flags & lib.UBLK_IO_F_FUA),
        bool(flags & lib.UBLK_IO_F_NOUNMAP),
    )


def _where(error: BaseException) -> str:
    """The line that raised it."""
    trace = error.__traceback__
    if trace is None:
        return ""
    while trace.tb_next:
        trace = trace.tb_next
    return f" ({printable(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno})"


@ffi.def_extern()  # type: ignore[untyped-decorator]
def python_submit_all(target: Any, groups: Any, count: int) -> None:
    """``ops->submit_all`` of every target in Python."""
    ffi.from_handle(target).turn(groups, count)
