"""What to show of a kernel's log. No I/O."""

import re

INIT = "lab: init"
BLOCKED = "lab: blocked tasks"
ALL = "lab: all tasks"
END = "lab: end of tasks"

_TEST = re.compile(r"lab: test (.*)")

_TROUBLE = re.compile(
    r"WARNING:|BUG:|\bOops\b|blocked for more than|KASAN|UBSAN|KCSAN|Kernel panic|"
    r"general protection fault|possible recursive locking|circular locking|soft lockup|"
    r"rcu: INFO: .*stall"
)
# Said of every emulated or slow machine, and of no bug.
_NOISE = re.compile(
    r"hrtimer: interrupt took|clocksource|perf: interrupt took|"
    r"WARNING: CPU.*(tsc|clocksource)|module verification failed|TSC"
)
_HEADING = re.compile(r"sysrq: Show|^\[[^\]]*\]\s*(lab: .*)?$|^\s*$")


def after_init(log: str) -> str:
    """Return what the kernel said after process 1 spoke first; all of it if it never did."""
    _, found, rest = log.partition(INIT)
    return rest if found else log


def trouble(log: str) -> list[str]:
    """Return the lines, without repeats, that tell of a bug or a stuck task, and in which test."""
    found: dict[str, str] = {}
    during = ""
    for line in _before_dump(after_init(log)).splitlines():
        if test := _TEST.search(line):
            during = f" (in {test[1]})"
        elif _TROUBLE.search(line) and not _NOISE.search(line):
            text = re.sub(r"^\[[^\]]*\]\s*", "", line.strip())
            found.setdefault(text, text + during)
    return list(found.values())


def last_test(log: str) -> str:
    """Return the test that began last; empty if none has said so."""
    *_, last = "", *_TEST.finditer(_before_dump(log))
    return last[1] if last else ""


def _before_dump(log: str) -> str:
    # Backtraces that the lab itself asked for are no trouble.
    return log.partition(BLOCKED)[0]


def blocked(log: str) -> str:
    """Return the part of the dump that shows the blocked tasks; empty if none is."""
    shown = log.partition(BLOCKED)[2].partition(ALL)[0]
    shown = "\n".join(line for line in shown.splitlines() if not _HEADING.search(line))
    return shown if re.search(r"\btask:", shown) else ""


def death(log: str, lines: int = 40) -> str:
    """Return the first trouble of the log and what follows, else the end of the log."""
    shown = log.splitlines()
    for number, line in enumerate(shown):
        if _TROUBLE.search(line) and not _NOISE.search(line):
            return "\n".join(shown[number : number + lines])
    return "\n".join(shown[-lines:])
