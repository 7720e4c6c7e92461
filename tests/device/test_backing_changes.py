"""Somebody meddles with the backing while it is in use: what the program on the disk is told.

A file that is cut short, direct, is in test_loop.py.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

import pytest
from direct import direct
from mapped import Mapped, breakable, ram_disks
from tools import (
    counters,
    device,
    digest,
    fio,
    leases,
    mounted,
    nothing_left,
    run,
    sparse,
    ublkd,
    ublkd_json,
)

pytestmark = pytest.mark.one_kernel

KIB, MIB = 1 << 10, 1 << 20
OLD, NEW = b"\x11", b"\x22"
PART = 64 * KIB

FS_IOC_SHUTDOWN = 0x8004587D  # <linux/fs.h>, XFS_IOC_GOINGDOWN before it
WITHOUT_A_FLUSH = 2


def test_a_deleted_file_is_served_until_its_disk_is_deleted(scratch: Path) -> None:
    path = scratch / "disk.img"
    path.write_bytes(OLD * 4 * MIB)
    with device("loop", "--file", path) as node, direct(node) as disk:
        path.unlink()
        assert disk.read(MIB, PART) == ("ok", OLD * PART)
        assert disk.write(MIB, NEW * PART) == "ok"
        assert disk.sync() == "ok"
        assert disk.read(MIB, PART) == ("ok", NEW * PART)
        run("blkdiscard", "--offset", "2M", "--length", "1M", node)
        assert disk.read(2 * MIB, PART) == ("ok", bytes(PART))
        assert ublkd_json("show", node)["describe"]["backing"] == str(path)
        assert str(path) in ublkd("list").stdout
    nothing_left()
    assert not path.exists()


def test_a_file_put_in_its_place_is_not_touched(scratch: Path) -> None:
    path, other = scratch / "disk.img", scratch / "other.img"
    path.write_bytes(OLD * 4 * MIB)
    other.write_bytes(b"\x33" * 4 * MIB)
    before = digest(other, 4 * MIB)
    with device("loop", "--file", path) as node, direct(node) as disk:
        identity = ublkd_json("show", node)["describe"]["identity"]
        other.rename(path)
        assert disk.read(MIB, PART) == ("ok", OLD * PART)
        assert disk.write(MIB, NEW * PART) == "ok"
        assert disk.read(MIB, PART) == ("ok", NEW * PART)
        assert ublkd_json("show", node)["describe"]["identity"] == identity
        assert digest(path, 4 * MIB) == before
        # the new file is nobody's: it can be served beside the old one
        with device("loop", "--file", path) as second:
            assert ublkd_json("show", second)["describe"]["identity"] != identity
            assert digest(second, 4 * MIB) == before
    assert digest(path, 4 * MIB) == before
    nothing_left()


def test_a_cached_file_cut_short_shows_nothing_that_was_not_in_it_on_every_lease(
    scratch: Path,
) -> None:
    path = scratch / "disk.img"
    for lease in leases():
        path.write_bytes(OLD * 4 * MIB)
        words = ("--file", path, "--direct-io", "off", "--lease", lease)
        with device("loop", *words) as node, direct(node) as disk:
            os.truncate(path, MIB + 512)
            assert disk.read(2 * MIB, PART) == ("EIO", b"\xee" * PART), f"with lease {lease}"
            told, found = disk.read(MIB, PART)
            assert told in ("EIO", "short: 512")
            assert found[512:] == b"\xee" * (PART - 512), f"with lease {lease}"
            assert set(found[:512]) <= {0xEE, *OLD}
            # a write beyond the end makes the file longer, and what lies between is zeroes
            assert disk.write(3 * MIB, NEW * PART) == "ok"
            assert path.stat().st_size == 3 * MIB + PART
            assert disk.read(2 * MIB, PART) == ("ok", bytes(PART))
            assert disk.read(3 * MIB, PART) == ("ok", NEW * PART)
            os.truncate(path, 4 * MIB)
            assert disk.read(4 * MIB - PART, PART) == ("ok", bytes(PART))
    nothing_left()


def test_a_file_that_shrinks_and_grows_under_traffic_ends_in_nothing_worse_than_errors(
    scratch: Path,
) -> None:
    path = sparse(scratch / "disk.img", 32 * MIB)
    with device("loop", "--file", path, "--queues", "2") as node:
        pid = ublkd_json("show", node)["pid"]
        for size in (0, MIB + 512, 9 * MIB + 4095):
            os.truncate(path, size)
            told = fio(node, "--rw=randread", "--bsrange=4k-128k", "--iodepth=16", "--size=32m",
                       "--io_size=8m", "--continue_on_error=all", check=False)  # fmt: skip
            assert told["jobs"][0]["total_err"]
        os.truncate(path, 32 * MIB)
        fio(node, "--rw=randwrite", "--bsrange=4k-128k", "--iodepth=16", "--size=32m",
            "--io_size=8m", "--verify=crc32c", "--verify_fatal=1",
            "--serialize_overlap=1")  # fmt: skip
        assert ublkd_json("show", node)["pid"] == pid
    nothing_left()


def smaller(below: Mapped, size: int) -> None:
    """The disk below ends there now."""
    below.load(f"0 {size // 512} linear {below.below} 0")


def test_a_disk_below_that_shrinks_is_an_error_beyond_its_end_on_every_lease() -> None:
    with breakable("below", 16 * MIB) as below:
        for lease in leases():
            words = ("--file", below.node, "--lease", lease)
            with device("loop", *words) as node, direct(node) as disk:
                for at in (0, 8 * MIB - PART, 8 * MIB):
                    assert disk.write(at, OLD * PART) == "ok"
                smaller(below, 8 * MIB)
                assert disk.read(8 * MIB, PART) == ("EIO", b"\xee" * PART), f"with lease {lease}"
                assert disk.write(8 * MIB, NEW * PART) == "ENOSPC"  # as the disk below says
                told, found = disk.read(8 * MIB - PART, 2 * PART)
                assert told in ("EIO", f"short: {PART}")
                assert found[PART:] == b"\xee" * PART, f"with lease {lease}"
                assert disk.read(0, PART) == ("ok", OLD * PART)
                below.heal()
                assert disk.read(8 * MIB, PART) == ("ok", OLD * PART)
                assert disk.write(8 * MIB, NEW * PART) == "ok"
                assert disk.read(8 * MIB, PART) == ("ok", NEW * PART)
    nothing_left()


def test_a_disk_below_that_becomes_read_only_refuses_writes_as_eio_and_heals() -> None:
    with ram_disks(1, 16 * MIB) as (ram,), device("loop", "--file", ram) as node:
        with direct(node) as disk:
            assert disk.write(0, OLD * PART) == "ok"
            run("blockdev", "--setro", ram)
            assert disk.write(0, NEW * PART) == "EIO"
            assert disk.read(0, PART) == ("ok", OLD * PART)
            discard = run("blkdiscard", "--length", "1M", node, check=False)
            assert discard.returncode
            run("blockdev", "--setrw", ram)
            assert disk.write(0, NEW * PART) == "ok"
            assert disk.sync() == "ok"
            run("blkdiscard", "--offset", "1M", "--length", "1M", node)
            assert disk.read(0, PART) == ("ok", NEW * PART)
        assert counters(node)["write"]["errors"] == 1
    nothing_left()


def go_read_only(mnt: Path) -> None:
    """As ext4 does of itself when its journal fails."""
    run("mount", "-o", "remount,abort", mnt, check=False)


def go_down(mnt: Path) -> None:
    """Nothing more is read or written by that filesystem."""
    fd = os.open(mnt, os.O_RDONLY)
    fcntl.ioctl(fd, FS_IOC_SHUTDOWN, struct.pack("I", WITHOUT_A_FLUSH))
    os.close(fd)


@pytest.mark.parametrize(("end", "mode"), [("read-only", "on"), ("shut down", "off")])
def test_a_filesystem_below_that_ends_is_eio_and_del_works(
    scratch: Path, end: str, mode: str
) -> None:
    with ram_disks(1, 32 * MIB) as (ram,):
        run("mkfs.ext4", "-q", ram)
        with mounted(ram, scratch / "mnt") as mnt:
            path = mnt / "disk.img"
            run("dd", "if=/dev/zero", f"of={path}", "bs=1M", "count=4", "conv=fsync")
            with (
                device("loop", "--file", path, "--direct-io", mode) as node,
                direct(node) as disk,
                direct(path) as file,
            ):
                assert disk.write(0, OLD * PART) == "ok"
                assert disk.sync() == "ok"
                (go_read_only if end == "read-only" else go_down)(mnt)
                assert disk.write(0, NEW * PART) == "EIO"
                assert disk.sync() == "EIO"
                assert run("blkdiscard", node, check=False).returncode
                # kernels differ in what is still read of a filesystem that went read-only
                told, found = disk.read(0, PART)
                assert told == file.read(0, PART)[0]
                assert told == "EIO" or found == OLD * PART
                assert set(found) <= {0xEE, *OLD}
                assert "Traceback" not in ublkd("del", node, "--force").stderr
        # and what was synced is there when the filesystem is back
        with mounted(ram, scratch / "mnt"):
            assert path.read_bytes()[:PART] == OLD * PART
    nothing_left()


def test_a_file_that_is_made_immutable_refuses_writes_as_eio_and_heals(scratch: Path) -> None:
    with ram_disks(1, 32 * MIB) as (ram,):
        run("mkfs.ext4", "-q", ram)
        with mounted(ram, scratch / "mnt") as mnt:
            path = sparse(mnt / "disk.img", 4 * MIB)
            with device("loop", "--file", path) as node, direct(node) as disk:
                assert disk.write(0, OLD * PART) == "ok"
                run("chattr", "+i", path)
                assert disk.write(0, NEW * PART) == "EIO"
                assert disk.read(0, PART) == ("ok", OLD * PART)
                run("chattr", "-i", path)
                assert disk.write(0, NEW * PART) == "ok"
                assert disk.read(0, PART) == ("ok", NEW * PART)
    nothing_left()
