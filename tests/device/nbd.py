"""NBD servers in the guest that can die and come back, and what is done to disks over them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from direct import Direct, direct, outcome
from tools import counters, device, fio, run, ublkd_json, wait_until

from tests.unit.nbd.certificates import authority, certificate

KIB, MIB = 1 << 10, 1 << 20

SOON = 60
"""Seconds, for what takes one or two where no processor is emulated."""

BLKDISCARD, BLKZEROOUT = 0x1277, 0x127F


# --- servers that die -----------------------------------------------------------------------


class Mortal:
    """nbdkit in a process of its own, which may be killed and started anew at the same place."""

    export = ""

    def __init__(self, folder: Path, *words: str | Path, tcp: bool = False) -> None:
        """``words`` are its plugin with filters and parameters."""
        self._folder = folder
        self._words = [str(word) for word in words]
        self._path = "" if tcp else str(folder / "server.sock")
        self._port = free_port() if tcp else 0
        self._ready = folder / "server.pid"
        self._log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._before: list[str] = []

    def inside(self, *words: str) -> Self:
        """What runs it, as in a network of its own."""
        self._before = list(words)
        return self

    def uri(self, host: str = "127.0.0.1", *, tls: bool = False) -> str:
        """Of its export."""
        s = "s" if tls else ""
        if self._path:
            return f"nbd{s}+unix:///{self.export}?socket={self._path}"
        return f"nbd{s}://{host}:{self._port}/{self.export}"

    def start(self) -> None:
        """Returns when it listens."""
        if self._path:
            Path(self._path).unlink(missing_ok=True)
        self._ready.unlink(missing_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._before, *self._command()], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_until(self._listens, SOON, "a server that listens")

    def _command(self) -> list[str]:
        where = ["-U", self._path] if self._path else ["-p", str(self._port)]
        return ["nbdkit", "-f", "-P", str(self._ready), *where, *self._words]

    def _listens(self) -> bool:
        assert self._process
        assert self._process.poll() is None, self._log.read_text()
        return self._ready.exists() and self._ready.read_text().endswith("\n")

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Returns when it is gone."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(SOON)
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def certificates(folder: Path, *hosts: str) -> Path:
    """A folder with an authority, and a server's certificate that it has signed."""
    made = folder / "pki"
    made.mkdir()
    authority(made, "ca")
    names = ",".join(f"DNS:{h}" if h.isalpha() else f"IP:{h}" for h in hosts)
    certificate(made, "server", names)
    return made


# --- disks ----------------------------------------------------------------------------------


@contextlib.contextmanager
def disk(uri: str, *words: str | Path) -> Iterator[str]:
    """The node of the export while the block runs."""
    with device("nbd", "--uri", uri, *words) as node:
        yield node


def connections(node: str) -> int:
    """How many it has."""
    return int(ublkd_json("show", node)["describe"]["connections"])


def queues(node: str) -> list[dict[str, Any]]:
    """The counters of each."""
    found: list[dict[str, Any]] = ublkd_json("show", node)["counters"]
    return found


def lost(node: str) -> int:
    """How many connections were lost."""
    return int(counters(node)["lost_connections"])


def is_connected(node: str) -> bool:
    """Whether all of its connections are there."""
    return not counters(node)["without_connection"]


def zero(at: Direct, start: int, length: int) -> str:
    """Zeroes that stay allocated."""
    span = struct.pack("QQ", start, length)
    return outcome(lambda: fcntl.ioctl(at.fd, BLKZEROOUT, span))


def discard(at: Direct, start: int, length: int) -> str:
    """What was there is of no use any more."""
    span = struct.pack("QQ", start, length)
    return outcome(lambda: fcntl.ioctl(at.fd, BLKDISCARD, span))


# --- what goes on meanwhile -----------------------------------------------------------------


