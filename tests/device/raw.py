"""A ublk server in one file, without ublkd's engine: it asks the kernel what is true.

The protocol, as far as it is used here (include/uapi/linux/ublk_cmd.h and io_uring.h):

1. ADD_DEV and SET_PARAMS on /dev/ublk-control make /dev/ublkcN (ublkd's Control sends them).
2. The server maps the iods of /dev/ublkcN and sends one FETCH per tag, as io_uring commands on it.
3. START_DEV makes /dev/ublkbN. It waits for every FETCH, so it comes from another thread.
4. A FETCH completes: iod number `tag` says what is asked for. The request is the server's now.
5. COMMIT_AND_FETCH carries its result and is the FETCH of the next. Back to 4.

How a request's bytes are reached is chosen with flags of ADD_DEV. None: FETCH and COMMIT name a
buffer, and the driver copies. F_USER_COPY: pread and pwrite on /dev/ublkcN. F_ZERO_COPY: between
4 and 5 REGISTER_IO_BUF puts the pages into a slot of the ring's buffer table, operations name the
slot, and UNREGISTER_IO_BUF takes them out. F_AUTO_BUF_REG beside it: the driver does both.

Nothing here repairs anything: a test commits what it likes and sees what comes of it. Who reads
and writes the disk is a process of its own, forked before the device is opened, because a
process that waits for a disk it serves itself can never be ended. Leaving the `with` closes
everything, which ends whatever is still in flight, and deletes the device.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import select
import signal
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, Self

from uring import (
    OP_POLL_ADD,
    OP_READ,
    OP_RECV,
    OP_SEND,
    OP_URING_CMD,
    RECVSEND_FIXED_BUF,
    SECONDS,
    Ring,
    address,
)

from ublkd.control import ANY_ID, CommandError, Control
from ublkd.target import Params
from ublkd.uapi import Cmd, Feature

# --- who uses the disk ------------------------------------------------------------------------

BLOCK = 4096
POISON = 0xEE
"""What a reader's buffer holds before it reads."""


def words(offset: int, length: int) -> bytes:
    """The content of our disks: every four bytes tell their own place."""
    return b"".join(at.to_bytes(4, "little") for at in range(offset, offset + length, 4))


@dataclass(frozen=True)
class Answer:
    """What a user of the disk got: bytes moved or -errno, and its buffer afterwards."""

    res: int
    data: bytes


class Client:
    """A process that uses the disk, past the page cache."""

    def __init__(self) -> None:
        self._pipe, theirs = Pipe()
        self.pid = os.fork()
        if not self.pid:
            with contextlib.suppress(BaseException):
                self._pipe.close()
                while True:
                    verb, node, arguments = theirs.recv()
                    theirs.send(_VERBS[verb](node, *arguments))
            os._exit(0)
        theirs.close()

    def begin(self, verb: str, node: str, *arguments: Any) -> None:
        self._pipe.send((verb, node, arguments))

    def end(self, seconds: float = SECONDS) -> Answer:
        assert self._pipe.poll(seconds), f"whoever uses the disk still waits after {seconds} s"
        answer: Answer = self._pipe.recv()
        return answer

    def answered(self) -> bool:
        return self._pipe.poll(0)

    def close(self) -> None:
        ended = os.pidfd_open(self.pid)
        os.kill(self.pid, signal.SIGKILL)
        if select.select([ended], [], [], SECONDS)[0]:
            os.waitpid(self.pid, 0)
        os.close(ended)


def _use(node: str, use: Callable[[int, mmap.mmap], int], length: int = mmap.PAGESIZE) -> Answer:
    area = mmap.mmap(-1, length)
    area.write(bytes([POISON]) * length)
    fd = os.open(node, os.O_RDWR | os.O_DIRECT)
    try:
        return Answer(use(fd, area), area[:])
    except OSError as error:
        return Answer(-(error.errno or 0), area[:])
    finally:
        os.close(fd)


def _read(node: str, offset: int, length: int) -> Answer:
    return _use(node, lambda fd, area: os.preadv(fd, [area], offset), length)


def _read_by_ring(node: str, offset: int, length: int) -> Answer:
    def use(fd: int, area: mmap.mmap) -> int:
        ring = Ring()
        return ring.result(ring.issue(OP_READ, fd, addr=address(area), length=length, off=offset))

    return _use(node, use, length)


def _write(node: str, offset: int, data: bytes) -> Answer:
    def use(fd: int, area: mmap.mmap) -> int:
        area[:] = data
        return os.pwritev(fd, [area], offset)

    return _use(node, use, len(data))


def _sync(node: str) -> Answer:
    def use(fd: int, _area: mmap.mmap) -> int:
        os.fdatasync(fd)
        return 0

    return _use(node, use)


