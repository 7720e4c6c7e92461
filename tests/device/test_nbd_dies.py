"""An NBD server that dies under a disk, and comes back or not; a disk that shall end meanwhile."""

from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from direct import Direct, direct
from mortals import serving
from nbd import (
    KIB,
    MIB,
    Meanwhile,
    Mortal,
    certificates,
    daemon_of,
    disk,
    ended_within,
    fio_meanwhile,
    is_connected,
    lost,
    reading,
    settled,
    syncing,
    verify_options,
    writing,
)
from tools import (
    await_end,
    digest,
    leases,
    nothing_left,
    sparse,
    threads,
    ublkd,
    wait_until,
)

from tests.unit.nbd.faults import FLUSH, READ, Fault, Offer
from tests.unit.nbd.misbehaving import Misbehaving

pytestmark = pytest.mark.one_kernel

SIZE = 16 * MIB
LENGTH = 64 * KIB

LIFE = 3
"""Seconds, of a server that is killed again and again."""
THOROUGH = bool(os.environ.get("THOROUGH"))
SECONDS = 120 if THOROUGH else 20
"""How long that goes on."""
WAYS = [
    ("nbdkit", "unix"),
    ("nbdkit", "tcp"),
    ("qemu-nbd", "tcp"),
    ("qemu-nbd", "unix"),
    ("nbd-server", "unix"),
    ("nbd-server", "tcp"),
    ("nbdkit", "tls"),
][:: 1 if THOROUGH else 2]


# --- within the window ----------------------------------------------------------------------


@pytest.mark.deadline(SECONDS + 240)
@pytest.mark.parametrize(("kind", "way"), WAYS)
def test_a_server_that_is_killed_again_and_again_costs_no_byte(
    scratch: Path, kind: str, way: str
) -> None:
    """Its file is in the page cache, which a kill does not touch: so what it took, it has."""
    path = sparse(scratch / "disk.img", SIZE)
    filters: list[str | Path] = []
    options: list[str | Path] = ["--connections", "2", "--reconnect-window", "inf"]
    if way == "unix":  # what was acknowledged is not told again; elsewhere it is
        options += ["--after-reconnect", "trust"]
    if way == "tls":
        pki = certificates(scratch, "127.0.0.1")
        filters = [f"--tls-certificates={pki}", "--tls=require"]
        options += ["--tls-certificates", pki]
    with (
        serving(kind, scratch, path, *filters, tcp=way != "unix") as server,
        disk(server.uri(tls=way == "tls"), *options) as node,
    ):
        deaths, before = 0, held(daemon_of(node))
        with fio_meanwhile(
            node, *verify_options(SIZE), "--time_based", f"--runtime={SECONDS}", "--rate=4m"
        ) as goes_on:
            while goes_on():
                wait_until(lambda: is_connected(node) or not goes_on(), 60, "a connection")
                time.sleep(LIFE)
                server.end()
                server.start()
                deaths += 1
        assert deaths >= SECONDS // (2 * LIFE)
        assert lost(node) >= deaths, "nobody noticed"
        print(f"{deaths} deaths, {lost(node)} connections lost")
        wait_until(lambda: is_connected(node), 60, "the last server")
        assert digest(node, SIZE) == digest(path, SIZE)
        wait_until(lambda: is_no_more(held(daemon_of(node)), before), 60, "what is held as before")
    nothing_left()


def held(pid: int) -> tuple[int, int]:
    """Descriptors and threads."""
    return len(os.listdir(f"/proc/{pid}/fd")), len(threads(pid))


def is_no_more(now: tuple[int, int], before: tuple[int, int]) -> bool:
    """A daemon that has just begun may hold what it soon lets go of."""
    return now[0] <= before[0] and now[1] <= before[1]


def test_a_server_may_stay_away_as_long_as_the_window_is_open(scratch: Path) -> None:
    with Misbehaving(scratch / "sock", offer=Offer(SIZE)) as server:
        for lease in leases():
            with (
                disk(server.uri(), "--reconnect-window", "inf", "--lease", lease) as node,
                Meanwhile(*(reading(node, n * LENGTH, LENGTH) for n in range(4))) as before,
            ):
                before.wait()
                server.stop()
                data = os.urandom(LENGTH)
                calls = [writing(node, n * LENGTH, data) for n in range(4)]
                with Meanwhile(*calls) as asked:
                    wait_until(lambda n=node: not is_connected(n), 60, "a lost connection")
                    time.sleep(1)
                    assert not any(asked.results), asked.results
                    server.start()
                    assert asked.wait() == ["ok"] * 4
                assert server.data[: 4 * LENGTH] == data * 4
    nothing_left()


# --- behind it ------------------------------------------------------------------------------


