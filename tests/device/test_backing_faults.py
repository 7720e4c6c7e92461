"""The loop target over disks and filesystems that fail, for real: what the program is told.

Where the kernel's own loop device does the same it is asked first, and must say the same.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from direct import Direct, direct
from mapped import Mapped, breakable, mapped, ram_disks
from tools import (
    counters,
    device,
    digest,
    fio,
    kernel_loop,
    leases,
    lent_and_copied,
    mounted,
    nothing_left,
    run,
    sparse,
)

pytestmark = pytest.mark.one_kernel

KIB, MIB = 1 << 10, 1 << 20
OLD, NEW = b"\x11", b"\x22"
PART = 64 * KIB


def check_writes_fail_and_reads_do_not(disk: Direct, below: Mapped, at: int) -> None:
    assert disk.write(at, OLD * PART) == "ok"
    below.fail_writes()
    assert disk.write(at, NEW * PART) == "EIO"
    assert disk.read(at, PART) == ("ok", OLD * PART)
    below.heal()
    assert disk.read(at, PART) == ("ok", OLD * PART)
    assert disk.write(at, NEW * PART) == "ok"
    assert disk.read(at, PART) == ("ok", NEW * PART)


def check_reads_fail_and_writes_do_not(disk: Direct, below: Mapped, at: int) -> None:
    assert disk.write(at, OLD * PART) == "ok"
    below.fail_reads()
    told, found = disk.read(at, PART)
    assert told == "EIO"
    assert set(found) <= {0xEE, *OLD}, "a failed read shows what is no part of the disk"
    assert disk.write(at, NEW * PART) == "ok"
    below.heal()
    assert disk.read(at, PART) == ("ok", NEW * PART)


def check_a_bad_stretch(disk: Direct, below: Mapped, at: int) -> None:
    """16 KiB in the middle of four parts: only who touches them is told, and of all of it."""
    assert disk.write(at, OLD * 4 * PART) == "ok"
    bad = at + 2 * PART
    below.fail_between(bad, bad + 16 * KIB)
    assert disk.read(at, 2 * PART) == ("ok", OLD * 2 * PART)
    assert disk.read(bad + 16 * KIB, PART) == ("ok", OLD * PART)
    told, found = disk.read(at, 4 * PART)
    assert told == "EIO"
    assert set(found) <= {0xEE, *OLD}
    assert disk.write(at + PART, NEW * 2 * PART) == "EIO"
    below.heal()
    # what was to be written there may be there in part; the stretch itself is as before
    assert disk.read(at, PART) == ("ok", OLD * PART)
    assert set(disk.read(at + PART, PART)[1]) <= {*OLD, *NEW}
    assert disk.read(bad, 16 * KIB) == ("ok", OLD * 16 * KIB)


def test_errors_of_a_disk_below_reach_the_program_and_heal_with_it_on_every_lease() -> None:
    with breakable("below", 32 * MIB) as below:
        for lease in leases():
            with device("loop", "--file", below.node, "--lease", lease) as node:
                with direct(node) as disk:
                    check_writes_fail_and_reads_do_not(disk, below, 0)
                    check_reads_fail_and_writes_do_not(disk, below, MIB)
                    check_a_bad_stretch(disk, below, 2 * MIB)
                told = counters(node)
                assert told["read"]["errors"] == 2, f"with lease {lease}"
                assert told["write"]["errors"] == 2, f"with lease {lease}"
                assert told["again_members"] == 0, "an error was tried away"
    nothing_left()


def test_traffic_over_a_bad_stretch_fails_there_only_and_verifies_clean_after_it() -> None:
    with breakable("below", 64 * MIB) as below:
        for lease in leases():
            with device("loop", "--file", below.node, "--queues", "2", "--lease", lease) as node:
                below.fail_between(16 * MIB, 32 * MIB)
                fio(node, "--rw=randrw", "--bsrange=4k-256k", "--iodepth=16", "--size=64m",
                    "--io_size=16m", "--continue_on_error=all", check=False)  # fmt: skip
                told = counters(node)
                assert told["read"]["errors"], f"with lease {lease}"
                assert told["write"]["errors"], f"with lease {lease}"
                below.heal()
                fio(node, "--rw=randwrite", "--bsrange=4k-256k", "--iodepth=16", "--offset=28m",
                    "--size=8m", "--verify=crc32c", "--verify_fatal=1",
                    "--serialize_overlap=1")  # fmt: skip
    nothing_left()


@contextlib.contextmanager
def file_on(below: Mapped, at: Path) -> Iterator[Path]:
    """A file of 16 MiB, all its blocks its own, on ext4 on that disk.

    Without a journal: one that cannot be written ends the filesystem, which is another test.
    """
    run("mkfs.ext4", "-q", "-O", "^has_journal", below.node)
    with mounted(below.node, at, "-o", "errors=continue") as mnt:
        path = mnt / "disk.img"
        run("dd", "if=/dev/urandom", f"of={path}", "bs=1M", "count=16", "conv=fsync")
        yield path


def test_errors_below_a_filesystem_below_reach_the_program_as_eio(scratch: Path) -> None:
    with (
        breakable("below", 64 * MIB) as below,
        file_on(below, scratch / "mnt") as path,
        device("loop", "--file", path, "--direct-io", "on") as node,
        direct(node) as disk,
    ):
        assert disk.write(0, OLD * PART) == "ok"
        below.fail()
        assert disk.write(0, NEW * PART) == "EIO"
        told, found = disk.read(0, PART)
        assert told == "EIO"
        assert set(found) <= {0xEE, *OLD}
        below.heal()
        assert disk.read(0, PART) == ("ok", OLD * PART)
        assert disk.write(0, NEW * PART) == "ok"
        assert disk.read(0, PART) == ("ok", NEW * PART)
    nothing_left()


# --- fsync --------------------------------------------------------------------------------------


def lost_in_the_cache(node: str, below: Mapped, *, again: bool) -> list[str]:
    """What a program is told whose bytes were lost between a page cache below and the disk.

    `again`: it asks a second time before the disk is healed.
    """
    told = []
    with open(node, "r+b", buffering=0) as f:

        def write_and_sync(what: bytes) -> None:
            os.pwrite(f.fileno(), what * PART, 0)
            told.append(Direct(f.fileno()).sync())

        write_and_sync(OLD)
        below.fail_writes()
        write_and_sync(NEW)
        if again:
            told.append(Direct(f.fileno()).sync())
        below.heal()
        told.append(Direct(f.fileno()).sync())
        write_and_sync(NEW)
    return told


def test_what_was_lost_in_a_disks_page_cache_is_told_by_one_fsync_as_kernel_loop_does() -> None:
    """As errseq has it: an error of writing back is told to each who has the file open, once."""
    expected = ["ok", "EIO", "ok", "ok", "ok"]
    with breakable("below", 16 * MIB) as below:
        with kernel_loop(below.node, direct_io=False) as node:
            assert lost_in_the_cache(node, below, again=True) == expected
        with device("loop", "--file", below.node, "--direct-io", "off") as node:
            assert lost_in_the_cache(node, below, again=True) == expected
            assert counters(node)["flush"]["errors"] == 1
            assert counters(node)["write"]["errors"] == 0
        with direct(below.node) as disk:
            assert disk.read(0, PART) == ("ok", NEW * PART)
    nothing_left()


def test_what_was_lost_in_a_files_page_cache_is_told_by_one_fsync_as_kernel_loop_does(
    scratch: Path,
) -> None:
    """Healed in between: kernel loop's fsync writes the inode too, and fails of that as well."""
    expected = ["ok", "EIO", "ok", "ok"]
    with breakable("below", 64 * MIB) as below, file_on(below, scratch / "mnt") as path:
        with kernel_loop(path, direct_io=False) as node:
            assert lost_in_the_cache(node, below, again=False) == expected
        with device("loop", "--file", path, "--direct-io", "off") as node:
            assert lost_in_the_cache(node, below, again=False) == expected
            assert counters(node)["flush"]["errors"] == 1
        assert path.read_bytes()[:PART] == NEW * PART
    nothing_left()


