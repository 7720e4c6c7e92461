"""What becomes of an export as a disk, and of several connections to it at the beginning."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest

from tests.unit.nbd.links import Clock
from tests.unit.nbd.streams import GIB, GOOD_FLAGS
from tests.unit.nbd.test_keeper_exports import OLD, WORSE
from ublkd.errors import UblkdError
from ublkd.target import Params
from ublkd.targets.nbd import stream, target
from ublkd.targets.nbd.connect import Connection
from ublkd.targets.nbd.dial import Address
from ublkd.targets.nbd.export import BlockSizes, Export
from ublkd.targets.nbd.target import NbdTarget
from ublkd.targets.nbd.wire import ExportFlag

KIB, MIB = 1 << 10, 1 << 20


@dataclass(frozen=True)
class Dialled:
    """A connection that was made; it took 2 seconds."""

    seconds: float
    """That it had to be made in."""
    where: list[str]


@pytest.fixture
def dialled() -> list[Dialled]:
    return []


@pytest.fixture
def adding(
    monkeypatch: pytest.MonkeyPatch, dialled: list[Dialled], nothing_left: None
) -> Iterator[Adding]:
    ends: list[socket.socket] = []
    clock = Clock()
    monkeypatch.setattr(stream, "time", clock)

    def add(*exports: Export, **options: object) -> NbdTarget:
        left = list(exports)

        def connect(
            _: object, seconds: float, *, addresses: Sequence[Address], **__: object
        ) -> Connection:
            dialled.append(Dialled(seconds, [address.shown for address in addresses]))
            clock.now += 2
            ours, theirs = socket.socketpair()
            ends.append(theirs)
            return Connection(ours, left.pop(0))

        monkeypatch.setattr(target, "connect", connect)
        monkeypatch.setattr(os, "cpu_count", lambda: 8)
        known = {option.key: option.default for option in NbdTarget.options}
        known |= {"uri": "nbd://127.0.0.1/", "connections": len(exports), "open_timeout": 5.0}
        return NbdTarget.from_options(known | options)  # type: ignore[arg-type]

    yield add
    for end in ends:
        assert end.recv(1) == b""
        end.close()


Adding = Callable[..., NbdTarget]


def exported(flags: int = GOOD_FLAGS, sizes: BlockSizes | None = None, size: int = GIB) -> Export:
    return Export(name="", size=size, flags=ExportFlag(flags), sizes=sizes)


# --- what the kernel is told ----------------------------------------------------------------


@pytest.fixture
def told(adding: Adding) -> Callable[..., Params]:
    def tell(export: Export, **options: object) -> Params:
        made = adding(export, **options)
        made.close()
        return made.params

    return tell


Telling = Callable[..., Params]


@pytest.mark.parametrize(
    ("sizes", "data", "no_data"),
    [
        (None, MIB, 32 * MIB),
        (BlockSizes(1, 4096, 0xFFFFFFFF), MIB, 32 * MIB),
        (BlockSizes(1, 4096, 32 * MIB), MIB, 32 * MIB),
        (BlockSizes(512, 65536, 2 * MIB), MIB, 2 * MIB),
        (BlockSizes(512, 512, 64 * KIB), 64 * KIB, 64 * KIB),
        (BlockSizes(2, 512, 100_000), 96 * KIB, 99_840),
        (BlockSizes(4096, 4096, 4096), 4096, 4096),
    ],
)
def test_no_request_is_longer_than_the_server_takes(
    told: Telling, sizes: BlockSizes | None, data: int, no_data: int
) -> None:
    """So it has no reason for EOVERFLOW; those without data could be longer, but need not be."""
    export = exported(sizes=sizes)
    params = told(export)
    assert params.max_io == data <= export.maximum
    assert params.max_discard == params.max_write_zeroes == no_data <= export.maximum
    assert no_data % params.logical_block == 0


def test_a_server_that_takes_less_than_a_page_is_refused(adding: Adding) -> None:
    with pytest.raises(UblkdError, match="takes 2048 bytes at once, and a disk needs 4096"):
        adding(exported(sizes=BlockSizes(512, 512, 2048)))


@pytest.mark.parametrize(
    ("sizes", "logical", "physical", "best"),
    [
        (None, 512, 512, 512),
        (BlockSizes(1, 512, MIB), 512, 512, 512),
        (BlockSizes(1, 4096, MIB), 512, 4096, 4096),
        (BlockSizes(2048, 65536, MIB), 2048, 4096, 65536),
        (BlockSizes(4096, 32 * MIB, 32 * MIB), 4096, 4096, MIB),
    ],
)
def test_its_block_sizes_are_the_disks(
    told: Telling, sizes: BlockSizes | None, logical: int, physical: int, best: int
) -> None:
    params = told(exported(sizes=sizes))
    assert (params.logical_block, params.physical_block) == (logical, physical)
    assert (params.io_min, params.io_opt, params.discard_granularity) == (best, best, best)


WRITES = ("volatile_cache", "fua", "max_discard", "max_write_zeroes")


@pytest.mark.parametrize(
    ("flags", "can"),
    [
        (0x01, []),
        (0x05, ["volatile_cache"]),
        (0x09, []),  # FUA without FLUSH
        (0x0D, ["volatile_cache", "fua"]),
        (0x11, ["rotational"]),
        (0x21, ["max_discard"]),
        (0x41, ["max_write_zeroes"]),
        (0x6F, ["read_only"]),
        (0x7F, ["read_only", "rotational"]),
        (0x7D, ["rotational", *WRITES]),
    ],
)
def test_only_what_the_server_offers_is_offered(told: Telling, flags: int, can: list[str]) -> None:
    params = told(exported(flags))
    names = ("read_only", "rotational", *WRITES)
    assert [name for name in names if getattr(params, name)] == can


def test_a_disk_that_is_never_written_has_nothing_to_write_with(told: Telling) -> None:
    params = told(exported(), read_only=True)
    assert params.read_only
    assert not any(getattr(params, name) for name in WRITES)


def test_what_is_left_out_is_said(adding: Adding) -> None:
    made = adding(exported(size=1_000_001))
    made.close()
    assert made.params.size == 999_936
    assert made.describe()["warning"] == (
        "the last 65 bytes are not a whole block and are left out"
    )


@pytest.mark.parametrize("verify", [True, False])
def test_how_it_travels_is_said(adding: Adding, verify: bool) -> None:
    plain = adding(exported())
    secret = adding(exported(), uri=f"nbds://127.0.0.1/?tls-verify-peer={int(verify)}")
    for made in (plain, secret):
        made.close()
    assert plain.describe()["tls"] == "none"
    assert "with the lent pages" in str(plain.describe()["payloads"])
    assert secret.describe()["tls"] == ("verified" if verify else "not verified")
    assert "in TLS nothing can go from the pages" in str(secret.describe()["payloads"])


def test_a_name_is_looked_up_once_and_for_all(
    adding: Adding, dialled: list[Dialled], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later the resolver's files may be on the disk itself."""
    asked: list[str] = []

    def look_up(host: str, port: int, *_: object, flags: int = 0, **__: object) -> object:
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "a name")
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    made = adding(exported(), exported(), exported(), uri="nbd://db")
    assert asked == ["db"]
    assert [dial.where for dial in dialled] == [["192.0.2.1"]] * 3
    made.close()


