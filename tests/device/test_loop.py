"""The loop target as a disk: filesystems, verified traffic, and every operation it offers."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from pathlib import Path

import pytest
from mapped import ram_disks
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

MIB = 1 << 20


def tree_digest(folder: Path) -> str:
    """One checksum for every name and byte below a folder."""
    return str(run("sh", "-c", f"cd {folder} && find . -type f | sort | xargs sha256sum").stdout)


def test_a_filesystem_survives_a_remount_and_a_check_on_every_lease(scratch: Path) -> None:
    for lease in leases():
        disk = sparse(scratch / f"{lease}.img", 128 * MIB)
        with device("loop", "--file", disk, "--lease", lease) as node:
            run("mkfs.ext4", "-q", node)
            with mounted(node, scratch / "mnt") as mnt:
                run("cp", "-r", Path(__file__).parent, mnt / "tree")
                before = tree_digest(mnt)
            run("e2fsck", "-fn", node)
        # and the file holds it all without us: served again, or mounted by the kernel's loop
        with device("loop", "--file", disk, "--lease", lease) as node:
            run("e2fsck", "-fn", node)
            with mounted(node, scratch / "mnt") as mnt:
                assert tree_digest(mnt) == before
    nothing_left()


def test_two_queues_verify_clean_under_two_jobs_on_every_lease(scratch: Path) -> None:
    for lease in leases():
        disk = sparse(scratch / "disk.img", 128 * MIB)
        with device("loop", "--file", disk, "--queues", "2", "--lease", lease) as node:
            told = fio(
                node, "--rw=randrw", "--bsrange=4k-256k", "--iodepth=16", "--numjobs=2",
                "--size=24m", "--offset_increment=64m", "--verify=crc32c", "--verify_fatal=1",
                "--serialize_overlap=1",
            )  # fmt: skip
            assert all(job["error"] == 0 for job in told["jobs"])
            assert ublkd_json("show", node)["queues"] == 2
            served = [q["write"]["requests"] for q in ublkd_json("show", node)["counters"]]
            assert all(served), f"a queue had nothing to do: {served}"


def test_what_is_written_is_in_the_file_byte_for_byte(scratch: Path) -> None:
    data = os.urandom(3 * MIB + 4096)
    for lease in leases():
        disk = sparse(scratch / "disk.img", 8 * MIB)
        with device("loop", "--file", disk, "--lease", lease) as node:
            with open(node, "r+b", buffering=0) as f:
                f.seek(4096)
                f.write(data)
                os.fsync(f.fileno())
            assert digest(node, 8 * MIB) == digest(disk, 8 * MIB)
        assert disk.read_bytes()[4096 : 4096 + len(data)] == data


def test_a_device_as_backing_works_like_a_file(scratch: Path) -> None:
    with ram_disks(1, 64 * MIB) as (ram,):
        for lease in leases():
            with device("loop", "--file", ram, "--lease", lease) as node:
                assert ublkd_json("show", node)["size"] == 64 * MIB
                fio(node, "--rw=randwrite", "--bs=4k", "--size=8m", "--iodepth=32",
                    "--verify=crc32c", "--verify_fatal=1")  # fmt: skip
                run("blkdiscard", "-z", "--offset", "0", "--length", "1M", node)
                assert digest(node, MIB) == digest("/dev/zero", MIB)


def test_flush_and_fua_arrive_and_are_counted(scratch: Path) -> None:
    disk = sparse(scratch / "disk.img", 16 * MIB)
    with device("loop", "--file", disk) as node:
        queue = Path("/sys/block", Path(node).name, "queue")
        assert (queue / "write_cache").read_text().strip() == "write back"
        assert (queue / "fua").read_text().strip() == "1"
        with open(node, "r+b", buffering=0) as f:
            f.write(bytes(4096))
            os.fsync(f.fileno())
        before = counters(node)
        assert before["flush"]["requests"] >= 1
        fd = os.open(node, os.O_WRONLY | os.O_DIRECT | os.O_DSYNC)
        with mmap.mmap(-1, 4096) as page:
            os.write(fd, page)  # direct I/O with O_DSYNC is a write with FUA
        os.close(fd)
        after = counters(node)
        assert after["write"]["requests"] == before["write"]["requests"] + 1
        assert after["fua"] == before["fua"] + 1


def test_a_discard_frees_the_files_blocks_and_reads_as_zeroes(scratch: Path) -> None:
    disk = sparse(scratch / "disk.img", 16 * MIB)
    with device("loop", "--file", disk) as node:
        with open(node, "r+b", buffering=0) as f:
            f.write(os.urandom(8 * MIB))
            os.fsync(f.fileno())
        full = disk.stat().st_blocks
        run("blkdiscard", "--offset", "0", "--length", "4M", node)
        assert disk.stat().st_blocks <= full - 4 * MIB // 512
        assert digest(node, 4 * MIB) == digest("/dev/zero", 4 * MIB)
        assert disk.stat().st_size == 16 * MIB


@pytest.mark.parametrize("filesystem", ["tmpfs", "ext4"])
def test_write_zeroes_work_whether_the_filesystem_can_or_not(
    scratch: Path, filesystem: str
) -> None:
    """tmpfs has no ZERO_RANGE: zeroes are written there, in place of what was."""
    folder = scratch
    with contextlib.ExitStack() as stack:
        if filesystem == "ext4":
            backing = sparse(scratch / "fs.img", 96 * MIB)
            run("mkfs.ext4", "-q", backing)
            folder = stack.enter_context(mounted(str(backing), scratch / "fs", "-o", "loop"))
        disk = sparse(folder / "disk.img", 16 * MIB)
        with device("loop", "--file", disk) as node:
            with open(node, "r+b", buffering=0) as f:
                f.write(b"\xa5" * (8 * MIB))
                os.fsync(f.fileno())
            run("blkdiscard", "-z", "--offset", "1M", "--length", "2M", node)
            # FALLOC_FL_ZERO_RANGE on a block device asks for zeroes that stay allocated
            run("fallocate", "--zero-range", "--keep-size", "-o", "4M", "-l", "2M", node)
            assert counters(node)["write_zeroes"]["requests"] >= 2
            assert counters(node)["write_zeroes"]["errors"] == 0
        expected = bytearray(b"\xa5" * (8 * MIB) + bytes(8 * MIB))
        expected[MIB : 3 * MIB] = bytes(2 * MIB)
        expected[4 * MIB : 6 * MIB] = bytes(2 * MIB)
        assert disk.read_bytes() == bytes(expected)


def test_a_read_only_disk_refuses_writes_and_leaves_the_file_alone(scratch: Path) -> None:
    disk = scratch / "disk.img"
    disk.write_bytes(os.urandom(4 * MIB))
    before = digest(disk, 4 * MIB)
    disk.chmod(0o444)
    with device("loop", "--file", disk, "--read-only") as node:
        assert run("blockdev", "--getro", node).stdout.strip() == "1"
        with pytest.raises(OSError) as raised:
            fd = os.open(node, os.O_WRONLY)
            os.write(fd, bytes(4096))
        assert raised.value.errno in (errno.EPERM, errno.EACCES, errno.EROFS)
        assert digest(node, 4 * MIB) == before
    assert digest(disk, 4 * MIB) == before


@pytest.mark.parametrize("block", ["512", "1024", "4096"])
def test_the_block_size_that_was_asked_for_is_the_disks(scratch: Path, block: str) -> None:
    disk = sparse(scratch / "disk.img", 4 * MIB + 512)
    done = ublkd("add", "--target", "loop", "--file", disk, "--block-size", block)
    node = done.stdout.strip()
    try:
        assert run("blockdev", "--getss", node).stdout.strip() == block
        size = int(run("blockdev", "--getsize64", node).stdout)
        assert size == (4 * MIB + 512) // int(block) * int(block)
        assert ("left out" in done.stderr) == (block != "512")
        fio(node, "--rw=randwrite", f"--bs={block}", "--size=256k", "--verify=crc32c",
            "--verify_fatal=1")  # fmt: skip
    finally:
        ublkd("del", node)


def test_direct_io_is_chosen_where_it_works_and_the_reason_is_told(scratch: Path) -> None:
    disk = sparse(scratch / "disk.img", 8 * MIB)
    for wish, expected in (("on", True), ("off", False)):
        with device("loop", "--file", disk, "--direct-io", wish) as node:
            told = ublkd_json("show", node)["describe"]
            assert told["direct_io"] is expected
            assert told["direct_io_reason"]
            fio(node, "--rw=randrw", "--bs=4k", "--size=2m", "--verify=crc32c",
                "--verify_fatal=1", "--serialize_overlap=1")  # fmt: skip


def test_a_file_cut_short_gives_errors_and_growing_it_again_heals(scratch: Path) -> None:
    for lease in leases():
        disk = scratch / "disk.img"
        disk.write_bytes(b"\x5a" * (4 * MIB))
        with device("loop", "--file", disk, "--lease", lease) as node:
            os.truncate(disk, MIB + 512)
            fd = os.open(node, os.O_RDONLY | os.O_DIRECT)
            with mmap.mmap(-1, 64 << 10) as area:
                with pytest.raises(OSError) as raised:
                    os.preadv(fd, [area], 2 * MIB)
                assert raised.value.errno == errno.EIO
                area[:] = b"\xee" * len(area)
                with contextlib.suppress(OSError):
                    os.preadv(fd, [area], MIB)  # 512 bytes are there, the rest is not
                assert set(area[512:]) <= {0xEE}, "bytes that nobody wrote reached the reader"
                os.truncate(disk, 4 * MIB)
                os.preadv(fd, [area], 2 * MIB)
                assert set(area[:]) == {0}
            os.close(fd)


def test_a_full_filesystem_is_enospc_and_the_disk_lives_on(scratch: Path) -> None:
    small = scratch / "small"
    small.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=8M", "none", small)
    disk = sparse(small / "disk.img", 64 * MIB)
    with device("loop", "--file", disk) as node:
        fd = os.open(node, os.O_RDWR | os.O_DIRECT)
        with mmap.mmap(-1, MIB) as area:
            area[:] = b"\x77" * MIB
            with pytest.raises(OSError) as raised:
                for at in range(64):
                    os.pwritev(fd, [area], at * MIB)
            assert raised.value.errno == errno.ENOSPC
            os.preadv(fd, [area], 0)
            assert set(area[:]) == {0x77}
            run("blkdiscard", "--offset", "0", "--length", "4M", node)
            os.pwritev(fd, [area], 32 * MIB)
        os.close(fd)
