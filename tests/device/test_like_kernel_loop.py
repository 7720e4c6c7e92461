"""The loop target beside the kernel's loop device: the same asked of both, over equal files.

Where they differ on purpose, the difference is asserted, and a comment has its reason.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mapped import ram_disks
from tools import device, digest, kernel_loop, leases, mounted, nothing_left, run, sparse

pytestmark = pytest.mark.one_kernel

MIB = 1 << 20
SOME_BLOCKS = 256 * 1024 // 512
"""How far the space of two files may be apart: a filesystem's own blocks are its own matter."""


@dataclass(frozen=True)
class Disk:
    """A node and the file behind it."""

    node: str
    file: Path

    def does(self, *command: str | Path) -> tuple[int, str]:
        """Run a command with the node behind it: its exit code, and what it said."""
        done = run(*command, self.node, check=False)
        return done.returncode, (done.stdout + done.stderr).replace(self.node, "NODE")

    @property
    def blocks(self) -> int:
        """What the file takes, in blocks of 512 bytes."""
        return self.file.stat().st_blocks


@contextlib.contextmanager
def host(kind: str, at: Path) -> Iterator[Path]:
    """A filesystem for the files: one that has every operation (ext4), one that has not."""
    at.mkdir()
    if kind == "tmpfs":
        run("mount", "-t", "tmpfs", "none", at)
        try:
            yield at
        finally:
            run("umount", at)
        return
    with ram_disks(1, 512 * MIB) as (ram,):
        run("mkfs.ext4", "-q", "-b", "4096", ram)
        with mounted(ram, at):
            yield at


@contextlib.contextmanager
def twins(folder: Path, size: int, seed: Path | None = None) -> Iterator[tuple[Disk, Disk]]:
    """The kernel's loop device and ours, with direct I/O, over files that hold the same."""
    files = [folder / "kernel.img", folder / "ublkd.img"]
    for file in files:
        sparse(file, size)
        if seed:
            run("cp", seed, file)
    run("sync", *files)
    with kernel_loop(files[0]) as theirs, device("loop", "--file", files[1]) as ours:
        yield Disk(theirs, files[0]), Disk(ours, files[1])
    for file in files:
        file.unlink()


def check_equal(theirs: Disk, ours: Disk, what: object) -> None:
    """Both files hold the same, in about as much space."""
    run("sync", theirs.file, ours.file)
    assert theirs.file.read_bytes() == ours.file.read_bytes(), f"they differ after {what}"
    assert abs(theirs.blocks - ours.blocks) <= SOME_BLOCKS, f"their space differs after {what}"


K64, ODD = str(64 << 10), str(8 * MIB + 512)
OPERATIONS = [
    (0, ["blkdiscard", "-o", "1M", "-l", "1M"]),
    (0, ["blkdiscard", "-o", ODD, "-l", "1M"]),  # not in whole blocks of the filesystem
    (0, ["blkdiscard", "-o", ODD, "-l", "512"]),  # less than one
    (0, ["fallocate", "-p", "-o", "3M", "-l", "1M"]),
    (0, ["fallocate", "-p", "-o", str(11 * MIB + 512), "-l", K64]),
    (0, ["blkdiscard", "-z", "-o", "2M", "-l", "1M"]),
    (0, ["blkdiscard", "-z", "-o", str(10 * MIB + 512), "-l", K64]),
    (0, ["fallocate", "-z", "-o", "4M", "-l", "1M"]),
    (0, ["fallocate", "-z", "-n", "-o", "5M", "-l", "1M"]),
    (1, ["fallocate", "-z", "-o", "15M", "-l", "2M"]),  # beyond the end
    (1, ["fallocate", "-l", "1M"]),  # a disk has no holes to fill
    (1, ["fallocate", "-c", "-o", "1M", "-l", "1M"]),  # nor can it shrink
    (1, ["blkdiscard", "-s"]),  # secure erase: neither promises it
    (1, ["blkdiscard", "-o", "100", "-l", "512"]),
]


