"""A file or block device behind a target: opened, claimed, measured, and how it is accessed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ublkd._core import ffi, lib
from ublkd.errors import UblkdError, UsageError, printable, reason

BLKGETSIZE64 = 0x80081272  # <linux/fs.h>
BLKSSZGET = 0x1268
BLKPBSZGET = 0x127B
BLKGETDISKSEQ = 0x80081280
FS_IOC_GETVERSION = 0x80087601
PAGE = 4096
DISK_IDS = ("dm/uuid", "md/uuid", "wwid", "device/wwid")
"""Where in sysfs disks have names that they keep: device-mapper, md, NVMe, SCSI."""
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
    io_align: int = 1


class Backing:
    """An open backing. Sizes in bytes; ``close`` lets go of it and of its lock."""

    def __init__(
        self,
        path: str,
        *,
        direct_io: str = "auto",
        read_only: bool = False,
        share: bool = False,
        block: int | None = None,
        offset: int = 0,
    ) -> None:
        """``direct_io`` is auto, on or off; ``block`` and ``offset`` what the disk wants.

        Raises UblkdError with the cause; nothing stays open then.
        """
        self.path = path
        self.read_only = read_only
        self.fd = _open(path, read_only=read_only, share=share)
        try:
            _claim(self.fd, path, read_only=read_only, share=share)
            self.access = _access(self.fd, path, direct_io, block, offset)
        except BaseException:
            os.close(self.fd)
            raise

    @property
    def is_block_device(self) -> bool:
        """Else it is a regular file."""
        return _is_block_device(self.fd)

    @property
    def size(self) -> int:
        """As it is now."""
        return _size(self.fd)

    @property
    def physical_block(self) -> int:
        """What it is best read and written in."""
        return max(self.access.block, _physical_block(self.fd))

    @property
    def rotational(self) -> bool:
        """Whether seeking costs: of a file, on the disk that its filesystem is on."""
        return _queue_limit(self.fd, "rotational") == 1

    @property
    def how_to_grow(self) -> str:
        """A hint for one that is too small; never one that could cut it."""
        if self.is_block_device:
            return "give a larger device"
        return "make it larger, for example with 'truncate -s +10G'"

    @property
    def identity(self) -> str:
        """What tells it from another one put in its place: device and inode."""
        found = os.fstat(self.fd)
        if stat.S_ISBLK(found.st_mode):
            return f"block {os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
        return f"file {os.major(found.st_dev)}:{os.minor(found.st_dev)} {found.st_ino}"

    @property
    def generation(self) -> str:
        """Of a file's inode: what tells it from a later one with the same number; empty if nothing.

        ext4 gives the number of a deleted file to the next one at once. The generation is what NFS
        knows files by: it stays as it is whatever is done to the file.
        """
        if self.is_block_device:
            return ""
        try:
            found = fcntl.ioctl(self.fd, FS_IOC_GETVERSION, bytes(8))
        except OSError:  # tmpfs, which gives no number twice; overlayfs and NFS do not tell
            return ""
        return str(struct.unpack_from("I", found)[0])  # a long by its name, an int in truth

    @property
    def disk_id(self) -> str:
        """Of a block device's disk: what tells it from a later one with its number; else empty.

        Its own name for itself; where it has none, the kernel's count of all disks (diskseq), by
        which one that is gone and comes again is another one.
        """
        if not self.is_block_device:
            return ""
        for name in DISK_IDS:
            if found := _of_disk(self.fd, name):
                return f"{name} {found}"
        try:
            number = fcntl.ioctl(self.fd, BLKGETDISKSEQ, bytes(8))
        except OSError:
            return ""
        return f"diskseq {struct.unpack('Q', number)[0]}"

    def discard(self) -> tuple[int, int]:
        """Granularity and maximum of a discard; a maximum of 0: it cannot."""
        block = self.access.block
        if self.read_only:
            return block, 0
        if self.is_block_device:
            most = _queue_limit(self.fd, "discard_max_bytes")
            if not most or lib.backing_probe_discard(self.fd) < 0:
                return block, 0
            return max(block, _queue_limit(self.fd, "discard_granularity")), min(most, UNBOUNDED)
        found = os.fstat(self.fd)
        beyond = -(-found.st_size // PAGE) * PAGE
        if lib.backing_probe_punch_hole(self.fd, beyond) < 0:
            return block, 0
        return max(block, found.st_blksize), UNBOUNDED

    def close(self) -> None:
        """The lock goes at once: the kernel may hold the file longer."""
        with contextlib.suppress(OSError):  # a filesystem without locks
            fcntl.flock(self.fd, fcntl.LOCK_UN)
        os.close(self.fd)


def apart(backings: Sequence[Backing]) -> dict[str, tuple[str, ...]]:
    """For ``describe``: what tells them from others put in their place (see recovery.replaced)."""
    told = {
        "identity": tuple(backing.identity for backing in backings),
        "inode_generation": tuple(backing.generation for backing in backings),
        "disk_id": tuple(backing.disk_id for backing in backings),
    }
    return {key: values for key, values in told.items() if any(values)}


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
        raise UblkdError(
            f"cannot look at {shown}: {why}", hint=f"see 'namei -l {shown}'"
        ) from error
    if kind not in (stat.S_IFREG, stat.S_IFBLK):
        raise UblkdError(
            f"{shown} is {KINDS.get(kind, 'neither a file nor a block device')}",
            hint="it takes a regular file or a block device",
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
            shown = printable(path)
            raise UblkdError(
                f"cannot open {shown}: {reason(error)}", hint=f"see 'namei -l {shown}', and dmesg"
            ) from error
    if not (stat.S_ISREG(mode := os.fstat(fd).st_mode) or stat.S_ISBLK(mode)):
        os.close(fd)  # replaced since it was looked at
        raise UblkdError(
            f"{printable(path)} is no longer a file or block device",
            hint="something has just replaced it",
        )
    return fd


def _in_use(path: str) -> UblkdError:
    return UblkdError(
        f"{printable(path)} is in use by another program",
        hint="see 'ublkd list', 'lsblk' and 'fuser -v'; --share serves it all the same",
    )


def _claim(fd: int, path: str, *, read_only: bool, share: bool) -> None:
    """Lock the file (a block device is claimed by O_EXCL at open).

    Readers share it with readers. Whoever shares shows that by a reader's lock if there is one
    to be had, so that the next one who wants it alone is refused.
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
    """A number from the queue folder of ``_of_disk``; 0 where there is none."""
    with contextlib.suppress(ValueError):
        return int(_of_disk(fd, f"queue/{name}"))
    return 0


