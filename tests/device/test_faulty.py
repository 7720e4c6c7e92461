"""Traffic through the faulty target verifies clean, and the short path really ran."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

import pytest
from tools import (
    counters,
    device,
    fio,
    leases,
    lent_and_copied,
    nothing_left,
    refused,
    sparse,
    ublkd_json,
)

MIB = 1 << 20
FAULTS = ("--short", "0.5", "--odd", "0.3", "--again", "0.2", "--seed", "7")
OVERS = {"loop": 1, "concat": 3, "stripe": 4, "mirror": 2}


def files(folder: Path, count: int, size: int = 32 * MIB) -> list[str | Path]:
    """Options for that many sparse files."""
    paths = [sparse(folder / f"{n}.img", size) for n in range(count)]
    return [word for path in paths for word in ("--file", path)]


@pytest.mark.parametrize("over", OVERS)
def test_short_odd_and_stumbling_members_lose_nothing(scratch: Path, over: str) -> None:
    for lease in leases():
        words = ["--over", over, *files(scratch, OVERS[over]), *FAULTS, "--lease", lease]
        with device("faulty", *words) as node:
            told = fio(
                node, "--rw=randrw", "--bsrange=4k-512k", "--iodepth=16", "--size=24m",
                "--verify=crc32c", "--verify_fatal=1", "--serialize_overlap=1",
            )  # fmt: skip
            assert told["jobs"][0]["error"] == 0
            counted = counters(node)
            assert counted["short_members"] > 100
            assert counted["again_members"] > 50
            assert counted["read"]["errors"] == counted["write"]["errors"] == 0
    nothing_left()


def test_the_same_seed_brings_the_same_faults(scratch: Path) -> None:
    seen = []
    for seed in ("7", "7", "8"):
        words = ["--over", "loop", *files(scratch, 1), "--short", "0.5", "--seed", seed]
        with device("faulty", *words, "--error", "ENOSPC:0") as node:
            fio(node, "--rw=write", "--bs=64k", "--iodepth=1", "--size=8m")
            # reads are the kernel's own, that looks for partitions when it likes
            writes = [one for one in ublkd_json("dump", node) if one["op"] == "write"]
            seen.append([one["shorts"] for one in writes])
    assert seen[0] == seen[1] != seen[2]


def test_an_error_arrives_as_itself_and_no_byte_that_was_not_read(scratch: Path) -> None:
    for lease in leases():
        words = ["--over", "loop", *files(scratch, 1), "--lease", lease]
        with device("faulty", *words, "--error", "ENOSPC:1", "--delay", "1ms:1") as node:
            fd = os.open(node, os.O_RDWR | os.O_DIRECT)
            with mmap.mmap(-1, MIB) as area:
                area[:] = b"\xee" * MIB
                with pytest.raises(OSError) as raised:
                    os.pwritev(fd, [area], 0)
                assert raised.value.errno == 28
                with pytest.raises(OSError):
                    os.preadv(fd, [area], 0)
                assert set(area[:]) == {0xEE}, "bytes reached the reader that nobody read"
            os.close(fd)
    nothing_left()


def test_members_that_are_delayed_lose_nothing(scratch: Path) -> None:
    words = ["--over", "loop", *files(scratch, 1), "--delay", "20ms:0.5"]
    for lease in lent_and_copied():
        with device("faulty", *words, "--lease", lease) as node:
            fio(node, "--rw=randrw", "--bs=64k", "--iodepth=8", "--size=2m", "--verify=crc32c",
                "--verify_fatal=1", "--serialize_overlap=1")  # fmt: skip
            assert ublkd_json("show", node)["describe"]["fault_delay"] == "20ms:0.5"
    nothing_left()


def test_what_is_not_supported_fails_a_reader_through_io_uring(scratch: Path) -> None:
    """As itself it would be read again and again: io_uring takes it for EAGAIN."""
    with device("faulty", "--over", "loop", *files(scratch, 1), "--error", "EOPNOTSUPP:1") as node:
        for rw in ("read", "write"):
            told = fio(node, f"--rw={rw}", "--bs=4k", "--size=4k", check=False)
            assert told["jobs"][0]["error"] == errno.EIO
    nothing_left()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--short", "1.5"], "not a probability"),
        (["--odd", "some"], "not a probability"),
        (["--error", "EWHAT:1"], "names no errno"),
        (["--delay", "soon"], "is not a time"),
        (["--seed", "x"], "is not a number"),
    ],
)
def test_wrong_faults_are_refused(scratch: Path, words: list[str], says: str) -> None:
    one = files(scratch, 1)
    assert says in refused("add", "--target", "faulty", "--over", "loop", *one, *words, code=2)
    nothing_left()


def test_faulty_over_nothing_or_itself_is_refused() -> None:
    assert "needs --over" in refused("add", "--target", "faulty", code=2)
    assert "faulty over faulty" in refused("add", "--target", "faulty", "--over", "faulty", code=2)
    assert "unknown target" in refused("add", "--target", "faulty", "--over", "what", code=2)
