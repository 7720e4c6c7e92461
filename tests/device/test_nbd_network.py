"""The nbd target over a network that loses what it carries, for a moment, for long, and always."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from direct import direct
from nbd import (
    KIB,
    MIB,
    Meanwhile,
    Mortal,
    certificates,
    disk,
    fio_meanwhile,
    lost,
    reading,
    verify_options,
    writing,
)
from network import THERE, Wire, inside, wire
from tools import digest, nothing_left, sparse, wait_until

pytestmark = pytest.mark.one_kernel

SIZE = 8 * MIB
LENGTH = 64 * KIB


@contextlib.contextmanager
def far_away(scratch: Path, *words: str | Path) -> Iterator[tuple[Mortal, Wire]]:
    with wire() as between:
        words = (*words, "file", sparse(scratch / "disk.img", SIZE))
        with Mortal(scratch, *words, tcp=True).inside(*inside()) as server:
            yield server, between
    nothing_left()


def test_a_wire_that_is_cut_for_five_seconds_costs_time_and_nothing_else(scratch: Path) -> None:
    with (
        far_away(scratch) as (server, between),
        disk(server.uri(THERE), "--connections", "2") as node,
    ):
        data = os.urandom(LENGTH)
        between.cut()
        calls = [writing(node, n * LENGTH, data) for n in range(8)]
        calls += [reading(node, 4 * MIB + n * LENGTH, LENGTH) for n in range(8)]
        with Meanwhile(*calls) as asked:
            time.sleep(5)
            assert not asked.done
            between.heal()
            assert asked.wait() == ["ok"] * 16
        assert lost(node) == 0, "TCP itself goes on"
        with direct(node) as at:
            assert at.read(0, 8 * LENGTH) == ("ok", data * 8)


def test_a_wire_that_stays_cut_is_an_error_and_when_it_heals_the_disk_works(scratch: Path) -> None:
    """What notices it is the timeout of a request: nobody else says a word."""
    with (
        far_away(scratch) as (server, between),
        disk(server.uri(THERE), "--request-timeout", "5", "--reconnect-window", "5",
             "--after-reconnect", "trust") as node,
    ):  # fmt: skip
        data = os.urandom(LENGTH)
        between.cut()
        calls = [writing(node, 0, data), reading(node, MIB, LENGTH)]
        with Meanwhile(*calls) as asked:
            assert asked.wait() == ["EIO"] * 2
        assert lost(node) >= 1
        between.heal()
        with direct(node) as at:
            wait_until(lambda: at.write(0, data) == "ok", 200, "the healed wire")
            assert at.read(0, LENGTH) == ("ok", data)
            assert at.sync() == "ok"


def test_what_is_lost_and_late_on_the_way_is_sent_again_by_tcp(scratch: Path) -> None:
    path = scratch / "disk.img"
    with (
        far_away(scratch) as (server, between),
        disk(server.uri(THERE), "--connections", "2") as node,
    ):
        between.spoil(loss=1, delay=50_000)
        with fio_meanwhile(node, *verify_options(SIZE)):
            pass
        assert lost(node) == 0
        assert digest(node, SIZE) == digest(path, SIZE)


def test_in_tls_a_wire_that_is_cut_for_five_seconds_costs_time_and_nothing_else(
    scratch: Path,
) -> None:
    pki = certificates(scratch, THERE)
    with (
        far_away(scratch, f"--tls-certificates={pki}", "--tls=require") as (server, between),
        disk(server.uri(THERE, tls=True), "--tls-certificates", pki) as node,
    ):
        data = os.urandom(LENGTH)
        between.cut()
        with Meanwhile(*(writing(node, n * LENGTH, data) for n in range(8))) as asked:
            time.sleep(5)
            assert not asked.done
            between.heal()
            assert asked.wait() == ["ok"] * 8
        assert lost(node) == 0
        with direct(node) as at:
            assert at.read(0, 8 * LENGTH) == ("ok", data * 8)
