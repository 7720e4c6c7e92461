"""What the verbs share: the group, its options, and the way to the driver."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from ublkd.cli import complete

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from ublkd.target import Option

# Nothing that loads more of ublkd is imported here: `ublkd --help` must not wait for it.
HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Command(click.Command):
    """A verb: what is wrong with its words names it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """click forgets whose option lacks its value."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise


class Group(click.Group):
    """Several verbs under one name."""

    command_class = Command


class Verbs(Group):
    """The verbs of ublkd, and behind them those that targets bring, under the target's name."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Ours first: no target can take one over."""
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        from ublkd.cli.brought import verbs_of

        return verbs_of(cmd_name)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The targets that bring verbs as well, which the help does not list."""
        return super().shell_complete(ctx, incomplete) + complete.with_verbs(incomplete)


@click.group(
    cls=Verbs,
    context_settings=HELP,
    epilog="A target may bring verbs of its own: 'ublkd TARGET --help' lists them.",
)
@click.version_option(package_name="ublkd", prog_name="ublkd")
def cli() -> None:
    """Serve Linux block devices from user space: a file, a block device, or a plug-in of yours
    becomes /dev/ublkbN.

    DEV is a number, a name given with --name, or a path like /dev/ublkb0.
    """


METAVARS = {
    "path": "PATH",
    "size": "BYTES",
    "number": "N",
    "seconds": "SECONDS",
    "wait": "SECONDS",
    "text": "TEXT",
    "target": "NAME",
}


def click_option(option: Option, prefix: str = "target_", metavar: str = "") -> click.Option:
    """An option of a target, as ``target_KEY`` so that it meets no other."""
    names = [f"--{option.name}", f"{prefix}{option.key}"]
    if option.kind == "flag":
        return click.Option(names, is_flag=True, default=None, help=option.help)
    if not metavar:
        metavar = "|".join(option.choices) if option.kind == "choice" else METAVARS[option.kind]
    return click.Option(
        names,
        metavar=metavar,
        help=option.help,
        multiple=option.multiple,
        shell_complete=complete.value_of(option),
    )


dev_argument = click.argument("dev", shell_complete=complete.devices)
optional_dev = click.argument("dev", required=False, shell_complete=complete.devices)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
force_option = click.option("--force", is_flag=True, help="Even if it is in use.")


@contextlib.contextmanager
def driver() -> Iterator[tuple[Any, Any]]:
    """The driver's control node and the state folder."""
    from ublkd.control import Control
    from ublkd.state import StateDir

    with Control() as control:
        yield control, StateDir()
