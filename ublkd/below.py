"""Which block devices stand below a file, and that a disk must not stand on itself.

A request to such a disk would wait for another request to the same disk, and the kernel does not
notice: to it a daemon that reads a file is any program that reads a file.

Followed are partitions, device-mapper, md and bcache (sysfs has what they stand on), the kernel's
loop devices, files by their filesystem, and ublkd's own disks. Not followed are filesystems over
a network or over another one (overlayfs), and disks that other programs serve (nbd, fuse).
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ublkd.errors import UblkdError, printable

SYSFS = Path("/sys")
MOUNTS = Path("/proc/self/mountinfo")  # proc(5)

Backings = Callable[[int], Sequence[str]]
"""The paths behind the ublkd device of a number; none where it is not ublkd's."""


def refuse_itself(files: Sequence[int], dev_id: int, backings: Backings) -> None:
    """Raise UblkdError if one of the files stands on the disk that they are to serve.

    Descriptors opened with O_PATH do. Ask so before a backing is opened for good: the first read
    of a disk that waits for its daemon would never end.
    """
    own = f"ublkb{dev_id}"
    for fd in files:
        above = devices(fd, backings)
        if own in above:
            raise UblkdError(
                f"/dev/{own} would stand on itself{_way(above, own)}: it would wait for itself",
                hint="leave --id out to get another number, or serve another file",
            )


def refuse_paths(paths: Sequence[str], dev_id: int, backings: Backings) -> None:
    """The same for what is not opened yet; what cannot be is left to whoever opens it."""
    for path in paths:
        with contextlib.suppress(OSError, ValueError), _looked_at(path) as fd:
            refuse_itself([fd], dev_id, backings)


def devices(fd: int, backings: Backings) -> dict[str, str]:
    """The kernel's names of all block devices that a file stands on, itself one or not.

    In the order of their distance, each with the one above it ("" for the first).
    """
    above: dict[str, str] = {}
    todo = [(name, "") for name in _of_file(fd)]
    for name, over in todo:  # it grows on the way
        if name not in above:
            above[name] = over
            todo += [(lower, name) for lower in _under(name, backings)]
    return above


def _way(above: dict[str, str], name: str) -> str:
    """The devices between the file and that one, from above."""
    way: list[str] = []
    while name := above[name]:
        way.insert(0, printable(f"/dev/{name}"))
    return f" through {', '.join(way)}" if way else ""


def _under(name: str, backings: Backings) -> Iterator[str]:
    """What a block device stands on directly."""
    folder = (SYSFS / "class" / "block" / name).resolve()
    if (folder / "partition").exists():
        yield folder.parent.name
    with contextlib.suppress(OSError):
        yield from sorted(os.listdir(folder / "slaves"))
    with contextlib.suppress(OSError):
        # a file that was deleted has no path, and is not followed
        yield from _of_path(os.fsdecode((folder / "loop/backing_file").read_bytes())[:-1])
    if match := re.fullmatch("ublkb([0-9]+)", name):
        for path in backings(int(match[1])):
            with contextlib.suppress(OSError):
                yield from _of_path(path)


@contextlib.contextmanager
def _looked_at(path: str) -> Iterator[int]:
    """A descriptor of what is there, without opening it."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _of_path(path: str) -> list[str]:
    with _looked_at(path) as fd:
        return list(_of_file(fd))


def _of_file(fd: int) -> Iterator[str]:
    """The block device that it is, or those of its filesystem."""
    is_block, number = _number(fd)
    if name := _name(number):
        yield name
    elif not is_block:
        yield from _of_mount(fd)


def _number(fd: int) -> tuple[bool, int]:
    """Whether it is a block device; the number of it or of its filesystem's."""
    found = os.fstat(fd)
    is_block = stat.S_ISBLK(found.st_mode)
    return is_block, found.st_rdev if is_block else found.st_dev


def _name(number: int) -> str:
    """How the kernel calls a block device; empty for an anonymous number, as of btrfs."""
    try:
        link = SYSFS / f"dev/block/{os.major(number)}:{os.minor(number)}"
        return Path(os.readlink(link)).name
    except OSError:
        return ""


def _of_mount(fd: int) -> Iterator[str]:
    """The devices of a filesystem that has no number of its own, by what was mounted."""
    source = _mounted_from(fd)
    with contextlib.suppress(OSError):
        if source.startswith("/"):
            with _looked_at(source) as node:
                if name := _name(_number(node)[1]):  # a node, or (erofs) a file
                    yield name
                    yield from _btrfs(name)


def _mounted_from(fd: int) -> str:
    """The source of the mount that a file is on; empty where that cannot be told."""
    try:
        info = Path(f"/proc/self/fdinfo/{fd}").read_text()
        mounts = os.fsdecode(MOUNTS.read_bytes()).split("\n")
    except OSError:
        return ""
    mount = re.search(r"^mnt_id:\s*(\d+)$", info, re.MULTILINE)
    for line in mounts:
        if mount and line.split(" ", 1)[0] == mount[1]:
            source = line.partition(" - ")[2].split(" ")[1]
            return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), source)
    return ""


def _btrfs(name: str) -> Iterator[str]:
    """All devices of the btrfs that has this one: it is mounted by any of them."""
    for folder in (SYSFS / "fs" / "btrfs").glob(f"*/devices/{name}"):
        yield from sorted(os.listdir(folder.parent))