def flushes_that_fail(node: str, below: Mapped) -> list[str]:
    """What a program is told while the disk below takes no FLUSH."""
    told = []
    with direct(node) as disk:
        told.append(disk.write(0, OLD * PART))
        below.fail_writes()
        told += [disk.sync(), disk.sync()]
        below.heal()
        told += [disk.sync(), disk.write(0, NEW * PART), disk.sync()]
    with direct(node, os.O_DSYNC) as disk:
        below.fail_writes()
        told.append(disk.write(0, OLD * PART))
        below.heal()
        told.append(disk.write(0, NEW * PART))
    return told


def test_a_flush_that_fails_is_told_each_time_as_kernel_loop_does(scratch: Path) -> None:
    """Nothing is swallowed: unlike an error of writing back, each FLUSH fails anew."""
    expected = ["ok", "EIO", "EIO", "ok", "ok", "ok", "EIO", "ok"]
    bottom = sparse(scratch / "bottom.img", 16 * MIB)
    # a ram disk has no cache to flush; the kernel's loop device has, and so has what is on it
    with kernel_loop(bottom) as cached, mapped("below", cached, 16 * MIB) as below:
        with kernel_loop(below.node) as node:
            assert flushes_that_fail(node, below) == expected
        for lease in lent_and_copied():
            with device("loop", "--file", below.node, "--lease", lease) as node:
                assert flushes_that_fail(node, below) == expected, f"with lease {lease}"
                assert counters(node)["flush"]["errors"] == 2
        assert digest(bottom, PART) == digest(below.node, PART)
    nothing_left()


