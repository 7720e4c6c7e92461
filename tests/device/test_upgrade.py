"""Another daemon in the place of one that serves: its users wait a moment.

THOROUGH=1 does it twenty times in a row.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from load import files, flushed, load, pid_of, state_of
from mortals import MortalQemuNbd
from tools import (
    device,
    figures,
    lent_and_copied,
    nothing_left,
    refused,
    sparse,
    ublkd,
    ublkd_json,
)

MIB = 1 << 20
THOROUGH = "THOROUGH" in os.environ
UPGRADES = 20 if THOROUGH else 3

pytestmark = pytest.mark.deadline(1200 if THOROUGH else 240)


def can_quiesce() -> bool:
    return "QUIESCE" in ublkd_json("features")["features"]


def test_an_upgrade_is_a_pause_and_nothing_else(scratch: Path) -> None:
    for kind in lent_and_copied():
        disk = files(scratch)
        with device("loop", *disk, "--lease", kind, "--queues", "2", "--recovery", "queue") as node:
            if not can_quiesce():
                assert "lacks QUIESCE" in refused("upgrade", node, code=3)
                assert "lacks QUIESCE" in refused("quiesce", node, code=3)
                continue
            pauses = []
            with load(node) as traffic:
                for _ in range(UPGRADES):
                    traffic.wait()
                    before = pid_of(node)
                    (told,) = json.loads(ublkd("upgrade", node, "--json").stdout)
                    pauses.append(told["pause_ms"])
                    assert pid_of(node) != before
            assert re.fullmatch(
                rf"{node}: requests waited \d+ ms\n", ublkd("upgrade", "--all").stdout
            )
            most, middle = max(pauses), sorted(pauses)[len(pauses) // 2]
            figures(f"upgrade, lease {kind}: {UPGRADES} times, at most {most} ms without an "
                    f"answer, {middle} in the middle, {traffic}")  # fmt: skip
    nothing_left()


@pytest.mark.one_kernel
def test_a_device_that_the_new_code_cannot_serve_is_not_quiesced(scratch: Path) -> None:
    with device("loop", *files(scratch)) as node, load(node):
        before = pid_of(node)
        (scratch / "0.img").rename(scratch / "kept.img")
        assert "does not exist" in refused("upgrade", node)
        sparse(scratch / "0.img", 32 * MIB)
        assert "is not what it was" in refused("upgrade", node)
        (scratch / "kept.img").rename(scratch / "0.img")
        assert pid_of(node) == before
        assert state_of(node) == "live"
    nothing_left()


@pytest.mark.one_kernel
def test_a_quiesced_device_waits_and_is_recovered(scratch: Path) -> None:
    with device("loop", *files(scratch), "--depth", "1") as node, load(node) as traffic:
        traffic.wait()
        ublkd("quiesce", node)
        assert state_of(node) == "quiesced"
        ublkd("quiesce", node)  # it is what was wanted
        assert "nobody serves" in refused("upgrade", node)
        ublkd("recover", node)
        traffic.wait()
    nothing_left()


@pytest.mark.one_kernel
def test_an_nbd_disk_is_handed_over_with_nothing_in_doubt(scratch: Path) -> None:
    """What no flush has covered the next daemon would have to doubt, so the last one sends one."""
    with MortalQemuNbd(scratch, sparse(scratch / "disk.img", 32 * MIB)) as server:
        for after in ("replay", "strict"):
            words = "--uri", server.uri(), "--after-reconnect", after
            with device("nbd", *words) as node:
                with load(node) as traffic:
                    for _ in range(2):
                        traffic.wait()
                        ublkd("upgrade", node)
                    traffic.wait()
                ublkd("upgrade", node)  # right behind writes
                assert flushed(node) == "done"
            figures(f"nbd, {after}: 3 upgrades, {traffic}")
    nothing_left()
