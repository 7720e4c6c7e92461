"""Disks under a load that knows what it wrote, and daemons that are killed below it."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import select
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from tools import RUN_DIR, run, sparse, ublkd_json, wait_until

from ublkd import stats

MIB = 1 << 20
BETWEEN = 100
"""Requests that are served at most before something is done to the daemon."""


def files(scratch: Path, count: int = 1) -> list[str | Path]:
    """So many of 32 MiB, as the options of a target."""
    paths = [sparse(scratch / f"{n}.img", 32 * MIB) for n in range(count)]
    return [word for path in paths for word in ("--file", path)]


class Load(threading.Thread):
    """Writes and then reads with checksums, again and again, until it is told to stop."""

    def __init__(self, node: str) -> None:
        super().__init__(daemon=True)
        self._node, self._enough, self._failure = node, threading.Event(), ""
        self._moments, self._rounds, self._served = random.Random(node), 0, 0

    def __str__(self) -> str:
        return f"{self._served} requests, {self._rounds} times verified"

    def run(self) -> None:
        seed = 0
        while not self._enough.is_set() and not self._failure:
            seed += 1
            done = run(
                "fio", "--name=t", f"--filename={self._node}", "--ioengine=io_uring",
                "--direct=1", "--rw=randwrite", "--bsrange=4k-64k", "--iodepth=16", "--size=16m",
                "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0",
                "--serialize_overlap=1", f"--randseed={seed}", check=False,
            )  # fmt: skip
            self._failure = done.stdout + done.stderr if done.returncode else ""
            self._rounds += 1

    def wait(self) -> None:
        """Until some more requests have been served; how many, a seed says."""
        enough = served(self._node) + self._moments.randrange(BETWEEN)
        wait_until(lambda: self._failure or served(self._node) > enough, 60, "load on the disk")
        assert not self._failure, self._failure

    def stop(self) -> None:
        """What was written last has been read by then."""
        self._enough.set()
        self.join(200)
        assert not self.is_alive()
        assert not self._failure, self._failure
        self._served = served(self._node)


@contextlib.contextmanager
def load(node: str) -> Iterator[Load]:
    """One, while the block runs."""
    one = Load(node)
    one.start()
    yield one
    one.stop()


def served(node: str) -> int:
    """Requests so far. Read here: a verb for each look would take the time of the load."""
    queues = stats.read(RUN_DIR / f"{node.removeprefix('/dev/ublkb')}.stats")
    return sum(int(told[op]["requests"]) for told in queues for op in ("read", "write"))


def pid_of(node: str) -> int:
    """Of the daemon."""
    return int(ublkd_json("show", node)["pid"])


def kill(node: str) -> None:
    """End the daemon as a mistake would; returns when it is gone."""
    pid = pid_of(node)
    watched = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    assert select.select([watched], [], [], 60)[0]
    os.close(watched)


def state_of(node: str) -> str:
    """What the driver says."""
    return str(ublkd_json("show", node)["state"])


def await_state(node: str, state: str) -> None:
    """The driver hears of a daemon's end behind it, when its ring is torn down."""
    wait_until(lambda: state_of(node) == state, 60, f"{state}: the driver's notice")


def flushed(node: str) -> str:
    """What a flush of the disk says."""
    fd = os.open(node, os.O_RDWR)
    try:
        os.fsync(fd)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    finally:
        os.close(fd)
    return "done"
