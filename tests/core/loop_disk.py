"""A loop target on a real file, behind the fake driver."""

from __future__ import annotations

from typing import Any

from .core import Core
from .driver import Driver, DriverMaker

PUNCH = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
ZERO = 0x01 | 0x10  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_ZERO_RANGE
RWF_DSYNC = 2
DATASYNC = 1  # IORING_FSYNC_DATASYNC
FSYNC, FALLOCATE, READ_, WRITE_ = 3, 17, 22, 23  # IORING_OP_*


class LoopDisk:
    """`loop` is the target's own struct: what it was told and what it has learnt."""

    def __init__(self, core: Core, new_driver: DriverMaker, fd: int, **loop: Any) -> None:
        self.loop = core.ffi.new("struct loop *", loop)
        self.driver: Driver = new_driver(
            [fd],
            ops=core.lib.loop_ops(),
            target=self.loop,
            max_members=core.lib.BACKING_MAX_MEMBERS,
        )
        self.serve = self.driver.serve

    def steps(self) -> list[tuple[int, int]]:
        """What was issued: the operation and its flags or mode."""
        return [
            (e.opcode, e.len if e.opcode == FALLOCATE else e.op_flags) for e in self.driver.issued()
        ]