def _range_ioctl(number: int) -> Callable[[str, int, int], Answer]:
    def do(node: str, offset: int, length: int) -> Answer:
        def use(fd: int, _area: mmap.mmap) -> int:
            fcntl.ioctl(fd, number, struct.pack("2Q", offset, length))
            return 0

        return _use(node, use)

    return do


_VERBS: dict[str, Callable[..., Answer]] = {
    "read": _read,
    "read by io_uring": _read_by_ring,
    "write": _write,
    "sync": _sync,
    "discard": _range_ioctl(0x1277),  # BLKDISCARD
    "zero": _range_ioctl(0x127F),  # BLKZEROOUT
}

# --- the server -------------------------------------------------------------------------------

F_NONE = Feature(0)  # the driver copies
F_ZERO_COPY = Feature(1 << 0)
F_USER_COPY = Feature(1 << 7)
F_AUTO_BUF_REG = Feature(1 << 11)
F_NO_PART_SCAN = Feature(1 << 18)
AUTO_FALLBACK = 1 << 16  # beside the slot, in sqe->addr of FETCH and COMMIT
NEED_REG_BUF = 1 << 17  # in op_flags of an iod

READ, WRITE, FLUSH, DISCARD, WRITE_ZEROES = 0, 1, 2, 3, 5
_IOD = struct.Struct("<2I2Q")
_IO_CMD = struct.Struct("<HHiQ")
_USER_COPY_OFFSET, _TAG_SHIFT = 0x80000000, 25


def _iowr(number: int) -> int:
    return 3 << 30 | _IO_CMD.size << 16 | ord("u") << 8 | number


IO_FETCH, IO_COMMIT, IO_REGISTER, IO_UNREGISTER = map(_iowr, (0x20, 0x21, 0x23, 0x24))


def lacks(wanted: Feature) -> bool:
    """Whether this kernel does not offer a feature; then ADD_DEV must not grant it either."""
    with Control() as control:
        if control.get_features() & wanted == wanted:
            return False
        with contextlib.suppress(CommandError):
            info = control.add_dev(
                dev_id=ANY_ID, queues=1, depth=1, max_io=4096, flags=wanted, cookie=0
            )
            control.del_dev(info.id)
            assert info.flags & wanted != wanted, "granted and not offered"
    return True


def delete(dev_id: int) -> None:
    """DEL_DEV, more patiently than the product; it is well if there is nothing to delete."""
    with Control() as control:
        try:
            control._command(Cmd.DEL_DEV, dev_id, seconds=60)
        except CommandError as error:
            if error.errno != errno.ENODEV:
                raise


@dataclass(frozen=True)
class Request:
    """An iod as it was when its FETCH completed. ``length`` is what the iod says, in bytes."""

    tag: int
    op: int
    flags: int
    sector: int
    length: int

    @property
    def asked(self) -> tuple[int, int, int]:
        """Operation, first byte, bytes."""
        return self.op, self.sector * 512, self.length


