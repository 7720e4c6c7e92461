"""The verbs that read devices' files: ``config check`` and ``apply``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ublkd.cli import complete
from ublkd.cli.common import HELP, Group, cli, driver, json_option
from ublkd.cli.output import complain, emit, emit_json
from ublkd.errors import UblkdError, UsageError, printable

if TYPE_CHECKING:
    from ublkd.devicefiles import FileError

config_option = click.option(
    "--config", "folder", metavar="DIR", default="/etc/ublkd", show_default=True,
    shell_complete=complete.folders,
    help="Where the devices' files are.",
)  # fmt: skip


def at_rest(folder: str) -> Path:
    """The folder, absolute. What a file leaves open starts at /, whoever reads it from where.

    Raises UsageError.
    """
    if not folder:
        raise UsageError("--config is empty", hint="give a folder, like /etc/ublkd")
    found = Path(os.path.abspath(folder))
    os.chdir("/")
    return found


@cli.group(cls=Group, context_settings=HELP)
def config() -> None:
    """Look at devices' files, NAME.toml in /etc/ublkd."""


@config.command(context_settings=HELP)
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=complete.device_files)
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
        emit_json({"sound": [str(file.path) for file in sound], "problems": _problems(bad)})
        return 1 if bad else 0
    for file in sound:
        emit(f"{'ok':<8} {printable(str(file.path))}")
    for error in bad:
        emit(f"{'wrong':<8} {printable(error.message)}")
        if error.hint:
            emit(f"{'':<8} hint: {printable(error.hint)}")
    return 1 if bad else 0


def _problems(wrong: Sequence[FileError]) -> list[dict[str, str]]:
    return [
        {"name": e.name, "file": str(e.path), "problem": e.message, "hint": e.hint} for e in wrong
    ]


@cli.command(context_settings=HELP)
@config_option
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@json_option
def apply(folder: str, dry_run: bool, as_json: bool) -> int:
    """Make the devices be what the files say: add, change, recover and delete.

    Says first what it will do. Devices that were not made from a file of the folder are left alone.
    Of a disk that is in use only what 'ublkd set' could change is changed; for the rest the exit
    status is 1.
    """
    from ublkd import devicefiles
    from ublkd.apply import Action, alone, carry_out, hands, look, plan

    where = at_rest(folder)
    with contextlib.nullcontext() if dry_run else alone(where):
        files, wrong = devicefiles.read_all(where)
        bad = {error.name for error in wrong}
        with driver() as (control, states):
            states.prepare()
            present = look(control, states, files, bad)
        steps = plan(where, [file.name for file in files], bad, present)
        if not as_json:
            for step in steps:
                emit(str(step))
        failed = {} if dry_run else carry_out(steps, files, hands(where))
    if as_json:
        told = [
            {"name": step.name, "action": step.action.value, "why": step.why,
             "changes": [asdict(change) for change in step.changes],
             "done": not dry_run and step.name not in failed and step.action is not Action.KEEP,
             "error": failed[step.name].message if step.name in failed else None}
            for step in steps
        ]  # fmt: skip
        emit_json({"steps": told, "problems": _problems(wrong)})
    for error in [*wrong, *failed.values()]:
        complain(error)
    kept = any(step.action is Action.KEEP for step in steps)
    return 1 if wrong or failed or kept else 0