def _of_disk(fd: int, name: str) -> str:
    """A line from the sysfs folder of a block device's disk, or of the one below a file.

    Empty where there is none: a filesystem in memory, on the network, or over several disks.
    """
    found = os.fstat(fd)
    number = found.st_rdev if stat.S_ISBLK(found.st_mode) else found.st_dev
    device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    for folder in (device, device.resolve().parent):  # what a partition has not, its disk has
        with contextlib.suppress(OSError, ValueError):
            return (folder / name).read_text().strip()
    return ""


# --- direct I/O -----------------------------------------------------------------------------


def _access(fd: int, path: str, wish: str, block: int | None, offset: int) -> Access:
    """Decide between direct and buffered I/O: ``wish`` is auto, on or off."""
    floor = _ioctl_int(fd, BLKSSZGET) if _is_block_device(fd) else 512
    if block is not None and block < floor:
        raise UsageError(
            f"--block-size {block} is under the {floor} of {printable(path)}",
            hint=f"from {floor} to 4096",
        )
    buffered = block or floor
    refuse_odd(offset, buffered)
    if wish == "off":
        return Access(direct=False, reason="--direct-io off was asked for", block=buffered)
    found = _direct(fd, block, floor, offset)
    if isinstance(found, Access):
        return found
    if wish == "on":
        raise UblkdError(
            f"direct I/O is not possible on {printable(path)}: {found}",
            hint="leave --direct-io out to use the page cache there",
        )
    return Access(direct=False, reason=found, block=buffered)


def refuse_odd(offset: int, block: int) -> None:
    """Raise UsageError for a disk that would not start at one of its blocks."""
    if offset % block:
        raise UsageError(
            f"--offset {offset} is not a multiple of the block of {block} bytes",
            hint="an offset keeps the disk's blocks whole",
        )


def _alignment(fd: int, floor: int) -> tuple[int, int] | str:
    """Bytes to which direct I/O wants memory and offsets aligned; or why it cannot be."""
    mem, offset = ffi.new("uint32_t *"), ffi.new("uint32_t *")
    ret = lib.backing_dio_align(fd, mem, offset)
    if ret == 0:
        return mem[0], offset[0]
    if ret == -errno.EINVAL:
        return "the filesystem does not do it for this file"
    return floor, floor  # the kernel does not say: the block device's sizes, else 512


def _direct(fd: int, block: int | None, floor: int, start: int) -> Access | str:
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
    if start % smallest:
        return f"it needs an offset in blocks of {smallest} bytes, and --offset is {start}"
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
        _try_read(fd, block or smallest, start)
    except OSError as error:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)
        return f"the filesystem refuses it ({reason(error)})"
    return Access(
        direct=True,
        reason="the backing can",
        block=block or smallest,
        mem_align=max(mem, 4),
        io_align=smallest,
    )


def _try_read(fd: int, size: int, start: int) -> None:
    with mmap.mmap(-1, max(size, PAGE)) as page, memoryview(page) as view, view[:size] as part:
        buffers: list[Any] = [part]
        os.preadv(fd, buffers, start)