class Server:
    """One device with one queue. ``auto`` is what sqe->addr carries, per tag."""

    max_io = 64 << 10

    def __init__(
        self, flags: Feature = F_NONE, *, depth: int = 1, clients: int = 1, slots: int = 0,
        auto: Sequence[int] = (),
    ) -> None:  # fmt: skip
        self._wanted, self.depth, self._slots = flags, depth, slots
        self._auto = auto or [0] * depth
        self.clients = [Client() for _ in range(clients)]
        self._undo = contextlib.ExitStack()
        self._held = contextlib.ExitStack()
        for client in self.clients:
            self._undo.callback(client.close)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            undo.push(self._undo)
            self.control = undo.enter_context(Control())
            wanted = self._wanted | (self.control.get_features() & F_NO_PART_SCAN)
            self.info = self.control.add_dev(
                dev_id=ANY_ID, queues=1, depth=self.depth, max_io=self.max_io, flags=wanted,
                cookie=0,
            )  # fmt: skip
            self.id = self.info.id
            undo.callback(delete, self.id)
            assert self.info.flags & wanted == wanted, f"{wanted!r} became {self.info.flags!r}"
            self.set_params()
            undo.callback(self.let_go)
            self.char = os.open(f"/dev/ublkc{self.id}", os.O_RDWR)
            self._held.callback(os.close, self.char)
            size = -(-self.depth * _IOD.size // mmap.PAGESIZE) * mmap.PAGESIZE
            self._iods = self._held.enter_context(mmap.mmap(self.char, size, prot=mmap.PROT_READ))
            self.ring = Ring(slots=self._slots)
            self._held.callback(self.ring.close)
            self.arena = mmap.mmap(-1, self.depth * self.max_io)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def let_go(self) -> None:
        """Close all that a server has of its device. The disk dies of it."""
        self._held.close()

    @property
    def node(self) -> str:
        return f"/dev/ublkb{self.id}"

    def set_params(self) -> None:
        params = Params(
            size=1 << 20, volatile_cache=True, discard_granularity=4096,
            max_discard=self.max_io, max_write_zeroes=self.max_io,
        )  # fmt: skip
        self.control.set_params(self.id, params, max_io=self.max_io)

    def command(
        self, number: int, tag: int, *, result: int = 0, addr: int = 0, auto: int = 0,
        token: int = 0, ring: Ring | None = None,
    ) -> int:  # fmt: skip
        """Submit one of the commands on /dev/ublkcN; ``auto`` goes to sqe->addr."""
        return (ring or self.ring).issue(
            OP_URING_CMD, self.char, off=number, addr=auto, token=token,
            command=_IO_CMD.pack(0, tag, result, addr),
        )  # fmt: skip

    def _copy_addr(self, tag: int) -> int:
        if self.info.flags & (F_ZERO_COPY | F_USER_COPY):
            return 0
        return address(self.arena) + tag * self.max_io

    def fetch(self, tag: int) -> None:
        # user_data 0 would be "choose one": a FETCH of tag n completes with token n + 1
        self.command(IO_FETCH, tag, addr=self._copy_addr(tag), auto=self._auto[tag], token=tag + 1)

    def commit(self, tag: int, result: int, *, ring: Ring | None = None) -> None:
        self.command(
            IO_COMMIT, tag, result=result, addr=self._copy_addr(tag), auto=self._auto[tag],
            token=tag + 1, ring=ring,
        )  # fmt: skip

    def start(self) -> Future[None]:
        """START_DEV from another thread, with a deadline of its own."""

        def send() -> None:
            with Control() as control:
                control.start_dev(self.id, os.getpid())

        return ThreadPoolExecutor(1).submit(send)

    def until(self, ended: Future[None]) -> None:
        """Wait for a command's end. Who looks for partitions meanwhile gets an error."""
        done, told = os.pipe()
        ended.add_done_callback(lambda _: os.close(told))
        over = self.ring.issue(OP_POLL_ADD, done, op_flags=select.POLLIN)
        while (cqe := self.ring.wait(lambda _: True)).token != over:
            assert cqe.res == 0, f"FETCH of tag {cqe.token - 1} ended with {cqe.res}"
            self.commit(cqe.token - 1, -errno.EIO)
        os.close(done)
        ended.result()

    def serve(self) -> Self:
        """Bring the disk up."""
        for tag in range(self.depth):
            self.fetch(tag)
        self.until(self.start())
        return self

    def request(self) -> Request:
        """The next request that arrives."""
        cqe = self.ring.wait(lambda cqe: cqe.token <= self.depth)
        assert cqe.res == 0, f"FETCH of tag {cqe.token - 1} ended with {cqe.res}"
        tag = cqe.token - 1
        op_flags, sectors, sector, _ = _IOD.unpack_from(self._iods, tag * _IOD.size)
        return Request(tag, op_flags & 0xFF, op_flags & ~0xFF, sector, sectors * 512)

    def buffer(self, tag: int) -> memoryview:
        """The bytes of a tag, where the driver copies them."""
        return memoryview(self.arena)[tag * self.max_io : (tag + 1) * self.max_io]

    def user_copy(self, tag: int, offset: int = 0) -> int:
        """Where pread and pwrite on /dev/ublkcN find a byte of a request."""
        return _USER_COPY_OFFSET + (tag << _TAG_SHIFT) + offset

    def in_flight(self) -> int:
        """Requests that the disk has not ended, READs and WRITEs together."""
        counts = Path(f"/sys/block/ublkb{self.id}/inflight").read_text().split()
        return sum(map(int, counts))

    # --- lent pages ---

    def lend(self, tag: int, slot: int = 0) -> int:
        """The answer to REGISTER_IO_BUF."""
        return self.ring.result(self.command(IO_REGISTER, tag, addr=slot))

    def take_back(self, slot: int = 0, *, tag: int = 0) -> int:
        """The answer to UNREGISTER_IO_BUF."""
        return self.ring.result(self.command(IO_UNREGISTER, tag, addr=slot))

    def member(
        self, opcode: int, fd: int, addr: int = 0, length: int = BLOCK, *, slot: int = 0,
        off: int = 0,
    ) -> int:  # fmt: skip
        """The result of an operation on lent pages; addr counts from the request's first byte."""
        ioprio = RECVSEND_FIXED_BUF if opcode in (OP_SEND, OP_RECV) else 0
        return self.ring.result(
            self.ring.issue(opcode, fd, addr=addr, length=length, slot=slot, off=off, ioprio=ioprio)
        )
