"""A disk read and written past the page cache, with errors as the names that a program sees."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path


def outcome(call: Callable[[], object]) -> str:
    """`ok`, or the name of the errno."""
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


class Direct:
    """A node or file that is open with O_DIRECT."""

    def __init__(self, fd: int) -> None:
        """Borrows the descriptor."""
        self.fd = fd

    def write(self, at: int, data: bytes) -> str:
        """`ok`, an errno's name, or how little was written."""
        moved = 0

        def write() -> None:
            nonlocal moved
            moved = os.pwritev(self.fd, [area], at)

        with mmap.mmap(-1, len(data)) as area:
            area[:] = data
            told = outcome(write)
        return told if told != "ok" or moved == len(data) else f"short: {moved}"

    def read(self, at: int, length: int, before: bytes = b"\xee") -> tuple[str, bytes]:
        """As write; and the buffer afterwards, which was full of `before`."""
        moved = 0

        def read() -> None:
            nonlocal moved
            moved = os.preadv(self.fd, [area], at)

        with mmap.mmap(-1, length) as area:
            area[:] = before * length
            told = outcome(read)
            found = area[:]
        return (told if told != "ok" or moved == length else f"short: {moved}"), found

    def sync(self) -> str:
        """fsync."""
        return outcome(lambda: os.fsync(self.fd))


@contextlib.contextmanager
def direct(path: str | Path, flags: int = 0) -> Iterator[Direct]:
    """Open for reading and writing."""
    fd = os.open(path, os.O_RDWR | os.O_DIRECT | flags)
    try:
        yield Direct(fd)
    finally:
        os.close(fd)
