"""The last requests of a device, as its queues keep them beside the counters; asks nobody."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ublkd import stats
from ublkd._core import lib
from ublkd.features import Lease
from ublkd.uapi import SECTOR, Op

OP_BITS = 0xFF
LEASES = {lease.number: lease.value for lease in Lease}
CARRIES_DATA = (Op.READ, Op.WRITE)
DUMP_LINES = 1000
DUMP_SECONDS = 60
"""A log takes so many lines at a time, and not oftener: journald would drop what comes beyond."""


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """One request that has ended."""

    queue: int
    number: int  # among the requests of its queue, from 1
    ended: float  # seconds of CLOCK_MONOTONIC
    op: str
    fua: bool
    offset: int  # bytes
    length: int  # bytes
    lease: str | None  # None: it has no pages
    members: int
    shorts: int  # transfers that went on; 255: or more
    us: float  # microseconds that it took
    result: int  # bytes, or a negative errno

    def __str__(self) -> str:
        """One line, for a log."""
        return (
            f"{self.ended:.6f} queue {self.queue}: {self.op}{' fua' if self.fua else ''} "
            f"{self.offset}+{self.length} lease {self.lease or '-'} members {self.members} "
            f"shorts {self.shorts} us {self.us:.0f} result {self.told_result}"
        )

    @property
    def told_result(self) -> str:
        """Bytes, or the errno by name."""
        if self.result >= 0:
            return str(self.result)
        return f"-{errno.errorcode.get(-self.result, -self.result)}"


def read(path: Path) -> list[Recorded]:
    """The requests that the file of a device's counters has, by the time of their end.

    What was being written in the meantime is left out.
    """
    before, these, after = stats.raw(path), stats.raw(path), stats.raw(path)
    queues = enumerate(zip(before, these, after, strict=False))
    found = [entry for qid, three in queues for entry in _whole(qid, *three)]
    return sorted(found, key=lambda entry: entry.ended)


def _whole(qid: int, before: Any, these: Any, after: Any) -> Iterator[Recorded]:
    for at in range(lib.RECORDER_ENTRIES):
        number = before.recorder.entries[at].number
        if number and number == after.recorder.entries[at].number:
            yield _recorded(qid, number, these.recorder.entries[at])


def _recorded(qid: int, number: int, entry: Any) -> Recorded:
    op = entry.op_flags & OP_BITS
    return Recorded(
        queue=qid,
        number=number,
        ended=entry.ended / 1e9,
        op=Op(op).name.lower() if op in iter(Op) else f"op {op}",
        fua=bool(entry.op_flags & lib.UBLK_IO_F_FUA),
        # the block layer gives a flush sector -1, which is no place on the disk
        offset=entry.start_sector * SECTOR if op != Op.FLUSH else 0,
        length=entry.nr_sectors * SECTOR,
        lease=LEASES.get(entry.lease) if op in CARRIES_DATA else None,
        members=entry.members,
        shorts=entry.shorts,
        us=entry.took / 1000,
        result=entry.result,
    )


class Dump:
    """Writes the newest requests of a device to a log."""

    def __init__(self, path: Path, log: Callable[[str], None]) -> None:
        """``path`` is where its counters are."""
        self._path, self._log = path, log
        self._not_before = 0.0

    def asked(self) -> None:
        """Write them, unless that has been done a moment ago."""
        if time.monotonic() >= self._not_before:
            self._not_before = time.monotonic() + DUMP_SECONDS
            self.write()

    def write(self) -> None:
        """Write them."""
        found = read(self._path)[-DUMP_LINES:]
        self._log(f"the last {len(found)} requests:")
        for entry in found:
            self._log(str(entry))
