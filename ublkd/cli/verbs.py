"""The verbs for devices that exist, and ``features``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from ublkd.cli.common import (
    HELP,
    cli,
    dev_argument,
    driver,
    force_option,
    json_option,
    optional_dev,
)
from ublkd.cli.output import complain, emit, emit_json, lines, table, warn
from ublkd.errors import UblkdError, UsageError, printable

if TYPE_CHECKING:
    from ublkd.manage import Found


def _row(device: Found) -> list[str]:
    from ublkd.config import format_size

    state = device.state
    backing = state.describe.get("backing", "-") if state else "-"
    if isinstance(backing, list):
        backing = " ".join(map(str, backing))
    return [
        str(device.info.id),
        printable(state.name) if state and state.name else "-",
        printable(state.target) if state else ("?" if device.ours else "not ours"),
        device.info.state.name.lower(),
        format_size(device.size),
        f"{device.info.queues}x{device.info.depth}",
        state.lease if state else "-",
        str(device.pid or "-"),
        printable(str(backing)),
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
@dev_argument
@json_option
def show(dev: str, as_json: bool) -> None:
    """Show one device: what it is, how it is served and why so, who holds it, and its counters."""
    from ublkd import holders, manage

    with driver() as (control, states):
        device = manage.find(control, states, dev)
        told, counters = device.as_json(), manage.counters(states, device)
    held = holders.of(device.info.id)
    if as_json:
        emit_json(told | {"holders": held.as_json(), "counters": counters})
    else:
        emit("\n".join(lines(told | {"holders": held.words() or None, "counters": counters})))


@cli.command(context_settings=HELP)
@dev_argument
@force_option
def stop(dev: str, force: bool) -> None:
    """Take a disk away and end its daemon; its number stays until it is deleted.

    Refuses a disk that is mounted, part of another device, or open, and says who holds it.
    """
    from ublkd import ending, manage

    with driver() as (control, states):
        ending.stop(control, states, manage.find(control, states, dev), force=force)


@cli.command("del", context_settings=HELP)
@optional_dev
@click.option("--all", "every", is_flag=True, help="Every device that ublkd made.")
@force_option
def del_(dev: str | None, every: bool, force: bool) -> None:
    """Stop a device and remove every trace of it.

    Refuses a disk that is mounted or part of another device.
    """
    from ublkd import ending, manage

    if (dev is None) is not every:
        raise UsageError("del takes one DEV, or --all", hint="see 'ublkd list'")
    with driver() as (control, states):
        if dev is not None:
            chosen = [manage.find(control, states, dev)]
        else:
            ending.sweep(control, states)
            chosen = [device for device in manage.devices(control, states) if device.ours]
        failures = []
        for device in chosen:
            try:
                if warning := ending.delete(control, states, device, force=force):
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
    from ublkd.features import groups, negotiate, streams, survey
    from ublkd.features import names as feature_names

    with driver() as (control, _):
        offered = control.get_features()
    probed = groups()
    verdict = negotiate(offered, None, groups=probed)
    told = {
        "kernel": os.uname().release,
        "features": feature_names(offered),
        "bits": f"{int(offered):#x}",
        "lease": verdict.lease.value,
        "leases": {
            lease.value: why or "possible" for lease, why in survey(offered, groups=probed).items()
        },
        "sockets": "send and recv" if streams() else "write and read",
    }
    if as_json:
        emit_json(told)
    else:
        emit("\n".join(lines(told)))
