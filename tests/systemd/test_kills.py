"""Daemons that are killed below a load: systemd starts the next one, and the load goes on."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from load import load
from mortals import MortalQemuNbd

from tests.systemd import units
from tests.systemd.units import Describe, systemctl

KINDS = ["auto", "copy", "stripe", "nbd"]
NO_LIMIT = "[Unit]\nStartLimitIntervalSec=0\n"


@contextlib.contextmanager
def file_of(kind: str) -> Iterator[str]:
    """The file of a device of that kind, while what stands behind it is there."""
    if kind == "stripe":
        yield f'target = "stripe"\nfile = ["{units.image("one")}", "{units.image("two")}"]\n'
    elif kind == "nbd":
        folder = Path("/srv/nbd")
        folder.mkdir()
        # not nbdkit: 1.32 aborts when a client goes while it answers
        with MortalQemuNbd(folder, units.image("server")) as server:
            yield f'target = "nbd"\nuri = "{server.uri()}"\nrecovery = "reissue"\n'
    else:
        yield units.loop(kind, f'lease = "{kind}"')


@pytest.mark.parametrize("kind", KINDS if units.thorough() else KINDS[:1])
def test_a_killed_daemon_is_replaced_and_nobody_notices(described: Describe, kind: str) -> None:
    kills = 100 if units.thorough() else 3
    seed = random.randrange(1 << 32)
    print(f"{kind}: seed {seed}")
    chance = random.Random(seed)
    with file_of(kind) as text:
        described("killed", text, drop_in=NO_LIMIT)
        systemctl("start", "killed")
        pid = units.pid_of("killed")
        with load(units.node("killed")) as running:
            for _ in range(kills):
                if chance.random() < 0.8:  # else the next one before anything is served
                    running.wait()
                os.kill(pid, signal.SIGKILL)
                pid = units.served_by_another_than(pid, "killed")
            running.wait()
        assert int(units.shown("killed", "NRestarts")["NRestarts"]) == kills
        systemctl("stop", "killed")
