"""Speed of the loop target beside the kernel's own loop, in one boot: a table and a verdict.

Meant for the counting lab (`make bench-quick`), where the clock counts instructions, so that a
rate repeats whatever else the machine does. Needs root, ublk_drv, brd, loop and fio.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

RAM_DISK = Path("/dev/ram0")
RAM_KIB = 256 << 10


@dataclass(frozen=True)
class Cell:
    """One column of the table: a block size and a queue depth."""

    block: str
    depth: int

    def __str__(self) -> str:
        return f"{self.block} qd {self.depth}"


CELLS = (Cell("4k", 1), Cell("4k", 32), Cell("64k", 16), Cell("512k", 8))
WANTED = {("auto", Cell("4k", 32)): 0.95, ("auto", Cell("4k", 1)): 0.78,
          ("copy", Cell("4k", 32)): 0.72}  # fmt: skip
"""What part of kernel loop's reads each lease must reach."""


def run(*command: str) -> str:
    """Standard output of a command that must succeed."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def fio(node: str, kind: str, cell: Cell) -> float:
    """I/O per second."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder, "fio.json")
        run(
            "fio", "--name=b", f"--filename={node}", f"--rw=rand{kind}", f"--bs={cell.block}",
            f"--iodepth={cell.depth}", "--ioengine=io_uring", "--direct=1", "--randrepeat=1",
            "--time_based", "--ramp_time=0.2", "--runtime=1", "--output-format=json",
            f"--output={told}",
        )  # fmt: skip
        return float(json.loads(told.read_text())["jobs"][0][kind]["iops"])


def make_ram_disk() -> None:
    """A ram disk full of data: one never written to would read as fast zeroes."""
    run("modprobe", "brd", "rd_nr=1", f"rd_size={RAM_KIB}")
    data = os.urandom(32 << 20)
    with RAM_DISK.open("wb", buffering=0) as disk:
        for _ in range(RAM_KIB // (32 << 10)):
            disk.write(data)


@contextmanager
def kernel_loop() -> Iterator[str]:
    """The kernel's loop device with direct I/O."""
    subprocess.run(["modprobe", "loop"], check=False)
    node = run("losetup", "--find", "--show", "--direct-io=on", str(RAM_DISK))
    try:
        yield node
    finally:
        run("losetup", "--detach", node)


@contextmanager
def ublkd_loop(lease: str) -> Iterator[str]:
    """Our loop target."""
    node = run("ublkd", "add", "--target", "loop", "--file", str(RAM_DISK), "--lease", lease)
    try:
        yield node
    finally:
        run("ublkd", "del", node)


Row = dict[tuple[Cell, str], float]


def measure(name: str, node: str) -> Row:
    """A row of the table, printed as it comes."""
    row: Row = {}
    for cell in CELLS:
        for kind in ("read", "write"):
            row[cell, kind] = fio(node, kind, cell)
    texts = (f"{row[cell, 'read']:>9,.0f} / {row[cell, 'write']:<8,.0f}" for cell in CELLS)
    print(f"{name:<22}", *texts, flush=True)
    return row


def heading() -> None:
    """What the rows below it are."""
    print(f"kernel {os.uname().release}, {os.cpu_count()} CPU, "
          f"clock {os.environ.get('UBLKD_LAB_ACCEL', 'real')}; IOPS, read / write")  # fmt: skip
    print(f"{'':<22}", *(f"{cell!s:^20}" for cell in CELLS))


def compare(name: str, row: Row, base: Row) -> Row:
    """A row as parts of another one, printed."""
    ratios = {at: row[at] / base[at] for at in row}
    texts = (f"{ratios[c, 'read']:>9.3f} / {ratios[c, 'write']:<8.3f}" for c in CELLS)
    print(f"{name:<22}", *texts, flush=True)
    return ratios


def leases() -> list[str]:
    """The leases that this kernel can do, best first."""
    told = json.loads(run("ublkd", "features", "--json"))
    return [kind for kind, verdict in told["leases"].items() if verdict == "possible"]


def main() -> int:
    """Print the table; 1 if a wanted ratio is missed."""
    make_ram_disk()
    heading()
    with kernel_loop() as node:
        base = measure("kernel loop, direct", node)
    missed = 0
    for lease in leases():
        with ublkd_loop(lease) as node:
            row = measure(f"ublkd loop, {lease}", node)
        ratios = compare("  of kernel loop", row, base)
        for (kind, cell), wanted in WANTED.items():
            ratio = ratios[cell, "read"]
            if kind == lease and ratio < wanted:
                print(f"MISSED: {lease} {cell} reads at {ratio:.3f}, wanted {wanted}")
                missed += 1
    print(f"bench: {'missed' if missed else 'ok'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
