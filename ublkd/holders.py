"""Who holds a disk: mounts, swap, devices that stand on it, processes that have it open.

Read from /proc and /sys only, so nothing is asked of the disk, and one that nobody serves is told
of like any other. What a namespace or a permission hides stays hidden; the driver, when it refuses
to stop a disk that is open (TRY_STOP_DEV), knows better. Raises OSError where a shortage keeps it
from being seen.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ublkd.errors import SHORTAGE, printable

SHOWN = 3
"""So many of each kind are named in a line."""
SECONDS = 5
"""How long it may take to look at all processes."""
PASSING = re.compile(r"systemd-udevd|\(udev-worker\)|udevd|udevadm")
"""Who opens any new disk for a moment: by comm of proc(5)."""


@dataclass(frozen=True, kw_only=True)
class Process:
    """One that has the disk open."""

    pid: int
    command: str
    serves: tuple[str, ...] = ()  # disks of ublk that it serves

    @property
    def is_passing(self) -> bool:
        """Whether it will let go by itself in a moment."""
        return bool(PASSING.fullmatch(self.command))


@dataclass(frozen=True, kw_only=True)
class Holders:
    """What was found; true if anything was."""

    mounted_on: tuple[str, ...] = ()
    swap: tuple[str, ...] = ()  # the disk, or partitions of it
    part_of: tuple[str, ...] = ()  # dm, md, bcache, kernel loop
    open_by: tuple[Process, ...] = ()
    all_seen: bool = True  # False: there was no time for every process

    def __bool__(self) -> bool:
        return self.is_claimed or bool(self.open_by)

    @property
    def is_claimed(self) -> bool:
        """Whether more than processes hold it."""
        return bool(self.mounted_on or self.swap or self.part_of)

    @property
    def is_passing(self) -> bool:
        """Whether those that hold it will let go by themselves in a moment: all were looked at."""
        passing = all(process.is_passing for process in self.open_by)
        return passing and self.all_seen and not self.is_claimed

    def words(self) -> str:
        """For a line, after "is": printable, and short however many there are."""
        processes = [
            f"{process.command} (process {process.pid}"
            + (f", for {', '.join(process.serves)})" if process.serves else ")")
            for process in self.open_by
        ]
        said = [
            _some("mounted on ", self.mounted_on),
            _some("swapped on: ", self.swap),
            _some("part of ", self.part_of),
            _some("open by ", processes),
            "" if self.all_seen else "perhaps open by others",
        ]
        return ", ".join(part for part in said if part)

    def as_json(self) -> dict[str, Any]:
        """What ``show --json`` tells."""
        return asdict(self)


def _some(words: str, found: Sequence[str]) -> str:
    if not found:
        return ""
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return words + " and ".join([", ".join(map(printable, found[:SHOWN]))]) + more


def of(dev_id: int, *, processes: bool = True, root: Path = Path("/")) -> Holders:
    """Who holds the disk ``/dev/ublkbN`` or a partition of it; nobody if there is no such disk.

    ``processes``: look at those that have it open as well.
    """
    machine = _Machine(root)
    names = machine.parts(f"ublkb{dev_id}")
    if not names:
        return Holders()
    open_by, all_seen = machine.open_by(names) if processes else ([], True)
    return Holders(
        mounted_on=tuple(machine.mounts(names)),
        swap=tuple(swapped(machine.read("proc/swaps"), set(names))),
        part_of=tuple(machine.above(names)),
        open_by=tuple(open_by),
        all_seen=all_seen,
    )


# --- what the files say ---------------------------------------------------------------------


def mounted(mountinfo: str, numbers: set[str], names: set[str]) -> Iterator[str]:
    """Where devices of these numbers (8:1) or kernel names are mounted: proc_pid_mountinfo(5)."""
    for line in mountinfo.split("\n"):
        fields, _, behind = line.partition(" - ")
        before, source = fields.split(" "), behind.split(" ")
        if len(before) < 5 or len(source) < 2:
            continue
        if before[2] in numbers or _named(source[1]) in names:
            yield _unescaped(before[4])


def swapped(swaps: str, names: set[str]) -> Iterator[str]:
    """Which devices are swapped on: proc_swaps(5)."""
    for line in swaps.split("\n")[1:]:
        path = _unescaped(line.partition(" ")[0].partition("\t")[0])
        if _named(path) in names:
            yield path


def _named(path: str) -> str:
    """The kernel's name of a device with that path; empty if it is none."""
    return path.removeprefix("/dev/") if path.startswith("/dev/") else ""


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


