"""The command line: parses and prints, decides nothing."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ublkd.errors import UblkdError, UsageError, printable, valid_text

# Nothing else of ublkd is imported here: `ublkd --help` must not wait for it.
if TYPE_CHECKING:
    from ublkd.manage import Found
    from ublkd.target import Option

HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


# --- printing -------------------------------------------------------------------------------


def emit(text: str) -> None:
    """Print to standard output, or fail: output that nobody got is not success."""
    if sys.stdout is None:
        raise UblkdError("standard output is closed", hint="give it a place to print to")
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        _silence_stdout()
        raise UblkdError(
            "standard output was closed before everything was printed",
            hint="the reader of the pipe ended early, or the disk is full",
        ) from error


def _silence_stdout() -> None:
    """What is still buffered cannot go anywhere, and the interpreter would say so at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _json_ready(value: Any) -> Any:
    """The value with every text made valid, whatever bytes a path had."""
    if isinstance(value, str):
        return valid_text(value)
    if isinstance(value, dict):
        return {_json_ready(key): _json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_ready(item) for item in value]
    return value


def emit_json(value: Any) -> None:
    """Print as JSON, ASCII only."""
    emit(json.dumps(_json_ready(value), indent=2))


def warn(text: str) -> None:
    """One line on standard error that is not a failure."""
    click.echo(f"ublkd: warning: {text}", err=True)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned columns; the first is the heading."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


# --- the group ------------------------------------------------------------------------------


@click.group(context_settings=HELP)
@click.version_option(package_name="ublkd", prog_name="ublkd")
def cli() -> None:
    """Serve Linux block devices from user space: a file, a block device, or a plug-in of yours
    becomes /dev/ublkbN.

    DEV is a number, a name given with --name, or a path like /dev/ublkb0.
    """


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
force_option = click.option("--force", is_flag=True, help="Even if it is in use.")


@contextlib.contextmanager
def driver() -> Iterator[tuple[Any, Any]]:
    """The driver's control node and the state folder."""
    from ublkd.control import Control
    from ublkd.state import StateDir

    with Control() as control:
        yield control, StateDir()


# --- add ------------------------------------------------------------------------------------


def _click_option(option: Option) -> click.Option:
    metavar = {"path": "PATH", "size": "BYTES", "text": "TEXT"}.get(option.kind)
    if option.kind == "choice":
        metavar = "|".join(option.choices)
    if option.kind == "flag":
        return click.Option([f"--{option.name}", f"target_{option.key}"], is_flag=True,
                            default=None, help=option.help)  # fmt: skip
    return click.Option(
        [f"--{option.name}", f"target_{option.key}"], metavar=metavar, help=option.help
    )


class AddCommand(click.Command):
    """``add`` has the options of the target that is named on its own command line."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:  # fmt: skip
        """Learn the target's options before anything is parsed."""
        name = _named_target(args)
        self.target_options: dict[str, Option] = {}
        if name is not None:
            from ublkd import registry

            own = {option for param in self.params for option in param.opts}
            chosen = [o for o in registry.load(name).options if f"--{o.name}" not in own]
            self.target_options = {option.name: option for option in chosen}
        return super().make_context(info_name, args, parent, **extra)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Its own options, then the target's."""
        return [*super().get_params(ctx), *map(_click_option, self.target_options.values())]

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Say where the target's options are."""
        if not self.target_options:
            from ublkd import registry

            formatter.write_paragraph()
            formatter.write_text(
                f"Targets: {', '.join(registry.names())}. Each has options of its own: "
                "'ublkd add --target NAME --help' lists them."
            )


def _named_target(args: Sequence[str]) -> str | None:
    name = None  # the last one counts, as for click
    for word, following in zip(args, [*args[1:], None], strict=False):
        if word == "--":
            break
        if word in ("--target", "-t"):
            name = following
        elif word.startswith(("--target=", "-t")):
            name = word.removeprefix("--target=").removeprefix("-t")
    return name


