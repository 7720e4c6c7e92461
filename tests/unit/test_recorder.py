"""The last requests, read while they are being written."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.helpers import is_one_line
from ublkd import recorder, stats
from ublkd._core import lib
from ublkd.uapi import Op

ENTRIES: int = lib.RECORDER_ENTRIES


@pytest.fixture
def queues(tmp_path: Path) -> Iterator[list[Any]]:
    """Two queues with counters in 0.stats."""
    with stats.create(tmp_path / "0.stats", 2) as made:
        for queue in made:
            queue.magic = lib.STATS_MAGIC
        yield made


def put(queue: Any, number: int, **fields: Any) -> None:
    entry = queue.recorder.entries[(number - 1) % ENTRIES]
    entry.number = number
    for name, value in ({"ended": number} | fields).items():
        setattr(entry, name, value)


def test_requests_of_all_queues_are_told_by_the_time_of_their_end(
    tmp_path: Path, queues: list[Any]
) -> None:
    put(queues[0], 1, ended=3_000_000_000, took=1500, start_sector=8, nr_sectors=16, result=8192,
        op_flags=Op.WRITE | lib.UBLK_IO_F_FUA, members=2, shorts=1,
        lease=lib.LEASE_AUTO)  # fmt: skip
    put(queues[1], 1, ended=2_000_000_000, op_flags=Op.FLUSH, result=-errno.EIO,
        start_sector=(1 << 64) - 1)  # fmt: skip
    put(queues[1], 2, ended=4_000_000_000, op_flags=200, result=-9999)
    flush, write, odd = recorder.read(tmp_path / "0.stats")
    assert (write.queue, write.number, write.op, write.fua) == (0, 1, "write", True)
    assert (write.offset, write.length, write.result, write.us) == (4096, 8192, 8192, 1.5)
    assert (write.members, write.shorts, write.lease, write.ended) == (2, 1, "auto", 3.0)
    assert (flush.offset, flush.length) == (0, 0)
    assert (flush.queue, flush.op, flush.lease, flush.told_result) == (1, "flush", None, "-EIO")
    assert (odd.op, odd.told_result) == ("op 200", "-9999")
    assert all(is_one_line(str(entry)) for entry in (flush, write, odd))
    assert str(write) == ("3.000000 queue 0: write fua 4096+8192 lease auto members 2 shorts 1 "
                          "us 2 result 8192")  # fmt: skip


def test_the_last_thousand_of_a_queue_are_told(tmp_path: Path, queues: list[Any]) -> None:
    for number in range(1, ENTRIES + 101):
        put(queues[0], number)
    numbers = [entry.number for entry in recorder.read(tmp_path / "0.stats")]
    assert numbers == list(range(101, ENTRIES + 101))
    assert len(numbers) >= 1000


@pytest.mark.parametrize("when", [0, 1, 2])
@pytest.mark.parametrize("begun", [True, False])
def test_an_entry_that_is_written_while_it_is_read_is_left_out(
    tmp_path: Path, queues: list[Any], monkeypatch: pytest.MonkeyPatch, when: int, begun: bool
) -> None:
    """It is torn in one of the three readings, or it is another one from there on."""
    for number in (1, 2, 3):
        put(queues[0], number, result=100 + number)
    readings, raw = iter(range(3)), stats.raw

    def torn(path: Path) -> list[Any]:
        if next(readings) == when:
            put(queues[0], 2, result=7)
            queues[0].recorder.entries[1].number = 0 if begun else ENTRIES + 2
        return raw(path)

    monkeypatch.setattr(stats, "raw", torn)
    found = {entry.number: entry.result for entry in recorder.read(tmp_path / "0.stats")}
    whole = {1: 101, 3: 103}
    assert found == (whole if when or begun else {**whole, ENTRIES + 2: 7})


def test_where_nothing_is_counted_nothing_is_told(tmp_path: Path, queues: list[Any]) -> None:
    assert recorder.read(tmp_path / "0.stats") == []
    assert recorder.read(tmp_path / "1.stats") == []


def test_a_log_gets_the_newest_and_not_too_often(
    tmp_path: Path, queues: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for queue in queues:
        for number in range(1, 801):
            put(queue, number)
    lines: list[str] = []
    dump = recorder.Dump(tmp_path / "0.stats", lines.append)
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    dump.asked()
    assert lines[0] == "the last 1000 requests:"
    assert len(lines) == 1001
    assert "queue 1: read" in lines[-1]
    assert lines[-1].startswith("0.000001 ")
    dump.asked()
    assert len(lines) == 1001
    now += recorder.DUMP_SECONDS
    dump.asked()
    assert len(lines) == 2002
    dump.write()  # a failure is told in any case
    assert len(lines) == 3003
