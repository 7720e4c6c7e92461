"""One request as a Python target sees it: what it asks for, and the group that serves it."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from ublkd._core import ffi, lib
from ublkd.uapi import Op

Report = Callable[["IoDesc", BaseException], None]
"""Tells whoever looks that a request failed for a reason of the target's own."""


class IoDesc(NamedTuple):
    """What the kernel asks for. Offsets and lengths are bytes.

    ``fua``: it must be durable when it ends. ``keep_space``: write-zeroes shall not give the
    space back. Source: ``struct ublksrv_io_desc``.
    """

    op: Op
    offset: int
    length: int
    fua: bool = False
    keep_space: bool = False


class GroupOverError(RuntimeError):
    """A group was used after ``submit`` had returned; ``hold`` is for that."""


def error_number(error: BaseException) -> int:
    """The errno that a failure means; EIO for one that has none."""
    if isinstance(error, TimeoutError):
        return errno.ETIMEDOUT
    return (isinstance(error, OSError) and error.errno) or errno.EIO


class Group:
    """A request in service, for as long as ``submit`` runs.

    The methods that add members return at once; the kernel does the work, all members at the same
    time, and the request ends after the last of them. ``file`` counts from 0 in the target's
    ``files()``, ``at`` is where in the request's own bytes a member starts; members are added in
    ascending order of it. Each raises GroupOverError if it is too late, IndexError or ValueError
    for a file or a place that is not there, and OSError for a socket that is broken: let it pass.
    """

    __slots__ = ("_files", "_io", "_keep", "_raw", "_report", "used")

    def __init__(
        self, raw: Any, io: IoDesc, files: int, keep: Callable[[Any], None], report: Report
    ) -> None:
        """``raw`` is a ``struct group *``; there are that many ``files``; ``keep`` holds memory
        until the request is over.
        """
        self._raw = raw
        self._files = files
        self._io = io
        self._keep = keep
        self._report = report
        self.used = False
        """Whether it has a member, an answer or a holder."""

    @property
    def _open(self) -> Any:
        if self._raw is None:
            raise GroupOverError("submit() has returned: hold() the group before it does")
        return self._raw

    @property
    def _live(self) -> Any:
        raw = self._open
        self.used = True
        return raw

    def over(self) -> None:
        """``submit`` has returned."""
        self._raw = None

    def _slot(self, file: int) -> int:
        if not 0 <= file < self._files:
            raise IndexError(f"there is no file {file} among the {self._files} of files()")
        return file + 1

    # --- files ------------------------------------------------------------------------------

    def read(self, file: int, offset: int, length: int, at: int = 0) -> None:
        """Read ``length`` bytes of a file into the request's."""
        _added(lib.group_read(self._live, self._slot(file), offset, at, length))

    def write(
        self, file: int, offset: int, length: int, at: int = 0, *, durable: bool | None = None
    ) -> None:
        """Write the request's bytes to a file; durably if the request asks for that (FUA)."""
        flags = os.RWF_DSYNC if (self._io.fua if durable is None else durable) else 0
        _added(lib.group_write(self._live, self._slot(file), offset, at, length, flags))

    def zeroes(self, file: int, offset: int, length: int, *, durable: bool | None = None) -> None:
        """Write zeroes to a file."""
        flags = os.RWF_DSYNC if (self._io.fua if durable is None else durable) else 0
        _added(lib.group_zeroes(self._live, self._slot(file), offset, length, flags))

    def fsync(self, file: int) -> None:
        """Make a file's data durable (fdatasync)."""
        _added(lib.group_fsync(self._live, self._slot(file), 1))

    def fallocate(self, file: int, mode: int, offset: int, length: int) -> None:
        """fallocate(2) on a file; ``mode`` as there."""
        _added(lib.group_fallocate(self._live, self._slot(file), mode, offset, length))

    def discard(self, file: int, offset: int, length: int) -> None:
        """Discard a range of a block device."""
        _added(lib.group_discard(self._live, self._slot(file), offset, length))

    # --- stream sockets ---------------------------------------------------------------------

    def send(
        self,
        file: int,
        length: int,
        at: int = 0,
        *,
        more: bool = False,
        zero_copy: bool = False,
    ) -> None:
        """Send the request's bytes on a stream socket; with ``more`` the next send is near.

        What one ``submit`` adds for a socket goes over it in that order and in one piece. Once
        one has failed the socket is shut down, and all that follows fails.

        ``zero_copy``: the network card takes the bytes from the request's pages (not on unix
        sockets). Such a member ends when the other side has them. Needs Params.zero_copy_sends.
        """
        flags = (_MSG_MORE if more else 0) | (lib.GROUP_SEND_ZC if zero_copy else 0)
        _added(lib.group_send(self._live, self._slot(file), at, length, flags))

    def recv(self, file: int, length: int, at: int = 0) -> None:
        """Receive into the request's bytes."""
        _added(lib.group_recv(self._live, self._slot(file), at, length))

    def send_bytes(self, file: int, data: bytes, *, more: bool = False) -> None:
        """Send bytes that are not the request's: a header."""
        self._keep(data)
        raw = ffi.from_buffer(data)
        flags = _MSG_MORE if more else 0
        _added(lib.group_send_memory(self._live, self._slot(file), raw, len(raw), flags))

    def recv_bytes(self, file: int, into: bytearray) -> None:
        """Receive bytes that are not the request's; they are there when the request is over."""
        self._keep(into)
        raw = ffi.from_buffer(into, require_writable=True)
        self._keep(raw)
        _added(lib.group_recv_memory(self._live, self._slot(file), raw, len(raw)))

    # --- answers ----------------------------------------------------------------------------

    @property
    def memory(self) -> memoryview:
        """The request's bytes: a WRITE's to read, a READ's to fill.

        Only where ``Params.in_memory`` is set. Raises RuntimeError elsewhere.
        """
        raw = lib.group_memory(self._open)
        if raw == ffi.NULL:
            raise RuntimeError("the request's pages are lent: set Params.in_memory to see bytes")
        return memoryview(ffi.buffer(raw, self._io.length))

    def complete(self, moved: int | None = None) -> None:
        """End a request that has no members: ``moved`` bytes of it are done, by default all.

        Raises ValueError for more than there are, RuntimeError for a READ that nobody has filled.
        """
        lib.group_complete(self._live, self._answer(moved))

    def fail(self, error: OSError | int) -> None:
        """End it with an errno; members that were added before are waited for."""
        number = error if isinstance(error, int) else error_number(error)
        lib.group_complete(self._live, -abs(number))

    def hold(self) -> Held:
        """Keep the request open after ``submit`` has returned, until the answer is given."""
        raw = self._live
        held = Held(raw, self._io, self._answer, self._report)
        lib.group_hold(raw)
        return held

    def _answer(self, moved: int | None) -> int:
        if moved is None:
            return self._io.length
        if not 0 <= moved <= self._io.length:
            raise ValueError(f"{moved} bytes of {self._io.length} cannot be done")
        return moved


