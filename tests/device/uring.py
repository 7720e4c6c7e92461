"""io_uring by its three system calls: rings by mmap, SQEs and CQEs by struct. No liburing."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

SECONDS = 60
"""How long anything may take that must come."""

OP_READ_FIXED, OP_WRITE_FIXED, OP_POLL_ADD, OP_READ = 4, 5, 6, 22
OP_SEND, OP_RECV, OP_URING_CMD, OP_SEND_ZC = 26, 27, 46, 47
CQE_F_MORE, CQE_F_NOTIF = 1 << 1, 1 << 3
SQE_CQE_SKIP = 1 << 6
RECVSEND_FIXED_BUF = 1 << 2  # sqe->ioprio of SEND, RECV and SEND_ZC: the buffer is slot buf_index

_SETUP = 1 << 7 | 1 << 12 | 1 << 13  # SUBMIT_ALL, SINGLE_ISSUER, DEFER_TASKRUN
_PARAMS = struct.Struct("<7I12x 7I12x 7I12x")  # what is asked; offsets in the SQ; in the CQ
_SQE = struct.Struct("<BBHiQQIIQHHi16s")
_CQE = struct.Struct("<QiI")
_ENTER_GETEVENTS, _ENTER_EXT_ARG = 1, 8
_REGISTER_BUFFERS2, _REGISTER_SPARSE = 15, 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.argtypes = [ctypes.c_long] * 7
_libc.syscall.restype = ctypes.c_long


def _syscall(number: int, *arguments: int) -> int:
    done: int = _libc.syscall(number, *arguments, *[0] * (6 - len(arguments)))
    if done < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return done


def address(area: mmap.mmap | bytearray) -> int:
    """Where a buffer is. The buffer must outlive every use of the number."""
    return ctypes.addressof(ctypes.c_char.from_buffer(area))


@dataclass(frozen=True)
class Cqe:
    token: int
    res: int
    flags: int


class Ring:
    """An io_uring. Completions come only while wait() is called (DEFER_TASKRUN)."""

    def __init__(self, *, slots: int = 0, entries: int = 64) -> None:
        raw = bytearray(_PARAMS.size)
        struct.pack_into("<8xI", raw, 0, _SETUP)
        self.fd = _syscall(425, entries, address(raw))
        told = _PARAMS.unpack(raw)
        self._mask, self._cq_mask = told[0] - 1, told[1] - 1
        sq, cq = told[7:], told[14:]
        self._head, self._tail, self._array = cq[0], sq[1], sq[6]
        self._cq_tail, self._cqes = cq[1], cq[5]
        size = max(self._array + told[0] * 4, self._cqes + told[1] * _CQE.size)
        self._ring = mmap.mmap(self.fd, size)  # one mapping for both (FEAT_SINGLE_MMAP)
        self._sqes = mmap.mmap(self.fd, told[0] * _SQE.size, offset=0x10000000)
        self._seen: deque[Cqe] = deque()
        self._next_token = 1 << 16
        if slots:
            table = bytearray(struct.pack("<2I3Q", slots, _REGISTER_SPARSE, 0, 0, 0))
            _syscall(427, self.fd, _REGISTER_BUFFERS2, address(table), len(table))

    def close(self) -> None:
        self._ring.close()  # a mapping of Python's holds the descriptor as well
        self._sqes.close()
        os.close(self.fd)

    def register(self, area: mmap.mmap) -> None:
        """Our own memory as buffer slot 0, in a ring without slots."""
        table = bytearray(struct.pack("<2Q", address(area), len(area)))
        _syscall(427, self.fd, 0, address(table), 1)

    def issue(
        self, opcode: int, fd: int, *, addr: int = 0, length: int = 0, off: int = 0, slot: int = 0,
        flags: int = 0, ioprio: int = 0, op_flags: int = 0, command: bytes = b"", token: int = 0,
    ) -> int:  # fmt: skip
        """Submit one SQE; the token is its user_data. Does not wait, not even for what is done."""
        if not token:
            self._next_token += 1
            token = self._next_token
        tail = self._word(self._tail)
        place = tail & self._mask
        _SQE.pack_into(
            self._sqes, place * _SQE.size,
            opcode, flags, ioprio, fd, off, addr, length, op_flags, token, slot, 0, 0, command,
        )  # fmt: skip
        struct.pack_into("<I", self._ring, self._array + place * 4, place)
        struct.pack_into("<I", self._ring, self._tail, (tail + 1) & 0xFFFFFFFF)
        assert _syscall(426, self.fd, 1) == 1
        return token

    def wait(self, wanted: Callable[[Cqe], bool], seconds: float = SECONDS) -> Cqe:
        """The first completion that is wanted; the others stay for who wants them."""
        until = time.monotonic() + seconds
        while True:
            for cqe in self._reap(0):
                if wanted(cqe):
                    self._seen.remove(cqe)
                    return cqe
            left = until - time.monotonic()
            assert left > 0, f"no such completion in {seconds} s; there are {list(self._seen)}"
            self._reap(left)

    def result(self, token: int) -> int:
        """What became of an SQE."""
        return self.wait(lambda cqe: cqe.token == token).res

    def arrived(self) -> list[Cqe]:
        """Every completion that is there and that nobody has asked for."""
        return list(self._reap(0))

    def _word(self, offset: int) -> int:
        return int(struct.unpack_from("<I", self._ring, offset)[0])

    def _reap(self, seconds: float) -> Sequence[Cqe]:
        limit = bytearray(struct.pack("<2q", int(seconds), int(seconds % 1 * 1e9)))
        more = bytearray(struct.pack("<Q2IQ", 0, 8, 0, address(limit)))
        flags = _ENTER_GETEVENTS | _ENTER_EXT_ARG
        try:
            _syscall(426, self.fd, 0, 1 if seconds else 0, flags, address(more), len(more))
        except OSError as error:
            if error.errno not in (errno.ETIME, errno.EINTR):
                raise
        head, tail = self._word(self._head), self._word(self._cq_tail)
        while head != tail:
            at = self._cqes + (head & self._cq_mask) * _CQE.size
            self._seen.append(Cqe(*_CQE.unpack_from(self._ring, at)))
            head = (head + 1) & 0xFFFFFFFF
        struct.pack_into("<I", self._ring, self._head, head)
        return tuple(self._seen)
