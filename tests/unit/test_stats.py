from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.helpers import open_fds
from ublkd import stats
from ublkd._core import lib
from ublkd.errors import UblkdError

NAMES = {"read", "write", "flush", "discard", "write_zeroes"}


def test_what_the_queues_count_is_read_from_outside(tmp_path: Path) -> None:
    path = tmp_path / "0.stats"
    with stats.create(path, 3) as queues:
        assert stats.read(path) == []  # no queue has begun
        for number, queue in enumerate(queues):
            queue.magic = lib.STATS_MAGIC
            queue.requests[0] = 10 + number
            queue.bytes[1] = (1 << 63) + number
            queue.errors[5] = number
            queue.in_flight = number
        told = stats.read(path)
    assert told == stats.read(path)  # and after the queues are gone
    assert [queue["read"]["requests"] for queue in told] == [10, 11, 12]
    assert [queue["write"]["bytes"] for queue in told] == [(1 << 63) + n for n in range(3)]
    assert [queue["write_zeroes"]["errors"] for queue in told] == [0, 1, 2]
    assert [queue["in_flight"] for queue in told] == [0, 1, 2]
    assert told[0].keys() > NAMES


def test_every_counted_operation_has_a_name_or_is_left_out_on_purpose() -> None:
    assert len(stats.OPS) == lib.STATS_OPS
    assert {name for name in stats.OPS if name} == NAMES


def test_queues_do_not_share_a_cache_line() -> None:
    assert stats.STRIDE % 64 == 0


def test_the_file_is_private_and_starts_from_zero(tmp_path: Path) -> None:
    path = tmp_path / "0.stats"
    path.write_bytes(b"x" * 100_000)
    path.chmod(0o600)
    with stats.create(path, 1) as queues:
        assert path.stat().st_size == stats.STRIDE
        assert (queues[0].magic, queues[0].in_flight) == (0, 0)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("raw", [b"", b"x", b"x" * 10_000, bytes(50_000)])
def test_a_foreign_file_has_no_counters(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "0.stats"
    path.write_bytes(raw)
    assert stats.read(path) == []


def test_a_truncated_file_gives_the_queues_that_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "0.stats"
    with stats.create(path, 2) as queues:
        for queue in queues:
            queue.magic = lib.STATS_MAGIC
    raw = path.read_bytes()
    for size, whole in ((len(raw), 2), (len(raw) - 1, 1), (stats.STRIDE, 1), (8, 0)):
        path.write_bytes(raw[:size])
        assert len(stats.read(path)) == whole


def test_a_missing_file_has_no_counters(tmp_path: Path) -> None:
    assert stats.read(tmp_path / "0.stats") == []
    assert stats.read(tmp_path) == []


@pytest.mark.parametrize("kind", ["link", "folder", "nowhere"])
def test_a_place_that_cannot_be_a_counter_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "0.stats"
    if kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    elif kind == "folder":
        path.mkdir()
    else:
        path = tmp_path / "no" / "0.stats"
    before = open_fds()
    with pytest.raises(UblkdError, match="cannot make"), stats.create(path, 1):
        pass
    assert open_fds() == before
    assert not (tmp_path / "elsewhere").exists()


def test_nothing_stays_open_or_mapped_after_an_exception(tmp_path: Path) -> None:
    path = tmp_path / "0.stats"
    before = open_fds()
    with pytest.raises(ZeroDivisionError), stats.create(path, 1):
        assert str(path) in Path("/proc/self/maps").read_text()
        raise ZeroDivisionError
    assert open_fds() == before
    assert str(path) not in Path("/proc/self/maps").read_text()
