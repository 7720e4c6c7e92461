"""Disks under a load that knows what it wrote, and daemons that are killed below it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from tools import counters, run, sparse, ublkd_json, wait_until

MIB = 1 << 20
BETWEEN = 50
"""Requests that are served before the next kill."""


def files(scratch: Path, count: int = 1) -> list[str | Path]:
    """So many of 32 MiB, as the options of a target."""
    paths = [sparse(scratch / f"{n}.img", 32 * MIB) for n in range(count)]
    return [word for path in paths for word in ("--file", path)]


class Load(threading.Thread):
    """Writes and then reads with checksums, again and again, until it is told to stop."""

    def __init__(self, node: str) -> None:
        super().__init__(daemon=True)
        self._node, self._enough, self._failure = node, threading.Event(), ""

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

    def wait(self) -> None:
        """Until some more requests have been served."""
        before = served(self._node)
        wait_until(
            lambda: self._failure or served(self._node) > before + BETWEEN, 60, "load on the disk"
        )
        assert not self._failure, self._failure

    def stop(self) -> None:
        """What was written last has been read by then."""
        self._enough.set()
        self.join(200)
        assert not self.is_alive()
        assert not self._failure, self._failure


@contextlib.contextmanager
def load(node: str) -> Iterator[Load]:
    """One, while the block runs."""
    one = Load(node)
    one.start()
    yield one
    one.stop()


def served(node: str) -> int:
    """Requests so far."""
    told = counters(node)
    return sum(int(told[op]["requests"]) for op in ("read", "write"))


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


def end_all(command: subprocess.Popen[bytes], words: Sequence[str]) -> None:
    """The command, and the daemon that it has begun to make; returns when they are gone."""
    line = [os.fsencode(word) for word in words]
    command.kill()
    command.wait()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "cmdline").read_bytes().split(b"\0")[2:-1] == line:
                watched = os.pidfd_open(int(folder.name))
                signal.pidfd_send_signal(watched, signal.SIGKILL)
                assert select.select([watched], [], [], 60)[0]
                os.close(watched)
