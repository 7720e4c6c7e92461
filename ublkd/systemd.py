"""What ublkd asks of systemd, where that runs, and which of its units is whose."""

from __future__ import annotations

import contextlib
import re
import subprocess
from pathlib import Path

from ublkd.errors import UblkdError, printable, reason

SYSTEMD = Path("/run/systemd/system")
"""Is there where systemd is the init: sd_booted(3)."""
ASK_SECONDS = 5
DO_SECONDS = 600
"""For a systemd that hangs: it ends by itself what takes longer than the unit may, and has asked
for."""
PROC = Path("/proc")
UNIT = re.compile(r"ublkd@[^/]+\.service")


def unit(name: str) -> str:
    """The unit that serves the device of that name."""
    return f"ublkd@{name}.service"


def unit_of(pid: int) -> str | None:
    """The unit of ours that a process belongs to: its control group says so (cgroups(7))."""
    try:
        text = (PROC / str(pid) / "cgroup").read_text()
    except OSError:
        return None
    found = (UNIT.fullmatch(line.rpartition("/")[2]) for line in text.splitlines())
    return next((match[0] for match in found if match), None)


def is_going_down() -> bool:
    """Whether the system is being shut down; no, where systemd does not say so in time."""
    if not SYSTEMD.exists():
        return False
    try:
        said = subprocess.run(
            ["systemctl", "is-system-running"], stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=ASK_SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return False
    return said.stdout.strip() == "stopping"


def has_unit() -> bool:
    """Whether systemd runs, and knows the unit that serves devices of files."""
    if not SYSTEMD.exists():
        return False
    try:
        systemctl("cat", "ublkd@.service")
    except UblkdError:
        return False
    return True


def start(unit: str) -> None:
    """Have a unit started, also one that systemd has given up. Raises UblkdError."""
    with contextlib.suppress(UblkdError):  # one that it does not know has not failed
        systemctl("reset-failed", unit)
    systemctl("start", unit)


def systemctl(verb: str, unit: str) -> None:
    """Have systemd do it, and wait. Raises UblkdError."""
    what = f"'systemctl {verb} {unit}'"
    try:
        done = subprocess.run(
            ["systemctl", verb, unit], stdin=subprocess.DEVNULL, capture_output=True,
            text=True, errors="replace", timeout=DO_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise UblkdError(
            f"{what} did not end within {DO_SECONDS} seconds",
            hint="see 'systemctl list-jobs'",
        ) from error
    except OSError as error:
        raise UblkdError(
            f"{what} cannot be run: {reason(error)}", hint="is systemctl in PATH?"
        ) from error
    if done.returncode:
        said = done.stderr.strip().partition("\n")[0]
        raise UblkdError(
            f"{what} failed: {printable(said) or f'status {done.returncode}'}",
            hint=f"see 'systemctl status {unit}' and 'journalctl -u {unit}'",
        )
