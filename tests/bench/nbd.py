"""Speed of the nbd target beside the kernel's own nbd, in one boot: a table and a verdict.

Both are clients of one nbdkit, which serves memory over a unix socket. Meant for the counting lab
(`make bench-nbd`), where the clock counts instructions, so that a rate repeats whatever else the
machine does. Needs root, ublk_drv, nbd, nbd-client, nbdkit and fio.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quick import compare, heading, measure, run

WANTED = 1.10
"""What lease auto must reach of kernel nbd, in every cell."""
SIZE = "256M"


@contextmanager
def nbdkit(path: Path) -> Iterator[None]:
    """A server of memory, all full of data: holes would read as fast zeroes."""
    pid = path.with_suffix(".pid")
    server = subprocess.Popen(["nbdkit", "-f", "-P", str(pid), "-U", str(path), "memory", SIZE])
    try:
        while not pid.exists():
            if server.poll() is not None:
                raise SystemExit("nbdkit did not start")
            os.sched_yield()
        yield
    finally:
        server.kill()
        server.wait()


@contextmanager
def kernel_nbd(path: Path) -> Iterator[str]:
    """The kernel's nbd, as nbd-client sets it up."""
    run("modprobe", "nbd", "max_part=0")
    node = "/dev/nbd0"
    run("nbd-client", "-unix", str(path), node, "-N", "")
    try:
        yield node
    finally:
        run("nbd-client", "-d", node)


@contextmanager
def ublkd_nbd(path: Path, lease: str) -> Iterator[str]:
    """Our nbd target."""
    uri = f"nbd+unix:///?socket={path}"
    node = run("ublkd", "add", "--target", "nbd", "--uri", uri, "--lease", lease)
    try:
        yield node
    finally:
        run("ublkd", "del", node)


def fill(node: str) -> None:
    """Write all of it once."""
    data = os.urandom(16 << 20)
    with Path(node).open("wb", buffering=0) as disk:
        for _ in range(256 // 16):
            disk.write(data)


def main() -> int:
    """Print the table; 1 if a wanted ratio is missed."""
    heading()
    with tempfile.TemporaryDirectory() as folder, nbdkit(path := Path(folder, "nbd.sock")):
        with kernel_nbd(path) as node:
            fill(node)
            base = measure("kernel nbd", node)
        missed = 0
        for lease in ("auto", "copy"):
            with ublkd_nbd(path, lease) as node:
                row = measure(f"ublkd nbd, {lease}", node)
            ratios = compare("  of kernel nbd", row, base)
            for (cell, kind), ratio in ratios.items():
                if lease == "auto" and ratio < WANTED:
                    print(f"MISSED: {lease} {cell} {kind} at {ratio:.3f}, wanted {WANTED}")
                    missed += 1
    print(f"bench: {'missed' if missed else 'ok'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
