"""The log of a daemon, and what modules say with ``logging``: nobody waits for it to be written."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import queue
import time
from collections.abc import Callable, Iterator

from ublkd.aside import LAST_SECONDS

WAITING = 2000
"""Lines that may wait for a slow log, the last requests (recorder.py) among them; more are lost."""
BURST, SECONDS = 200, 10.0
"""Of modules so many lines in so many seconds are written; more are lost."""
OURS = "ublkd_own"
"""What a record of the daemon itself has."""

Log = Callable[[str], None]


class NeverWaiting(logging.handlers.QueueHandler):
    """Who serves must not wait for a log, which may be on its own disk."""

    lost = 0  # under the lock that every handler has

    def say(self, line: str) -> None:
        """A line of the daemon itself."""
        self.handle(_own(line))

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
        """Write a line; one of a module, unless there were too many of late."""
        if hasattr(record, OURS):
            self.tell_lost()
            if record.msg:
                self._write(record.msg)
            return
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


def _own(line: str) -> logging.LogRecord:
    return logging.makeLogRecord({"msg": line, "levelno": logging.INFO, OURS: True})


@contextlib.contextmanager
def logged(log: Log) -> Iterator[Log]:
    """The log as one that nobody waits for, which gets what modules say with ``logging`` as well,
    targets in Python among them.

    At the end it is waited for what is still to be written, for a short time.
    """
    lines: queue.Queue[logging.LogRecord] = queue.Queue(WAITING)
    root, waiting = logging.getLogger(), NeverWaiting(lines)
    listener = logging.handlers.QueueListener(lines, ToOurLog(log, waiting))
    listener.start()
    root.addHandler(waiting)
    try:
        yield waiting.say
    finally:
        root.removeHandler(waiting)
        if _written(lines, LAST_SECONDS):
            listener.stop()  # else its thread goes with the process


def _written(lines: queue.Queue[logging.LogRecord], seconds: float) -> bool:
    """Wait until all is written, how many were lost as well; whether that was in time."""
    until = time.monotonic() + seconds
    with contextlib.suppress(queue.Full):
        lines.put(_own(""), timeout=seconds)
    with lines.all_tasks_done:
        left = max(0.0, until - time.monotonic())
        return lines.all_tasks_done.wait_for(lambda: not lines.unfinished_tasks, left)
