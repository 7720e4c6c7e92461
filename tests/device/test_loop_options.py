"""A part of the backing as the disk, and partitions that are looked for or not."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from tools import device, leases, nothing_left, refused, sparse, ublkd_json, wait_until

MIB = 1 << 20


def test_a_part_of_the_file_is_the_disk_and_the_rest_is_untouched(scratch: Path) -> None:
    for lease in leases():
        disk = scratch / "disk.img"
        before = os.urandom(4 * MIB)
        disk.write_bytes(before)
        words = ("--offset", "1M", "--sizelimit", "2M", "--lease", lease)
        with device("loop", "--file", disk, *words) as node:
            assert ublkd_json("show", node)["size"] == 2 * MIB
            with open(node, "r+b", buffering=0) as f:
                assert f.read(MIB) == before[MIB : 2 * MIB]
                f.seek(0)
                f.write(b"\x11" * (2 * MIB))
                os.fsync(f.fileno())
        assert disk.read_bytes() == before[:MIB] + b"\x11" * (2 * MIB) + before[3 * MIB :]


def test_a_part_that_is_not_there_or_not_in_blocks_is_refused(scratch: Path) -> None:
    disk = sparse(scratch / "disk.img", 4 * MIB)
    add = ("add", "--target", "loop", "--file", disk)
    assert "0 bytes behind offset 8388608" in refused(*add, "--offset", "8M")
    assert "a multiple of 512" in refused(*add, "--offset", "100", code=2)
    assert "a multiple of 512" in refused(*add, "--sizelimit", "1000", code=2)
    said = refused(*add, "--offset", "512", "--block-size", "4096", code=2)
    assert "not a multiple of the block of 4096" in said
    nothing_left()


def partition_table() -> bytes:
    """A DOS label with one Linux partition of 1 MiB behind the first."""
    entry = struct.pack("<B3sB3sII", 0, b"\0\0\0", 0x83, b"\0\0\0", 2048, 2048)
    return bytes(446) + entry + bytes(48) + b"\x55\xaa"


def test_partitions_are_looked_for_unless_told_not_to(scratch: Path) -> None:
    disk = sparse(scratch / "disk.img", 4 * MIB)
    with disk.open("r+b") as f:
        f.write(partition_table())
    with device("loop", "--file", disk) as node:
        wait_until(lambda: Path(node + "p1").exists(), 30, "the partition's node")
    if "NO_AUTO_PART_SCAN" not in ublkd_json("features")["features"]:
        said = refused("add", "--target", "loop", "--file", disk, "--no-partscan", code=3)
        assert "NO_AUTO_PART_SCAN" in said
        return
    with device("loop", "--file", disk, "--no-partscan") as node:
        with open(node, "rb", buffering=0) as f:
            assert f.read(512) == partition_table()
        assert not Path(node + "p1").exists()
    nothing_left()


@pytest.mark.parametrize("kind", ["register", "group", "copy", "user-copy"])
def test_insisting_on_a_lease_gives_it_or_the_reason(scratch: Path, kind: str) -> None:
    disk = sparse(scratch / "disk.img", MIB)
    words = ("--target", "loop", "--file", disk, "--lease", kind)
    if kind in leases():
        with device(*words[1:2], *words[2:]) as node:
            told = ublkd_json("show", node)
            assert told["lease"] == kind
            assert "auto" in told["refused"]
    else:
        verdict = ublkd_json("features")["leases"][kind]
        assert verdict in refused("add", *words, code=3)
    nothing_left()


def test_no_kernel_of_the_lab_carries_the_group_series() -> None:
    assert "SQE-group" in ublkd_json("features")["leases"]["group"]
