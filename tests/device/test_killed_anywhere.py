"""A verb that is killed before any of its steps leaves what the next one can work with.

THOROUGH=1: before each step, where this is before some of them.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from load import files, kill, load, pid_of, state_of
from steps import BOTH, COMMAND, DAEMON, OTHER, THOROUGH, Death, deaths, told
from tools import daemons, device, figures, nothing_left, ublkd, ublkd_json, wait_until

pytestmark = pytest.mark.deadline(3600 if THOROUGH else 240)


def quiet() -> bool:
    """Whether nobody is about to change anything: all who serve do so, and nobody else is left."""
    served = sum(one["state"] == "live" for one in ublkd_json("list"))
    return bool(len(daemons()) == served)


def after(death: Death, verb: str) -> None:
    """What is left is listed, and shown, and settles by itself."""
    if (death.who, death.step, verb) == (COMMAND, "hear", "add"):
        wait_until(lambda: not daemons(), 60, f"the end of a daemon that nobody hears: {death}")
    wait_until(quiet, 90, f"the end of what {death} has left")
    for one in ublkd_json("list"):
        ublkd("show", str(one["id"]))


@pytest.mark.one_kernel
def test_an_add_leaves_its_name_and_its_file_to_the_next(scratch: Path) -> None:
    words = ["add", "-t", "loop", *files(scratch), "--name", "again"]
    seen = []
    for death in deaths(scratch, [DAEMON, BOTH, COMMAND], words):
        if death:
            seen.append(death)
            after(death, "add")
        ublkd("recover", "--all")  # if it was a disk already
        if not ublkd_json("list"):
            ublkd(*words)
        assert [(one["name"], one["state"]) for one in ublkd_json("list")] == [("again", "live")]
        ublkd("del", "again")
        nothing_left()
    figures(told("add", seen))
    assert {death.who for death in seen} == {DAEMON, BOTH, COMMAND}


def test_a_recovery_leaves_its_device_to_the_next(scratch: Path) -> None:
    seen = []
    with device("loop", *files(scratch), "--queues", "2") as node, load(node) as traffic:

        def prepare() -> int:
            traffic.wait()
            kill(node)
            return 0

        for death in deaths(scratch, [DAEMON, BOTH, COMMAND], ["recover", node], prepare):
            if death:
                seen.append(death)
                after(death, "recover")
                ublkd("recover", "--all")
            assert state_of(node) == "live", death
    figures(f"{told('recover', seen)}, {traffic}")
    assert {death.who for death in seen} == {DAEMON, BOTH, COMMAND}
    nothing_left()


@pytest.mark.one_kernel
def test_an_upgrade_leaves_a_device_that_is_served_or_can_be(scratch: Path) -> None:
    seen = []
    with device("loop", *files(scratch), "--queues", "2") as node, load(node) as traffic:

        def prepare() -> int:
            traffic.wait()
            return pid_of(node)

        for death in deaths(scratch, [DAEMON, BOTH, COMMAND, OTHER], ["upgrade", node], prepare):
            if death:
                seen.append(death)
                after(death, "upgrade")
                ublkd("recover", "--all")
            assert state_of(node) == "live", death
    figures(f"{told('upgrade', seen)}, {traffic}")
    assert {death.who for death in seen} == {DAEMON, BOTH, COMMAND, OTHER}
    nothing_left()
