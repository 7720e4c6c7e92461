"""What several unit tests share: processes, strange texts, and counting of descriptors."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

from hypothesis import strategies as st

from ublkd.target import Option

ROOT = Path(__file__).resolve().parents[2]
DRIVER_THERE = Path("/dev/ublk-control").exists()

path_texts = st.binary(max_size=80).map(os.fsdecode)
"""Whatever the kernel can hand to a program as a path or an argument."""

any_texts = st.text(st.characters(), max_size=80)
"""Whatever a Python string can hold, lone surrogates of either kind included."""


def python(
    *words: str | bytes,
    stdout: int | IO[str] = subprocess.PIPE,
    env: dict[str, str] | None = None,
    cwd: Path | str = "/",
) -> subprocess.CompletedProcess[str]:
    """Run this Python without the working folder on its path."""
    return subprocess.run(
        [sys.executable, "-P", *words],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=60,
        cwd=cwd,
        env=os.environ | (env or {}),
        check=False,
    )


def ublkd(*words: str | bytes, **how: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    return python("-m", "ublkd", *words, **how)


def is_one_line(text: str) -> bool:
    """Whether a terminal and a log show it as one line, and any UTF-8 file takes it."""
    return len(text.splitlines()) <= 1 and text.isprintable() and bool(text.encode() or not text)


def assert_one_line_and_hint(stderr: str) -> None:
    """What an expected failure looks like on standard error."""
    lines = stderr.splitlines()
    assert len(lines) == 2, stderr
    assert lines[0].startswith("ublkd: ")
    assert lines[1].startswith("hint: ")
    assert "Traceback" not in stderr


def open_fds() -> int:
    """How many descriptors this process holds: those of what an earlier test has dropped, and could
    be collected at any moment, are not among them.
    """
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def option(name: str, kind: Any = "text", **more: Any) -> Option:
    """An option of a target that is not there."""
    return Option(name=name, help=f"the help of {name}", kind=kind, **more)