class _Machine:
    """The files of a machine, under ``root``; what is not there, or not any more, is empty."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.block = root / "sys/class/block"

    def read(self, path: str) -> str:
        return _read(self.root / path)

    def parts(self, disk: str) -> list[str]:
        """The disk and its partitions; empty if there is no disk."""
        inside = _listed(self.block / disk)
        return [disk, *(name for name in inside if name.startswith(f"{disk}p"))] if inside else []

    def mounts(self, names: Iterable[str]) -> Iterator[str]:
        """In every mount namespace that some process has; in others than ours, with the process."""
        numbers = {_read(self.block / name / "dev").strip() for name in names} - {""}
        known = {*names, *self._siblings(names)}
        seen, told = set(), set()
        for pid in ["self", *self._pids()]:
            namespace = _link(self.root / f"proc/{pid}/ns/mnt")
            if not namespace or namespace in seen:
                continue
            seen.add(namespace)
            for place in mounted(self.read(f"proc/{pid}/mountinfo"), numbers, known):
                if place not in told:  # a namespace begins as a copy of another one
                    told.add(place)
                    yield place if pid == "self" else f"{place} (for process {pid})"

    def _siblings(self, names: Iterable[str]) -> Iterator[str]:
        """The devices that make one btrfs with these: it is mounted by any of them."""
        for devices in (self.root / "sys/fs/btrfs").glob("*/devices"):
            together = _listed(devices)
            if not set(names).isdisjoint(together):
                yield from together

    def above(self, names: Sequence[str]) -> Iterator[str]:
        """The devices that stand on these."""
        for name in names:
            for holder in _listed(self.block / name / "holders"):
                called = _read(self.block / holder / "dm/name").strip()
                yield f"{holder} ({called})" if called else holder
        for loop in sorted(self.block.glob("loop*/loop/backing_file")):
            if _named(_read(loop).rstrip("\n")) in names:
                yield loop.parent.parent.name

    def open_by(self, names: Sequence[str]) -> tuple[list[Process], bool]:
        """The processes that have one of these open, but for this one; and whether all were
        looked at in time.
        """
        until = time.monotonic() + SECONDS
        found: list[Process] = []
        for pid in self._pids():
            if time.monotonic() > until:
                return found, False
            if pid == str(os.getpid()):
                continue
            folder = self.root / "proc" / pid
            files = {_named(_link(folder / "fd" / fd)) for fd in _listed(folder / "fd")}
            if not files.isdisjoint(names):
                disks = sorted(f"/dev/ublkb{file[5:]}" for file in files if file[:5] == "ublkc")
                command = _read(folder / "comm").strip()
                found.append(Process(pid=int(pid), command=command, serves=tuple(disks)))
        return found, True

    def _pids(self) -> list[str]:
        return sorted(filter(str.isdecimal, _listed(self.root / "proc")), key=int)


@contextlib.contextmanager
def _if_seen() -> Iterator[None]:
    """What is gone or hidden is empty; that there was no descriptor to look with says nothing."""
    try:
        yield
    except OSError as error:
        if error.errno in SHORTAGE:
            raise


def _read(path: Path) -> str:
    with _if_seen():
        return os.fsdecode(path.read_bytes())
    return ""


def _listed(folder: Path) -> list[str]:
    with _if_seen():
        return sorted(os.listdir(folder))
    return []


def _link(path: Path) -> str:
    with _if_seen():
        return os.readlink(path)
    return ""
