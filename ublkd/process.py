"""Other processes, by what /proc says of them: who serves a device, and who is there at all."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

PF_EXITING = 0x4  # <linux/sched.h>


def serves(pid: int) -> bool:
    """Whether the process has a device, and is not about to end."""
    process = Path(f"/proc/{pid}")
    try:
        has_one = any(path.startswith("/dev/ublkc") for path in _open_files(process))
        return has_one and not _is_ending(process)
    except (OSError, ValueError):
        return False


def has_open(pid: int, path: str) -> bool:
    """Whether the process has that file open, or may have: nobody can tell."""
    try:
        return path in _open_files(Path(f"/proc/{pid}"))
    except (FileNotFoundError, ProcessLookupError):
        return False
    except OSError:
        return True


def is_there(pid: int) -> bool:
    """Whether the process lives; one that nobody has asked for its end does not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def listens_to(pid: int, number: int) -> bool:
    """Whether the process has a handler for the signal: of any other it would be the end, such as
    an older daemon's. Raises OSError, also if there is no such process.
    """
    caught = _mask(Path(f"/proc/{pid}"), "SigCgt")
    return bool(caught >> (number - 1) & 1)


def _is_ending(process: Path) -> bool:
    """Whether it has been killed: it may take a while until it is gone (proc(5))."""
    flags = int((process / "stat").read_text().rpartition(")")[2].split()[6])
    pending = _mask(process, "SigPnd")
    return bool(flags & PF_EXITING or pending >> (signal.SIGKILL - 1) & 1)


def _mask(process: Path, name: str) -> int:
    """A set of signals, number N at bit N - 1: proc_pid_status(5)."""
    status = (process / "status").read_text()
    words = status.partition(f"{name}:")[2].split(maxsplit=1)
    return int(words[0], 16) if words else 0


def _open_files(process: Path) -> Iterator[str]:
    for link in list((process / "fd").iterdir()):
        with contextlib.suppress(OSError):
            yield os.readlink(link)
