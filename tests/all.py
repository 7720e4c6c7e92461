"""Everything that `make test` runs, in order, to the end, with one count at the close."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / ".venv" / "bin"
PLAIN = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "PY_COLORS")} | {
    "NO_COLOR": "1"
}
SUMMARY = re.compile(r"^=*\s*((?:\d+ [a-z]+(?:, )?)+) in [0-9.]+s")


@dataclass(frozen=True)
class Step:
    """One command; `suite` says that it is pytest, whose own counts are taken."""

    name: str
    command: Sequence[str]
    suite: bool = False


FOUR_CPUS = "tests/device/test_nbd_connections.py"
"""A connection has a CPU of its own, and guests have two."""


def lab(kernel: str, only: str = "") -> Step:
    """The device tests in a guest; ``only`` those that pytest's -m selects."""
    chosen = f" -m {shlex.quote(only)}" if only else ""
    return _guest(f"device {kernel}", kernel, 2, f"tests/device --ignore {FOUR_CPUS}{chosen}")


def _guest(name: str, kernel: str, cpus: int, tests: str) -> Step:
    words = f"pytest -p no:cacheprovider -q --durations=5 {tests}"
    return Step(
        name, [sys.executable, "-m", "tests.lab", "run", "--kernel", kernel, "--cpus", str(cpus),
               "--deadline", "2400", "--", words], suite=True,
    )  # fmt: skip


STEPS = (
    Step("lint", ["make", "-s", "lint"]),
    Step("types", ["make", "-s", "types"]),
    Step("package", ["make", "-s", "package"]),
    Step("unit", ["make", "-s", "unit"], suite=True),
    Step("core", ["make", "-s", "core"], suite=True),
    Step("core, sanitized", ["make", "-s", "core-asan"], suite=True),
    lab("7.2"),
    _guest("device 7.2, 4 CPUs", "7.2", 4, FOUR_CPUS),
    Step("systemd 7.2", ["make", "-s", "systemd"], suite=True),
    lab("6.12", only="not one_kernel"),
)


@dataclass(frozen=True)
class Outcome:
    """How a step ended."""

    step: Step
    passed: int
    failed: int
    skipped: int
    seconds: float


def counts(line: str) -> dict[str, int]:
    """The numbers of pytest's closing line; nothing if it is another line."""
    match = SUMMARY.match(line)
    if not match:
        return {}
    return {word: int(number) for number, word in re.findall(r"(\d+) ([a-z]+)", match[1])}


def run(step: Step) -> Outcome:
    """Run a step, its output passed on as it comes."""
    print(f"== {step.name}", flush=True)
    began = time.monotonic()
    found: dict[str, int] = {}
    with subprocess.Popen(
        step.command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", stdin=subprocess.DEVNULL, env=PLAIN,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            found = counts(line) or found
    failed = found.get("failed", 0) + found.get("errors", 0) + found.get("error", 0)
    passed = found.get("passed", 0)
    if not step.suite:
        passed, failed = int(not process.returncode), int(bool(process.returncode))
    elif not failed and (process.returncode or not passed):
        failed = 1  # it ended badly without pytest's own word for it, or ran nothing
    return Outcome(step, passed, failed, found.get("skipped", 0), time.monotonic() - began)


def main() -> int:
    """Exit status 1 if anything failed."""
    outcomes = [run(step) for step in STEPS]
    print()
    for o in outcomes:
        verdict = "ok" if not o.failed else "FAILED"
        print(f"{o.step.name:<19} {verdict:<7} {o.passed:>4} passed {o.failed:>3} failed "
              f"{o.skipped:>3} skipped {o.seconds:>6.0f} s")  # fmt: skip
    failed = sum(o.failed for o in outcomes)
    print(f"{sum(o.passed for o in outcomes)} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
