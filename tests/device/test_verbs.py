"""The forks that run the verbs of the other tests do what the command does, and leave the same."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import verbs
from tools import nothing_left, run, sparse, ublkd, ublkd_json

pytestmark = pytest.mark.one_kernel

MIB = 1 << 20

Runner = Callable[..., CompletedProcess[str]]


def command(*words: str | Path) -> CompletedProcess[str]:
    """A process of its own."""
    return run("ublkd", *words, check=False)


def fork(*words: str | Path) -> CompletedProcess[str]:
    """What the other tests do."""
    assert verbs.running()
    return ublkd(*words, check=False)


def told(done: CompletedProcess[str]) -> tuple[int, str, str]:
    """All that a caller sees, but for what is another with each device."""
    shown = re.sub(r'("pid": |PID |"cookie": )\d+', r"\1N", done.stdout)
    return done.returncode, shown, done.stderr


def life(ublkd: Runner, disk: Path) -> Iterator[CompletedProcess[str]]:
    """What prints, what changes, and what is refused by the parser, by ublkd and by the driver."""
    yield ublkd("add", "--target", "loop", "--file", disk, "--id", "3", "--name", "three")
    yield ublkd("show", "three", "--json")
    yield ublkd("add", "--target", "loop", "--file", disk)
    yield ublkd("del", "three")
    yield ublkd("show", "three")
    yield ublkd("nbd", "list", f"nbd+unix:///?socket={disk}-none")
    yield ublkd("list", "no such word")


def test_a_fork_tells_what_the_command_tells(scratch: Path) -> None:
    disk = sparse(scratch / "disk.img", MIB)
    forks, commands = list(life(fork, disk)), list(life(command, disk))
    assert [told(done) for done in forks] == [told(done) for done in commands]
    assert [done.returncode for done in forks] == [0, 0, 1, 0, 1, 1, 2]
    nothing_left()


def traits(pid: int) -> dict[str, object]:
    """What a process is, as the kernel sees it."""
    proc = Path(f"/proc/{pid}")
    status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines())
    same = ("Umask", "Threads", "Groups", "SigBlk", "SigIgn", "SigCgt", "CapEff", "Seccomp")
    stat = (proc / "stat").read_text().rpartition(")")[2].split()
    links = sorted(str(fd.readlink()) for fd in (proc / "fd").iterdir())
    return {name: status[name] for name in (*same, "Name")} | {
        "words": (proc / "cmdline").read_bytes().rstrip(b"\0"),
        "leads its session": int(stat[3]) == pid,
        "open": [re.sub(r"\d+", "N", link) for link in links],
        "folder": str((proc / "cwd").readlink()),
        "interpreter": str((proc / "exe").readlink()),
    }


def at_rest(pid: int) -> dict[str, object]:
    """The same once a daemon has let go of what only its beginning needs."""
    before: dict[str, object] = {}
    while True:
        with contextlib.suppress(OSError):  # of a descriptor that is just closed
            if (now := traits(pid)) == before:
                return now
            before = now
        time.sleep(0.5)


def test_the_daemon_that_a_fork_leaves_is_like_the_command_s(scratch: Path) -> None:
    disk = sparse(scratch / "disk.img", MIB)
    seen = []
    for runner in (fork, command):
        runner("add", "--target", "loop", "--file", disk)
        seen.append(at_rest(ublkd_json("show", "0")["pid"]))
        runner("del", "0")
    assert seen[0] == seen[1]
    nothing_left()


def waiting(runner: Runner, socket_path: Path) -> dict[str, object]:
    """A verb's own process, seen while it waits for a server that says nothing."""
    with socket.socket(socket.AF_UNIX) as door, ThreadPoolExecutor(1) as aside:
        door.settimeout(60)
        door.bind(str(socket_path))
        door.listen()
        verb = aside.submit(runner, "nbd", "list", f"nbd+unix:///?socket={socket_path}")
        peer, _ = door.accept()
        with peer:
            who = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            seen = traits(struct.unpack("3i", who)[0])
        assert verb.result().returncode == 1
    socket_path.unlink()
    return seen


def test_a_fork_is_like_the_command_while_it_runs(scratch: Path) -> None:
    assert waiting(fork, scratch / "server") == waiting(command, scratch / "server")


def test_a_fork_has_the_caller_s_folder_environment_and_input(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sparse(scratch / "disk.img", MIB)
    monkeypatch.chdir(scratch)
    fork("add", "--target", "loop", "--file", "disk.img")
    assert ublkd_json("show", "0")["describe"]["backing"] == str(scratch / "disk.img")
    monkeypatch.setenv("COLUMNS", "60")
    narrow = fork("add", "--help").stdout
    assert narrow == command("add", "--help").stdout
    monkeypatch.setenv("COLUMNS", "90")
    assert narrow != fork("add", "--help").stdout
    fork("del", "0")
    nothing_left()