@pytest.mark.parametrize("kind", ["ext4", "tmpfs"])
def test_discards_zeroes_and_fallocate_do_what_they_do_on_kernel_loop(
    scratch: Path, kind: str
) -> None:
    seed = scratch / "seed"
    run("dd", "if=/dev/urandom", f"of={seed}", "bs=1M", "count=16")
    with host(kind, scratch / "host") as folder, twins(folder, 16 * MIB, seed) as both:
        theirs, ours = both
        for code, command in OPERATIONS:
            expected = theirs.does(*command)
            assert expected[0] == code, f"{command} on kernel loop: {expected}"
            assert ours.does(*command) == expected, command
            check_equal(*both, command)
        hole = ("fallocate", "-p", "-o", "6M", "-l", "1M")
        # kernel loop that was refused a ZERO_RANGE once (tmpfs) makes no holes either any more,
        # because the block layer then believes it cannot zero at all; ours asks for each by itself
        assert theirs.does(*hole)[0] == (1 if kind == "tmpfs" else 0)
        assert ours.does(*hole)[0] == 0
        with open(ours.node, "rb", buffering=0) as f:
            assert os.pread(f.fileno(), MIB, 6 * MIB) == bytes(MIB)
        assert digest(ours.node, 16 * MIB) == digest(ours.file, 16 * MIB)
        assert theirs.does("blkdiscard", "-f") == ours.does("blkdiscard", "-f")
        check_equal(*both, "a discard of it all")
        assert ours.blocks <= SOME_BLOCKS
        assert digest(ours.node, 16 * MIB) == digest("/dev/zero", 16 * MIB)
    nothing_left()


def trimmed(at: Path) -> int:
    """What `fstrim -v` says that it has given back, in bytes."""
    said = run("fstrim", "-v", at).stdout
    found = re.search(r"\((\d+) bytes\)", said)
    assert found, said
    return int(found[1])


def use(disk: Disk, at: Path) -> tuple[int, int]:
    """Fill the filesystem with the tests, delete half, trim: what trim said, and the space left."""
    with mounted(disk.node, at) as mnt:
        for name in ("kept", "gone"):
            run("cp", "-r", Path(__file__).parent, mnt / name)
        run("dd", "if=/dev/urandom", f"of={mnt}/large", "bs=1M", "count=8", "conv=fsync")
        run("sync", mnt)
        run("rm", "-r", mnt / "gone", mnt / "large")
    with mounted(disk.node, at) as mnt:  # before it was unmounted, xfs may still be at freeing it
        freed = trimmed(mnt)
    run("sync", disk.file)
    return freed, disk.blocks


def check_alike(theirs: tuple[int, int], ours: tuple[int, int]) -> None:
    """Trimmed bytes and blocks left are the same within a hundredth and some blocks."""
    assert abs(theirs[0] - ours[0]) <= theirs[0] // 100, f"trimmed: {theirs[0]}, {ours[0]}"
    assert abs(theirs[1] - ours[1]) <= theirs[1] // 100 + SOME_BLOCKS, f"space: {theirs}, {ours}"


def test_an_ext4_is_made_used_and_trimmed_as_on_kernel_loop(scratch: Path) -> None:
    same = "11111111-2222-4333-8444-555555555555"
    with host("ext4", scratch / "host") as folder, twins(folder, 64 * MIB) as both:
        for disk in both:
            # blocks of a page: smaller ones are less than the physical block (see below), and
            # mkfs writes that down as a stripe
            run("env", "E2FSPROGS_FAKE_TIME=1700000000", "mkfs.ext4", "-q", "-b", "4096",
                "-U", same, "-E", f"hash_seed={same}", disk.node)  # fmt: skip
        check_equal(*both, "mkfs.ext4")
        theirs, ours = (use(disk, scratch / "mnt") for disk in both)
        check_alike(theirs, ours)
        for disk in both:
            run("e2fsck", "-fn", disk.node)
    nothing_left()


def test_an_xfs_is_made_used_and_trimmed_as_on_kernel_loop(scratch: Path) -> None:
    with host("ext4", scratch / "host") as folder, twins(folder, 320 * MIB) as both:
        for disk in both:
            # sectors of one size: left to itself it takes the physical block, which is the
            # filesystem's with ours (see below)
            run("mkfs.xfs", "-q", "-s", "size=4096", disk.node)
        theirs, ours = (use(disk, scratch / "mnt") for disk in both)
        check_alike(theirs, ours)
        for disk in both:
            run("xfs_repair", "-n", disk.node)
    nothing_left()