# --- several connections --------------------------------------------------------------------


def test_connections_to_one_export_are_a_disk(adding: Adding, dialled: list[Dialled]) -> None:
    made = adding(OLD, OLD, OLD)
    assert made.params.queues == 3
    assert [dial.seconds for dial in dialled] == [5.0, 3.0, 1.0]
    made.close()


@pytest.mark.parametrize(
    ("export", "asked", "made", "why"),
    [
        (exported(GOOD_FLAGS & ~0x100), 4, 1, "4 connections were asked for, 1 made: the server"),
        (exported(), 64, 8, "64 connections were asked for, 8 made: each has a queue"),
    ],
)
def test_fewer_connections_than_asked_for_are_explained(
    adding: Adding, export: Export, asked: int, made: int, why: str
) -> None:
    disk = adding(*[export] * made, connections=asked, open_timeout=100.0)
    disk.close()
    assert disk.params.queues == made
    assert str(disk.describe()["warning"]).startswith(why)


@pytest.mark.parametrize("name", [name for name in WORSE if name != "one connection"])
@pytest.mark.parametrize("which", [1, 2])
def test_connections_that_lead_to_different_exports_are_refused(
    adding: Adding, name: str, which: int
) -> None:
    """One name for several machines, say. No socket is left behind."""
    exports = [OLD] * 3
    exports[which] = WORSE[name][0]
    with pytest.raises(UblkdError, match="its connections lead to two exports: it ") as caught:
        adding(*exports)
    assert caught.value.message.startswith("nbd://127.0.0.1: ")
