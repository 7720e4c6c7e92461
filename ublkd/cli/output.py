"""What is printed and how: text, JSON, tables, warnings and errors."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click

from ublkd import aside
from ublkd.errors import UblkdError, internal, printable, trace_of, valid_text
from ublkd.notify import ERROR, WARNING, levelled


def emit(text: str) -> None:
    """Print to standard output, or fail: output that nobody got is not success."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        raise unheard() from error


def unheard() -> UblkdError:
    """The error for output that nobody got."""
    silence(1)
    return UblkdError(
        "standard output was closed before everything was printed",
        hint="the reader of the pipe ended early, or the disk is full",
    )


def silence(fd: int) -> None:
    """What is still buffered cannot go anywhere, and the interpreter would say so at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), fd)


def _json_ready(value: Any) -> Any:
    """The value with every text made valid, whatever bytes a path had."""
    if isinstance(value, str):
        return valid_text(value)
    if isinstance(value, dict):
        return {_json_ready(key): _json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_ready(item) for item in value]
    return value


def emit_json(value: Any, *, indent: int | None = 2) -> None:
    """Print as JSON, ASCII only; without ``indent`` on one line."""
    emit(json.dumps(_json_ready(value), indent=indent))


def warn(text: str) -> None:
    """One line on standard error that is not a failure."""
    click.echo(levelled(f"ublkd: warning: {text}", WARNING), err=True)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned columns; the first is the heading."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def lines(value: dict[str, Any], indent: str = "") -> Iterator[str]:
    """A mapping as indented text."""
    for key, item in value.items():
        if item == {}:
            continue
        if isinstance(item, dict):
            yield f"{indent}{printable(key)}:"
            yield from lines(item, indent + "  ")
        elif isinstance(item, list) and item and isinstance(item[0], dict):
            for number, part in enumerate(item):
                yield f"{indent}{printable(key)} of queue {number}:"
                yield from lines(part, indent + "  ")
        elif isinstance(item, list):
            texts = (printable(str(part)) for part in item)
            yield f"{indent}{printable(key)}: {', '.join(texts)}"
        else:
            text = "-" if item is None else printable(str(item))
            yield f"{indent}{printable(key)}: {text}"


def complain(error: UblkdError) -> None:
    """One line and a hint on standard error, after what a defect may show."""
    lines = [*trace_of(error), f"ublkd: {error.message}"]
    if error.hint:
        lines.append(f"hint: {error.hint}")
    try:
        for line in lines:
            click.echo(levelled(printable(line), ERROR), err=True)
    except OSError:  # nobody reads it: the exit code still tells
        silence(2)


def known(error: Exception) -> UblkdError:
    """What was raised, as a line and a hint."""
    if isinstance(error, UblkdError):
        return error
    return (
        UblkdError(f"the system refused: {error}", hint="dmesg and the system log may say more")
        if isinstance(error, OSError)
        else internal(error)
    )


def served(serve: Callable[[], None]) -> int:
    """Serve a disk in this process; its exit code, and what went wrong is said.

    A log that stands still may be on this very disk, and the disk wait for the process to end: it
    does so without a word then.
    """

    def last_words() -> None:
        if failure:
            complain(failure)
        sys.stderr.flush()  # waits as well where a line is being written

    failure: UblkdError | None = None
    try:
        serve()
    except Exception as error:
        failure = known(error)
    code = failure.exit_code if failure else 0
    if not aside.within(aside.LAST_SECONDS, last_words):
        os._exit(code)
    return code
