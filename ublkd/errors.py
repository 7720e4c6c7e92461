"""What can go wrong, as one line and a hint."""

from __future__ import annotations

import errno
import os
import re
import traceback

DEBUG = "UBLKD_DEBUG"
"""The environment variable with which a defect shows its traceback."""
SHORTAGE = frozenset({errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.EINTR})
"""Errnos of a shortage that may be over in a moment: no answer to what was asked, and no reason to
call it not possible.
"""


DMESG = "dmesg may say more"
"""The hint for what only the kernel knows."""


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
    """What was asked makes no sense, whatever the machine. Wherever the password of a URI may have
    been put, the message leaves it out.
    """

    exit_code = 2

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(redacted(message), hint=hint)


class NotPossibleError(UblkdError):
    """It makes sense, but not on this machine: no module, no privilege, a feature missing."""

    exit_code = 3


class DefectError(UblkdError):
    """What nobody expected: a defect of ublkd or of a plug-in. One line like any other failure;
    its cause has the traceback.
    """


BY_EXIT_CODE: dict[int, type[UblkdError]] = {
    cls.exit_code: cls for cls in (UblkdError, UsageError, NotPossibleError)
}


def reason(error: OSError | int) -> str:
    """The words for an errno, lower case and without a number: ``no space left on device``."""
    number = error if isinstance(error, int) else error.errno
    text = os.strerror(abs(number)) if number else str(error)
    return text[:1].lower() + text[1:]


def told(error: BaseException) -> str:
    """An exception as one line, whatever it does when it is asked for its text."""
    try:
        text = str(error)
    except Exception:
        text = "(it has no words for it)"
    return printable(f"{type(error).__name__}: {text}")


def internal(error: BaseException) -> DefectError:
    """The error for an exception that nobody expected."""
    found = DefectError(
        f"internal error: {told(error)}",
        hint="this is a defect of ublkd: please report it, with the output of 'ublkd features' and "
        f"what {DEBUG}=1 shows",
    )
    found.__cause__ = error
    return found


def trace_of(error: UblkdError) -> list[str]:
    """The lines of a defect's traceback, if the environment asks for them."""
    if not isinstance(error, DefectError) or not os.environ.get(DEBUG):
        return []
    return "".join(traceback.format_exception(error.__cause__ or error)).splitlines()


def printable(text: str) -> str:
    """A path or name as one line of valid text: control and non-UTF-8 bytes are escaped.

    Linux paths are bytes; Python carries the odd ones as lone surrogates, which neither a
    terminal nor a JSON parser takes.
    """
    decoded = valid_text(text)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in decoded)


def quoted(text: str) -> str:
    """The same between quotes."""
    shown = printable(text)
    quote = '"' if "'" in shown and '"' not in shown else "'"
    return f"{quote}{shown}{quote}"


def valid_text(text: str) -> str:
    """The text with every byte that is not UTF-8 written as ``\\xNN``; newlines stay."""
    try:
        raw = os.fsencode(text)
    except UnicodeEncodeError:  # a surrogate that stands for no byte: not from a path
        raw = text.encode("utf-8", "backslashreplace")
    return raw.decode("utf-8", "backslashreplace")


def redacted(text: str) -> str:
    """The text with what stands before the ``@`` of a URI left out: it may be a password.

    Rather too much is left out than too little: a sloppy password may hold any character.
    """
    return re.sub(r"://.*@", "://***@", text, flags=re.DOTALL)
