"""The one exception of the lab: an expected failure, said in a line and a hint."""

import enum
import sys


class Exit(enum.IntEnum):
    """Exit statuses of the lab itself; a job's own status is passed on untouched."""

    FAILED = 1
    USAGE = 2
    IMPOSSIBLE = 3  # nothing is broken: this machine cannot do it
    DEADLINE = 124  # as timeout(1)


class LabError(Exception):
    """An expected failure.

    ``message`` names what failed and who is at fault, ``hint`` what to do about it.
    """

    def __init__(self, message: str, *, hint: str = "", status: Exit = Exit.FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.status = status


def say(message: str) -> None:
    """Print one line of the lab's own on stderr."""
    print(f"lab: {message}", file=sys.stderr, flush=True)


def complain(error: LabError) -> int:
    """Print ``error`` and return the status to exit with."""
    say(error.message)
    if error.hint:
        say(f"hint: {error.hint}")
    return int(error.status)
