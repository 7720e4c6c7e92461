"""What a daemon is told before its device is stopped; and nobody else, whom it would end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ublkd import ending, process

CATCHES = "signal.signal(signal.SIGUSR2, lambda *_: print('told', flush=True))"
PROGRAM = """
import signal, sys
{before}
{opens}
print('ready', flush=True)
sys.stdin.read()
"""

Process = subprocess.Popen[str]


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is to be taken for /dev/ublkc7."""
    path = tmp_path / "device"
    path.touch()
    readlink = os.readlink

    def named(link: Path) -> str:
        found = readlink(link)
        return "/dev/ublkc7" if found == str(path) else found

    monkeypatch.setattr(os, "readlink", named)
    return path


@pytest.fixture
def run() -> Iterator[Callable[..., Process]]:
    """A process that does so, and waits for the end of its input then."""
    made: list[Process] = []

    def start(before: str, *paths: object) -> Process:
        opens = f"files = [open(path) for path in {[str(path) for path in paths]!r}]"
        text = PROGRAM.format(before=before, opens=opens)
        made.append(
            subprocess.Popen([sys.executable, "-c", text], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True)
        )  # fmt: skip
        assert made[0].stdout
        assert made[0].stdout.readline() == "ready\n"
        return made[0]

    yield start
    for one in made:
        one.kill()
        one.communicate()


def tell(process: Process) -> None:
    daemon = os.pidfd_open(process.pid)
    try:
        ending._tell(daemon, process.pid)
    finally:
        os.close(daemon)


def said(process: Process) -> str:
    """Until its end, which is its own."""
    text, _ = process.communicate()
    assert process.returncode == 0
    return text


def test_whoever_serves_and_listens_is_told(run: Callable[..., Process], device: Path) -> None:
    process = run(CATCHES, os.devnull, device, device)
    tell(process)
    assert said(process) == "told\n"


@pytest.mark.parametrize(
    "before",
    [
        "",
        "signal.signal(signal.SIGUSR2, signal.SIG_DFL)",
        "signal.signal(signal.SIGUSR2, signal.SIG_IGN)",
        "signal.signal(signal.SIGUSR1, lambda *_: print('told'))",
        "signal.signal(signal.SIGPIPE, lambda *_: print('told'))",  # the next number
    ],
)
def test_whoever_does_not_listen_lives_on(
    run: Callable[..., Process], device: Path, before: str
) -> None:
    """An older daemon."""
    process = run(before, device)
    tell(process)
    assert said(process) == ""


@pytest.mark.parametrize("path", [None, os.devnull, "/dev/zero"])
def test_whoever_serves_nothing_is_not_told(
    run: Callable[..., Process], device: Path, path: str | None
) -> None:
    """A number of another pid namespace, say: it may mean anybody here."""
    process = run(CATCHES, *([path] if path else []))
    tell(process)
    assert said(process) == ""


@pytest.mark.parametrize("name", ["/dev/ublk-control", "/dev/ublkb7", "/tmp/dev/ublkc7", "ublkc7"])
def test_only_the_device_of_a_server_is_one(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(os, "readlink", lambda _: name)
    assert not process.serves(os.getpid())
    assert process.has_open(os.getpid(), name)
    assert not process.has_open(os.getpid(), "/dev/ublkc7")
    monkeypatch.setattr(os, "readlink", lambda _: "/dev/ublkc7")
    assert process.serves(os.getpid())


def test_a_process_that_may_not_be_looked_at_may_have_any_file_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert process.has_open(os.getpid(), "/dev/ublkc7")
    assert not process.serves(os.getpid())


def test_without_a_descriptor_of_the_process_nobody_is(
    run: Callable[..., Process], device: Path
) -> None:
    """The number alone could mean another one by now."""
    process = run(CATCHES, device)
    ending._tell(None, process.pid)
    assert said(process) == ""


@pytest.mark.parametrize("reaped", [False, True])
def test_whoever_is_gone_already_is_no_failure(
    run: Callable[..., Process], device: Path, reaped: bool
) -> None:
    process = run(CATCHES, device)
    daemon = os.pidfd_open(process.pid)
    try:
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        if reaped:
            process.wait()
        ending._tell(daemon, process.pid)
    finally:
        os.close(daemon)


def test_the_signal_is_the_one_that_a_daemon_listens_to() -> None:
    assert ending.STOPPING == signal.SIGUSR2
