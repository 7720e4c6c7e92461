"""``ublkd stats`` and ``ublkd dump``: what the queues tell in shared memory; nobody is asked."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ublkd.cli.common import HELP, cli, dev_argument, driver, json_option, optional_dev
from ublkd.cli.output import emit, emit_json, table, warn
from ublkd.errors import UblkdError, UsageError, printable

if TYPE_CHECKING:
    from ublkd.manage import Found
    from ublkd.state import StateDir
    from ublkd.stats import QueueStats

OP_COLUMNS = ("QUEUE", "OP", "IOPS", "MIB/S", "REQUESTS", "BYTES", "ERRORS",
              "P50 US", "P99 US", "P99.9 US")  # fmt: skip
GAUGE_COLUMNS = {
    "in_flight": "IN FLIGHT",
    "short_members": "SHORT",
    "again_members": "AGAIN",
    "requeues": "REQUEUES",
    "fallbacks": "FALLBACKS",
    "lost_connections": "LOST",
}


@cli.command(context_settings=HELP)
@optional_dev
@click.option(
    "--watch",
    metavar="[SECONDS]",
    is_flag=False,
    flag_value="1",
    help="Tell the differences, each so many seconds (default 1), until interrupted.",
)
@json_option
def stats(dev: str | None, watch: str | None, as_json: bool) -> None:
    """Tell how fast devices are: per queue and operation, since their start.

    Without DEV of every device that ublkd made. The daemon is not asked.
    """
    from ublkd import manage

    seconds = None if watch is None else _seconds(watch)
    with driver() as (control, states):
        if dev is not None:
            chosen = [manage.find(control, states, dev)]
        else:
            chosen = [device for device in manage.devices(control, states) if device.state]
        looks = {device.info.id: Look(device, states) for device in chosen}
        if dev is not None and not looks[chosen[0].info.id].queues:
            raise UblkdError(
                f"nothing is counted of {chosen[0].called}",
                hint="only ublkd's own devices have counters, once they are started",
            )
        if seconds is None:
            _tell_totals(list(looks.values()), as_json, one=dev is not None)
            return
        with contextlib.suppress(KeyboardInterrupt):
            while looks:
                time.sleep(seconds)
                gone = [number for number in looks if not _is_there(control, looks[number])]
                for number in gone:
                    warn(f"{looks.pop(number).device.called} is gone")
                later = {number: Look(look.device, states) for number, look in looks.items()}
                _tell([later[number].since(look) for number, look in looks.items()], as_json)
                looks = later


def _seconds(text: str) -> float:
    from ublkd.config import parse_seconds

    try:
        return parse_seconds("watch", text)
    except UsageError as error:
        hint = f"{error.hint}; DEV stands before it: 'ublkd stats DEV --watch'"
        raise UsageError(error.message, hint=hint) from error


def _is_there(control: Any, look: Look) -> bool:
    from ublkd.control import CommandError
    from ublkd.uapi import DevState

    try:
        info = control.get_dev_info(look.device.info.id)
    except CommandError:
        return False
    return info.cookie == look.device.info.cookie and info.state is not DevState.DEAD


class Look:
    """What a device's queues had counted at a moment."""

    def __init__(self, device: Found, states: StateDir) -> None:
        from ublkd.stats import counted

        self.device = device
        self.at = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        self.queues: Sequence[QueueStats] = counted(states.counters(device.info.id))

    def whole(self) -> dict[str, Any]:
        """All of it; with rates where it is known how long that took: of a live device."""
        from ublkd.uapi import DevState

        live = self.queues and self.device.info.state is DevState.LIVE
        seconds = (self.at - self.queues[0].started) / 1e9 if live else None
        return self._told(self.queues, seconds)

    def since(self, before: Look) -> dict[str, Any]:
        """The difference."""
        from ublkd.rates import since

        known = [*before.queues, *[None] * len(self.queues)]
        queues = [since(old, new) for old, new in zip(known, self.queues, strict=False)]
        return self._told(queues, (self.at - before.at) / 1e9)

    def _told(self, queues: Sequence[QueueStats], seconds: float | None) -> dict[str, Any]:
        from ublkd.rates import told, total

        return {
            "id": self.device.info.id,
            "node": self.device.node,
            "name": self.device.state.name if self.device.state else None,
            "seconds": None if seconds is None else round(seconds, 3),
            "total": told(total(queues), seconds) if queues else None,
            "queues": [told(queue, seconds) for queue in queues],
        }


def _tell_totals(looks: Sequence[Look], as_json: bool, *, one: bool) -> None:
    told = [look.whole() for look in looks]
    if as_json:
        emit_json(told[0] if one else told)
    else:
        _tell(told, as_json=False)


def _tell(devices: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """One block; as JSON one line, of those that one after the other are read."""
    if as_json and devices:
        emit_json(list(devices), indent=None)
        return
    for told in devices:
        name = f" ({printable(told['name'])})" if told["name"] else ""
        during = "" if told["seconds"] is None else f": {told['seconds']:.1f} seconds"
        emit(f"{told['node']}{name}{during}")
        queues = [(str(qid), queue) for qid, queue in enumerate(told["queues"])]
        if len(queues) > 1:
            queues.insert(0, ("all", told["total"]))
        emit(table([OP_COLUMNS, *(row for qid, queue in queues for row in _op_rows(qid, queue))]))
        rows = ([qid, *(str(queue[name]) for name in GAUGE_COLUMNS)] for qid, queue in queues)
        emit(table([["QUEUE", *GAUGE_COLUMNS.values()], *rows]) + "\n")


def _op_rows(qid: str, queue: Mapping[str, Any]) -> list[list[str]]:
    return [
        [
            qid, name, _number(op["iops"]), _number(op["bytes_per_second"], 1 << 20),
            str(op["requests"]), str(op["bytes"]), str(op["errors"]),
            *(_number(op[key]) for key in ("p50_us", "p99_us", "p99_9_us")),
        ]
        for name, op in queue.items()
        if isinstance(op, dict) and op["requests"]
    ]  # fmt: skip


def _number(value: float | None, unit: int = 1) -> str:
    return "-" if value is None else f"{value / unit:.1f}"


DUMP_COLUMNS = ("QUEUE", "NUMBER", "ENDED", "OP", "OFFSET", "LENGTH", "LEASE", "MEMBERS", "SHORTS",
                "US", "RESULT")  # fmt: skip


@cli.command(context_settings=HELP)
@dev_argument
@json_option
def dump(dev: str, as_json: bool) -> None:
    """Tell a device's last requests, some 1,000 of each queue, by the time of their end.

    The daemon is not asked; it may be dead.
    """
    from ublkd import manage, recorder

    with driver() as (control, states):
        device = manage.find(control, states, dev)
    found = recorder.read(states.counters(device.info.id)) if device.state else []
    if as_json:
        emit_json([asdict(entry) for entry in found])
        return
    rows = (
        [
            str(e.queue), str(e.number), f"{e.ended:.6f}", f"{e.op} fua" if e.fua else e.op,
            str(e.offset), str(e.length), e.lease or "-", str(e.members), str(e.shorts),
            f"{e.us:.1f}", e.told_result,
        ]
        for e in found
    )  # fmt: skip
    emit(table([DUMP_COLUMNS, *rows]))
