"""The library, the deadline, and what is made for one test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from . import build
from .core import Core
from .driver import Driver, DriverMaker
from .files import FileMaker, open_fds
from .nbd_disk import DiskMaker, NbdDisk

# As in tests/unit: the folder ublkd/ must not hide the installed package.
ROOT = Path(__file__).resolve().parents[2]
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT] + [str(ROOT)]


@pytest.fixture(scope="session")
def core() -> Core:
    given = os.environ.get("UBLKD_CORETEST")
    if given:
        path = Path(given)
    else:
        if reason := build.missing():
            pytest.skip(reason)
        try:
            path = build.build()
        except subprocess.CalledProcessError as e:
            pytest.fail(f"the library does not build:\n{e.output}", pytrace=False)
    loaded = Core(path)
    if error := loaded.io_uring_error():
        reason = f"no io_uring here: {os.strerror(-error)}"
        if given:
            pytest.fail(reason)
        pytest.skip(reason)
    return loaded


@pytest.fixture(autouse=True)
def awake() -> Iterator[None]:
    """
    A signal per second: a wait in the kernel comes back, so that the fake driver sees its deadline;
    and an engine that a signal disturbs is found out.
    """
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 1, 1)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def new_driver(core: Core) -> Iterator[DriverMaker]:
    """Drivers that are freed at the test's end."""
    made: list[Driver] = []

    def make(*args: object, **kwargs: object) -> Driver:
        made.append(Driver(core, *args, **kwargs))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for driver in made:
        driver.close()


@pytest.fixture
def new_file() -> Iterator[FileMaker]:
    """Files without a name that hold the given bytes; closed at the test's end."""
    fds: list[int] = []

    def make(content: bytes = b"") -> int:
        fds.append(os.memfd_create("backing"))
        os.pwrite(fds[-1], content, 0)
        return fds[-1]

    yield make
    for fd in fds:
        os.close(fd)


@pytest.fixture
def new_disk(core: Core) -> Iterator[DiskMaker]:
    """NBD disks that leave no descriptor behind, and nothing in flight."""
    made: list[NbdDisk] = []

    def make(**words: Any) -> NbdDisk:
        made.append(NbdDisk(core, **words))
        return made[-1]

    before = open_fds()
    yield make
    for disk in reversed(made):
        disk.close()
    assert open_fds() == before
