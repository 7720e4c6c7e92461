"""The folder of things fetched once: where it is, its lock, and whole-or-nothing writes."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import say

PROJECT = Path(__file__).resolve().parents[2]


def folder() -> Path:
    """Return the cache folder, created if need be."""
    named = os.environ.get("UBLKD_LAB_CACHE")
    path = Path(named).resolve() if named else PROJECT / ".cache" / "lab"
    path.mkdir(parents=True, exist_ok=True)
    ignore = path / ".gitignore"
    if not ignore.exists():
        ignore.write_text("*\n")
    return path


@contextlib.contextmanager
def locked() -> Iterator[Path]:
    """Hold the cache for writing: two labs that start at once fetch once."""
    path = folder()
    with (path / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another lab that is fetching")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield path


@contextlib.contextmanager
def building(target: Path) -> Iterator[Path]:
    """Give a new folder to fill; it becomes ``target`` only if all went well."""
    for left in target.parent.glob(".partial-*"):
        shutil.rmtree(left, ignore_errors=True)  # of a fetch that was killed; we hold the lock
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
    partial.chmod(0o755)
    try:
        yield partial
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text)
    partial.replace(path)
