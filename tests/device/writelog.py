"""A disk that keeps a log of what is written to it, in the order in which it became durable.

dm-log-writes: a write is in the log when it has ended and carried FUA, or when a FLUSH that came
behind it has ended. So what the log holds up to a mark is what a power failure at that moment must
leave. Its format is in drivers/md/dm-log-writes.c.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from tools import patiently, run

SUPER = struct.Struct("<QQQI")  # struct log_write_super
MAGIC = 0x6A736677736872
ENTRY = struct.Struct("<QQQQ")  # struct log_write_entry
FLUSH, FUA, DISCARD, MARK = (1 << bit for bit in range(4))


@dataclass(frozen=True)
class Entry:
    """One bio; offset and length in bytes. A FLUSH may have neither, a mark has its text."""

    flags: int
    at: int
    length: int
    data: bytes

    @property
    def kind(self) -> str:
        """What it did, in a word; a write with FUA is `fua`."""
        for flag, word in ((MARK, "mark"), (DISCARD, "discard"), (FUA, "fua"), (FLUSH, "flush")):
            if self.flags & flag:
                return word
        return "write"

    def replay(self, image: BinaryIO) -> None:
        """Do it again; what was discarded is zeroes."""
        image.seek(self.at)
        if self.flags & DISCARD:
            image.write(bytes(self.length))
        elif not self.flags & MARK:
            image.write(self.data)


@dataclass(frozen=True)
class Logged:
    """The disk while it is there."""

    name: str

    @property
    def node(self) -> str:
        """Its block device."""
        return f"/dev/mapper/{self.name}"

    def mark(self, word: str) -> None:
        """Put a word into the log, behind all that is durable now."""
        run("dmsetup", "message", self.name, "0", "mark", word)


@contextlib.contextmanager
def logged(name: str, below: str, log: str, size: int) -> Iterator[Logged]:
    """A disk over `below`, its log on `log`, which is whole when the block has ended."""
    run("modprobe", "-a", "dm-mod", "dm-log-writes")
    run("dmsetup", "create", name, "--table", f"0 {size // 512} log-writes {below} {log}")
    run("dmsetup", "mknodes", name)  # no udev here
    try:
        yield Logged(name)
    finally:
        patiently("dmsetup", "remove", name)


def read_log(log: str) -> list[Entry]:
    """All of a log, in its order."""
    with open(log, "rb") as f:
        magic, version, count, sector = SUPER.unpack(f.read(SUPER.size))
        assert (magic, version) == (MAGIC, 1)
        f.seek(sector)
        return [_entry(f, sector) for _ in range(count)]


def _entry(f: BinaryIO, sector: int) -> Entry:
    head = f.read(sector)
    at, sectors, flags, text = ENTRY.unpack_from(head)
    length = sectors * sector
    if flags & MARK:
        return Entry(flags, 0, 0, head[ENTRY.size : ENTRY.size + text])
    return Entry(flags, at * sector, length, b"" if flags & DISCARD else f.read(length))


def place(entries: list[Entry], mark: str) -> int:
    """The index of a mark."""
    texts = [entry.data if entry.flags & MARK else b"" for entry in entries]
    return texts.index(mark.encode())


def between(entries: list[Entry], first: str, last: str) -> list[Entry]:
    """What lies between two marks."""
    return entries[place(entries, first) + 1 : place(entries, last)]
