"""Reconnects that are cut at any byte: what was in flight waits, and ends as if nothing had been.

A real keeper dials a real server; the disk is behind the fake driver.
"""

from __future__ import annotations

import errno
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.nbd.certificates import authority, certificate, serves
from tests.unit.nbd.faults import REPLY, Fault
from tests.unit.nbd.misbehaving import Misbehaving

from .core import Core
from .driver import DISCARD, READ, WRITE, WRITE_ZEROES
from .files import noise, open_fds
from .nbd_disk import DEPTH
from .nbd_kept import KeptDisk, KeptMaker, ways_of_greeting

SIZE = 4096
FAR = 1 << 19
"""Where nothing else is written."""


@pytest.fixture(autouse=True)
def nothing_left(core: Core) -> Iterator[None]:
    """Of any of the three."""
    before, threads = open_fds(), set(threading.enumerate())
    yield
    assert open_fds() <= before  # a failure may hold some for a while
    assert set(threading.enumerate()) <= threads


@pytest.fixture
def keep(core: Core, monkeypatch: pytest.MonkeyPatch) -> Iterator[KeptMaker]:
    made: list[KeptDisk] = []

    def make(*args: object, **words: object) -> KeptDisk:
        made.append(KeptDisk(core, monkeypatch, *args, **words))  # type: ignore[arg-type]
        return made[-1]

    yield make
    while made:
        made.pop().close()


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki")
    authority(folder, "ca")
    certificate(folder, "server", "IP:127.0.0.1")
    return folder


