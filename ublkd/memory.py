"""Keeps a daemon from waiting for its own disk when memory is short.

The kernel then writes dirty pages to the disk to get free ones. Whoever serves that must not need
a page for it that is only free after the write.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

from ublkd._core import ffi, lib
from ublkd.errors import reason

OOM_SCORE_ADJ = Path("/proc/self/oom_score_adj")
NEVER = "-1000"


def guard(log: Callable[[str], None]) -> None:
    """For this process and the threads that it makes from here on, rings' workers among them.

    What may not be is told to ``log`` and gone on without.
    """
    if lib.prctl(lib.PR_SET_IO_FLUSHER, 1, 0, 0, 0) < 0:
        log(f"short of memory, the disk may wait for itself: PR_SET_IO_FLUSHER: {_why()}")
    if lib.mlockall(lib.MCL_CURRENT | lib.MCL_FUTURE | lib.MCL_ONFAULT) < 0:
        log(f"memory is not locked, and what is swapped out may be waited for: {_why()}")
    try:
        OOM_SCORE_ADJ.write_text(NEVER)
    except OSError as error:
        log(f"short of memory, the kernel may choose this process to end: {reason(error)}")
    gc.freeze()  # what is imported by now stays: no collection shall walk over it


def _why() -> str:
    return reason(ffi.errno)
