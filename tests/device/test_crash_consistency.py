"""A filesystem on a ublkd disk after a power failure: what was synced is there, at every moment.

The disk below keeps a log of what was durable when (writelog.py). It is played again, up to each
mark, onto an image that is then mounted without us.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from mapped import ram_disks
from tools import device, kernel_loop, mounted, nothing_left, run, sparse
from writelog import FLUSH, Entry, logged, place, read_log

pytestmark = pytest.mark.one_kernel

MIB = 1 << 20
SIZE = 32 * MIB
STEPS = 4


def write_synced(path: Path, data: bytes) -> None:
    """A new file, replaced as a whole if it was there, and synced with its folder."""
    new = path.with_suffix(".new")
    with new.open("wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    new.rename(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(folder)
    os.close(folder)


def synced_at(step: int) -> dict[str, bytes]:
    """What must be there after a step: a file for each, and one that each has replaced."""
    chance = random.Random(step)
    files = {f"{n}.dat": random.Random(n).randbytes(40_000 + 30_000 * n) for n in range(step + 1)}
    return files | {"latest.dat": chance.randbytes(100_000)}


def found_on(image: Path, at: Path) -> dict[str, str]:
    """What a filesystem holds after a crash: names and checksums; it must be clean afterwards."""
    with kernel_loop(image) as node:
        with mounted(node, at) as mnt:
            found = {
                path.name: hashlib.sha256(path.read_bytes()).hexdigest()
                for path in mnt.glob("*.dat")
            }
        run("e2fsck", "-fn", node)
    return found


def digests(files: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def replayed(entries: list[Entry], onto: Path) -> Path:
    """An image of what those entries leave."""
    with sparse(onto, SIZE).open("r+b") as image:
        for entry in entries:
            entry.replay(image)
    return onto


def fill(mnt: Path, mark: Callable[[str], None]) -> None:
    """Synced files with marks behind them, and between them what nobody has synced."""
    for step in range(STEPS):
        (mnt / f"loose-{step}").write_bytes(os.urandom(200_000))
        files = synced_at(step)
        write_synced(mnt / f"{step}.dat", files[f"{step}.dat"])
        write_synced(mnt / "latest.dat", files["latest.dat"])
        mark(f"step-{step}")
        with contextlib.suppress(FileNotFoundError):
            (mnt / f"loose-{step - 1}").unlink()


@pytest.mark.parametrize("mode", ["on", "off"])
def test_what_was_synced_is_there_after_a_crash_at_any_mark(scratch: Path, mode: str) -> None:
    with ram_disks(2, 2 * SIZE) as (ram, log):
        with (
            logged("below", ram, log, SIZE) as below,
            device("loop", "--file", below.node, "--direct-io", mode) as node,
        ):
            run("mkfs.ext4", "-q", node)
            with mounted(node, scratch / "mnt") as mnt:
                fill(mnt, below.mark)
        entries = read_log(log)
    for step in range(STEPS):
        image = replayed(entries[: place(entries, f"step-{step}")], scratch / "crashed.img")
        found = found_on(image, scratch / "mnt")
        expected = digests(synced_at(step))
        assert {name: found.get(name) for name in expected} == expected
        # and a crash before the journal's last word: the log tells the one from the other
        first = place(entries, f"step-{step - 1}") if step else 0
    cut = next(n for n in range(first + 1, len(entries)) if entries[n].flags & FLUSH)
    image = replayed(entries[: cut + 1], scratch / "crashed.img")
    assert f"{STEPS - 1}.dat" not in found_on(image, scratch / "mnt")
    nothing_left()
