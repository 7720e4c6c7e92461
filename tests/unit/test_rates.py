"""Differences, rates and percentiles."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ublkd._core import lib
from ublkd.rates import NAMES, PER_MILLE, percentile, since, told, total
from ublkd.stats import GAUGES, QueueStats

BUCKETS: int = lib.STATS_BUCKETS
latencies = st.lists(st.integers(0, 1 << 41), min_size=1, max_size=200)


def bucket(ns: float) -> int:
    """core/stats.c says the same."""
    return min(int(ns).bit_length() - 1 if ns >= 1 else 0, BUCKETS - 1)


def histogram(ns: list[int]) -> list[int]:
    counts = [0] * BUCKETS
    for one in ns:
        counts[bucket(one)] += 1
    return counts


@given(latencies, st.integers(1, 1000))
def test_a_percentile_is_in_the_bucket_of_the_one_in_the_sorted_list(
    ns: list[int], per_mille: int
) -> None:
    exact = sorted(ns)[math.ceil(len(ns) * per_mille / 1000) - 1]
    found = percentile(histogram(ns), per_mille)
    assert found is not None
    assert bucket(found) == bucket(exact)


@given(latencies)
def test_percentiles_do_not_fall(ns: list[int]) -> None:
    found = [percentile(histogram(ns), n) for n in range(1, 1001)]
    assert found == sorted(found, key=lambda value: value or 0.0)


def test_within_a_bucket_requests_are_taken_to_be_spread_evenly() -> None:
    counts = [0] * BUCKETS
    counts[10] = 4  # 1024 to 2048 ns
    assert [percentile(counts, n) for n in (250, 500, 1000)] == [1152, 1408, 1920]
    assert percentile(histogram([1 << 45]), 500) == 1 << (BUCKETS - 1)  # which has no end
    assert percentile(histogram([0]), 500) == 1
    assert percentile([0] * BUCKETS, 500) is None


def queue(started: int = 1, reads: int = 0, **gauges: int) -> QueueStats:
    counters: dict[str, Any] = {n: {"requests": 0, "bytes": 0, "errors": 0} for n in NAMES}
    counters["read"] = {"requests": reads, "bytes": reads * 4096, "errors": reads // 2}
    counters |= dict.fromkeys(GAUGES, 0) | gauges
    latency = {name: [0] * BUCKETS for name in NAMES}
    latency["read"][12] = reads
    return QueueStats(started=started, counters=counters, latency=latency)


def test_a_difference_is_what_was_counted_in_between_and_states_are_as_they_are_now() -> None:
    before = queue(reads=10, requeues=3, in_flight=7, failed_files=2, without_connection=1)
    after = queue(reads=25, requeues=4, in_flight=5, failed_files=6)
    found = since(before, after)
    assert found.counters["read"] == {"requests": 15, "bytes": 15 * 4096, "errors": 7}
    assert found.latency["read"][12] == 15
    assert found.counters["requeues"] == 1
    states = {"in_flight": 5, "failed_files": 6, "without_connection": 0}
    assert {name: found.counters[name] for name in states} == states


def test_the_numbers_of_acknowledged_writes_are_no_amounts() -> None:
    """All queues of a device count them together."""
    one, other = queue(acked_writes=9, flushed_writes=4), queue(acked_writes=7, flushed_writes=6)
    for found in (total([one, other]), since(queue(acked_writes=3, flushed_writes=6), one)):
        assert found.counters["acked_writes"] == 9
        assert found.counters["flushed_writes"] == 6


def test_a_queue_that_began_anew_is_counted_from_nothing() -> None:
    anew = queue(started=2, reads=3)
    assert since(queue(started=1, reads=10), anew) == anew
    assert since(None, anew) == anew


def test_a_device_is_the_sum_of_its_queues() -> None:
    found = total([queue(reads=1, in_flight=2, failed_files=2, fallbacks=1), queue(reads=4),
                   queue(reads=2, in_flight=1, failed_files=6)])  # fmt: skip
    assert found.counters["read"]["requests"] == 7
    assert found.latency["read"][12] == 7
    assert (found.counters["in_flight"], found.counters["fallbacks"]) == (3, 1)
    assert found.counters["failed_files"] == 6


def test_rates_are_per_second_and_unknown_without_a_time() -> None:
    found = told(queue(reads=30, again_members=9), 4.0)
    read = found["read"]
    assert (read["requests"], read["iops"], read["bytes_per_second"]) == (30, 7.5, 30720.0)
    assert 4.096 <= read["p50_us"] <= read["p99_us"] <= read["p99_9_us"] <= 8.192
    assert found["again_members"] == 9
    assert found["write"]["iops"] == 0
    assert [found["write"][key] for key in PER_MILLE] == [None] * 3
    assert told(queue(reads=30), None)["read"]["iops"] is None
