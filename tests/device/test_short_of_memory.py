"""Dirty pages of a disk while memory is short: they are written, and nobody waits for himself.

THOROUGH=1: for five minutes. `make soak` has it in a guest of 1536 MiB.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from load import pid_of
from mapped import ram_disks
from tools import (
    checked,
    counters,
    device,
    figures,
    mounted,
    nothing_left,
    run,
    ublkd_json,
    wait_until,
)

THOROUGH = "THOROUGH" in os.environ
SECONDS = 300 if THOROUGH else 5
MIB = 1 << 20
LEFT = 48
"""MiB that the hog leaves to all others."""
NOIO, LOCAL_THROTTLE, IO_WORKER = 0x00080000, 0x00100000, 0x10  # linux/sched.h: PF_*

pytestmark = [
    pytest.mark.deadline(1500 if THOROUGH else 240),
    pytest.mark.one_kernel,
    pytest.mark.usefixtures("lab_only"),
]


@contextlib.contextmanager
def hog() -> Iterator[None]:
    """While the block runs, one keeps memory tight; whenever it is killed, another one comes."""
    script = f"while :; do {sys.executable} {Path(__file__).with_name('hog.py')} {LEFT}; done"
    with subprocess.Popen(
        ["sh", "-c", script], start_new_session=True, stdout=subprocess.PIPE
    ) as one:
        try:
            assert one.stdout
            assert one.stdout.readline() == b"ready\n"
            wait_until(lambda: available() < 2 * LEFT, 120, "a hog that has eaten")
            yield
        finally:
            os.killpg(one.pid, 9)


def available() -> int:
    """MiB that programs could have."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) >> 10


def tasks(pid: int) -> dict[str, int]:
    """The flags of each thread of a process, its io_uring workers among them."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # workers come and go
            found[task.name] = int((task / "stat").read_text().rpartition(")")[2].split()[6])
    return found


def guarded(pid: int) -> int:
    """All its threads are such as never wait for their own disk; how many are io_uring's."""
    flags = tasks(pid)
    asked = NOIO | LOCAL_THROTTLE
    assert {task & asked for task in flags.values()} == {asked}, flags
    return sum(bool(task & IO_WORKER) for task in flags.values())


@pytest.mark.parametrize("direct", ["off", "on"] if THOROUGH else ["off"])
def test_dirty_pages_are_written_while_memory_is_short(scratch: Path, direct: str) -> None:
    with ram_disks(1, 192 * MIB) as (ram,), mounted_new(ram, scratch / "below") as below:
        disk = below / "disk.img"
        run("fallocate", "--length", str(128 * MIB), disk)
        with device("loop", "--file", disk, "--direct-io", direct) as node:
            pid = pid_of(node)
            with mounted_new(node, scratch / "above") as above, hog():
                until, rounds, workers, least = time.monotonic() + SECONDS, 0, 0, available()
                while rounds == 0 or time.monotonic() < until:
                    written(above, rounds)
                    workers = max(workers, guarded(pid))
                    least = min(least, available())
                    rounds += 1
            assert pid_of(node) == pid
            assert workers
            told = counters(node)
            assert not told["write"]["errors"]
            run("e2fsck", "-fn", node)
            figures(f"short of memory, direct I/O {direct}: {rounds} rounds in {SECONDS} s, "
                  f"{told['write']['bytes'] >> 20} MiB written, {told['read']['bytes'] >> 20} MiB "
                  f"read, {least} MiB available at least, {workers} workers guarded, "
                  f"{resident(pid)} KiB resident")  # fmt: skip
    assert ublkd_json("list") == []
    nothing_left()


@contextlib.contextmanager
def mounted_new(node: str | Path, at: Path) -> Iterator[Path]:
    """A new filesystem, mounted."""
    run("mkfs.ext4", "-q", node)
    with mounted(str(node), at) as folder:
        yield folder


def written(folder: Path, seed: int) -> None:
    """Files through the page cache, verified when they are written back and read again."""
    checked(
        run("fio", "--name=t", f"--directory={folder}", "--ioengine=psync", "--rw=randwrite",
            "--bsrange=4k-64k", "--size=40m", "--numjobs=2", "--verify=crc32c", "--verify_fatal=1",
            "--verify_state_save=0", "--end_fsync=1", "--group_reporting", f"--randseed={seed}",
            "--invalidate=1", check=False)
    )  # fmt: skip


def resident(pid: int) -> int:
    """KiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0
