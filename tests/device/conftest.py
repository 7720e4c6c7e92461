"""Device tests need root and the ublk driver; elsewhere they skip and say why.

Each test runs in a child with a deadline, because a mistake here ends in a process that nothing
can kill: the child that is late is left to itself, and the kernel's blocked tasks are shown.
In the lab (UBLKD_LAB) a skip is a failure.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import verbs
from tools import ublkd

# Last on the path, where the folder ublkd/ does not hide the installed package: for `tests.*`.
sys.path.append(str(Path(__file__).resolve().parents[2]))

DEADLINE_SECONDS = 240
IN_LAB = "UBLKD_LAB" in os.environ


def why_not() -> str:
    """Why this machine cannot run device tests; empty if it can."""
    if os.geteuid() != 0:
        return "needs root"
    if not Path("/dev/ublk-control").exists():
        return "needs the ublk driver (modprobe ublk_drv)"
    if not IN_LAB and any(Path("/sys/class/ublk-char").glob("*")):
        return "this machine has ublk devices, and the tests would delete them"
    return ""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "deadline(seconds): how long a device test may take")
    config.addinivalue_line(
        "markers", "one_kernel: the newest shows it; `make test` spares the others"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    reason = why_not()
    for item in items:
        if reason and item.path.is_relative_to(here):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    if IN_LAB and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped in the lab: {report.longrepr}"
    return report


# --- a child and a deadline -----------------------------------------------------------------


class ChildFailedError(Exception):
    """The test failed in its child; the text is why, in a line, and the child's traceback."""


def blocked_tasks() -> str:
    """What the kernel says of tasks that wait and cannot be interrupted."""
    with Path("/proc/sysrq-trigger").open("w") as trigger:
        trigger.write("w")
    return subprocess.run(["dmesg"], stdout=subprocess.PIPE, text=True, check=False).stdout[-8000:]


def _child(function: Any, arguments: dict[str, Any], write_end: int) -> None:
    code = 0
    try:
        function(**arguments)
    except pytest.skip.Exception as skipped:
        os.write(write_end, f"skip:{skipped}".encode())
    except BaseException as error:
        why = f"{type(error).__name__}: {error}".partition("\n")[0]
        os.write(write_end, f"{why}\n{traceback.format_exc()[-50000:]}".encode()[:60000])
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool:
    marker = pyfuncitem.get_closest_marker("deadline")
    seconds = marker.args[0] if marker else DEADLINE_SECONDS
    names = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        _child(pyfuncitem.obj, arguments, write_end)
    os.close(write_end)
    said = _collect(read_end, pid, seconds)
    if said.startswith("skip:"):
        pytest.skip(said.removeprefix("skip:"))
    if said:
        raise ChildFailedError(said)
    return True


def _collect(read_end: int, pid: int, seconds: float) -> str:
    # the child itself is waited for: a daemon it left behind would hold the pipe open
    with open(read_end, "rb", buffering=0) as pipe:
        child = os.pidfd_open(pid)
        try:
            ended = select.select([child], [], [], seconds)[0]
        finally:
            os.close(child)
        if not ended:
            told = blocked_tasks()
            os.kill(pid, signal.SIGKILL)
            return f"not done within {seconds} seconds; the kernel's blocked tasks:\n{told}"
        status = os.waitpid(pid, 0)[1]
        said = pipe.read(65536) if select.select([pipe], [], [], 0)[0] else b""
    if not said and status:
        return f"the test's process ended with status {os.waitstatus_to_exitcode(status)}"
    return (said or b"").decode(errors="replace")


@pytest.fixture(scope="session", autouse=True)
def _verbs() -> Iterator[None]:
    """Here, not where the first is run: what a process inherits is that of no test."""
    with verbs.forked():
        yield


@pytest.fixture
def commands() -> Iterator[None]:
    """Every verb of the test is the command `ublkd`, started as by anybody."""
    with verbs.unasked():
        yield


@pytest.fixture
def lab_only() -> None:
    """For tests that change the machine itself: its modules, its settings."""
    if not IN_LAB:
        pytest.skip("changes the machine: only in the lab")


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder with room for disks; nothing may be left of ours afterwards."""
    base = "/scratch" if Path("/scratch").is_dir() else "/var/tmp"
    folder = Path(base, f"ublkd-test-{os.getpid()}-{time.monotonic_ns()}")
    folder.mkdir()
    yield folder
    for mount in [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]:
        if mount.startswith(str(folder)):
            subprocess.run(["umount", "--lazy", mount], check=False)
    ublkd("del", "--all", "--force", check=False)
    subprocess.run(["rm", "-rf", str(folder)], check=False)
