"""The verbs that service managers run: ``run``, ``release``."""

from __future__ import annotations

import contextlib

import click

from ublkd.cli import complete
from ublkd.cli.common import HELP, cli
from ublkd.cli.files import at_rest, config_option
from ublkd.cli.output import served, warn
from ublkd.errors import UsageError, printable

MAX_WAIT = 3600
"""Seconds: no shutdown waits longer."""


def _named(name: str) -> str:
    from ublkd.config import parse_name

    try:
        return parse_name(name)
    except UsageError as error:
        raise UsageError(error.message.removeprefix("--name "), hint=error.hint) from error


def _seconds(text: str) -> float:
    from ublkd.config import parse_seconds

    return 0.0 if text == "0" else parse_seconds("wait", text, MAX_WAIT)


@cli.command(context_settings=HELP)
@click.argument("name", shell_complete=complete.device_files)
@config_option
@click.option(
    "--keep", is_flag=True,
    help="When told to end, leave a disk that is in use to the driver; so it is under systemd.",
)  # fmt: skip
def run(name: str, folder: str, keep: bool) -> int:
    """Serve the device of the file NAME.toml, in the foreground.

    If the driver has kept the device of an earlier run, that is taken over.
    """
    from ublkd import devicefiles, service
    from ublkd.notify import Notifier, levelled

    def say(line: str, level: int) -> None:
        with contextlib.suppress(OSError):  # a log that is gone is no reason not to serve
            click.echo(levelled(f"ublkd: {printable(line)}", level), err=True)

    file = devicefiles.read(at_rest(folder), _named(name))
    notifier = Notifier()
    keep = keep or notifier.wanted
    return served(lambda: service.run(file, say, notifier, keep=keep))


@cli.command(context_settings=HELP)
@click.argument("name", required=False, shell_complete=complete.device_files)
@click.option("--all", "every", is_flag=True, help="Every device of ublkd that nobody serves.")
@click.option(
    "--wait", metavar="SECONDS",
    help="Before its daemon ends: wait so many seconds until nothing is mounted; delete nothing.",
)  # fmt: skip
def release(name: str | None, every: bool, wait: str | None) -> None:
    """Delete a device that nobody serves, if the system is being shut down.

    For the ExecStopPost of a unit, where who waits for the disk would wait for ever; with --wait
    for its ExecStop. Else does nothing.
    """
    from ublkd import service

    if (name is None) is not every or (every and wait is not None):
        raise UsageError(
            "release takes one NAME, or --all without --wait", hint="see 'ublkd release --help'"
        )
    if name is not None:
        name = _named(name)
    if name is not None and wait is not None:
        service.await_unused(name, _seconds(wait))
        return
    for released in service.release(name):
        warn(f"{released} was deleted: nobody served it, and the system goes down")
