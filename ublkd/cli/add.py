"""``ublkd add``, whose options are also those of the target that it names."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Container, Sequence
from typing import TYPE_CHECKING, Any

import click

from ublkd.cli import complete
from ublkd.cli.common import HELP, Command, cli, click_option, json_option
from ublkd.cli.output import emit, emit_json, served, warn
from ublkd.errors import UblkdError

if TYPE_CHECKING:
    from ublkd.config import DeviceConfig
    from ublkd.daemon import Ready
    from ublkd.target import Option


class AddCommand(Command):
    """``add`` has the options of the target that is named on its own command line."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:  # fmt: skip
        """Learn the target's options before anything is parsed."""
        flags = {o for p in self.params if getattr(p, "is_flag", False) for o in p.opts}
        from ublkd.config import GENERAL

        self.general = [entry.option for entry in GENERAL]
        flags |= {f"--{option.name}" for option in self.general if option.kind == "flag"}
        name = _named(args, "--target", flags, "-t")
        self.target_options: dict[str, Option] = {}
        if name is not None:
            try:
                self._learn(name, lambda option: _named(args, f"--{option}", flags))
            except UblkdError:
                if not extra.get("resilient_parsing"):  # a shell asks what could follow
                    raise
        return super().make_context(info_name, args, parent, **extra)

    def _learn(self, target: str, named: Callable[[str], str | None]) -> None:
        from ublkd import registry

        own = {option for param in self.params for option in param.opts}
        own |= {f"--{option.name}" for option in self.general}
        known = registry.options_of(target, named)
        self.target_options = {n: o for n, o in known.items() if f"--{n}" not in own}

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The target, what every device has, its own options, then the target's."""
        from ublkd.config import GENERAL

        named, *own = super().get_params(ctx)
        general = [click_option(entry.option, "", entry.metavar) for entry in GENERAL]
        return [named, *general, *own, *map(click_option, self.target_options.values())]

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Say where the target's options are."""
        if not self.target_options:
            from ublkd import registry

            formatter.write_paragraph()
            formatter.write_text(
                f"Targets: {', '.join(registry.names())}. Each has options of its own: "
                "'ublkd add --target NAME --help' lists them."
            )


def _named(
    args: Sequence[str], option: str, flags: Container[str], short: str | None = None
) -> str | None:
    """What an option names, before anything is parsed; ``flags`` are followed by no value."""
    name = None  # the last one counts, as for click
    for before, word, following in zip(["", *args], args, [*args[1:], None], strict=False):
        if word == "--":
            break
        is_value = before.startswith("--") and "=" not in before and before not in flags
        if word == option or (word == short and not is_value):
            name = following
        elif word.startswith(f"{option}="):
            name = word.removeprefix(f"{option}=")
        elif short and word.startswith(short) and not is_value:
            name = word.removeprefix(short)
    return name


@cli.command(cls=AddCommand, context_settings=HELP)
@click.option(
    "--target", "-t", metavar="NAME", required=True, help="What serves the disk.",
    shell_complete=complete.targets,
)  # fmt: skip
@click.option("--foreground", is_flag=True, help="Do not go to the background.")
@json_option
@click.pass_context
def add(ctx: click.Context, /, as_json: bool, foreground: bool, **words: Any) -> int:
    """Make a device and serve it.

    Prints its node once that can be opened; the daemon then works in the background.
    """
    from ublkd import config, daemon

    assert isinstance(ctx.command, AddCommand)
    raw = {
        name: words[f"target_{option.key}"] for name, option in ctx.command.target_options.items()
    }
    general = {option.key: words[option.key] for option in ctx.command.general}
    wanted = config.build(words["target"], raw, **general)

    def announce(ready: daemon.Ready) -> None:
        for text in ready.warnings:
            warn(text)
        if as_json:
            emit_json({"id": ready.id, "node": ready.node, "warnings": ready.warnings,
                       "ready_ms": _age_ms()})  # fmt: skip
        else:
            emit(ready.node)

    if foreground:
        return served(lambda: _serve(wanted, announce))
    ready = daemon.start(wanted)
    try:
        announce(ready)
    except BaseException:
        daemon.take_back(ready.cookie)  # nobody learnt of it, so nobody would delete it
        raise
    return 0


def _serve(wanted: DeviceConfig, announce: Callable[[Ready], None]) -> None:
    from ublkd import daemon
    from ublkd.state import new_cookie

    with daemon.awaiting(wanted) as awaited:
        daemon.serve(
            wanted,
            new_cookie(),
            lambda ready: announce(awaited(ready)),
            lambda line: click.echo(f"ublkd: {line}", err=True),
        )


def _age_ms() -> int:
    """Milliseconds since this process was started, to the tick of the kernel's clock."""
    with open("/proc/self/stat") as f:
        started = int(f.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return round((time.clock_gettime(time.CLOCK_BOOTTIME) - started) * 1000)
