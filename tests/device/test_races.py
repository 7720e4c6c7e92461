"""Many verbs at once on the same names and devices: one winner each, and nothing is left.

THOROUGH=1: sixteen of each where this has some, and a del before each step of a daemon that starts.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import verbs
from load import files, kill, state_of
from steps import WAITS
from tools import (
    COMMAND_SECONDS,
    daemons,
    device,
    figures,
    fio,
    nothing_left,
    ublkd,
    ublkd_json,
    wait_until,
)

from ublkd.ending import MADE_SECONDS

THOROUGH = "THOROUGH" in os.environ
MANY = 16 if THOROUGH else 6
ROUNDS = 10 if THOROUGH else 1

ALL = range(1, 60)
STEPS = (
    {"add": ALL, "recover": ALL, "upgrade": ALL}
    if THOROUGH
    else {"add": (9, 21, 26), "recover": (8, 13, 16), "upgrade": (4, 17)}
)
"""Before which of a daemon's steps somebody deletes its device."""
CHARS = Path("/sys/class/ublk-char")
HEADSTART = {"add": MADE_SECONDS + 3 if THOROUGH else 3}
"""Seconds that a del has before the daemon goes on for which it may be waiting; by default 3."""

pytestmark = [pytest.mark.deadline(2400 if THOROUGH else 240), pytest.mark.one_kernel]

Words = Sequence[str | Path]
LOST = (
    "the name 'one' is taken by",
    "in use by another program",
    "there is no ublk device",
    "is gone",
    "was stopped or deleted",
    "is still being made by process",
    "is dead",
    "is quiesced",
    "nobody serves",
    "is served by process",
)
"""What a loser says."""


def race(commands: Sequence[Words]) -> list[CompletedProcess[str]]:
    """Run all at once; each succeeds, or has lost and says so in one line and a hint."""
    with ThreadPoolExecutor(len(commands)) as pool:
        ended = list(pool.map(lambda words: ublkd(*words, check=False), commands))
    for done in ended:
        won_or_lost(done)
    return ended


def won_or_lost(done: CompletedProcess[str]) -> None:
    lines, said = done.stderr.splitlines(), (done.stderr, done.args, done.returncode)
    assert "Traceback" not in done.stderr, said
    if done.returncode:
        assert done.returncode == 1, said
        assert len(lines) == 2, said
        assert lines[1].startswith("hint: "), said
        assert any(words in lines[0] for words in LOST), said


def won(ended: Sequence[CompletedProcess[str]]) -> int:
    return sum(not done.returncode for done in ended)


def test_of_many_adds_of_one_name_one_wins_and_of_many_dels_all_are_content(scratch: Path) -> None:
    add = ["add", "--target", "null", "--size", "1M", "--name", "one"]
    assert won(race([add] * MANY)) == 1
    assert len(ublkd_json("list")) == 1
    ended = race([["del", "one"]] * MANY)
    assert won(ended)
    assert ublkd_json("list") == []
    nothing_left()


def test_adds_and_dels_of_one_name_leave_what_the_last_of_them_wanted(scratch: Path) -> None:
    for _ in range(ROUNDS):
        add = ["add", "--target", "loop", *files(scratch), "--name", "one"]
        both: list[Words] = [add, ["del", "one"]] * MANY
        ended = race(both)
        added, deleted = won(ended[::2]), won(ended[1::2])
        left = [(told["name"], told["state"]) for told in ublkd_json("list")]
        figures(f"{MANY} adds and dels: {added} added, {deleted} deleted, {len(left)} left")
        # or it was deleted before its add could see it
        gone = any("was stopped or deleted" in done.stderr for done in ended[::2])
        assert added or gone
        assert left in ([], [("one", "live")])
        if left:
            fio(f"/dev/ublkb{ublkd_json('list')[0]['id']}", "--rw=write", "--bs=64k", "--size=1m",
                "--verify=crc32c")  # fmt: skip
            ublkd("del", "one")
        wait_until(lambda: not daemons(), 30, "the end of all daemons")
        nothing_left()


def test_whoever_serves_a_device_in_the_end_it_is_one_or_nobody(scratch: Path) -> None:
    verbs: list[Words] = [["recover", "one"], ["upgrade", "one"], ["recover", "--all"]]
    for number in range(3 * ROUNDS):
        with device("loop", *files(scratch), "--name", "one") as node:
            if number % 3:
                kill(node)
            end: list[Words] = [["del", "one"]] if number % 3 == 1 else []
            ended = race([*verbs, *end, *verbs])
            told = Counter(done.stderr.splitlines()[0] for done in ended if done.returncode)
            figures(f"race {number}: {won(ended)} of {len(ended)} done, {dict(told)}")
            if end and not ublkd_json("list"):
                wait_until(lambda: not daemons(), 30, "the end of all daemons")
                nothing_left()
                continue
            ublkd("recover", "--all")
            assert state_of(node) == "live"
            wait_until(lambda: len(daemons()) == 1, 30, "the end of the others")
            fio(node, "--rw=randwrite", "--bs=4k", "--size=1m", "--verify=crc32c")
        nothing_left()


def overtaken(number: int, folder: Path, *words: str | Path) -> str:
    """Run a command of the device "one" while another deletes that, right before a step of its
    daemon; which step it was. Empty if it has fewer.
    """
    note, go = folder / "step", folder / "step.go"
    for path in (note, go):
        path.unlink(missing_ok=True)
    os.mkfifo(go)
    with ThreadPoolExecutor(2) as pool:
        done = pool.submit(verbs.ask, [str(word) for word in words], COMMAND_SECONDS,
                           (number, WAITS, str(note), 0))  # fmt: skip
        wait_until(lambda: done.done() or (note.exists() and note.read_text()), 60, "the step")
        if not note.exists():
            go.unlink()
            go.touch()  # a step that it makes when it ends
            won_or_lost(done.result())
            return ""
        deleted = pool.submit(ublkd, "del", "one", check=False)
        before, until = list(CHARS.glob("*")), time.monotonic() + HEADSTART.get(str(words[0]), 3)
        # gone, it waits only for this daemon to let go, and not for ever
        while not deleted.done() and list(CHARS.glob("*")) == before and time.monotonic() < until:
            time.sleep(0.05)
        go.write_text("go on")
        won_or_lost(done.result())
        won_or_lost(deleted.result())
        assert "stays taken" not in deleted.result().stderr, (number, note.read_text())
    return note.read_text()


@pytest.mark.parametrize("verb", STEPS)
def test_a_del_before_any_step_of_a_daemon_that_starts_leaves_nothing(
    scratch: Path, verb: str
) -> None:
    add = ["add", "--target", "loop", *files(scratch), "--name", "one"]
    steps = []
    for number in STEPS[verb]:
        if verb != "add":
            ublkd(*add)
        if verb == "recover":
            kill(f"/dev/ublkb{ublkd_json('list')[0]['id']}")
        step = overtaken(number, scratch, *(add if verb == "add" else [verb, "one"]))
        wait_until(lambda: len(daemons()) == len(ublkd_json("list")), 90, f"the end after {step}")
        assert [one["state"] for one in ublkd_json("list")] in ([], ["live"]), step
        if ublkd_json("list"):  # the del came too early, or there was none
            ublkd("del", "one")
        nothing_left()
        if not step:
            break
        steps.append(f"{number} {step}")
    figures(f"del before steps of {verb}: {steps}")
    assert steps