# --- what they say of themselves ----------------------------------------------------------------

SAID = ("getra", "getss", "getpbsz", "getro", "getsize64", "getiomin", "getioopt", "getalignoff",
        "getdiscardzeroes", "getmaxsect")  # fmt: skip
QUEUE = ("write_cache", "fua", "rotational", "dma_alignment", "discard_granularity",
         "discard_max_bytes", "write_zeroes_max_bytes", "nr_zones", "zoned", "scheduler",
         "stable_writes")  # fmt: skip


def says(node: str) -> dict[str, str]:
    """What blockdev, sysfs and lsblk tell of a disk."""
    told = run("blockdev", *(f"--{word}" for word in SAID), node).stdout.split()
    words = dict(zip(SAID, told, strict=True))
    queue = Path("/sys/block", Path(node).name, "queue")
    words |= {name: (queue / name).read_text().strip() for name in QUEUE}
    (row,) = json.loads(run("lsblk", "-D", "-b", "-J", node).stdout)["blockdevices"]
    return words | {name: str(value) for name, value in row.items() if name.startswith("disc")}


def differences(theirs: str, ours: str) -> dict[str, tuple[str, str]]:
    one, two = says(theirs), says(ours)
    found = {key: (one[key], two[key]) for key in one if one[key] != two[key]}
    if not {"auto", "register"} & set(leases()):
        # where pages cannot be lent they are copied, and may lie anywhere
        assert found.pop("dma_alignment") == ("511", "3")
    return found


ON_PURPOSE = {
    # one request of ours is half a MiB unless --max-io says otherwise: what `copy` must hold
    "getmaxsect": ("2560", "1024"),
    # kernel loop has the block layer make FUA of a write and a FLUSH; ours passes it on
    "fua": ("0", "1"),
    # a write of less than the physical block is a read and a write below: we say so
    "getpbsz": ("512", "4096"),
    "getiomin": ("512", "4096"),
    # ublk's parameter is a shift and cannot say 0, "nothing to tell": the physical block is that
    "getioopt": ("0", "4096"),
}
OF_A_DISK = ON_PURPOSE | {
    # to kernel loop a discard is zeroing, and a ram disk offers none; ours passes discards on
    **dict.fromkeys(("discard_granularity", "disc-gran"), ("0", "4096")),
    **dict.fromkeys(("discard_max_bytes", "disc-max"), ("0", "4294966784")),
    # and it lets the disk below zero by what it has, at worst by writing
    "write_zeroes_max_bytes": ("0", "4294966784"),
}


def test_a_disk_from_a_file_says_of_itself_what_kernel_loop_says(scratch: Path) -> None:
    with host("ext4", scratch / "host") as folder, twins(folder, 16 * MIB) as (theirs, ours):
        assert differences(theirs.node, ours.node) == ON_PURPOSE
    nothing_left()


def test_a_disk_from_a_disk_says_of_itself_what_kernel_loop_says() -> None:
    with (
        ram_disks(2, 16 * MIB) as (one, two),
        kernel_loop(one) as theirs,
        device("loop", "--file", two) as ours,
    ):
        assert differences(theirs, ours) == OF_A_DISK
    nothing_left()


def test_what_turns_below_turns_above_as_with_kernel_loop(scratch: Path) -> None:
    """Whether a disk turns is what the filesystem's own disk says."""
    with ram_disks(1, 64 * MIB) as (ram,):
        Path("/sys/block/ram0/queue/rotational").write_text("1")
        run("mkfs.ext4", "-q", ram)
        with mounted(ram, scratch / "mnt") as mnt, twins(mnt, 4 * MIB) as (theirs, ours):
            assert says(theirs.node)["rotational"] == says(ours.node)["rotational"] == "1"
        with kernel_loop(ram) as node:
            assert says(node)["rotational"] == "1"
        with device("loop", "--file", ram) as node:
            assert says(node)["rotational"] == "1"
    nothing_left()
