"""The loop target: a file or a block device as a disk. Opens, checks and decides; loop.c serves."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from ublkd._core import ffi, lib
from ublkd.errors import UblkdError, UsageError, printable, reason
from ublkd.target import API_VERSION, BLOCK_SIZE, Native, Option, OptionValue, Params

BLKGETSIZE64 = 0x80081272  # <linux/fs.h>
BLKSSZGET = 0x1268
BLKPBSZGET = 0x127B
PAGE = 4096
UNBOUNDED = 0xFFFFFFFF // 512 * 512
"""Bytes: the most that one request without data can name, in the driver's 32-bit sectors."""

LOCK_SECONDS = 2
"""How long a lock may outlive its holder: a killed daemon's ring is torn down behind its back."""

KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a fifo",
    stat.S_IFCHR: "a character device",
    stat.S_IFSOCK: "a socket",
}


@dataclass(frozen=True, kw_only=True)
class Access:
    """How the backing is read and written, and why so. Sizes in bytes."""

    direct: bool
    reason: str
    block: int
    mem_align: int = 4


class LoopTarget:
    """See docs/architecture.md for how a request travels through it."""

    api_version: ClassVar[int] = API_VERSION
    options: ClassVar[Sequence[Option]] = (
        Option(name="file", help="a file or block device to serve", kind="path", required=True),
        Option(
            name="direct-io",
            help="bypass the page cache of the backing: auto (default), on, off",
            kind="choice",
            choices=("auto", "on", "off"),
            default="auto",
        ),
        Option(name="read-only", help="never write", kind="flag", default=False),
        Option(
            name="share",
            help="serve the backing even if another program has it in use",
            kind="flag",
            default=False,
        ),
        BLOCK_SIZE,
    )

    def __init__(
        self, path: str, *, direct_io: str, read_only: bool, share: bool, block: int | None
    ) -> None:
        """Raises UblkdError with the cause; nothing stays open then."""
        self._path = path
        self._read_only = read_only
        self._fd = _open(path, read_only=read_only, share=share)
        try:
            _claim(self._fd, path, read_only=read_only, share=share)
            self._access = _access(self._fd, path, direct_io, block)
            self.params, self._warning = self._describe_disk()
            self._handle = ffi.new("struct loop *")
            self._handle.read_only = read_only
            self._handle.block_device = _is_block_device(self._fd)
        except BaseException:
            os.close(self._fd)
            raise

    @classmethod
    def from_options(cls, options: Mapping[str, OptionValue]) -> Self:
        """The options ``file``, ``direct_io``, ``read_only``, ``share``, ``block_size``."""
        block = options["block_size"]
        return cls(
            str(options["file"]),
            direct_io=str(options["direct_io"]),
            read_only=bool(options["read_only"]),
            share=bool(options["share"]),
            block=block if isinstance(block, int) else None,
        )

    def files(self) -> Sequence[int]:
        """The backing."""
        return (self._fd,)

    def native(self) -> Native:
        """See loop.c."""
        return Native(lib.loop_ops(), self._handle)

    def describe(self) -> Mapping[str, OptionValue]:
        """The backing, and how it is accessed."""
        told: dict[str, OptionValue] = {
            "backing": self._path,
            "direct_io": self._access.direct,
            "direct_io_reason": self._access.reason,
            "read_only": self._read_only,
        }
        if self._warning:
            told["warning"] = self._warning
        return told

    def close(self) -> None:
        """Let go of the backing, and of its lock at once: the kernel may hold the file longer."""
        with contextlib.suppress(OSError):  # a filesystem without locks
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        os.close(self._fd)

    def _describe_disk(self) -> tuple[Params, str]:
        block = self._access.block
        whole = _size(self._fd)
        size = whole - whole % block
        if size == 0:
            raise UblkdError(
                f"{printable(self._path)} has {whole} bytes, less than one block of {block}",
                hint="make it larger, for example with 'truncate -s 10G'",
            )
        warning = ""
        if size != whole:
            warning = f"the last {whole - size} bytes are not a whole block and are left out"
        physical = max(block, _physical_block(self._fd))
        granularity, max_discard = self._discard(block)
        params = Params(
            size=size,
            logical_block=block,
            physical_block=physical,
            io_min=physical,
            io_opt=physical,
            dma_align=self._access.mem_align,
            read_only=self._read_only,
            rotational=_queue_limit(self._fd, "rotational") == 1,
            volatile_cache=not self._read_only,
            fua=not self._read_only,
            discard_granularity=granularity,
            max_discard=max_discard,
            max_write_zeroes=0 if self._read_only else UNBOUNDED,
            max_members=lib.LOOP_MAX_MEMBERS,
        )
        return params, warning

    def _discard(self, block: int) -> tuple[int, int]:
        """Granularity and maximum in bytes; a maximum of 0: no discard."""
        if self._read_only:
            return block, 0
        if _is_block_device(self._fd):
            most = _queue_limit(self._fd, "discard_max_bytes")
            if not most or lib.loop_probe_discard(self._fd) < 0:
                return block, 0
            return max(block, _queue_limit(self._fd, "discard_granularity")), min(most, UNBOUNDED)
        found = os.fstat(self._fd)
        beyond = -(-found.st_size // PAGE) * PAGE
        if lib.loop_probe_punch_hole(self._fd, beyond) < 0:
            return block, 0
        return max(block, found.st_blksize), UNBOUNDED


def _open(path: str, *, read_only: bool, share: bool) -> int:
    shown = printable(path)
    try:
        kind = stat.S_IFMT(Path(path).stat().st_mode)
    except FileNotFoundError as error:
        if Path(path).is_symlink():
            raise UblkdError(
                f"{shown} is a link to a file that does not exist", hint="see 'readlink -f'"
            ) from error
        raise UblkdError(
            f"{shown} does not exist", hint="make it, for example with 'truncate -s 10G'"
        ) from error
    except (OSError, ValueError) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
        raise UblkdError(f"cannot look at {shown}: {why}") from error
    if kind not in (stat.S_IFREG, stat.S_IFBLK):
        raise UblkdError(
            f"{shown} is {KINDS.get(kind, 'neither a file nor a block device')}",
            hint="the loop target serves a regular file or a block device",
        )
    flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    if kind == stat.S_IFBLK and not share:
        flags |= os.O_EXCL
    return _open_patiently(path, flags, read_only=read_only)


def _open_patiently(path: str, flags: int, *, read_only: bool) -> int:
    until = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fd = os.open(path, flags)
            break
        except OSError as error:
            if error.errno == errno.EBUSY and flags & os.O_EXCL:
                if time.monotonic() < until:
                    time.sleep(0.02)
                    continue
                raise _in_use(path) from error
            if not read_only and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise UblkdError(
                    f"{printable(path)} cannot be opened for writing: {reason(error)}",
                    hint="serve it with --read-only, or see 'ls -l' and 'lsattr'",
                ) from error
            raise UblkdError(f"cannot open {printable(path)}: {reason(error)}") from error
    if not (stat.S_ISREG(mode := os.fstat(fd).st_mode) or stat.S_ISBLK(mode)):
        os.close(fd)  # replaced since it was looked at
        raise UblkdError(f"{printable(path)} is no longer a file or block device")
    return fd


def _in_use(path: str) -> UblkdError:
    return UblkdError(
        f"{printable(path)} is in use by another program",
        hint="see 'ublkd list', 'lsblk' and 'fuser -v'; --share serves it all the same",
    )


def _claim(fd: int, path: str, *, read_only: bool, share: bool) -> None:
    """Lock the file (a block device is claimed by O_EXCL at open).

    Readers share it with readers. Whoever shares shows that by a reader's lock if there is one
    to be had, so that the next one who does not want to share is refused.
    """
    kind = fcntl.LOCK_SH if read_only or share else fcntl.LOCK_EX
    until = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except OSError as error:
            if share or error.errno != errno.EWOULDBLOCK:
                return  # a filesystem without locks: nobody else could take one either
            if time.monotonic() >= until:
                raise _in_use(path) from error
            time.sleep(0.02)
        else:
            return


def _is_block_device(fd: int) -> bool:
    return stat.S_ISBLK(os.fstat(fd).st_mode)


def _size(fd: int) -> int:
    found = os.fstat(fd)
    if stat.S_ISREG(found.st_mode):
        return found.st_size
    return int(struct.unpack("Q", fcntl.ioctl(fd, BLKGETSIZE64, bytes(8)))[0])


def _ioctl_int(fd: int, request: int) -> int:
    return int(struct.unpack("I", fcntl.ioctl(fd, request, bytes(4)))[0])


def _physical_block(fd: int) -> int:
    size = _ioctl_int(fd, BLKPBSZGET) if _is_block_device(fd) else os.fstat(fd).st_blksize
    return size if size & (size - 1) == 0 and size <= PAGE else PAGE


def _queue_limit(fd: int, name: str) -> int:
    """A number from the sysfs queue folder of a block device; 0 where there is none."""
    found = os.fstat(fd)
    if not stat.S_ISBLK(found.st_mode):
        return 0
    device = Path(f"/sys/dev/block/{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}")
    for folder in (device, device.resolve().parent):  # a partition's limits are its disk's
        try:
            return int((folder / "queue" / name).read_text())
        except (OSError, ValueError):
            continue
    return 0


# --- direct I/O -----------------------------------------------------------------------------


def _access(fd: int, path: str, wish: str, block: int | None) -> Access:
    """Decide between direct and buffered I/O: ``wish`` is auto, on or off."""
    floor = _ioctl_int(fd, BLKSSZGET) if _is_block_device(fd) else 512
    if block is not None and block < floor:
        raise UsageError(
            f"--block-size {block} is under the {floor} of {printable(path)}",
            hint=f"from {floor} to 4096",
        )
    buffered = block or floor
    if wish == "off":
        return Access(direct=False, reason="--direct-io off was asked for", block=buffered)
    found = _direct(fd, block, floor)
    if isinstance(found, Access):
        return found
    if wish == "on":
        raise UblkdError(
            f"direct I/O is not possible on {printable(path)}: {found}",
            hint="leave --direct-io out to use the page cache there",
        )
    return Access(direct=False, reason=found, block=buffered)


def _alignment(fd: int, floor: int) -> tuple[int, int] | str:
    """Bytes to which direct I/O wants memory and offsets aligned; or why it cannot be."""
    mem, offset = ffi.new("uint32_t *"), ffi.new("uint32_t *")
    ret = lib.loop_dio_align(fd, mem, offset)
    if ret == 0:
        return mem[0], offset[0]
    if ret == -errno.EINVAL:
        return "the filesystem does not do it for this file"
    return floor, floor  # the kernel does not say: the block device's sizes, else 512


def _direct(fd: int, block: int | None, floor: int) -> Access | str:
    """Switch ``fd`` to direct I/O and try it; or the reason why not, with ``fd`` as it was."""
    wanted = _alignment(fd, floor)
    if isinstance(wanted, str):
        return wanted
    mem, offset = wanted
    smallest = max(floor, offset)
    if max(mem, smallest) > PAGE:
        return f"it needs blocks of {max(mem, smallest)} bytes, and {PAGE} is the most"
    if block is not None and block < smallest:
        return f"it needs blocks of {smallest} bytes, and --block-size is {block}"
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
        _try_read(fd, block or smallest)
    except OSError as error:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)
        return f"the filesystem refuses it ({reason(error)})"
    return Access(
        direct=True, reason="the backing can", block=block or smallest, mem_align=max(mem, 4)
    )


def _try_read(fd: int, size: int) -> None:
    with mmap.mmap(-1, max(size, PAGE)) as page, memoryview(page) as view, view[:size] as part:
        buffers: list[Any] = [part]
        os.preadv(fd, buffers, 0)
