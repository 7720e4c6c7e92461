"""The memory of what a server has acknowledged and may forget. journal.c says what is in it."""

from __future__ import annotations

import contextlib
import mmap
import os
from typing import Any

from ublkd._core import ffi, lib
from ublkd.errors import UblkdError, reason
from ublkd.targets.nbd.replay import Write
from ublkd.targets.nbd.wire import Command

BYTES = 16 << 20
"""Of data; when it is full a flush makes room."""
MADV_POPULATE_WRITE = 23
"""madvise(2), Linux 5.14; Python has no name for it."""


def _at_once(fd: int) -> int:
    """The same file, opened so that io_uring writes to it at once: else it has a worker do that,
    as for every buffered file that cannot promise not to wait. ``fd`` itself where the kernel is
    too old: a file in memory takes O_DIRECT since Linux 6.6.
    """
    try:
        better = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_DIRECT | os.O_NONBLOCK)
    except OSError:
        return fd
    os.close(fd)
    return better


class Journal:
    """A file in memory: requests are copied to it, or their pages are written to it."""

    def __init__(self, size: int = BYTES) -> None:
        """``size`` in bytes, all of it taken now. Raises UblkdError."""
        self.bytes = size
        self.fd = os.memfd_create("ublkd-nbd-journal", os.MFD_CLOEXEC)
        try:
            os.posix_fallocate(self.fd, 0, size)
            self._map = mmap.mmap(self.fd, size)
        except OSError as error:
            os.close(self.fd)
            raise UblkdError(
                f"no memory for the journal of writes: {reason(error)}",
                hint=f"it takes {size >> 20} MiB; --after-reconnect strict needs none",
            ) from error
        self.fd = _at_once(self.fd)
        with contextlib.suppress(OSError):  # no write shall wait for a fault of a page
            self._map.madvise(MADV_POPULATE_WRITE)
        self.memory = ffi.from_buffer(self._map)

    def writes(self, links: Any) -> list[Write]:
        """All that is in it, in the order of the acknowledgements. Only while nothing is
        connected; the data is valid until then.
        """
        count = lib.nbd_journal(links, ffi.NULL, 0)
        entries = ffi.new("struct nbd_entry[]", count)
        assert lib.nbd_journal(links, entries, count) == count
        whole = memoryview(self._map)
        return [
            Write(
                entry.command,
                entry.flags,
                entry.offset,
                entry.length,
                whole[entry.position : entry.position + entry.length]
                if entry.command == Command.WRITE
                else b"",
                entry.order,
            )
            for entry in entries
        ]

    def close(self) -> None:
        """Forget it."""
        os.close(self.fd)
        ffi.release(self.memory)
        self._map.close()
