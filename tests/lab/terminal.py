"""The user's terminal while a shell runs in the guest."""

import contextlib
import os
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from types import FrameType


def size() -> tuple[int, int]:
    """Return rows and columns."""
    try:
        columns, rows = os.get_terminal_size(sys.stdin.fileno())
    except OSError:
        return 24, 80
    return (rows, columns) if rows and columns else (24, 80)


@contextlib.contextmanager
def raw(resized: Callable[[int, int], None]) -> Iterator[None]:
    """Pass every key on as it is; give the terminal back as it was.

    ``resized`` is called with rows and columns whenever they change.
    """

    def changed(_signal: int, _frame: FrameType | None) -> None:
        resized(*size())

    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    previous = signal.signal(signal.SIGWINCH, changed)
    try:
        tty.setraw(fd)
        yield
    finally:
        signal.signal(signal.SIGWINCH, previous)
        termios.tcsetattr(fd, termios.TCSAFLUSH, before)
