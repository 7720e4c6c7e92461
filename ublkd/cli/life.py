"""The verbs for devices that outlive their daemons: ``recover``, ``quiesce``, ``upgrade``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from ublkd.cli.common import HELP, cli, dev_argument, driver, json_option, optional_dev
from ublkd.cli.output import complain, emit, emit_json
from ublkd.errors import UblkdError, UsageError

if TYPE_CHECKING:
    from ublkd.manage import Found


@cli.command(context_settings=HELP)
@optional_dev
@click.option("--all", "every", is_flag=True, help="Every device of ublkd that nobody serves.")
@json_option
def recover(dev: str | None, every: bool, as_json: bool) -> None:
    """Serve a device again whose daemon is gone: what waits for it goes on.

    Prints its node.
    """

    def one(device: Found) -> dict[str, Any]:
        from ublkd import units

        ready = units.recover(device)
        return {"id": ready.id, "node": ready.node}

    chosen = _chosen("recover", dev, every, lambda device: device.is_orphan)
    _each(chosen, one, "{node}", as_json)


@cli.command(context_settings=HELP)
@dev_argument
def quiesce(dev: str) -> None:
    """End a daemon and keep its device: what is asked of it waits until 'ublkd recover'."""
    from ublkd import ending, manage

    with driver() as (control, states):
        ending.quiesce(control, states, manage.find(control, states, dev))


@cli.command(context_settings=HELP)
@optional_dev
@click.option("--all", "every", is_flag=True, help="Every device that ublkd serves.")
@json_option
def upgrade(dev: str | None, every: bool, as_json: bool) -> None:
    """Have a daemon with this program's code serve a device, in place of the one that does.

    Prints how long the requests had to wait.
    """

    def one(device: Found) -> dict[str, Any]:
        from ublkd.upgrade import upgrade

        pause = upgrade(device)
        return {"id": device.info.id, "node": device.node, "pause_ms": pause}

    chosen = _chosen("upgrade", dev, every, lambda device: device.ours and device.served)
    _each(chosen, one, "{node}: requests waited {pause_ms} ms", as_json)


def _chosen(
    verb: str, dev: str | None, every: bool, wanted: Callable[[Found], bool]
) -> list[Found]:
    from ublkd import ending, manage

    if (dev is None) is not every:
        raise UsageError(f"{verb} takes one DEV, or --all", hint="see 'ublkd list'")
    with driver() as (control, states):
        if dev is not None:
            return [manage.find(control, states, dev)]
        ending.sweep(control, states)
        return [device for device in manage.devices(control, states) if wanted(device)]


def _each(
    chosen: list[Found], one: Callable[[Found], dict[str, Any]], line: str, as_json: bool
) -> None:
    done, failures = [], []
    for device in chosen:
        try:
            done.append(one(device))
        except UblkdError as error:
            failures.append(error)
    if as_json:
        emit_json(done)
    elif done:
        emit("\n".join(line.format(**told) for told in done))
    for failure in failures[:-1]:
        complain(failure)
    if failures:
        raise failures[-1]