@cli.command(cls=AddCommand, context_settings=HELP)
@click.option("--target", "-t", metavar="NAME", required=True, help="What serves the disk.")
@click.option("--name", metavar="NAME", help="A name to call the device by.")
@click.option("--id", "dev_id", metavar="N", help="Its number; by default the first that is free.")
@click.option("--queues", metavar="N", help="Hardware queues, each with a thread (default 1).")
@click.option("--depth", metavar="N", help="Requests in flight per queue (default 128).")
@click.option("--max-io", metavar="BYTES", help="The largest request (default 512K).")
@click.option("--lease", metavar="auto|copy", help="Insist on one way to reach a request's pages.")
@click.option("--foreground", is_flag=True, help="Do not go to the background.")
@json_option
@click.pass_context
def add(ctx: click.Context, /, as_json: bool, foreground: bool, **words: Any) -> None:
    """Make a device and serve it.

    Prints its node once that can be opened; the daemon then works in the background.
    """
    from ublkd import config, daemon

    assert isinstance(ctx.command, AddCommand)
    raw = {
        name: words[f"target_{option.key}"] for name, option in ctx.command.target_options.items()
    }
    wanted = config.build(
        words["target"], raw, name=words["name"], id=words["dev_id"], queues=words["queues"],
        depth=words["depth"], max_io=words["max_io"], lease=words["lease"],
    )  # fmt: skip

    def announce(ready: daemon.Ready) -> None:
        for text in ready.warnings:
            warn(text)
        if as_json:
            emit_json({"id": ready.id, "node": ready.node, "warnings": ready.warnings,
                       "ready_ms": _age_ms()})  # fmt: skip
        else:
            emit(ready.node)

    if foreground:
        from ublkd.state import new_cookie
        from ublkd.uevent import wait_for_node

        def ready_here(ready: daemon.Ready) -> None:
            wait_for_node(ready.node, daemon.NODE_SECONDS)
            announce(ready)

        daemon.serve(
            wanted, new_cookie(), ready_here, lambda line: click.echo(f"ublkd: {line}", err=True)
        )
        return
    ready = daemon.start(wanted)
    try:
        announce(ready)
    except UblkdError:
        _take_back(ready.id)
        raise