# --- no room ------------------------------------------------------------------------------------


def fill(disk: Direct, first: int, most: int) -> tuple[int, str]:
    """Write whole MiB until there is no room: how many, and what was said."""
    for n in range(most):
        told = disk.write((first + n) * MIB, bytes([n + 1]) * MIB)
        if told != "ok":
            return n, told
    return most, "ok"


@pytest.mark.parametrize("mode", ["on", "off"])
def test_a_full_ext4_is_enospc_and_a_discard_makes_room_on_every_lease(
    scratch: Path, mode: str
) -> None:
    with ram_disks(1, 24 * MIB) as (ram,):
        run("mkfs.ext4", "-q", "-O", "^has_journal", ram)
        with mounted(ram, scratch / "small") as small:
            for lease in leases() if mode == "on" else leases()[:1]:
                path = sparse(small / "disk.img", 64 * MIB)
                words = ("--file", path, "--lease", lease, "--direct-io", mode)
                with device("loop", *words) as node, direct(node) as disk:
                    full, told = fill(disk, 0, 64)
                    assert told == "ENOSPC", f"with lease {lease}"
                    assert full > 8
                    assert disk.sync() == "ok"
                    for n in range(full):
                        assert disk.read(n * MIB, MIB) == ("ok", bytes([n + 1]) * MIB)
                    run("blkdiscard", "--offset", "0", "--length", "4M", node)
                    assert fill(disk, 40, 3) == (3, "ok")
                    assert disk.read(0, MIB) == ("ok", bytes(MIB))
                    assert disk.read(42 * MIB, MIB) == ("ok", bytes([3]) * MIB)
                path.unlink()
    nothing_left()


@pytest.mark.parametrize("table", [Mapped.fail_reads, Mapped.fail_writes], ids=["reads", "writes"])
def test_a_backing_that_fails_while_it_is_added_is_refused_or_served_without_a_traceback(
    table: Callable[[Mapped], None],
) -> None:
    with breakable("below", 16 * MIB) as below:
        table(below)
        done = run("ublkd", "add", "--target", "loop", "--file", below.node, check=False)
        assert "Traceback" not in done.stderr
        below.heal()
        if done.returncode == 0:
            node = done.stdout.strip()
            with direct(node) as disk:
                assert disk.write(0, NEW * PART) == "ok"
                assert disk.read(0, PART) == ("ok", NEW * PART)
            run("ublkd", "del", node)
    nothing_left()
