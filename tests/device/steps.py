"""Ends a command, its daemon or another process right before a step that others can see; or has the
daemon wait there, while something else is done.

A step is a command to the driver, what a process does to files, threads and processes, or the wait
for another process. `zygote.py` calls `die_at` in the fork that becomes the command.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import verbs

COMMAND, DAEMON, BOTH, OTHER = "the command", "its daemon", "both", "another process"
WAITS = "its daemon waits"

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.fork", "fcntl.flock",
           "_thread.start_new_thread", "_thread.start_joinable_thread"}  # fmt: skip
"""Events of PEP 578 that are steps; `open` is one if it is for more than reading."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_DIRECTORY
COMMAND_SECONDS = 200
THOROUGH = "THOROUGH" in os.environ
LAST = 200
FEW = {COMMAND: (3,), DAEMON: (4, 13), BOTH: (9, 18), OTHER: (7,)}
"""Steps that every run of the tests has somebody killed before."""


# --- in the command -------------------------------------------------------------------------


def die_at(number: int, who: str, note: str, other: int) -> None:
    """From here on: ``who`` dies before that step, which is written to the file ``note``.

    It is counted in the command where that or ``other`` dies, else in the daemon that it forks.
    """
    from ublkd.background import Child
    from ublkd.control import Control

    command, count = os.getpid(), 0

    def step(what: str) -> None:
        nonlocal count
        if (os.getpid() == command) is not (who in (COMMAND, OTHER)):
            return
        count += 1
        if count == number:
            Path(note).write_text(what)
            if who == WAITS:
                Path(f"{note}.go").read_text()  # its queues go on
                return
            for pid in {COMMAND: [command], BOTH: [command, os.getpid()],
                        OTHER: [other]}.get(who, [os.getpid()]):  # fmt: skip
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(os.pidfd_open(pid), signal.SIGKILL)

    def told(plain: Any, what: str) -> Any:
        def first(*words: Any, **more: Any) -> Any:
            step(f"{what} {getattr(words[1], 'name', '') if len(words) > 1 else ''}".strip())
            return plain(*words, **more)

        return first

    def hook(event: str, arguments: Sequence[Any]) -> None:
        if event in CHANGES or (event == "open" and _writes(arguments)):
            step(f"{event} {arguments[0] if arguments and event != 'fcntl.flock' else ''}".strip())

    Control._command = told(Control._command, "command")  # type: ignore[method-assign]
    plain = Child.hear

    def hear(child: Any, *words: Any) -> Any:
        # what was told is delivered: then the daemon rightly lives on
        is_told = select.select([child._read_end], [], [], 0)[0]
        step("hear what is told" if is_told else "hear")
        return plain(child, *words)

    Child.hear = hear  # type: ignore[method-assign,assignment]
    sys.addaudithook(hook)


def _writes(arguments: Sequence[Any]) -> bool:
    return isinstance(arguments[2], int) and bool(arguments[2] & WRITING)


# --- in the test ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Death:
    """Who died before which step, and what the command said."""

    who: str
    number: int
    step: str
    done: subprocess.CompletedProcess[str]

    def __str__(self) -> str:
        return f"{self.who} before step {self.number}, {self.step}"


def killed(number: int, who: str, folder: Path, *words: str | Path, other: int = 0) -> Death | None:
    """Run a command that dies before that step. None if it has fewer, and is done."""
    note = folder / "step"
    note.unlink(missing_ok=True)
    done = verbs.ask([str(word) for word in words], COMMAND_SECONDS,
                     (number, who, str(note), other))  # fmt: skip
    if not note.exists():
        assert done.returncode == 0, done
        return None
    step = note.read_text()
    assert "Traceback" not in done.stderr, done
    if who in (COMMAND, BOTH):
        assert done.returncode == -signal.SIGKILL, (step, done)
    elif done.returncode:
        lines = done.stderr.splitlines()
        assert len(lines) == 2, (step, done)
        assert lines[1].startswith("hint: "), (step, done)
    return Death(who, number, step, done)


def deaths(
    folder: Path, victims: Sequence[str], words: Sequence[str | Path],
    prepare: Callable[[], int] = lambda: 0,
) -> Iterator[Death | None]:  # fmt: skip
    """Run a command again and again; a victim dies before one step after the other, and last the
    command comes through (None). Without THOROUGH it dies before some steps only.

    ``prepare`` is called before each, and returns which process the victim OTHER is.
    """
    for who in victims:
        for number in range(1, LAST) if THOROUGH else FEW[who]:
            death = killed(number, who, folder, *words, other=prepare())
            yield death
            if death is None:
                break


def told(verb: str, seen: Sequence[Death]) -> str:
    """One line."""
    counts = Counter(death.who for death in seen)
    return f"{verb}: " + ", ".join(f"{who} killed before {n} steps" for who, n in counts.items())
