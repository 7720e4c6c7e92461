"""The servers that others have written, each in a process that ends with its test."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SECONDS = 20
"""How long a server may take to listen."""


HAND_OVER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execvp(sys.argv[2], sys.argv[2:])
"""
"""As systemd hands a socket over: it listens before the server has started."""

Server = contextlib.AbstractContextManager["Place"]


@dataclass(frozen=True)
class Place:
    """Where a server listens."""

    path: str = ""
    port: int = 0

    def uri(self, export: str = "", *, tls: bool = False, query: str = "") -> str:
        """The URI of one of its exports."""
        s = "s" if tls else ""
        if self.path:
            return f"nbd{s}+unix:///{export}?socket={self.path}" + (f"&{query}" if query else "")
        return f"nbd{s}://localhost:{self.port}/{export}" + (f"?{query}" if query else "")


@contextlib.contextmanager
def running(
    words: list[str], log: Path, pass_fd: int | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ended at the end, whatever happens."""
    if not shutil.which(words[0]):
        pytest.skip(f"no {words[0]} on this machine")
    if pass_fd is not None:
        words = [sys.executable, "-ISc", HAND_OVER, str(pass_fd), *words]
    with log.open("wb") as output, subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        pass_fds=() if pass_fd is None else (pass_fd,),
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def activated(words: list[str], folder: Path, *, tcp: bool = False) -> Iterator[Place]:
    """A server that takes its socket from us: nbdkit and qemu-nbd do."""
    with socket.socket(socket.AF_INET if tcp else socket.AF_UNIX) as listener:
        path = folder / "stock.sock"
        path.unlink(missing_ok=True)
        listener.bind(("127.0.0.1", 0) if tcp else str(path))
        listener.listen()
        place = Place(port=listener.getsockname()[1]) if tcp else Place(path=str(path))
        with running(words, folder / "log", listener.fileno()):
            yield place


def nbdkit(folder: Path, *words: str, tcp: bool = False) -> Server:
    """nbdkit with these words."""
    return activated(["nbdkit", "-f", *words], folder, tcp=tcp)


def qemu_nbd(folder: Path, *words: str, tcp: bool = False) -> Server:
    """qemu-nbd with these words; it stays after its first client."""
    return activated(["qemu-nbd", "-t", "-e", "8", "-f", "raw", *words], folder, tcp=tcp)


@contextlib.contextmanager
def nbd_server(
    folder: Path, exports: str, generic: str = "", *, tcp: bool = False
) -> Iterator[Place]:
    """nbd-server with these sections, and these lines for all of them."""
    place = Place(port=_free_port()) if tcp else Place(path=str(folder / "stock.sock"))
    where = f"listenaddr = 127.0.0.1\nport = {place.port}" if tcp else f"unixsock = {place.path}"
    config = folder / "config"
    config.write_text(f"[generic]\n{where}\n{generic}\n{exports}\n")
    if not shutil.which("nbd-server"):
        pytest.skip("no nbd-server on this machine")
    pid = folder / "pid"  # in the foreground it would serve one client and end
    words = ["nbd-server", "-C", str(config), "-p", str(pid)]
    subprocess.run(words, check=True, timeout=SECONDS, env=without_dh(folder))
    _wait_until(lambda: pid.exists() and pid.read_text().strip().isdigit())
    daemon = os.pidfd_open(int(pid.read_text()))
    try:
        _wait_until(lambda: _listens(place))
        yield place
    finally:
        signal.pidfd_send_signal(daemon, signal.SIGTERM)
        select.select([daemon], [], [], SECONDS)
        os.close(daemon)


def without_dh(folder: Path) -> dict[str, str]:
    """The environment in which nbd-server does without Diffie-Hellman parameters of its own.

    It makes them anew at each start, for a TLS that is not used here, and answers nobody meanwhile:
    for seconds, and for a minute where the processor is emulated.
    """
    library = folder / "without-dh.so"
    if not library.exists():
        words = ["cc", "-shared", "-xc", "-", "-o", str(library)]
        code = "int gnutls_dh_params_generate2(void *p, unsigned int bits) { return 0; }"
        subprocess.run(words, input=code, text=True, check=True, timeout=SECONDS)
    return {**os.environ, "LD_PRELOAD": str(library)}


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def _listens(place: Place) -> bool:
    with socket.socket(socket.AF_UNIX if place.path else socket.AF_INET) as probe:
        return not probe.connect_ex(place.path or ("127.0.0.1", place.port))


def _wait_until(true: Callable[[], bool]) -> None:
    """A daemon tells nobody how far it is."""
    until = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < until
        time.sleep(0.02)
