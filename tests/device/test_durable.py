"""FLUSH and FUA reach the disk below the loop target: each one, and nothing else does.

The disk below keeps a log (writelog.py) of what was durable, and in which order it became so.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from direct import direct
from mapped import ram_disks
from tools import counters, device, leases, mounted, nothing_left, run
from writelog import FLUSH, FUA, Entry, between, logged, read_log

pytestmark = pytest.mark.one_kernel

KIB, MIB = 1 << 10, 1 << 20
SIZE = 32 * MIB
PART = 4 * KIB
LOOSE, SYNCED, FORCED = 3, 5, 3


def part(n: int) -> bytes:
    """The bytes of the nth write, like no other's."""
    return bytes([n + 1]) * PART


def kinds(entries: list[Entry]) -> list[str]:
    return [entry.kind for entry in entries]


def places(entries: list[Entry]) -> list[tuple[int, bytes]]:
    """Which bytes went where."""
    return [(entry.at, entry.data) for entry in entries if entry.data]


def test_a_flush_is_a_flush_below_and_a_fua_write_is_one_on_every_lease() -> None:
    with ram_disks(2, SIZE) as (ram, log):
        for lease in leases():
            with (
                logged("below", ram, log, SIZE) as below,
                device("loop", "--file", below.node, "--lease", lease) as node,
                direct(node) as disk,
            ):
                below.mark("loose")
                for n in range(LOOSE):
                    assert disk.write(n * PART, part(n)) == "ok"
                below.mark("synced")
                for n in range(LOOSE, LOOSE + SYNCED):
                    assert disk.write(n * PART, part(n)) == "ok"
                    assert disk.sync() == "ok"
                below.mark("only-synced")
                for _ in range(SYNCED):
                    assert disk.sync() == "ok"
                below.mark("discarded")
                run("blkdiscard", "--offset", "1M", "--length", "1M", node)
                assert disk.sync() == "ok"
                below.mark("forced")
                before = counters(node)
                with direct(node, os.O_DSYNC) as forced:
                    for n in range(FORCED):
                        assert forced.write(2 * MIB + n * PART, part(n)) == "ok"
                after = counters(node)
                below.mark("end")
            entries = read_log(log)
            check_flushes(entries, lease)
            # a program's O_DSYNC is a write with FUA and a FLUSH behind it
            assert before["flush"]["requests"] == 2 * SYNCED + 1
            assert after["flush"]["requests"] == before["flush"]["requests"] + FORCED
            assert after["fua"] == before["fua"] + FORCED
            found = between(entries, "forced", "end")
            assert kinds(found) == ["fua", "flush"] * FORCED, f"with lease {lease}"
            assert places(found) == [(2 * MIB + n * PART, part(n)) for n in range(FORCED)]
    nothing_left()


def check_flushes(entries: list[Entry], lease: str) -> None:
    assert between(entries, "loose", "synced") == [], "nobody asked for what was flushed"
    found = between(entries, "synced", "only-synced")
    # the first FLUSH makes durable what was loose before it
    expected = ["write"] * LOOSE + ["write", "flush"] * SYNCED
    assert kinds(found) == expected, f"with lease {lease}"
    assert places(found) == [(n * PART, part(n)) for n in range(LOOSE + SYNCED)]
    found = between(entries, "only-synced", "discarded")
    assert kinds(found) == ["flush"] * SYNCED, f"with lease {lease}"
    found = between(entries, "discarded", "forced")
    assert kinds(found) == ["discard", "flush"], f"with lease {lease}"
    assert (found[0].at, found[0].length) == (MIB, MIB)


def test_through_the_page_cache_an_fsync_writes_back_and_flushes_once() -> None:
    with ram_disks(2, SIZE) as (ram, log):
        with (
            logged("below", ram, log, SIZE) as below,
            device("loop", "--file", below.node, "--direct-io", "off") as node,
            direct(node) as disk,
        ):
            below.mark("synced")
            for n in range(SYNCED):
                assert disk.write(n * PART, part(n)) == "ok"
                assert disk.sync() == "ok"
            below.mark("forced")
            with direct(node, os.O_DSYNC) as forced:
                assert forced.write(2 * MIB, part(0)) == "ok"
            below.mark("end")
        entries = read_log(log)
        found = between(entries, "synced", "forced")
        assert kinds(found) == ["write", "flush"] * SYNCED
        assert places(found) == [(n * PART, part(n)) for n in range(SYNCED)]
        found = between(entries, "forced", "end")
        assert places(found) == [(2 * MIB, part(0))]
        assert kinds(found)[-1] == "flush"
    nothing_left()


@pytest.mark.parametrize("mode", ["on", "off"])
def test_an_fsync_of_a_disk_in_a_file_reaches_the_disk_below_the_files_filesystem(
    scratch: Path, mode: str
) -> None:
    with ram_disks(2, 2 * SIZE) as (ram, log):
        with logged("below", ram, log, SIZE) as below:
            run("mkfs.ext4", "-q", "-E", "nodiscard", below.node)
            with mounted(below.node, scratch / "mnt") as mnt:
                path = mnt / "disk.img"
                run("dd", "if=/dev/zero", f"of={path}", "bs=1M", "count=4", "conv=fsync")
                with (
                    device("loop", "--file", path, "--direct-io", mode) as node,
                    direct(node) as disk,
                    direct(node, os.O_DSYNC) as forced,
                ):
                    below.mark("0")
                    for n in range(SYNCED):
                        assert disk.write(n * PART, part(n)) == "ok"
                        assert disk.sync() == "ok"
                        below.mark(str(n + 1))
                    assert forced.write(MIB, part(SYNCED)) == "ok"
                    below.mark(str(SYNCED + 1))
        entries = read_log(log)
        for n in range(SYNCED + 1):
            found = between(entries, str(n), str(n + 1))
            assert any(part(n) in entry.data for entry in found), f"write {n} was not durable"
            assert any(entry.flags & (FLUSH | FUA) for entry in found)
    nothing_left()
