"""What may take for ever, done in a thread of its own, with a deadline for whoever asked."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

LAST_SECONDS = 2.0
"""How long the end of a process waits for its last words to be written: the log may be on the very
disk that waits for the process to let go.
"""


def within(seconds: float, task: Callable[[], object]) -> bool:
    """Do it, and return once it is done or failed; False if that was not in time, or could not be
    begun. It may go on then, and ends with the process.
    """

    def run() -> None:
        with contextlib.suppress(Exception):
            task()

    thread = threading.Thread(target=run, name="aside", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # there is no thread to be had
        return False
    thread.join(seconds)
    return not thread.is_alive()
