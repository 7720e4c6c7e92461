"""Everything that `make test` runs, to the end, with one count at the close.

First what the host does itself, in order. Then the guests, two at a time: an emulated guest hardly
keeps more than one CPU busy.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / ".venv" / "bin"
PLAIN = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "PY_COLORS")} | {
    "NO_COLOR": "1",
    "COLUMNS": "360",  # room for why a test failed, behind its name
}
TELLING = ("FAILED ", "ERROR ", "lab: ")
"""How a line begins that says why a step failed."""
SUMMARY = re.compile(r"^=*\s*((?:\d+ [a-z]+(?:, )?)+) in [0-9.]+s")


@dataclass(frozen=True)
class Step:
    """One command; `suite` says that it is pytest, whose own counts are taken."""

    name: str
    command: Sequence[str]
    suite: bool = False


NBD = "test_nbd"
LIVES = ("test_life", "recover", "upgrade", "killed", "races", "stands_still", "many_devices",
         "test_names", "device_files", "test_bad", "others_devices", "resize", "below", "verbs",
         "doctor", "memory")  # fmt: skip
"""Of tests/device what is about devices and their daemons, by words for pytest's -k. The rest of it
is about data.
"""
FOUR_CPUS = "tests/device/test_nbd_connections.py"
"""A connection has a CPU of its own, and guests have two."""
DEADLINE = 4000
"""Seconds that the tests in one guest may take."""


def device(kernel: str, about: str = "", *, words: str = "", marks: str = "") -> Step:
    """The device tests in a guest; those that pytest's -k and -m select."""
    chosen = f"--ignore {FOUR_CPUS}"
    if marks:
        chosen += f" -m {shlex.quote(marks)}"
    if words:
        chosen += f" -k {shlex.quote(words)}"
    return _guest(f"device {kernel}{about and f', {about}'}", kernel, 2, f"tests/device {chosen}")


def _guest(name: str, kernel: str, cpus: int, tests: str) -> Step:
    words = f"pytest -p no:cacheprovider -q --durations=5 {tests}"
    return Step(
        name, [sys.executable, "-m", "tests.lab", "run", "--kernel", kernel, "--cpus", str(cpus),
               "--deadline", str(DEADLINE), "--env", "COLUMNS", "--", words], suite=True,
    )  # fmt: skip


ON_THE_HOST = (
    Step("lint", ["make", "-s", "lint"]),
    Step("types", ["make", "-s", "types"]),
    Step("package", ["make", "-s", "package"]),
    Step("unit", ["make", "-s", "unit"], suite=True),
    Step("core", ["make", "-s", "core"], suite=True),
    Step("core, sanitized", ["make", "-s", "core-asan"], suite=True),
)
IN_GUESTS = (  # what takes longest comes first
    device("7.2", "nbd", words=NBD),
    device("7.2", "lives", words=f"not {NBD} and ({' or '.join(LIVES)})"),
    device("7.2", "data", words=f"not {NBD} and not ({' or '.join(LIVES)})"),
    device("6.12", marks="not one_kernel"),
    Step("systemd 7.2", ["make", "-s", "systemd"], suite=True),
    _guest("device 7.2, 4 CPUs", "7.2", 4, FOUR_CPUS),
)
MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
ROOM = 7 << 30
"""Bytes: two guests have 3 GiB each. Of 8 GiB a kernel keeps some for itself."""
GUESTS = 2 if (os.cpu_count() or 1) > 1 and MEMORY >= ROOM else 1


@dataclass(frozen=True)
class Outcome:
    """How a step ended."""

    step: Step
    passed: int
    failed: int
    skipped: int
    seconds: float
    why: Sequence[str] = ()
    """Of what failed, a line each."""


def counts(line: str) -> dict[str, int]:
    """The numbers of pytest's closing line; nothing if it is another line."""
    match = SUMMARY.match(line)
    if not match:
        return {}
    return {word: int(number) for number, word in re.findall(r"(\d+) ([a-z]+)", match[1])}


def run(step: Step, say: Callable[[str], object]) -> Outcome:
    """Run a step; what it says is passed on by line."""
    began = time.monotonic()
    found: Counter[str] = Counter()
    why: list[str] = []
    with subprocess.Popen(
        step.command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", stdin=subprocess.DEVNULL, env=PLAIN,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            say(line)
            found.update(counts(line))  # a step may be two boots
            if line.startswith(TELLING):
                why.append(line.rstrip())
    failed = found["failed"] + found["errors"] + found["error"]
    passed = found["passed"]
    if not step.suite:
        passed, failed = int(not process.returncode), int(bool(process.returncode))
    elif not failed and (process.returncode or not passed):
        failed = 1  # it ended badly without pytest's own word for it, or ran nothing
    took = time.monotonic() - began
    return Outcome(step, passed, failed, found["skipped"], took, why if failed else ())


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def alone(step: Step) -> Outcome:
    """Run a step, its output passed on as it comes."""
    _say(f"== {step.name}\n")
    return run(step, _say)


def beside_others(step: Step) -> Outcome:
    """Run a step, its output passed on in one piece when it has ended."""
    _say(f"== {step.name}: begins\n")
    lines: list[str] = []
    outcome = run(step, lines.append)
    _say("".join([f"== {step.name}\n", *lines]))
    return outcome


def main() -> int:
    """Exit status 1 if anything failed."""
    outcomes = [alone(step) for step in ON_THE_HOST]
    with ThreadPoolExecutor(GUESTS) as guests:
        outcomes += guests.map(beside_others, IN_GUESTS)
    print()
    for o in outcomes:
        verdict = "ok" if not o.failed else "FAILED"
        print(f"{o.step.name:<19} {verdict:<7} {o.passed:>4} passed {o.failed:>3} failed "
              f"{o.skipped:>3} skipped {o.seconds:>6.0f} s")  # fmt: skip
    for o in outcomes:
        for line in o.why:
            print(f"{o.step.name}: {line}")
    failed = sum(o.failed for o in outcomes)
    print(f"{sum(o.passed for o in outcomes)} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
