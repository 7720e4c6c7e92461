"""Whatever verbs meet on one device, whoever of them dies: each answers, and the next can go on.

Which meet, a seed says. THOROUGH=1: more of them.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from load import MIB, files
from tools import daemons, figures, fio, nothing_left, ublkd, ublkd_json, wait_until

THOROUGH = "THOROUGH" in os.environ
ROUNDS = 60 if THOROUGH else 6
AT_ONCE = 8

pytestmark = [pytest.mark.deadline(3600 if THOROUGH else 300), pytest.mark.one_kernel]

Words = Sequence[str | Path]
KILL = ["kill"]
VERBS: list[Words] = [
    ["del", "one"],
    ["del", "one", "--force"],
    ["del", "--all"],
    ["stop", "one"],
    ["stop", "one", "--force"],
    ["quiesce", "one"],
    ["recover", "one"],
    ["recover", "--all"],
    ["upgrade", "one"],
    ["upgrade", "--all"],
    ["resize", "one", "16M"],
    ["resize", "one"],
    ["show", "one"],
    ["list"],
    ["stats", "one"],
    ["dump", "one"],
    KILL,
]
RENAMES: list[Words] = [["set", "one", "--name", "two"], ["set", "two", "--name", "one"]]
"""Not beside an add: what nobody serves is not in use, and would be served under both names."""


def kill_one(chance: random.Random) -> str:
    """Whoever serves, or is about to."""
    if there := daemons():
        with contextlib.suppress(ProcessLookupError):
            os.kill(chance.choice(there), signal.SIGKILL)
            return "one was killed"
    return "nobody was there to be killed"


def said(done: CompletedProcess[str]) -> str:
    """Its first line, if it failed, which it may do only in a line and a hint for each device."""
    told = (done.stderr, done.args, done.returncode)
    assert "Traceback" not in done.stderr, told
    assert "internal error" not in done.stderr, told
    lines = [line for line in done.stderr.splitlines() if not line.startswith("ublkd: warning: ")]
    if not done.returncode:
        assert not lines, told
        return ""
    if done.returncode == -signal.SIGKILL:
        return ""
    assert done.returncode == 1, told
    assert len(lines) == 2 or ("--all" in done.args and not len(lines) % 2), told
    assert all(line.startswith("ublkd: ") for line in lines[::2]), told
    assert all(line.startswith("hint: ") for line in lines[1::2]), told
    return f"{done.args[1]}: {lines[0]}"


def settled() -> bool:
    """Whether nobody is about to change anything."""
    return bool(len(daemons()) == sum(one["state"] == "live" for one in ublkd_json("list")))


@pytest.mark.parametrize("seed", range(2))
def test_each_verb_answers_and_what_is_left_can_be_worked_with(scratch: Path, seed: int) -> None:
    chance = random.Random(seed)
    backing = files(scratch)
    add: Words = ["add", "-t", "loop", *backing, "--name", "one"]
    answers: Counter[str] = Counter()
    ends: Counter[str] = Counter()

    def one(words: Words) -> str:
        return (
            kill_one(random.Random(f"{seed} {number}"))
            if words is KILL
            else said(ublkd(*words, check=False))
        )

    for number in range(ROUNDS):
        ublkd(*add)
        chosen = chance.sample([*VERBS, *((add, add) if number % 2 else RENAMES)], AT_ONCE)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            answers.update(pool.map(one, chosen))
        wait_until(settled, 90, f"the end of {chosen}")
        left = ublkd_json("list")
        ends.update([one["state"] for one in left] or ["none"])
        assert len(left) <= 1, left
        ublkd("recover", "--all")
        for found in ublkd_json("list"):
            if found["state"] == "live":
                fio(found["node"], "--rw=write", "--bs=64k", "--size=1m", "--verify=crc32c")
        ublkd("del", "--all")
        assert Path(backing[1]).stat().st_size == 32 * MIB
        nothing_left()
    figures(f"ended as {dict(ends)}; said {dict(answers)}")
