"""What modules say with ``logging`` goes to the daemon's log, and nobody waits for that."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import queue
import time
from collections.abc import Callable, Iterator

WAITING = 1000
"""Lines that may wait for a slow log; more are lost."""
BURST, SECONDS = 200, 10.0
"""So many lines in so many seconds are written; more are lost."""

Log = Callable[[str], None]


class NeverWaiting(logging.handlers.QueueHandler):
    """A queue's thread must not wait for a log, which may be on its own disk."""

    lost = 0  # under the lock that every handler has

    def handleError(self, record: logging.LogRecord) -> None:
        """The line is lost: too many wait already."""
        self.lost += 1


class ToOurLog(logging.Handler):
    """Writes what modules say into our log, and how many lines were lost."""

    def __init__(self, log: Log, waiting: NeverWaiting) -> None:
        super().__init__(logging.INFO)
        self._log, self._waiting = log, waiting
        self._until, self._left, self._lost = 0.0, 0, 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, unless there were too many of late."""
        if time.monotonic() >= self._until:
            self._until, self._left = time.monotonic() + SECONDS, BURST
        if self._left:
            self._left -= 1
            self.tell_lost()
            self._write(record.getMessage())
        else:
            self._lost += 1

    def tell_lost(self) -> None:
        """Say how many were lost since that was said."""
        with self._waiting.lock or contextlib.nullcontext():
            lost, self._waiting.lost = self._lost + self._waiting.lost, 0
        if lost:
            self._write(f"{lost} lines before this one were lost: there were too many")
        self._lost = 0

    def _write(self, line: str) -> None:
        with contextlib.suppress(Exception):  # nobody is there to be told
            self._log(line)


@contextlib.contextmanager
def logged(log: Log) -> Iterator[None]:
    """What modules say with ``logging``, targets in Python among them, goes to our log."""
    lines: queue.Queue[logging.LogRecord] = queue.Queue(WAITING)
    root, waiting = logging.getLogger(), NeverWaiting(lines)
    ours = ToOurLog(log, waiting)
    listener = logging.handlers.QueueListener(lines, ours)
    listener.start()
    root.addHandler(waiting)
    try:
        yield
    finally:
        root.removeHandler(waiting)
        lines.join()  # or stop() might find no room for its own end
        listener.stop()
        ours.tell_lost()