@pytest.fixture(params=["unix", "tcp", "TLS 1.2", "TLS 1.3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if not request.param.startswith("TLS"):
        with Misbehaving(tmp_path / "sock" if request.param == "unix" else 0) as server:
            yield server, ""
        return
    folder = request.getfixturevalue("pki")
    newest = getattr(ssl.TLSVersion, request.param.replace("TLS 1.", "TLSv1_"))
    with Misbehaving(tls=serves(folder, newest=newest)) as server:
        yield server, f"?tls-certificates={folder}"


Place = tuple[Misbehaving, str]


# --- what is in flight ------------------------------------------------------


def begin_one_of_each(kept: KeptDisk) -> None:
    """On each link, beside those of the others."""
    for link, disk in enumerate(kept.disks):
        start = DEPTH * SIZE * link
        for tag, op in enumerate((WRITE, READ, WRITE_ZEROES, DISCARD)):
            disk.fill(tag, noise(SIZE, link))
            disk.begin(tag, op, start + tag * SIZE, SIZE)


def check_each(kept: KeptDisk, server: Misbehaving, before: bytes) -> None:
    """Ended once, as if nothing had been."""
    kept.until_committed(*range(DEPTH))
    want = bytearray(before)
    for link, disk in enumerate(kept.disks):
        start = DEPTH * SIZE * link
        assert [disk.result(tag) for tag in range(DEPTH)] == [SIZE, SIZE, 0, 0]
        assert disk.held(1, SIZE) == before[start + SIZE :][:SIZE]
        want[start : start + SIZE] = noise(SIZE, link)
        want[start + 2 * SIZE : start + 4 * SIZE] = bytes(2 * SIZE)
        assert disk.status.unanswered == 0
    assert server.data[:FAR] == want


def lost_with_all_in_flight(links: int) -> list[Fault]:
    """The first connections do what they are asked and do not answer; the last one then ends."""
    return [
        Fault("cut", "reply", connection=links - 1, nth=DEPTH - 1),
        *[Fault("silent", connection=link, times=None) for link in range(links)],
    ]


def until_tried(kept: KeptDisk, tries: int) -> None:
    """Nothing ends before the last of them."""
    for number in range(tries):
        kept.until_tried(number + 1)
        ended = any(disk.committed(tag) for disk in kept.disks for tag in range(DEPTH))
        assert not ended or kept.tries == tries


FAR_AWAY = range(3)
"""Tags of writes that are acknowledged, and not flushed."""


def write_far(kept: KeptDisk) -> None:
    disk = kept.disks[0]
    for tag in FAR_AWAY:
        disk.fill(tag, noise(SIZE, FAR + tag))
        disk.begin(tag, WRITE, FAR + tag * SIZE, SIZE)
    kept.until(lambda: all(disk.committed(tag) for tag in FAR_AWAY))
    assert [disk.result(tag) for tag in FAR_AWAY] == [SIZE] * len(FAR_AWAY)


def check_far(server: Misbehaving) -> None:
    for tag in FAR_AWAY:
        assert server.data[FAR + tag * SIZE :][:SIZE] == noise(SIZE, FAR + tag)


# --- cuts -------------------------------------------------------------------


@pytest.mark.parametrize("after", ["replay", "trust"])
@pytest.mark.parametrize("links", [1, 2])
def test_the_handshake_of_a_reconnect_may_be_cut_at_any_byte(
    keep: KeptMaker, place: Place, links: int, after: str
) -> None:
    server, query = place
    server.data[:FAR] = before = noise(FAR)
    kept = keep(server, query=query, links=links, after_reconnect=after)
    write_far(kept)
    cuts = ways_of_greeting(server)
    if links == 1 and not server.tls:
        cuts.append(server.greeted)  # a connection that is had, and lost at once
    # of two connections the second is the one that is cut, and the first is made anew with it
    server.fault(*lost_with_all_in_flight(links), *[
        Fault("cut", "greeting", at, connection=links * number + links - 1)
        for number, at in enumerate(cuts, start=1)
    ])  # fmt: skip
    if after == "replay":
        kept.before_try = server.lose
    begin_one_of_each(kept)
    tries = links * (len(cuts) + 1)
    until_tried(kept, tries)
    check_each(kept, server, before)
    check_far(server)
    assert server.connections == links + tries


def test_what_is_written_again_may_be_cut_at_any_byte_of_its_answers(
    keep: KeptMaker, place: Place
) -> None:
    server, query = place
    server.data[:FAR] = before = noise(FAR)
    kept = keep(server, query=query)
    write_far(kept)
    cuts = REPLY.size * (len(FAR_AWAY) + 1)  # and that of the flush
    server.fault(*lost_with_all_in_flight(1), *[
        Fault("cut", "reply", at % REPLY.size, connection=1 + at, nth=at // REPLY.size)
        for at in range(cuts)
    ])  # fmt: skip
    kept.before_try = server.lose
    begin_one_of_each(kept)
    until_tried(kept, cuts + 1)
    check_each(kept, server, before)
    check_far(server)
    assert server.connections == 1 + cuts + 1


# --- the end of the window --------------------------------------------------


@pytest.mark.parametrize("at", [0.0, 0.3, 0.9, "the answers to what is written again"])
def test_requests_fail_at_its_end_whatever_the_server_is_at(
    keep: KeptMaker, place: Place, at: float | str
) -> None:
    """It is silent from there on, and could have been for longer than this test waits."""
    server, query = place
    server.data[:FAR] = noise(FAR)
    kept = keep(server, query=query, window=0.1)
    (disk,) = kept.disks
    write_far(kept)
    if isinstance(at, float):
        silence = Fault("stall", "greeting", int(at * server.greeted), times=None)
    else:
        silence = Fault("stall", "reply", times=None)
    server.fault(*lost_with_all_in_flight(1), silence)
    begin_one_of_each(kept)
    kept.until_committed(*range(DEPTH))
    assert [disk.result(tag) for tag in range(DEPTH)] == [-errno.EIO] * DEPTH
    server.heal()
    kept.until(lambda: disk.status.state == disk.lib.NBD_CONNECTED)
    disk.begin(1, READ, SIZE, SIZE)
    kept.until_committed(1)
    assert disk.result(1) == SIZE
    assert disk.held(1, SIZE) == noise(FAR)[SIZE : 2 * SIZE]
    check_far(server)
