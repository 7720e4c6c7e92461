"""Has the kernel write back what it holds for a disk that is about to go.

STOP_DEV of a device that may be recovered fails whatever comes from then on, and so what the kernel
would only write now; that of another device lets its server write it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os

from ublkd import aside

BLKFLSBUF = 0x1261  # <linux/fs.h>
SECONDS = 20


def write_back(node: str, seconds: float = SECONDS) -> None:
    """As much as can be written in that time; what cannot is lost, as with any disk that goes."""
    aside.within(seconds, lambda: _flush(node))


def _flush(node: str) -> None:
    with contextlib.suppress(OSError):
        fd = os.open(node, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, BLKFLSBUF, 0)  # also of a filesystem that is mounted
        finally:
            os.close(fd)