def test_behind_the_window_requests_fail_at_once_until_the_server_is_back(scratch: Path) -> None:
    path = sparse(scratch / "disk.img", SIZE)
    for lease in leases():
        with (
            Mortal(scratch, "file", path) as server,
            disk(server.uri(), "--reconnect-window", "3", "--lease", lease) as node,
            direct(node) as at,
        ):
            data = os.urandom(LENGTH)
            assert at.write(0, data) == "ok"
            assert at.sync() == "ok"
            server.end()
            with Meanwhile(*(reading(node, n * LENGTH, LENGTH) for n in range(8))) as waiting:
                assert waiting.wait() == ["EIO"] * 8
            began = time.monotonic()
            for n in range(20):
                assert at.read(n * LENGTH, LENGTH)[0] == "EIO"
                assert at.write(n * LENGTH, data) == "EIO"
            assert at.sync() == "EIO"
            print(f"41 requests failed in {time.monotonic() - began:.2f} seconds")
            assert time.monotonic() - began < 60, "each one waited for a window"
            server.start()
            wait_until(lambda a=at, d=data: a.read(0, LENGTH) == ("ok", d), 120, "its return")
            assert at.write(0, bytes(LENGTH)) == "ok"
            assert at.sync() == "ok"
            assert is_connected(node)
    nothing_left()


def test_without_a_window_a_lost_connection_is_an_error_at_once(scratch: Path) -> None:
    with (
        Misbehaving(scratch / "sock", offer=Offer(SIZE)) as server,
        disk(server.uri(), "--reconnect-window", "0") as node,
        direct(node) as at,
    ):
        settled(node)
        server.fault(Fault("cut", "reply", 8, READ), Fault("stall", "greeting", times=None))
        assert at.read(0, LENGTH)[0] == "EIO"
        server.heal()
        wait_until(lambda: at.read(0, LENGTH)[0] == "ok", 60, "the next connection")
    nothing_left()


# --- the end, in every state ----------------------------------------------------------------

State = Callable[[Misbehaving, str], None]


def connected(server: Misbehaving, node: str) -> None:
    """With requests under way that the server holds back."""
    server.fault(Fault("stall", "reply", command=READ, times=None))


def silent(server: Misbehaving, node: str) -> None:
    """It takes each request and answers none."""
    server.fault(Fault("silent", times=None))


def deaf(server: Misbehaving, node: str) -> None:
    """It reads no request: what is sent fills the socket."""
    server.fault(Fault("stall", "request", 0, times=None))


def gone(server: Misbehaving, node: str) -> None:
    """Nobody listens."""
    server.stop()


def greets_nobody(server: Misbehaving, node: str) -> None:
    """It listens, and says nothing to whoever connects."""
    server.stop()
    server.fault(Fault("stall", "greeting", times=None))
    server.start()


STATES = pytest.mark.parametrize("state", [connected, silent, deaf, gone, greets_nobody])


def by_del(node: str, pid: int) -> None:
    ublkd("del", node, "--force")


def by_signal(node: str, pid: int) -> None:
    os.kill(pid, signal.SIGTERM)


def reads(at: Direct, start: int) -> str:
    return at.read(start, LENGTH)[0]


@STATES
@pytest.mark.parametrize("window", ["inf", "0"], ids=["in the window", "behind it"])
@pytest.mark.parametrize("end", [by_del, by_signal])
def test_a_disk_ends_soon_in_every_state_of_its_server(
    scratch: Path, state: State, window: str, end: Callable[[str, int], None]
) -> None:
    """In two seconds; emulation makes that ten times longer."""
    with (
        Misbehaving(scratch / "sock", offer=Offer(SIZE)) as server,
        disk(server.uri(), "--reconnect-window", window, "--request-timeout", "inf",
             "--connections", "2") as node,
        direct(node) as at,
    ):  # fmt: skip
        pid = daemon_of(node)
        before = len(server.requests)
        state(server, node)
        calls = [functools.partial(at.write, n * MIB, bytes(MIB)) for n in range(4)]
        calls += [functools.partial(reads, at, n * MIB) for n in range(4)]
        with Meanwhile(*calls) as asked:
            if state in (gone, greets_nobody):
                wait_until(lambda: not is_connected(node), 60, "a lost connection")
            else:
                server.wait_for(lambda: len(server.requests) > before)
            if state is greets_nobody:
                server.wait_for(lambda: server.connections > 2)
            began = time.monotonic()
            assert ended_within(pid, 20, lambda: end(node, pid))
            print(f"ended in {time.monotonic() - began:.2f} seconds")
            results = asked.wait()
        # who comes too late finds a disk that has no size any more
        assert set(results) <= {"ok", "EIO", "ENODEV", "ENXIO", "ENOSPC", "short: 0"}, results
        assert state is connected or "EIO" in results
        nothing_left()


def test_an_orderly_end_lets_requests_be_answered_first(scratch: Path) -> None:
    """SIGTERM on a disk whose server does answer, if slowly."""
    with (
        Misbehaving(scratch / "sock", offer=Offer(SIZE)) as server,
        disk(server.uri()) as node,
    ):
        # a flush may take its time: keeper.py, SLOW_SECONDS
        server.fault(Fault("stall", "reply", command=FLUSH))
        with Meanwhile(syncing(node)) as asked:
            server.wait_for(lambda: bool(server.asked(FLUSH)))
            os.kill(daemon_of(node), signal.SIGTERM)
            server.heal()
            assert asked.wait() == ["ok"]
        await_end()
    nothing_left()
