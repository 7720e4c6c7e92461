"""Writes that a server does long after their connection was given up, and newer ones behind them.

The engine, the keeper of its connections and a server that misbehaves: all but the device itself.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from socket import socket
from typing import Any

import pytest

from tests.unit.nbd.faults import TRIM, WRITE, WRITE_ZEROES, Fault, Request
from tests.unit.nbd.misbehaving import Misbehaving
from ublkd.targets.nbd import keeper, parting
from ublkd.targets.nbd.stream import Patience
from ublkd.targets.nbd.uri import parse

from . import driver
from .core import Core
from .files import noise, open_fds
from .nbd_disk import PAGES, NbdDisk
from .nbd_kept import KeptDisk

SIZE = 4096
OLD, NEW = noise(SIZE, 1), noise(SIZE, 2)
LONG = 60.0
"""Seconds: nothing here is meant to wait so long."""


class Kept(KeptDisk):
    """With one link, and what it has begun to hear servers out for."""

    waits: list[int]

    def write(self, tag: int, data: bytes) -> None:
        self.disk.fill(tag, data)
        self.disk.begin(tag, driver.WRITE, 0, len(data))

    @property
    def disk(self) -> NbdDisk:
        return self.disks[0]

    def until_it_waits(self) -> None:
        self.until(lambda: self.waits)
        # from here on no server is late: on a busy machine an honest one could be
        self.disk.lib.nbd_limits(self.keeper.links, 0, 0)

    def until_written(self, *tags: int) -> None:
        self.until_committed(*tags)
        assert [self.disk.result(tag) for tag in tags] == [SIZE] * len(tags)


KeptMaker = Callable[..., Kept]


@pytest.fixture
def keep(core: Core, monkeypatch: pytest.MonkeyPatch) -> Iterator[KeptMaker]:
    """Disks whose keeper hears a server out for ``bound`` seconds."""
    hear_out = parting._hear_out
    made: list[Kept] = []

    def make(
        server: Misbehaving, *, bound: float = LONG, pages: str = "copy", **words: Any
    ) -> Kept:
        waits: list[int] = []

        def counted(socks: Sequence[socket], patience: Patience) -> None:
            if socks:
                waits.append(len(socks))
                core.lib.nbd_break(kept.keeper.links, 0)  # there is none, but now the disk looks
            hear_out(socks, patience)

        monkeypatch.setattr(parting, "_hear_out", counted)
        monkeypatch.setattr(parting, "BOUND", bound)
        monkeypatch.setattr(keeper, "gathered", lambda _: PAGES[pages].gather_bytes)
        words = {"timeout": 0.1} | words
        kept = Kept(core, monkeypatch, server, pages=PAGES[pages], **words)
        kept.waits = waits
        made.append(kept)
        return kept

    before = open_fds()
    yield make
    for kept in made:
        kept.close()
    assert open_fds() == before


@pytest.fixture(params=["unix", "tcp"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | int:
    return tmp_path / "nbd.sock" if request.param == "unix" else 0


def stalled(*, command: int = WRITE, connection: int = 0) -> Fault:
    """A request that is in the server's hands until it may go on, and then is done."""
    return Fault("stall", "apply", command=command, connection=connection)


@pytest.mark.parametrize("pages", ["copy", "copy, gathered", "auto", "auto, READ_FIXED"])
def test_a_late_write_is_waited_for_and_newer_data_wins(
    keep: KeptMaker, place: Path | int, pages: str
) -> None:
    with Misbehaving(place, stalled()) as server:
        kept = keep(server, pages=pages)
        kept.write(0, OLD)
        kept.until_it_waits()
        assert server.connections == 1
        server.go_on()
        kept.until_written(0)
        kept.write(1, NEW)
        kept.until_written(1)
        assert [r.connection for r in server.asked(WRITE)] == [0, 1, 1]
        assert server.data[:SIZE] == NEW
        assert len(kept.waits) == 1


