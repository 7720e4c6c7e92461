"""``ublkd resize`` and ``ublkd set``: what changes of a device that is there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from ublkd.cli.common import (
    HELP,
    Command,
    cli,
    click_option,
    dev_argument,
    driver,
    force_option,
    json_option,
)
from ublkd.cli.output import emit, emit_json, warn
from ublkd.errors import UblkdError, UsageError

if TYPE_CHECKING:
    from ublkd.target import Option


@cli.command(context_settings=HELP)
@dev_argument
@click.argument("size", required=False)
@force_option
@json_option
def resize(dev: str, size: str | None, force: bool, as_json: bool) -> None:
    """Give a disk another size: SIZE, or as much as stands behind it now.

    Prints the size that it had and has. Refuses to cut a disk that is in use.
    """
    from ublkd import manage
    from ublkd.config import format_size
    from ublkd.resize import resize

    wanted = None if size is None else _bytes(size)
    with driver() as (control, states):
        device = manage.find(control, states, dev)
        old, new = resize(control, states, device, wanted, force=force)
    if as_json:
        emit_json({"id": device.info.id, "node": device.node, "old_size": old, "size": new})
    else:
        emit(f"{device.node}: {format_size(old)} -> {format_size(new)}")


def _bytes(text: str) -> int:
    from ublkd.config import parse_size

    try:
        return parse_size(text)
    except ValueError as error:
        raise UsageError(str(error), hint="bytes, or with a suffix: 4096, 512M, 10G") from error


class SetCommand(Command):
    """``set`` has the options of the target of the device that its command line begins with."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:  # fmt: skip
        """Learn the target's options before anything is parsed."""
        self.target_options: Mapping[str, Option] = {}
        if args and not args[0].startswith("-"):
            try:
                self.target_options = _options_of(args[0])
            except UblkdError:
                if not extra.get("resilient_parsing") and not {"-h", "--help"} & set(args):
                    raise
        return super().make_context(info_name, args, parent, **extra)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """DEV first."""
        return ["DEV", "--OPTION VALUE ..."]

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Its own options, then the target's; those that cannot change are known, to say so."""
        from ublkd.config import GENERAL

        own = super().get_params(ctx)
        params = [_settable(option) for option in self.target_options.values()]
        taken = {word for param in [*own, *params] for word in param.opts}
        fixed = [click.Option(["--target", "-t", "fixed_target"], hidden=True)]
        fixed += [click_option(entry.option, "fixed_", entry.metavar) for entry in GENERAL]
        for param in fixed:
            param.hidden = True
        return [*own, *params, *(param for param in fixed if not taken & set(param.opts))]


def _options_of(dev: str) -> Mapping[str, Option]:
    from ublkd import manage, setting

    with driver() as (control, states):
        return setting.options_of(manage.find(control, states, dev))


def _settable(option: Option) -> click.Option:
    if option.live and option.kind == "flag":
        names = [f"--{option.name}/--no-{option.name}", f"target_{option.key}"]
        return click.Option(names, default=None, help=option.help)
    made = click_option(option)
    made.hidden = not option.live
    return made


@cli.command("set", cls=SetCommand, context_settings=HELP)
@dev_argument
@click.option("--name", metavar="NAME", help="Another name to call the device by.")
@click.pass_context
def set_(ctx: click.Context, /, dev: str, name: str | None, **words: Any) -> None:
    """Change options of a device that is there: its name, and what its target can change.

    DEV comes first. 'ublkd set DEV --help' lists what can change there.
    """
    from ublkd import manage, setting

    assert isinstance(ctx.command, SetCommand)
    given = {
        option.name: value
        for option in ctx.command.target_options.values()
        if (value := words[f"target_{option.key}"]) not in (None, ())
    }
    with driver() as (control, states):
        device = manage.find(control, states, dev)
        for word, value in words.items():
            if word.startswith("fixed_") and value:
                raise setting.fixed(device, word.removeprefix("fixed_").replace("_", "-"))
        warning = setting.set_options(control, states, device, given, name=name)
    if warning:
        warn(warning)
