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
    """The errno that a failure means; EIO for one that has none.

    Never 0 and never negative: that would be a success. One that came from C may be, and a
    gaierror, which is an OSError, counts its own numbers downwards.
    """
    if isinstance(error, TimeoutError):
        return errno.ETIMEDOUT
    number = error.errno if isinstance(error, OSError) else None
    return number if isinstance(number, int) and number in errno.errorcode else errno.EIO


def is_plain(error: BaseException) -> bool:
    """Whether its errno says all; whatever else fails a request is a mistake, to be reported."""
    known = isinstance(error, OSError) and error.errno in errno.errorcode
    return known or isinstance(error, TimeoutError)


class Group:
    """A request in service, for as long as ``submit`` runs.

    The methods that add members return at once; the kernel does the work, all members at the same
    time, and the request ends after the last of them. ``file`` counts from 0 in the target's
    ``files()``, ``at`` is where in the request's own bytes a member starts; members are added in
    ascending order of it. Each raises GroupOverError if it is too late, IndexError or ValueError
    for a file or a place that is not there, and OSError for a socket that is broken: let it pass.
    """

    __slots__ = ("_files", "_filled", "_held", "_io", "_keep", "_raw", "_report", "used")

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
        self._held = False
        self._filled = False  # by a member, that is
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
        self._filled = True
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
        _added(lib.group_zeroes(self._live, self._slot(file), offset, length, flags), ends=True)

    def fsync(self, file: int) -> None:
        """Make a file's data durable (fdatasync)."""
        _added(lib.group_fsync(self._live, self._slot(file), 1), ends=True)

    def fallocate(self, file: int, mode: int, offset: int, length: int) -> None:
        """fallocate(2) on a file; ``mode`` as there."""
        _added(lib.group_fallocate(self._live, self._slot(file), mode, offset, length), ends=True)

    def discard(self, file: int, offset: int, length: int) -> None:
        """Discard a range of a block device."""
        _added(lib.group_discard(self._live, self._slot(file), offset, length), ends=True)

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
        _added(lib.group_send(self._live, self._slot(file), at, length, flags), ends=True)

    def recv(self, file: int, length: int, at: int = 0) -> None:
        """Receive into the request's bytes."""
        self._filled = True
        _added(lib.group_recv(self._live, self._slot(file), at, length), ends=True)

    def send_bytes(self, file: int, data: bytes, *, more: bool = False) -> None:
        """Send bytes that are not the request's: a header."""
        group, slot = self._live, self._slot(file)
        data = bytes(data)  # they leave later: a buffer might be another request's by then
        self._keep(data)
        flags = _MSG_MORE if more else 0
        raw = ffi.from_buffer(data)
        _added(lib.group_send_memory(group, slot, raw, len(raw), flags), ends=True)

    def expect(self, file: int, data: bytes) -> None:
        """Receive an acknowledgement: exactly these bytes.

        Others fail the request, and the stream is broken: what follows is not understood.
        """
        group, slot = self._live, self._slot(file)
        data = bytes(data)
        into, expected = ffi.new("char[]", len(data)), ffi.from_buffer(data)
        self._keep((data, into))
        _added(lib.group_recv_expected(group, slot, into, len(data), expected), ends=True)

    # --- answers ----------------------------------------------------------------------------

    @property
    def memory(self) -> memoryview:
        """The request's bytes: a WRITE's to read, a READ's to fill, until it is answered.

        Only where ``Params.in_memory`` is set. Raises RuntimeError elsewhere, and for a request
        that is neither.
        """
        raw = lib.group_memory(self._open)
        if raw == ffi.NULL:
            raise RuntimeError(
                "a request has bytes in memory only if it is a READ or WRITE, and "
                "Params.in_memory is set"
            )
        return memoryview(ffi.buffer(raw, self._io.length))

    def complete(self, moved: int | None = None) -> None:
        """End a request that has no members: ``moved`` bytes of it are done, by default all.

        Raises ValueError for more than there are, RuntimeError for a READ that nobody has filled.
        """
        raw = self._live
        lib.group_complete(raw, self._answer(raw, moved))

    def fail(self, error: OSError | int) -> None:
        """End it with an errno; members that were added before are waited for."""
        number = OSError(error, "") if isinstance(error, int) else error
        lib.group_complete(self._live, -error_number(number))

    def hold(self) -> Held:
        """Keep the request open after ``submit`` has returned, until the answer is given.

        Raises RuntimeError for a second time: a request has one answer.
        """
        raw = self._live
        if self._held:
            raise RuntimeError("the request is held already")
        self._held = True
        held = Held(raw, self._io, self._answer, self._report)
        lib.group_hold(raw)
        return held

    def _answer(self, raw: Any, moved: int | None) -> int:
        io = self._io
        if moved is not None and not 0 <= moved <= io.length:
            raise ValueError(f"{moved} bytes of {io.length} cannot be done")
        if io.op not in (Op.READ, Op.WRITE):
            return 0
        if io.op is Op.READ and not self._filled and lib.group_memory(raw) == ffi.NULL:
            raise RuntimeError("nobody has filled this READ: only members reach its pages")
        return io.length if moved is None else moved


class Held:
    """A request that is answered later, once, from any thread.

    One that is forgotten without an answer fails: the kernel waits for it.
    """

    def __init__(
        self, raw: Any, io: IoDesc, answer: Callable[[Any, int | None], int], report: Report
    ) -> None:
        """What Group.hold() knows."""
        self._lock = threading.Lock()
        self._raw = raw
        self._io = io
        self._as_answer = answer
        self._report = report

    def complete(self, moved: int | None = None) -> None:
        """End it: ``moved`` bytes are done, by default all. Raises as Group.complete() does, and
        the request is still held then.
        """
        with self._lock:
            if self._raw is None:
                raise GroupOverError(ANSWERED)
            lib.group_answer(self._raw, self._as_answer(self._raw, moved))
            self._raw = None

    def fail(self, error: BaseException) -> None:
        """End it with an OSError's errno; without one it is EIO, and reported."""
        with self._lock:
            if self._raw is None:
                raise GroupOverError(ANSWERED)
            lib.group_answer(self._raw, -error_number(error))
            self._raw = None
        if not is_plain(error):
            self._report(self._io, error)

    def __del__(self) -> None:
        if getattr(self, "_raw", None) is not None:
            self.fail(RuntimeError("the target forgot to answer it"))


_MSG_MORE = 0x8000  # <sys/socket.h>


ANSWERED = "the request has been answered already"


def _added(ret: int, *, ends: bool = False) -> None:
    """Without room for a transfer the rest of the request comes back; ``ends``: not for these."""
    if ret == -errno.E2BIG and ends:
        raise ValueError("the request needs more members than Params.max_members says")
    if ret == -errno.EINVAL:
        raise ValueError("a member reaches beyond the request's bytes, or against its direction")
    if ret == -errno.ENOTSOCK:
        raise ValueError("that file is no stream socket")
    if ret < 0 and ret != -errno.E2BIG:
        raise OSError(-ret, os.strerror(-ret))
