"""An NBD server that forgets what it has acknowledged, as at a loss of power; and who is told."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from direct import Direct, direct
from nbd import (
    KIB,
    MIB,
    discard,
    disk,
    fio_meanwhile,
    is_connected,
    lost,
    verify_options,
    zero,
)
from tools import digest, leases, nothing_left, wait_until

from tests.unit.nbd.faults import FLUSH, TRIM, WRITE, WRITE_ZEROES, Offer
from tests.unit.nbd.misbehaving import Misbehaving

pytestmark = pytest.mark.one_kernel

SIZE = 4 * MIB
LENGTH = 64 * KIB
JOURNAL = 16 * MIB


def power_fails(server: Misbehaving) -> None:
    """What was not flushed is gone, and it is there again."""
    server.stop()
    server.lose()
    server.start()


@contextlib.contextmanager
def served(scratch: Path, *words: str) -> Iterator[tuple[Misbehaving, str, Direct]]:
    with (
        Misbehaving(scratch / "sock", offer=Offer(SIZE)) as server,
        disk(server.uri(), "--connections", "2", *words) as node,
        direct(node) as at,
    ):
        yield server, node, at
    nothing_left()


def test_replay_tells_the_server_again_all_that_it_may_have_forgotten(scratch: Path) -> None:
    for lease in leases():
        with served(scratch, "--lease", lease) as (server, _, at):
            model = bytearray(os.urandom(MIB))
            assert at.write(0, bytes(model)) == "ok"
            assert at.sync() == "ok"
            power_fails(server)
            assert at.read(0, MIB) == ("ok", bytes(model)), "it was flushed"
            for start, data in ((0, b"\x01"), (32 * KIB, b"\x02"), (0, b"\x03"), (MIB // 2, b"4")):
                model[start : start + LENGTH] = data * LENGTH
                assert at.write(start, data * LENGTH) == "ok"
            assert discard(at, 16 * KIB, 8 * KIB) == "ok"
            assert zero(at, MIB // 2, 4 * KIB) == "ok"
            assert at.write(MIB // 2, b"\x05" * KIB) == "ok"
            model[16 * KIB : 24 * KIB] = bytes(8 * KIB)
            model[MIB // 2 : MIB // 2 + 4 * KIB] = b"\x05" * KIB + bytes(3 * KIB)
            for _ in range(2):  # what was told again may be forgotten again
                power_fails(server)
                assert at.read(0, MIB) == ("ok", bytes(model)), lease
                assert server.data[:MIB] == model, lease
            assert at.sync() == "ok", "nothing is lost"
            assert server.stable[:MIB] == model, lease
            before = len(server.requests)
            power_fails(server)
            assert at.read(0, MIB) == ("ok", bytes(model)), lease
            again = server.requests[before:]
            assert not {r.command for r in again} & {WRITE, TRIM, WRITE_ZEROES}, "it was flushed"


def test_under_load_a_server_that_forgets_again_and_again_costs_no_byte(scratch: Path) -> None:
    with served(scratch, "--reconnect-window", "inf") as (server, node, _):
        failures = 0
        with fio_meanwhile(
            node, *verify_options(SIZE), "--time_based", "--runtime=20", "--rate=4m", "--fsync=50"
        ) as goes_on:
            while goes_on():
                wait_until(lambda: is_connected(node) or not goes_on(), 60, "a connection")
                time.sleep(2)
                power_fails(server)
                failures += 1
        assert failures > 3
        assert lost(node) >= failures
        wait_until(lambda: is_connected(node), 60, "the last server")
        print(f"{failures} power failures")
        assert digest(node, SIZE) == digest_of(server)


def digest_of(server: Misbehaving) -> str:
    return hashlib.sha256(server.data).hexdigest()


def test_a_full_journal_makes_room_by_a_flush_of_its_own(scratch: Path) -> None:
    with served(scratch) as (server, _, at):
        data = bytes(range(256)) * (MIB // 256)
        for n in range(2 * JOURNAL // MIB):
            assert at.write(n % 4 * MIB, data) == "ok", n
        assert server.asked(FLUSH), "nobody asked for it but the journal"
        power_fails(server)
        assert at.read(0, MIB) == ("ok", data)
        assert server.data == data * 4


def test_strict_the_next_flush_tells_of_writes_that_may_be_lost(scratch: Path) -> None:
    with served(scratch, "--after-reconnect", "strict") as (server, _, at):
        assert at.write(0, b"\x01" * LENGTH) == "ok"
        assert at.sync() == "ok"
        power_fails(server)
        assert at.read(0, LENGTH) == ("ok", b"\x01" * LENGTH)
        assert at.sync() == "ok", "nothing was lost"
        assert at.write(0, b"\x02" * LENGTH) == "ok"
        power_fails(server)
        assert at.read(0, LENGTH) == ("ok", b"\x01" * LENGTH)
        told = [at.sync() for _ in range(4)]
        # each connection tells once: a flush on another one may have been under way as well
        assert told[0] == "EIO", told
        assert told.count("EIO") <= 2, told


def test_trust_believes_the_server(scratch: Path) -> None:
    with served(scratch, "--after-reconnect", "trust") as (server, _, at):
        assert at.write(0, b"\x02" * LENGTH) == "ok"
        power_fails(server)
        assert at.sync() == "ok"
        assert at.read(0, LENGTH) == ("ok", bytes(LENGTH))


@pytest.mark.parametrize("how", ["replay", "strict"])
def test_a_write_with_fua_needs_nobody_to_remember_it(scratch: Path, how: str) -> None:
    with served(scratch, "--after-reconnect", how) as (server, node, at):
        with direct(node, os.O_DSYNC) as forced:
            assert forced.write(0, b"\x07" * LENGTH) == "ok"
        before = len(server.requests)
        power_fails(server)
        assert at.read(0, LENGTH) == ("ok", b"\x07" * LENGTH)
        assert not [r for r in server.requests[before:] if r.command == WRITE]
        assert at.sync() == "ok"