class Held:
    """A request that is answered later, once, from any thread.

    One that is forgotten without an answer fails: the kernel waits for it.
    """

    def __init__(
        self, raw: Any, io: IoDesc, answer: Callable[[int | None], int], report: Report
    ) -> None:
        """What Group.hold() knows."""
        self._lock = threading.Lock()
        self._raw = raw
        self._io = io
        self._as_answer = answer
        self._report = report

    def complete(self, moved: int | None = None) -> None:
        """End it: ``moved`` bytes are done, by default all. Raises as Group.complete() does."""
        self._say(self._as_answer(moved))

    def fail(self, error: BaseException) -> None:
        """End it with the errno of an OSError; anything else is reported, and means EIO."""
        if not isinstance(error, OSError):
            self._report(self._io, error)
        self._say(-error_number(error))

    def _say(self, answer: int) -> None:
        with self._lock:
            raw, self._raw = self._raw, None
        if raw is None:
            raise GroupOverError("the request has been answered already")
        lib.group_answer(raw, answer)

    def __del__(self) -> None:
        if getattr(self, "_raw", None) is not None:
            self.fail(RuntimeError("the target forgot to answer it"))


_MSG_MORE = 0x8000  # <sys/socket.h>


def _added(ret: int) -> None:
    """What has no room is served when the rest of the request comes back."""
    if ret == -errno.EINVAL:
        raise ValueError("a member reaches beyond the request's bytes")
    if ret == -errno.ENOTSOCK:
        raise ValueError("that file is no stream socket")
    if ret < 0 and ret != -errno.E2BIG:
        raise OSError(-ret, os.strerror(-ret))
