"""What counters say of speed: differences, rates and percentiles. Nothing is read here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import add, or_, sub
from typing import Any

from ublkd.stats import GAUGES, OPS, QueueStats

NAMES = [name for name in OPS if name]
STATES = ("in_flight", "without_connection")
"""The gauges that say how it is now: nothing is subtracted from them."""
MERGED: Mapping[str, Callable[[int, int], int]] = {
    "failed_files": or_,
    "acked_writes": max,
    "flushed_writes": max,
}
"""Those that are no amounts: bits, and the numbers of writes that all queues count together."""
PER_MILLE = {"p50_us": 500, "p99_us": 990, "p99_9_us": 999}


def percentile(latency: Sequence[int], per_mille: int) -> float | None:
    """Nanoseconds that so many of a thousand requests did not exceed; None of no request.

    Exact to the bucket; within it, as if its requests were spread evenly. The last one has no
    end: its beginning is told.
    """
    rank = -(-sum(latency) * per_mille // 1000)
    if rank == 0:
        return None
    bucket = 0
    while rank > latency[bucket]:
        rank -= latency[bucket]
        bucket += 1
    low, high = 1 << bucket if bucket else 0, 2 << bucket
    if bucket == len(latency) - 1:
        return float(low)
    return low + (high - low) * (rank - 0.5) / latency[bucket]


def since(before: QueueStats | None, after: QueueStats) -> QueueStats:
    """What was counted in between; all of it, if the queue began anew."""
    if before is None or before.started != after.started:
        return after
    return _merged(after, before, sub, lambda now, _: now)


def total(queues: Sequence[QueueStats]) -> QueueStats:
    """What all queues of a device, one at least, have counted together."""
    return reduce(lambda one, other: _merged(one, other, add, add), queues)


def _merged(one: QueueStats, other: QueueStats, count: Any, state: Any) -> QueueStats:
    counters: dict[str, Any] = {
        name: {key: count(value, other.counters[name][key]) for key, value in of_op.items()}
        for name in NAMES
        for of_op in [one.counters[name]]
    }
    for name in GAUGES:
        how = MERGED.get(name) or (state if name in STATES else count)
        counters[name] = how(one.counters[name], other.counters[name])
    latency = {
        name: [count(a, b) for a, b in zip(one.latency[name], other.latency[name], strict=True)]
        for name in NAMES
    }
    return QueueStats(started=one.started, counters=counters, latency=latency)


def told(counted: QueueStats, seconds: float | None) -> dict[str, Any]:
    """Everything that is told of counters: with rates, if it is known how long they took."""
    ops = {
        name: counted.counters[name]
        | {
            "iops": _rate(counted.counters[name]["requests"], seconds),
            "bytes_per_second": _rate(counted.counters[name]["bytes"], seconds),
        }
        | {key: _us(percentile(counted.latency[name], n)) for key, n in PER_MILLE.items()}
        for name in NAMES
    }
    return ops | {name: counted.counters[name] for name in GAUGES}


def _rate(count: int, seconds: float | None) -> float | None:
    return round(count / seconds, 3) if seconds else None


def _us(ns: float | None) -> float | None:
    return None if ns is None else round(ns / 1000, 3)