class Meanwhile:
    """Calls in threads of their own, each with its result; they have to end with the block."""

    def __init__(self, *calls: Callable[[], Any]) -> None:
        self.results: list[Any] = [None] * len(calls)
        self._calls = calls
        # a thread that hangs is told of, and keeps nobody
        self._threads = [
            threading.Thread(target=self._call, args=(number,), daemon=True)
            for number in range(len(calls))
        ]

    def _call(self, number: int) -> None:
        try:
            self.results[number] = self._calls[number]()
        except Exception as error:
            self.results[number] = error

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.wait()

    @property
    def done(self) -> bool:
        """Whether all have ended."""
        return not any(thread.is_alive() for thread in self._threads)

    def wait(self) -> list[Any]:
        """Their results."""
        for thread in self._threads:
            thread.join(SOON)
        assert self.done, "it hangs"
        return self.results


def reading(node: str, at: int, length: int) -> Callable[[], str]:
    """A call that reads past every cache, and says how that ended."""

    def read() -> str:
        with direct(node) as found:
            return found.read(at, length)[0]

    return read


def syncing(node: str) -> Callable[[], str]:
    """A call that has all that was written kept, and says how that ended."""

    def sync() -> str:
        with direct(node) as found:
            return found.sync()

    return sync


def settled(node: str) -> None:
    """The kernel looks for partitions when a disk appears, or soon; that is over behind this.

    As long as it has not begun, it refuses to look again; then that waits for the first look.
    """
    wait_until(lambda: not run("blockdev", "--rereadpt", node, check=False).returncode, 60,
               "the look for partitions")  # fmt: skip
    run("blockdev", "--flushbufs", node)
    run("dd", f"if={node}", "of=/dev/null", "bs=4k", "count=1", "status=none")


def writing(node: str, at: int, data: bytes) -> Callable[[], str]:
    """A call that writes past every cache, and says how that ended."""

    def write() -> str:
        with direct(node) as found:
            return found.write(at, data)

    return write


@contextlib.contextmanager
def fio_meanwhile(node: str, *options: str) -> Iterator[Callable[[], bool]]:
    """fio while the block runs, which asks whether it still does; then it must end well."""
    words = [
        "fio", "--name=t", f"--filename={node}", "--ioengine=io_uring", "--direct=1",
        "--verify_state_save=0", "--output-format=json", *options,
    ]  # fmt: skip
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        said: list[str] = []
        listener = threading.Thread(target=lambda: said.append(process.communicate()[0]))
        listener.start()
        try:
            yield lambda: process.poll() is None
            listener.join(200)
            assert process.returncode == 0, "".join(said)
        finally:
            process.kill()
            listener.join()
    told = "".join(said)
    jobs = json.loads(told[told.index("{") :])["jobs"]
    assert all(job["error"] == 0 and job["read"]["total_ios"] for job in jobs), told
    verified = sum(job["read"]["io_bytes"] for job in jobs)
    print(f"fio: {verified} bytes read and verified, no errors")


def verify_options(size: int) -> Sequence[str]:
    """For fio: writes of many sizes over the whole disk, then all of it read and verified."""
    return (
        "--rw=randwrite", "--bsrange=4k-128k", "--iodepth=16", f"--size={size}",
        "--verify=crc32c", "--verify_fatal=1", "--verify_backlog=64",
    )  # fmt: skip


def verify(node: str, size: int, *options: str) -> None:
    """Writes of many sizes by fio over so many bytes, each read again and verified."""
    told = fio(
        node, "--rw=randwrite", "--bsrange=4k-256k", "--iodepth=16", f"--size={size}",
        "--verify=crc32c", "--verify_fatal=1", *options,
    )  # fmt: skip
    assert all(job["error"] == 0 for job in told["jobs"])


def daemon_of(node: str) -> int:
    """The process that serves it."""
    return int(ublkd_json("show", node)["pid"])


def ended_within(pid: int, seconds: float, end: Callable[[], object]) -> bool:
    """Whether a process is gone that soon behind a call."""
    watched = os.pidfd_open(pid)
    try:
        end()
        return bool(select.select([watched], [], [], seconds)[0])
    finally:
        os.close(watched)