@pytest.mark.parametrize(
    ("op", "command"), [(driver.DISCARD, TRIM), (driver.WRITE_ZEROES, WRITE_ZEROES)]
)
def test_so_is_a_late_discard(keep: KeptMaker, place: Path | int, op: int, command: int) -> None:
    """It has ten times as long, and is given up with the write behind it."""
    with Misbehaving(place, stalled(command=command)) as server:
        kept = keep(server)
        kept.disk.begin(0, op, 0, SIZE)
        kept.until_it_waits()
        assert server.connections == 1
        server.go_on()
        kept.until_committed(0)
        kept.write(1, NEW)
        kept.until_written(1)
        assert server.data[:SIZE] == NEW


def test_a_server_that_never_ends_the_old_connection_is_not_waited_for_for_ever(
    keep: KeptMaker,
    place: Path | int,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """This is what remains: its old write lands on newer data, and the log has said so."""
    with Misbehaving(place, stalled()) as server:
        kept = keep(server, bound=0.05)
        kept.write(0, OLD)
        kept.until_it_waits()
        kept.until_written(0)
        kept.write(1, NEW)
        kept.until_written(1)
        assert server.data[:SIZE] == NEW
        told = [r.getMessage() for r in caplog.records if "newer data" in r.getMessage()]
        assert told == [
            f"{parse(server.uri())}: the server has not ended the old connection: a write that it "
            "has from there may land on newer data"
        ]
        do, done = server.apply, threading.Event()

        def late(request: Request, payload: bytes) -> tuple[int, bytes]:
            result = do(request, payload)
            done.set()
            return result

        monkeypatch.setattr(server, "apply", late)
        server.go_on()
        assert done.wait(LONG)
        assert server.data[:SIZE] == OLD


def test_a_server_that_died_is_not_waited_for(
    keep: KeptMaker, place: Path | int, caplog: pytest.LogCaptureFixture
) -> None:
    with Misbehaving(place, stalled()) as server:
        kept = keep(server, timeout=LONG)
        kept.write(0, OLD)
        kept.disk.settle()
        server.wait_for(lambda: len(server.requests) == 1)
        server.stop()
        kept.until(lambda: kept.disk.status.losses)
        server.start()
        kept.until_written(0)
        assert "newer data" not in caplog.text


def test_reads_and_flushes_are_not_waited_for(keep: KeptMaker, place: Path | int) -> None:
    with Misbehaving(place, Fault("stall", "apply")) as server:
        kept = keep(server)
        kept.disk.begin(0, driver.READ, 0, SIZE)
        kept.disk.begin(1, driver.FLUSH)
        kept.until_committed(0, 1)
        assert not kept.waits
        server.go_on()


def test_new_writes_wait_until_what_may_be_lost_was_written_again(
    keep: KeptMaker, place: Path | int
) -> None:
    with Misbehaving(place, stalled(connection=1)) as server:
        kept = keep(server, timeout=LONG)
        kept.write(0, OLD)
        kept.until_written(0)
        server.stop()
        server.lose()
        kept.until(lambda: kept.disk.status.losses)
        server.start()
        kept.write(1, NEW)
        server.wait_for(lambda: len(server.asked(WRITE)) == 2)
        kept.disk.settle()
        assert len(server.asked(WRITE)) == 2
        assert not kept.disk.committed(1)
        server.go_on()
        kept.until_written(1)
        assert server.data[:SIZE] == NEW
        assert [r.connection for r in server.asked(WRITE)] == [0, 1, 1]


def test_what_was_written_again_and_not_acknowledged_is_waited_for_as_well(
    keep: KeptMaker, place: Path | int
) -> None:
    with Misbehaving(place, Fault("stall", "apply", command=WRITE, nth=1)) as server:
        kept = keep(server, timeout=LONG, open_timeout=0.3)
        kept.write(0, OLD)
        kept.until_written(0)
        server.stop()
        kept.until(lambda: kept.disk.status.losses)
        server.start()
        kept.write(1, NEW)
        kept.until_it_waits()
        assert len(server.asked(WRITE)) == 2
        server.go_on()
        kept.until_written(1)
        assert server.data[:SIZE] == NEW


def test_the_end_does_not_wait_for_it(keep: KeptMaker, place: Path | int) -> None:
    with Misbehaving(place, stalled()) as server:
        kept = keep(server)
        kept.write(0, OLD)
        kept.until_it_waits()
        kept.keeper.stopping()
        kept.until_committed(0)
        assert kept.disk.result(0) == -errno.EIO
        server.go_on()
