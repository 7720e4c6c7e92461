"""What modules say with ``logging`` goes to the daemon's log, and nobody waits for that."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import queue
from collections.abc import Callable, Iterator

LINES = 1000
"""That may wait for a slow log; more are lost."""

Log = Callable[[str], None]


class ToOurLog(logging.Handler):
    """Writes what modules say into our log."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.INFO)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        with contextlib.suppress(Exception):  # nobody is there to be told
            self._log(record.getMessage())


class NeverWaiting(logging.handlers.QueueHandler):
    """A queue's thread must not wait for a log, which may be on its own disk."""

    def handleError(self, record: logging.LogRecord) -> None:
        """The line is lost: too many wait already."""


@contextlib.contextmanager
def logged(log: Log) -> Iterator[None]:
    """What modules say with ``logging``, targets in Python among them, goes to our log."""
    lines: queue.Queue[logging.LogRecord] = queue.Queue(LINES)
    root, handler = logging.getLogger(), NeverWaiting(lines)
    listener = logging.handlers.QueueListener(lines, ToOurLog(log))
    listener.start()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        listener.stop()
