"""What a server in user space can reach of kernel nbd at best, in one boot: a table.

Counted are instructions of the whole guest for each request (`make bench-bound`). Whoever serves an
NBD disk from user space pays for two things: for the way of a request from the program to a process
of his and back, and for the answer of the NBD server. The first is what ublkd's null target costs
for a write, which it answers at once; the second is what a client costs that does nothing else
(least.c). What has to be paid for both and is counted twice is a loop around one system call. What
a server must do beside is not in it: to look at what comes, to keep a journal.

Needs what nbd.py needs, and a C compiler with liburing.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nbd import WANTED, fill, kernel_nbd, nbdkit, ublkd_nbd
from quick import CELLS, Cell, Row, fio, heading, run

HERE = Path(__file__).resolve().parent
BYTES = {"4k": 4096, "64k": 65536, "512k": 524288}
PER_SECOND = 500_000_000
"""Instructions of the counting lab."""
KINDS = ("read", "write")


@contextmanager
def ublkd_null() -> Iterator[str]:
    """Our null target, with lent pages."""
    node = run("ublkd", "add", "--target", "null", "--lease", "auto")
    try:
        yield node
    finally:
        run("ublkd", "del", node)


def show(name: str, row: Row, form: str = "9,.0f") -> None:
    """A row of the table."""
    cells = (" / ".join(format(row[c, kind], form) for kind in KINDS) for c in CELLS)
    print(f"{name:<26}", *(f"{cell:<23}" for cell in cells), flush=True)


def instructions(name: str, node: str, kinds: tuple[str, ...] = KINDS) -> Row:
    """For each request of fio; the first kind stands for those that are not asked for."""
    row = {(c, k): PER_SECOND / fio(node, k, c) for c in CELLS for k in kinds}
    row = {(c, k): row[c, k if k in kinds else kinds[0]] for c in CELLS for k in KINDS}
    show(name, row)
    return row


def least(program: Path, path: Path, kind: str, cell: Cell, *how: str) -> float:
    """Instructions for each request of the client that does nothing else."""
    size, depth = str(BYTES[cell.block]), str(cell.depth)
    return PER_SECOND / float(run(str(program), str(path), kind, size, depth, "1000", *how))


def main() -> int:
    """Print the table."""
    heading()
    print("instructions for each request:")
    with tempfile.TemporaryDirectory() as folder, nbdkit(path := Path(folder, "nbd.sock")):
        program = Path(folder, "least")
        run("cc", "-O2", "-o", str(program), str(HERE / "least.c"), "-luring")
        with kernel_nbd(path) as node:
            fill(node)
            kernel = instructions("kernel nbd", node)
        with ublkd_nbd(path, "auto") as node:
            instructions("ublkd nbd, auto", node)
        client = {(c, k): least(program, path, k, c) for c in CELLS for k in KINDS}
        show("least client", client)
        late = {k: least(program, path, k, CELLS[0], "late") for k in KINDS}
    with ublkd_null() as node:
        null = instructions("ublkd null, write", node, ("write",))
    bound = {at: client[at] + null[at] for at in client}
    show("least server: both", bound)
    print(f"of kernel nbd, where {WANTED} is wanted:")
    show("least server", {at: kernel[at] / bound[at] for at in bound}, ".3f")
    first = CELLS[0]
    for kind in KINDS:
        both = late[kind] + null[first, kind]
        print(f"{first} {kind}, answers taken with the next request: client {late[kind]:,.0f}, "
              f"both {both:,.0f}, of kernel nbd {kernel[first, kind] / both:.3f}")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
