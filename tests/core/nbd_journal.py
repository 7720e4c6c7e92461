"""A link with a journal of two writes, and what the tests of it say often."""

from __future__ import annotations

import os
from dataclasses import dataclass

from .driver import WRITE
from .files import noise
from .nbd_disk import DEPTH, NbdDisk
from .nbd_server import Asked, Command, Server, Store

SIZE = 4096
ROOM = 2 * SIZE
"""Of the journals here: two writes."""
JOURNAL_MEMBER = 2  # of a WRITE
OUR_FLUSH = DEPTH
"""In the place of a tag."""


@dataclass(frozen=True)
class Entry:
    command: int
    flags: int
    offset: int
    data: bytes


def listed(disk: NbdDisk) -> list[Entry]:
    lib, ffi = disk.lib, disk.core.ffi
    count = lib.nbd_journal(disk.links, ffi.NULL, 0)
    out = ffi.new("struct nbd_entry[]", count)
    assert lib.nbd_journal(disk.links, out, count) == count
    orders = [int(e.order) for e in out]
    assert orders == sorted(set(orders))
    return [
        Entry(
            int(e.command),
            int(e.flags),
            int(e.offset),
            os.pread(disk.journal, e.length, e.position) if e.command == Command.WRITE else b"",
        )
        for e in out
    ]


def written(tag: int) -> Entry:
    return Entry(Command.WRITE, 0, tag * SIZE, data_of(tag))


def data_of(tag: int) -> bytes:
    return noise(SIZE, tag)


def write(disk: NbdDisk, *tags: int) -> None:
    """Begun, each at its own place."""
    for tag in tags:
        disk.fill(tag, data_of(tag))
        disk.begin(tag, WRITE, tag * SIZE, SIZE)
    disk.settle()


def heard(server: Server) -> list[int]:
    """Tags of what it has not answered."""
    return [asked.tag for asked in server.asked]


def of(server: Server, tag: int) -> Asked:
    return next(asked for asked in server.asked if asked.tag == tag)


def answer(disk: NbdDisk, server: Server, *tags: int, error: int = 0) -> None:
    """One after the other, to the end: a write has to be in the journal's file, too."""
    for tag in tags:
        server.answer(of(server, tag), error)
        if tag == OUR_FLUSH:
            disk.settle()
        else:
            disk.until_committed(tag)


def is_broken(disk: NbdDisk) -> bool:
    return bool(disk.lib.nbd_journal_broken(disk.links))


def check_written(disk: NbdDisk, *tags: int, result: int = SIZE) -> None:
    disk.until_committed(*tags)
    assert [disk.result(tag) for tag in tags] == [result] * len(tags)


def check_stored(server: Server, *tags: int) -> None:
    for tag in tags:
        assert server.store.content[tag * SIZE :][:SIZE] == data_of(tag)


def attach(disk: NbdDisk) -> Server:
    server = disk.attach(Store(bytes(DEPTH * SIZE)))
    disk.until_connected()
    disk.settle()
    return server


def lose(disk: NbdDisk, server: Server) -> None:
    losses = disk.status.losses
    server.shut()
    disk.until_lost(losses + 1)
    disk.settle()
