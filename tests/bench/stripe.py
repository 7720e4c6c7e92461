"""Reads of the stripe target beside those of the loop target, in one boot: what a split costs.

Each 512k read is eight members over four ram disks with stripe, and one member with loop. Meant
for the counting lab (`make bench-stripe`), where the clock counts instructions, so that a rate
repeats whatever else the machine does. Needs root, ublk_drv, brd and fio.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quick import Cell, fio, run

LEGS = [f"/dev/ram{n}" for n in range(4)]
ALONE = "/dev/ram4"
RAM_KIB = 64 << 10
CELLS = (Cell("64k", 16), Cell("512k", 1), Cell("512k", 8))
WANTED = {Cell("512k", 8): 0.85}
"""What part of loop's bytes a second stripe must reach."""


def make_ram_disks() -> None:
    """All full of data: what was never written to would read as fast zeroes."""
    run("modprobe", "brd", f"rd_nr={len(LEGS) + 1}", f"rd_size={RAM_KIB}")
    data = os.urandom(16 << 20)
    for node in [*LEGS, ALONE]:
        with Path(node).open("wb", buffering=0) as disk:
            for _ in range(RAM_KIB // (16 << 10)):
                disk.write(data)


@contextmanager
def ublkd(target: str, *nodes: str) -> Iterator[str]:
    """A device over those, with the best lease that the kernel can do."""
    files = [word for node in nodes for word in ("--file", node)]
    node = run("ublkd", "add", "--target", target, *files)
    try:
        yield node
    finally:
        run("ublkd", "del", node)


def measure(name: str, node: str) -> dict[Cell, float]:
    """A row of the table, bytes a second, printed as it comes."""
    row = {}
    for cell in CELLS:
        row[cell] = fio(node, "read", cell) * (int(cell.block.removesuffix("k")) << 10)
    print(f"{name:<24}", *(f"{row[cell]:>15,.0f}" for cell in CELLS), flush=True)
    return row


def main() -> int:
    """Print the table; 1 if the wanted ratio is missed."""
    make_ram_disks()
    print(f"kernel {os.uname().release}, {os.cpu_count()} CPU, "
          f"clock {os.environ.get('UBLKD_LAB_ACCEL', 'real')}; random reads, bytes/s")  # fmt: skip
    print(f"{'':<24}", *(f"{cell!s:>15}" for cell in CELLS))
    with ublkd("loop", ALONE) as node:
        base = measure("loop", node)
    with ublkd("stripe", *LEGS) as node:
        row = measure("stripe, 4 files of 64k", node)
    print(f"{'  of loop':<24}", *(f"{row[cell] / base[cell]:>15.3f}" for cell in CELLS))
    missed = [cell for cell, wanted in WANTED.items() if row[cell] / base[cell] < wanted]
    for cell, wanted in WANTED.items():
        verdict = "misses" if cell in missed else "reaches"
        print(f"{cell}: stripe has {row[cell] / base[cell]:.3f} of loop's bytes a second, "
              f"{verdict} {wanted}")  # fmt: skip
    print(f"bench: {'missed' if missed else 'ok'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
