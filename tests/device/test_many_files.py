"""Disks over several files: stripe, where the bytes go, and mirror, which outlives a file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from mapped import breakable
from tools import (
    counters,
    device,
    fio,
    leases,
    mounted,
    nothing_left,
    refused,
    run,
    sparse,
    ublkd,
    ublkd_json,
)

MIB = 1 << 20
VERIFY = ("--bsrange=4k-512k", "--iodepth=16", "--verify=crc32c", "--verify_fatal=1",
          "--serialize_overlap=1")  # fmt: skip


def files_of(paths: list[Path]) -> list[str | Path]:
    """As options."""
    return [word for path in paths for word in ("--file", path)]


def striped(parts: list[bytes], chunk: int) -> bytes:
    """What the disk over those files reads as, computed the slow way."""
    rows = range(0, len(parts[0]), chunk)
    return b"".join(part[at : at + chunk] for at in rows for part in parts)


@pytest.mark.parametrize("chunk", ["4K", "64K"])
def test_a_stripe_has_its_bytes_in_turns(scratch: Path, chunk: str) -> None:
    size = 4 * MIB
    paths = [scratch / f"{n}.img" for n in range(3)]
    for path in paths:
        path.write_bytes(os.urandom(size))
    length = int(chunk[:-1]) << 10
    for lease in leases():
        words = [*files_of(paths), "--chunk", chunk, "--lease", lease, "--max-io", "1M"]
        with device("stripe", *words) as node:
            expected = striped([path.read_bytes() for path in paths], length)
            with open(node, "r+b", buffering=0) as f:
                assert b"".join(iter(lambda: f.read(MIB), b"")) == expected
                f.seek(5 * length - 512)
                data = os.urandom(MIB + 1024)
                f.write(data)
                os.fsync(f.fileno())
            at = 5 * length - 512
            expected = expected[:at] + data + expected[at + len(data) :]
        assert striped([path.read_bytes() for path in paths], length) == expected
    nothing_left()


def test_a_stripe_verifies_clean_and_passes_every_operation_on(scratch: Path) -> None:
    paths = [sparse(scratch / f"{n}.img", 32 * MIB) for n in range(4)]
    for lease in leases():
        with device("stripe", *files_of(paths), "--lease", lease) as node:
            fio(node, "--rw=randrw", "--size=32m", *VERIFY)
    with device("stripe", *files_of(paths)) as node:
        run("mkfs.ext4", "-q", node)
        with mounted(node, scratch / "mnt") as mnt:
            run("cp", "-r", Path(__file__).parent, mnt / "tree")
            run("fstrim", mnt)
        run("e2fsck", "-fn", node)
        run("blkdiscard", node)
        assert sum(path.stat().st_blocks for path in paths) < 1 * MIB // 512
        run("dd", "if=/dev/urandom", f"of={node}", "bs=1M", "count=8", "oflag=direct")
        run("blkdiscard", "-z", "--offset", str(MIB + 512), "--length", str(3 * MIB), node)
        with open(node, "rb", buffering=0) as f:
            f.seek(MIB + 512)
            assert f.read(3 * MIB) == bytes(3 * MIB)
    nothing_left()


def test_what_cannot_be_a_stripe_or_a_mirror_is_refused(scratch: Path) -> None:
    one, two = sparse(scratch / "1.img", MIB), sparse(scratch / "2.img", MIB)
    link = scratch / "link.img"
    link.symlink_to(one)
    for target in ("stripe", "mirror"):
        said = refused("add", "--target", target, "--file", one, code=2)
        assert "--file 2 to " in said
        assert "needs --file" in refused("add", "--target", target, code=2)
        assert "does not exist" in refused(
            "add", "--target", target, "--file", one, "--file", scratch / "no"
        )
        said = refused("add", "--target", target, "--file", one, "--file", link)
        assert "are the same file" in said
    both = files_of([one, two])
    said = refused("add", "--target", "stripe", *both, "--chunk", "5000", code=2)
    assert "a power of two" in said
    said = refused(
        "add", "--target", "stripe", *both, "--chunk", "512", "--block-size", "4096", code=2
    )
    assert "less than one block" in said
    nothing_left()


def test_of_sizes_that_differ_the_smallest_decides_with_a_warning(scratch: Path) -> None:
    paths = [sparse(scratch / "1.img", 2 * MIB), sparse(scratch / "2.img", 3 * MIB + 512)]
    for target, size in (("stripe", 4 * MIB), ("mirror", 2 * MIB)):
        done = ublkd("add", "--target", target, *files_of(paths))
        assert "are left out" in done.stderr
        assert ublkd_json("show", "0")["size"] == size
        ublkd("del", "0")


def test_a_mirror_has_the_same_on_every_file(scratch: Path) -> None:
    paths = [sparse(scratch / f"{n}.img", 32 * MIB) for n in range(3)]
    for lease in leases():
        with device("mirror", *files_of(paths), "--lease", lease) as node:
            fio(node, "--rw=randrw", "--size=16m", *VERIFY)
            run("blkdiscard", "-z", "--offset", "1M", "--length", "1M", node)
        contents = {path.read_bytes() for path in paths}
        assert len(contents) == 1
        assert contents != {bytes(32 * MIB)}


def test_a_mirror_outlives_a_file_that_fails_and_says_so(scratch: Path) -> None:
    good = sparse(scratch / "good.img", 32 * MIB)
    with (
        breakable("leg", 32 * MIB) as bad,
        device("mirror", "--file", bad.node, "--file", good) as node,
    ):
        fio(node, "--rw=randrw", "--size=8m", *VERIFY)
        assert counters(node)["failed_files"] == 0
        bad.fail()
        fio(node, "--rw=randrw", "--size=8m", *VERIFY)
        told = counters(node)
        assert told["read"]["errors"] == told["write"]["errors"] == 0
        assert told["failed_files"] == 0b10, "the first file, in slot 1, has failed"
    nothing_left()