def _age_ms() -> int:
    """Milliseconds since this process was started, to the tick of the kernel's clock."""
    with open("/proc/self/stat") as f:
        started = int(f.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return round((time.clock_gettime(time.CLOCK_BOOTTIME) - started) * 1000)


def _take_back(dev_id: int) -> None:
    """Nobody learnt of the device, so nobody would delete it."""
    from ublkd import manage

    with driver() as (control, states):
        manage.delete(control, states, manage.find(control, states, str(dev_id)), force=True)


# --- the others -----------------------------------------------------------------------------


def _row(device: Found) -> list[str]:
    from ublkd.config import format_size

    state = device.state
    backing = str(state.describe.get("backing", "-")) if state else "-"
    return [
        str(device.info.id),
        printable(state.name) if state and state.name else "-",
        printable(state.target) if state else ("?" if device.ours else "not ours"),
        device.info.state.name.lower(),
        format_size(device.size),
        f"{device.info.queues}x{device.info.depth}",
        state.lease if state else "-",
        str(device.info.pid) if device.info.pid > 0 else "-",
        printable(backing),
    ]


@cli.command("list", context_settings=HELP)
@json_option
def list_(as_json: bool) -> None:
    """List the ublk devices of this machine, other programs' too."""
    from ublkd import manage

    with driver() as (control, states):
        found = manage.devices(control, states)
    if as_json:
        emit_json([device.as_json() for device in found])
        return
    heading = ["ID", "NAME", "TARGET", "STATE", "SIZE", "QUEUES", "LEASE", "PID", "BACKING"]
    emit(table([heading, *(_row(device) for device in found)]))


@cli.command(context_settings=HELP)
@click.argument("dev")
@json_option
def show(dev: str, as_json: bool) -> None:
    """Show one device: what it is, how it is served and why so, and its counters."""
    from ublkd import manage

    with driver() as (control, states):
        device = manage.find(control, states, dev)
        told = device.as_json() | {"counters": manage.counters(states, device)}
    if as_json:
        emit_json(told)
    else:
        emit("\n".join(_lines(told)))


def _lines(value: dict[str, Any], indent: str = "") -> Iterator[str]:
    for key, item in value.items():
        if isinstance(item, dict):
            yield f"{indent}{printable(key)}:"
            yield from _lines(item, indent + "  ")
        elif isinstance(item, list) and item and isinstance(item[0], dict):
            for number, part in enumerate(item):
                yield f"{indent}{printable(key)} of queue {number}:"
                yield from _lines(part, indent + "  ")
        elif isinstance(item, list):
            yield f"{indent}{printable(key)}: {' '.join(map(str, item))}"
        else:
            text = "-" if item is None else printable(str(item))
            yield f"{indent}{printable(key)}: {text}"


@cli.command(context_settings=HELP)
@click.argument("dev")
@force_option
def stop(dev: str, force: bool) -> None:
    """Take a disk away and end its daemon; its number stays until it is deleted.

    Refuses a disk that is mounted, part of another device, or (Linux 7.0) open.
    """
    from ublkd import manage

    with driver() as (control, states):
        manage.stop(control, manage.find(control, states, dev), force=force)


@cli.command("del", context_settings=HELP)
@click.argument("dev", required=False)
@click.option("--all", "every", is_flag=True, help="Every device that ublkd made.")
@force_option
def del_(dev: str | None, every: bool, force: bool) -> None:
    """Stop a device and remove every trace of it.

    Refuses a disk that is mounted or part of another device.
    """
    from ublkd import manage

    if (dev is None) is not every:
        raise UsageError("del takes one DEV, or --all", hint="see 'ublkd list'")
    with driver() as (control, states):
        if dev is not None:
            chosen = [manage.find(control, states, dev)]
        else:
            chosen = [device for device in manage.devices(control, states) if device.ours]
        failures = []
        for device in chosen:
            try:
                if warning := manage.delete(control, states, device, force=force):
                    warn(warning)
            except UblkdError as error:
                failures.append(error)
    for failure in failures[:-1]:
        complain(failure)
    if failures:
        raise failures[-1]


@cli.command(context_settings=HELP)
@json_option
def features(as_json: bool) -> None:
    """Show what this kernel's driver offers and which lease a device would get."""
    from ublkd.features import names as feature_names
    from ublkd.features import negotiate

    with driver() as (control, _):
        offered = control.get_features()
    verdict = negotiate(offered, None)
    told = {
        "kernel": os.uname().release,
        "features": feature_names(offered),
        "bits": f"{int(offered):#x}",
        "lease": verdict.lease.value,
        "refused": {lease.value: why for lease, why in verdict.refused.items()},
    }
    if as_json:
        emit_json(told)
    else:
        emit("\n".join(_lines(told)))


# --- main -----------------------------------------------------------------------------------


def complain(error: UblkdError) -> None:
    """One line and a hint on standard error."""
    click.echo(f"ublkd: {printable(error.message)}", err=True)
    if error.hint:
        click.echo(f"hint: {printable(error.hint)}", err=True)


def _usage(error: click.UsageError) -> UblkdError:
    command = error.ctx.command_path if error.ctx else "ublkd"
    text = valid_text(error.format_message()).rstrip(".")
    return UsageError(text[:1].lower() + text[1:], hint=f"see '{command} --help'")


def _keep_standard_fds() -> bool:
    """Without 0, 1 and 2 the next file opened would become one of them. Whether 1 was there."""
    was_there = True
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
            was_there = was_there and fd != 1
    return was_there


def _guarded(run: Callable[[], Any]) -> int:
    try:
        result = run()
    except UblkdError as error:
        complain(error)
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return error.exit_code
    except click.UsageError as error:
        usage = _usage(error)
        complain(usage)
        return usage.exit_code
    except click.ClickException as error:
        complain(UblkdError(error.format_message()))
        return 1
    except (KeyboardInterrupt, click.Abort):
        complain(UblkdError("interrupted"))
        return 130
    except OSError as error:
        _silence_stdout()
        complain(UblkdError(f"the system refused: {error}"))
        return 1
    return result if isinstance(result, int) else 0


def main() -> NoReturn:
    """Entry point: exit codes are 0 done, 1 failed, 2 usage, 3 not possible on this machine."""
    if not _keep_standard_fds():
        sys.stdout = None
    sys.exit(_guarded(lambda: cli.main(prog_name="ublkd", standalone_mode=False)))
