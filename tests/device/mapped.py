"""Disks below ours that can be broken and healed: device-mapper over a ram disk or another node."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from tools import patiently, run


@contextlib.contextmanager
def ram_disks(count: int, size: int) -> Iterator[list[str]]:
    """That many ram disks of that many bytes: their nodes."""
    run("modprobe", "brd", f"rd_nr={count}", f"rd_size={size >> 10}")
    try:
        yield [f"/dev/ram{n}" for n in range(count)]
    finally:
        patiently("rmmod", "brd")


@dataclass(frozen=True)
class Mapped:
    """A disk whose table can be changed under whoever uses it. Bytes everywhere."""

    name: str
    below: str
    size: int

    @property
    def node(self) -> str:
        """Its block device."""
        return f"/dev/mapper/{self.name}"

    def table(self, kind: str, more: str = "") -> str:
        """One line over all of it, of a device-mapper target that needs the disk below."""
        return f"0 {self.size // 512} {kind} {self.below} {more or 0}"

    def load(self, table: str) -> None:
        """Change the table; nobody above is told, and no filesystem is frozen."""
        run(
            "sh", "-ec", f"dmsetup suspend --nolockfs {self.name}; dmsetup load {self.name}; "
            f"dmsetup resume {self.name}", said=table,
        )  # fmt: skip

    def heal(self) -> None:
        """Everything works."""
        self.load(self.table("linear"))

    def fail(self) -> None:
        """All that is read or written is an error; a FLUSH is not."""
        self.load(f"0 {self.size // 512} error")

    def fail_reads(self) -> None:
        """Only what is read is an error."""
        self.load(self.table("flakey", "0 0 1 1 error_reads"))

    def fail_writes(self) -> None:
        """What is written is an error, and so is a FLUSH, if the disk below takes any."""
        self.load(self.table("flakey", "0 0 1 1 error_writes"))

    def fail_between(self, start: int, end: int) -> None:
        """A bad stretch."""
        first, behind = start // 512, end // 512
        self.load(
            f"0 {first} linear {self.below} 0\n{first} {behind - first} error\n"
            f"{behind} {self.size // 512 - behind} linear {self.below} {behind}\n"
        )


@contextlib.contextmanager
def mapped(name: str, below: str, size: int) -> Iterator[Mapped]:
    """A disk over that node, healthy."""
    run("modprobe", "-a", "dm-mod", "dm-flakey")
    disk = Mapped(name, below, size)
    run("dmsetup", "create", name, said=disk.table("linear"))
    run("dmsetup", "mknodes", name)  # no udev here
    try:
        yield disk
    finally:
        patiently("dmsetup", "remove", name)


@contextlib.contextmanager
def breakable(name: str, size: int) -> Iterator[Mapped]:
    """A disk over a ram disk, healthy."""
    with ram_disks(1, size) as (ram,), mapped(name, ram, size) as disk:
        yield disk
