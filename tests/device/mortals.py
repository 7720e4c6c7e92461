"""The stock servers that can be killed and come back: nbdkit, of nbd.py, and two others."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from nbd import SOON, Mortal
from tools import wait_until

from tests.unit.nbd.stock import without_dh


class MortalQemuNbd(Mortal):
    """qemu-nbd; ``words`` are its file. It writes its number when it listens, as nbdkit does."""

    def _command(self) -> list[str]:
        where = ["-k", self._path] if self._path else ["-b", "127.0.0.1", "-p", str(self._port)]
        # without these two it serves one client, and ends with it
        several = ["--persistent", "--shared=8"]
        return ["qemu-nbd", *several, "-f", "raw", f"--pid-file={self._ready}", *where,
                *self._words]  # fmt: skip


class MortalNbdServer(Mortal):
    """nbd-server; ``words`` are its file. It is a daemon, with a process for each client."""

    export = "one"

    def start(self) -> None:
        """Returns when it listens, which is later than it writes its number."""
        if self._path:
            Path(self._path).unlink(missing_ok=True)
        self._ready.unlink(missing_ok=True)
        config = self._folder / "server.conf"
        where = [f"unixsock = {self._path}"]
        if self._port:
            where = ["listenaddr = 127.0.0.1", f"port = {self._port}"]
        offers = ["flush = true", "fua = true", "trim = true"]
        lines = ["[generic]", *where, "[one]", f"exportname = {self._words[0]}", *offers, ""]
        config.write_text("\n".join(lines))
        subprocess.run(
            ["nbd-server", "-C", config, "-p", self._ready],
            check=True, timeout=SOON, env=without_dh(self._folder),
        )  # fmt: skip
        wait_until(self._listens, SOON, "a server that listens")

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX if self._path else socket.AF_INET) as probe:
            return not probe.connect_ex(self._path or ("127.0.0.1", self._port))

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """With all who serve its clients, as a service manager does it."""
        if not self._ready.exists():
            return
        group = int(self._ready.read_text())
        self._ready.unlink()
        with contextlib.ExitStack() as stack:
            watched = []
            for pid in _members(group):
                with contextlib.suppress(ProcessLookupError):
                    watched.append(os.pidfd_open(pid))
                    stack.callback(os.close, watched[-1])
            os.killpg(group, number)
            for process in watched:
                assert select.select([process], [], [], SOON)[0], "it does not end"


KINDS = {"nbdkit": Mortal, "qemu-nbd": MortalQemuNbd, "nbd-server": MortalNbdServer}


def serving(kind: str, folder: Path, path: Path, *words: str | Path, tcp: bool) -> Mortal:
    """The server of that name, whose export is a file."""
    plugin = ["file"] if kind == "nbdkit" else []
    return KINDS[kind](folder, *words, *plugin, path, tcp=tcp)


def _members(group: int) -> Iterator[int]:
    """The processes of a group."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(pid := int(folder.name)) == group:
                yield pid
