"""Many devices at once. THOROUGH=1: 64 of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tools import daemons, digest, figures, nothing_left, sparse, ublkd, ublkd_json

THOROUGH = "THOROUGH" in os.environ
DEVICES = 64 if THOROUGH else 16
KIB = 1 << 10
SIZE = 256 * KIB

pytestmark = [pytest.mark.deadline(1200 if THOROUGH else 240), pytest.mark.one_kernel]


def pattern(number: int) -> bytes:
    """Each disk's own, and another one in each of its blocks."""
    blocks = (f"disk {number} block {n}".encode() for n in range(SIZE // 512))
    return b"".join(block.ljust(512, b".") for block in blocks)


def available() -> int:
    """KiB of memory that programs could have."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1])
    raise AssertionError("no MemAvailable")


def round_of(paths: Sequence[Path]) -> int:
    """Add, verify, list, delete; how many KiB of memory the devices took while they were served."""

    def add(number: int) -> str:
        file, name = paths[number], f"disk{number}"
        return ublkd("add", "--target", "loop", "--file", file, "--name", name).stdout.strip()

    before = available()
    with ThreadPoolExecutor(DEVICES) as pool:
        nodes = list(pool.map(add, range(DEVICES)))
    told = ublkd_json("list")
    assert {t["name"]: t["node"] for t in told} == {
        f"disk{number}": node for number, node in enumerate(nodes)
    }
    assert {t["state"] for t in told} == {"live"}
    assert [t["id"] for t in told] == list(range(DEVICES))
    assert sorted(t["pid"] for t in told) == sorted(daemons())
    for number, node in enumerate(nodes):
        with open(node, "r+b", buffering=0) as disk:
            disk.write(pattern(number))
            os.fsync(disk.fileno())
    for number, (node, path) in enumerate(zip(nodes, paths, strict=True)):
        assert path.read_bytes() == pattern(number)
        assert digest(node, SIZE) == digest(path, SIZE)
    held = before - available()
    ublkd("del", "--all")
    nothing_left()
    return held


def test_many_devices_at_once_are_many_disks_and_leave_nothing(scratch: Path) -> None:
    paths = [sparse(scratch / f"{n}.img", SIZE) for n in range(DEVICES)]
    held, before = round_of(paths), available()
    figures(f"{DEVICES} devices: {held // DEVICES} KiB each")
    if THOROUGH:  # what the first round brings into memory stays there
        round_of(paths)
        figures(f"{DEVICES} more devices: {before - available()} KiB less than before in the end")
        assert before - available() < DEVICES * 256
