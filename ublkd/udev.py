"""What udev is told of a device of ours, and whether it listens.

systemd/60-ublkd.rules read it from the folder of state. There it has a name that no other disk can
have: with the number that the kernel gives to each disk once (diskseq), so a file that was left
behind never speaks of another program's device. That number comes with the disk, and udev may be
there at once; until then the file has a name without it, which goes as soon as the other is there.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

SYSFS = Path("/sys/class/block")
RUN = Path("/run/udev")
FOLDERS = ("/etc/udev/rules.d", "/run/udev/rules.d", "/usr/local/lib/udev/rules.d",
           "/usr/lib/udev/rules.d", "/lib/udev/rules.d")  # fmt: skip
"""Where udev looks for rules: udev(7); of two files of one name the first counts."""
PLAIN = re.compile("[A-Za-z0-9_.-]+")
"""What needs no quoting, neither in the file nor in a link; a name is such a text (config.py)."""
PATTERN = "*ublkd*.rules"


def facts(pid: int, name: str | None, access: Mapping[str, str]) -> str:
    """The lines for IMPORT{file}; the process tells the rules whether anybody serves."""
    told = {"pid": str(pid), "name": name or "", **access}
    plain = {key: value for key, value in told.items() if PLAIN.fullmatch(value)}
    return "".join(f"UBLKD_{key.upper()}={value}\n" for key, value in plain.items())


def before(dev_id: int) -> str:
    """The file's name as long as there is no disk."""
    return f"{dev_id}.udev"


def of_disk(dev_id: int) -> str | None:
    """The file's name for the disk that is there; None if there is none."""
    with contextlib.suppress(OSError):
        return f"{dev_id}.{int((SYSFS / f'ublkb{dev_id}/diskseq').read_text())}.udev"
    return None


def is_disk(dev_id: int) -> bool:
    """Whether there is the disk; the kernel has it in /sys before a node of it can be opened."""
    return (SYSFS / f"ublkb{dev_id}").exists()


def runs() -> bool:
    """Whether there is a udev here."""
    return (RUN / "control").exists()


def rules(root: Path = Path("/")) -> str:
    """Our rules, as a path under ``root``; empty if they are not installed, or masked."""
    first: dict[str, Path] = {}
    for folder in FOLDERS:
        for path in sorted((root / folder.lstrip("/")).glob(PATTERN)):
            first.setdefault(path.name, path)
    there = (path for path in first.values() if path.is_file() and path.stat().st_size)
    return next((f"/{path.relative_to(root)}" for path in there), "")


def has_seen(dev_id: int) -> bool:
    """Whether udev has done what it does when a disk appears."""
    with contextlib.suppress(OSError):
        number = (SYSFS / f"ublkb{dev_id}/dev").read_text().strip()
        return (RUN / "data" / f"b{number}").exists()
    return False


def parts(dev_id: int) -> list[str]:
    """The kernel's names of the disk and its partitions."""
    disk = f"ublkb{dev_id}"
    with contextlib.suppress(OSError):
        inside = sorted(e for e in os.listdir(SYSFS / disk) if e.startswith(f"{disk}p"))
        return [disk, *inside]
    return [disk]


def announce(dev_id: int) -> None:
    """Have udev look anew at the disk and its partitions (the uevent file of sysfs)."""
    for name in parts(dev_id):
        with contextlib.suppress(OSError):
            (SYSFS / name / "uevent").write_text("change")
