"""The verbs that read devices' files: ``config check``."""

from __future__ import annotations

import os
from pathlib import Path

import click

from ublkd.cli.common import HELP, cli, json_option
from ublkd.cli.output import emit, emit_json
from ublkd.errors import UblkdError, printable

config_option = click.option(
    "--config", "folder", metavar="DIR", default="/etc/ublkd", show_default=True,
    help="Where the devices' files are.",
)  # fmt: skip


def at_rest(folder: str) -> Path:
    """The folder, absolute. What a file leaves open starts at /, whoever reads it from where."""
    found = Path(os.path.abspath(folder))
    os.chdir("/")
    return found


@cli.group(context_settings=HELP)
def config() -> None:
    """Look at devices' files, NAME.toml in /etc/ublkd."""


@config.command(context_settings=HELP)
@click.argument("names", metavar="[NAME]...", nargs=-1)
@config_option
@json_option
def check(names: tuple[str, ...], folder: str, as_json: bool) -> int:
    """Say what is wrong with devices' files, all of them or those that are named.

    Changes nothing, and needs neither root nor the driver.
    """
    from ublkd import devicefiles

    where = at_rest(folder)
    files, wrong = devicefiles.read_all(where)
    if missing := set(names) - {file.name for file in files} - {error.name for error in wrong}:
        name = printable(min(missing))
        raise UblkdError(
            f"there is no file {printable(str(where))}/{name}{devicefiles.ENDING}",
            hint="without a NAME all files are checked",
        )
    sound = [file for file in files if not names or file.name in names]
    bad = [error for error in wrong if not names or error.name in names]
    if as_json:
        told = [
            {"name": e.name, "file": str(e.path), "problem": e.message, "hint": e.hint} for e in bad
        ]
        emit_json({"sound": [str(file.path) for file in sound], "problems": told})
        return 1 if bad else 0
    for file in sound:
        emit(f"{'ok':<8} {printable(str(file.path))}")
    for error in bad:
        emit(f"{'wrong':<8} {printable(error.message)}")
        if error.hint:
            emit(f"{'':<8} hint: {printable(error.hint)}")
    return 1 if bad else 0
