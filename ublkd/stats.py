"""Reads what a device's queues count in shared memory; asks the daemon nothing."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ublkd._core import ffi, lib
from ublkd.errors import UblkdError, reason

OPS = ("read", "write", "flush", "discard", None, "write_zeroes")
"""Names of ``UBLK_IO_OP_*`` up to the last that is counted."""

GAUGES = (
    "failed_files",
    "in_flight",
    "lost_connections",
    "without_connection",
    "acked_writes",
    "flushed_writes",
    "short_members",
    "again_members",
    "requeues",
    "fallbacks",
    "fua",
)
"""What is counted of a queue and not of an op."""

MOMENTARY = ("in_flight", "without_connection")
"""Those that say how it is, and not what has been: they end with their daemon."""


@dataclass(frozen=True, kw_only=True)
class QueueStats:
    """What one queue has counted."""

    started: int  # ns of CLOCK_MONOTONIC
    counters: dict[str, Any]
    """Of each op ``requests``, ``bytes`` and ``errors``; and the gauges."""
    latency: dict[str, list[int]]
    """Of each op how many requests took so long: entry n is of 2 ** n nanoseconds and more."""


STRIDE = -(-ffi.sizeof("struct queue_stats") // 64) * 64
"""Bytes from one queue's counters to the next's: a cache line of theirs is nobody else's."""


@contextmanager
def create(path: Path, queues: int, *, keep: bool = False) -> Iterator[list[Any]]:
    """Make the file and map it: one ``struct queue_stats *`` per queue, all zero.

    ``keep`` goes on counting in what an earlier daemon of the device has left.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | (0 if keep else os.O_TRUNC)
    try:
        fd = os.open(path, flags, 0o600)
        try:
            os.posix_fallocate(fd, 0, STRIDE * queues)  # a full /run is an error now, not SIGBUS
            area = mmap.mmap(fd, STRIDE * queues)
        finally:
            os.close(fd)
    except OSError as error:
        raise UblkdError(f"cannot make {path}: {reason(error)}", hint="is /run full?") from error
    base = ffi.from_buffer(area)
    mapped = [ffi.cast("struct queue_stats *", base + STRIDE * qid) for qid in range(queues)]
    for queue in mapped:
        if queue.magic != lib.STATS_MAGIC:
            ffi.buffer(queue)[:] = bytes(ffi.sizeof(queue[0]))
        for name in MOMENTARY:
            setattr(queue, name, 0)
    try:
        yield mapped
    finally:
        ffi.release(base)
        area.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The counters of every queue, by name; nothing where there are none."""
    return [_named(queue) for queue in raw(path)]


def counted(path: Path) -> list[QueueStats]:
    """The same with latencies."""
    return [
        QueueStats(
            started=queue.started,
            counters=_named(queue),
            latency={name: list(queue.latency[op]) for op, name in enumerate(OPS) if name},
        )
        for queue in raw(path)
    ]


def raw(path: Path) -> list[Any]:
    """A copy of what the queues have written: a ``struct queue_stats *`` of each."""
    try:
        content = path.read_bytes()
    except OSError:
        return []
    queues = [
        ffi.from_buffer("struct queue_stats *", content[at : at + STRIDE], require_writable=False)
        for at in range(0, len(content) - STRIDE + 1, STRIDE)
    ]
    return [queue for queue in queues if queue.magic == lib.STATS_MAGIC]


def _named(queue: Any) -> dict[str, Any]:
    counters: dict[str, Any] = {
        name: {
            "requests": queue.requests[op],
            "bytes": queue.bytes[op],
            "errors": queue.errors[op],
        }
        for op, name in enumerate(OPS)
        if name
    }
    for name in GAUGES:
        counters[name] = getattr(queue, name)
    return counters
