"""What the device tests share: running commands, devices that end with the test, fio."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import verbs

RUN_DIR = Path("/run/ublkd")
COMMAND_SECONDS = 200
SERVING = {b"add", b"apply", b"recover", b"run", b"upgrade"}


def run(
    *command: str | Path, check: bool = True, said: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command, its output as text; a failure shows what it said. `said` is its input."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=COMMAND_SECONDS,
        check=False, input=said,
    )  # fmt: skip
    return checked(done) if check else done


def checked(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    """The same, if it succeeded."""
    if done.returncode:
        words = " ".join(done.args)
        raise AssertionError(f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def ublkd(*words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the command line; in a fork (see verbs.py), if there is somebody who forks."""
    if not verbs.running():
        return run("ublkd", *words, check=check)
    done = verbs.ask([str(word) for word in words], COMMAND_SECONDS)
    return checked(done) if check else done


def ublkd_json(*words: str | Path) -> Any:
    """What a verb prints as JSON."""
    return json.loads(ublkd(*words, "--json").stdout)


def refused(*words: str | Path, code: int = 1) -> str:
    """A command that must fail as promised: exit code, one line and a hint, no traceback."""
    done = ublkd(*words, check=False)
    lines = done.stderr.splitlines()
    assert done.returncode == code, done
    assert "Traceback" not in done.stderr
    assert not done.stdout
    assert len(lines) == 2, done.stderr
    assert lines[0].startswith("ublkd: ")
    assert lines[1].startswith("hint: ")
    return done.stderr


def sparse(path: Path, size: int) -> Path:
    """A file of that many bytes."""
    with path.open("wb") as f:
        f.truncate(size)
    return path


@contextlib.contextmanager
def device(target: str, *words: str | Path) -> Iterator[str]:
    """A device while the block runs: its node."""
    node = ublkd("add", "--target", target, *words).stdout.strip()
    try:
        yield node
    finally:
        ublkd("del", node, "--force", check=False)


@contextlib.contextmanager
def kernel_loop(path: str | Path, *, direct_io: bool = True) -> Iterator[str]:
    """The kernel's own loop device over a file or block device: its node."""
    run("modprobe", "loop")
    mode = f"--direct-io={'on' if direct_io else 'off'}"
    node = run("losetup", "--find", "--show", mode, path).stdout.strip()
    try:
        yield node
    finally:
        run("losetup", "--detach", node)


@contextlib.contextmanager
def mounted(node: str, at: Path, *options: str) -> Iterator[Path]:
    """The filesystem of a node, mounted."""
    at.mkdir(exist_ok=True)
    run("mount", *options, node, at)
    try:
        yield at
    finally:
        run("umount", at)


def fio(node: str | Path, *options: str, check: bool = True) -> dict[str, Any]:
    """Run fio against a node; its JSON. The job's own errors fail the test."""
    done = run(
        "fio", "--name=t", f"--filename={node}", "--ioengine=io_uring", "--direct=1",
        "--verify_state_save=0", "--output-format=json", *options, check=check,
    )  # fmt: skip
    told: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    return told


def leases() -> list[str]:
    """The leases that this kernel can do."""
    told = ublkd_json("features")
    return [kind for kind, verdict in told["leases"].items() if verdict == "possible"]


def lent_and_copied() -> list[str]:
    """One lease that lends pages, if any does, and one that copies: where others add nothing."""
    return list(dict.fromkeys([leases()[0], "copy"]))


def counters(dev: str) -> dict[str, Any]:
    """The counters of a device, summed over its queues."""
    total: dict[str, Any] = {}
    for queue in ublkd_json("show", dev)["counters"]:
        _add(total, queue)
    return total


def _add(total: dict[str, Any], part: dict[str, Any]) -> None:
    for key, value in part.items():
        if isinstance(value, dict):
            _add(total.setdefault(key, {}), value)
        else:
            total[key] = total.get(key, 0) + value


def digest(path: str | Path, size: int) -> str:
    """The checksum of a file's or node's first bytes, past any cache of the node's."""
    with open(path, "rb", buffering=0) as f:
        with contextlib.suppress(OSError):
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        sha = hashlib.sha256()
        left = size
        while left and (part := f.read(min(left, 1 << 20))):
            sha.update(part)
            left -= len(part)
    return sha.hexdigest()


def wait_until(condition: Any, seconds: float, what: str) -> None:
    """Wait for something that cannot be awaited as an event."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:  # it may be this process that was held up
            assert condition(), f"{what}: not within {seconds} seconds"
            return
        time.sleep(0.05)


def patiently(*command: str | Path) -> None:
    """Run what takes away the ground that a killed daemon's disk stood on: its ring lets go of that
    behind its end.
    """
    wait_until(lambda: not run(*command, check=False).returncode, 60, " ".join(map(str, command)))


def figures(line: str) -> None:
    """What was measured: a line of its own with `pytest -s`, as `make soak` has it."""
    print(f"\nfigures: {line}")


def await_end(seconds: float = 60) -> None:
    """Of all devices and then of their daemons, which take their files away behind the disks."""
    wait_until(lambda: not ublkd_json("list"), seconds, "the end of all devices")
    wait_until(lambda: not daemons(), seconds, "the end of all daemons")


def nothing_left() -> None:
    """No device, no file and no process of ours is on the machine."""
    assert not list(Path("/sys/class/ublk-char").glob("*"))
    assert not list(Path("/dev").glob("ublk[bc]*"))
    assert sorted(path.name for path in RUN_DIR.glob("*")) == []
    assert not daemons()


def threads(pid: int | str) -> list[str]:
    """A process's by name, but for io_uring's workers, which come and go as the kernel likes."""
    names = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            names.append(task.joinpath("comm").read_text())
    return [name for name in names if not name.startswith("iou-wrk")]


def daemons() -> list[int]:
    """Processes that serve, or start one that does."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if any(w.endswith(b"/ublkd") for w in words[:2]) and SERVING & set(words):
                found.append(int(folder.name))
    return found
