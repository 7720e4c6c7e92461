"""What can go wrong, as one line and a hint."""

from __future__ import annotations

import os


class UblkdError(Exception):
    """An expected failure: one line that names the cause, and what to do about it.

    The exit codes are those of ublkd(8): 1 failed, 2 usage, 3 not possible on this machine.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(UblkdError):
    """What was asked makes no sense, whatever the machine."""

    exit_code = 2


class NotPossibleError(UblkdError):
    """It makes sense, but not on this machine: no module, no privilege, a feature missing."""

    exit_code = 3


BY_EXIT_CODE: dict[int, type[UblkdError]] = {
    cls.exit_code: cls for cls in (UblkdError, UsageError, NotPossibleError)
}


def reason(error: OSError | int) -> str:
    """The words for an errno, lower case and without a number: ``no space left on device``."""
    number = error if isinstance(error, int) else error.errno
    text = os.strerror(abs(number)) if number else str(error)
    return text[:1].lower() + text[1:]


def printable(text: str) -> str:
    """A path or name as one line of valid text: control and non-UTF-8 bytes are escaped.

    Linux paths are bytes; Python carries the odd ones as lone surrogates, which neither a
    terminal nor a JSON parser takes.
    """
    decoded = valid_text(text)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in decoded)


def valid_text(text: str) -> str:
    """The text with every byte that is not UTF-8 written as ``\\xNN``; newlines stay."""
    try:
        raw = os.fsencode(text)
    except UnicodeEncodeError:  # a surrogate that stands for no byte: not from a path
        raw = text.encode("utf-8", "backslashreplace")
    return raw.decode("utf-8", "backslashreplace")
