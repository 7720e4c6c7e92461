"""Keeps memory tight: takes and gives back until programs could have just so much of it.

Its argument is how much that is, in MiB. Ended from outside; killed for lack of memory before
anybody else.
"""

from __future__ import annotations

import mmap
import sys
import time
from pathlib import Path

PIECE = 8 << 20


def available() -> int:
    """Bytes that programs could have."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    raise SystemExit("no MemAvailable")


def main() -> None:
    """For ever."""
    Path("/proc/self/oom_score_adj").write_text("1000")
    left = int(sys.argv[1]) << 20
    held: list[mmap.mmap] = []
    print("ready", flush=True)
    while True:
        free = available()
        if free > left + PIECE:
            held.append(mmap.mmap(-1, PIECE, flags=mmap.MAP_PRIVATE | mmap.MAP_POPULATE))
        elif held and free < left - PIECE:
            held.pop().close()
        else:
            time.sleep(0.02)


if __name__ == "__main__":
    main()
