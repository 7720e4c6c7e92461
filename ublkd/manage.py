"""The devices that exist, as the driver has them and as they are remembered: listed and found.

There is no control socket: any root process asks the driver. How devices end is in ending.py.
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ublkd import stats
from ublkd.control import CommandError, Control, DevInfo
from ublkd.errors import UblkdError, printable, quoted
from ublkd.features import Recovery, recovery_of
from ublkd.names import links, named
from ublkd.process import is_there, serves
from ublkd.state import DeviceState, StateDir, is_ours
from ublkd.uapi import DevState, Feature

UNSERVED = (DevState.QUIESCED, DevState.FAIL_IO)
"""States of a device whose daemon is gone and may be followed by another."""

CHAR_CLASS = Path("/sys/class/ublk-char")
NODE = re.compile(r"(?:(?:/dev/)?ublk[bc])?([0-9]{1,7})", re.ASCII)

REMEMBERED = ("name", "target", "options", "lease", "refused", "recovery_reason", "access",
              "describe", "origin")  # fmt: skip
"""What ``list --json`` tells of what is remembered."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A device in the driver, with what is remembered of it (None for somebody else's)."""

    info: DevInfo
    size: int  # bytes
    state: DeviceState | None

    @property
    def node(self) -> str:
        """The block node."""
        return f"/dev/ublkb{self.info.id}"

    @property
    def ours(self) -> bool:
        """Whether ublkd made it."""
        return is_ours(self.info.cookie)

    @property
    def pid(self) -> int:
        """Of the process that serves it; 0: none.

        The driver forgets no process that died, and the number may be another's by now.
        """
        return max(0, self.info.pid) if self.info.state is DevState.LIVE else 0

    @property
    def served(self) -> bool:
        """Whether a process serves it that is not about to end."""
        return bool(self.pid) and serves(self.pid)

    @property
    def is_orphan(self) -> bool:
        """Whether it is ours, and the driver keeps it for a daemon that is not there."""
        kept = recovery_of(self.info.flags) is not Recovery.NONE
        return self.ours and kept and self.info.state is not DevState.DEAD and not self.served

    @property
    def is_half_made(self) -> bool:
        """Whether it is ours and never became a disk, because its add was killed."""
        given_up = self.state is None or (not self.state.started and not is_there(self.state.pid))
        return self.ours and self.info.state is DevState.DEAD and given_up

    @property
    def is_being_made(self) -> bool:
        """Whether it is no disk yet, and somebody is about to make it one: it looks dead."""
        state = self.state
        dead = self.info.state is DevState.DEAD
        return bool(dead and state and not state.started and is_there(state.pid))

    @property
    def called(self) -> str:
        """How a message names it."""
        name = self.state.name if self.state else None
        return f"{self.node} ({printable(name)})" if name else self.node

    def as_json(self) -> dict[str, Any]:
        """Everything ``list --json`` tells."""
        info = self.info
        told: dict[str, Any] = {
            "id": info.id,
            "node": self.node,
            "name": None,
            "ours": self.ours,
            "state": info.state.name.lower(),
            "size": self.size,
            "queues": info.queues,
            "depth": info.depth,
            "max_io": info.max_io,
            "pid": self.pid or None,
            "recovery": recovery_of(info.flags).value,
            "links": links(info.id, self.state.name if self.state else None),
            "flags": [f.name for f in Feature if f in info.flags],
            "target": None,
            "lease": None,
        }
        if self.state:
            remembered = asdict(self.state)
            for key in REMEMBERED:
                told[key] = remembered[key]
        return told


def devices(control: Control, states: StateDir) -> list[Found]:
    """Every ublk device of this machine, by number."""
    found = (look(control, states, dev_id) for dev_id in ids())
    return [device for device in found if device]


def ids() -> list[int]:
    """The numbers of all ublk devices of this machine."""
    try:
        names = os.listdir(CHAR_CLASS)
    except OSError:
        return []
    return sorted(int(m[1]) for n in names if (m := re.fullmatch(r"ublkc(\d+)", n)))


def look(control: Control, states: StateDir, dev_id: int) -> Found | None:
    """The device of a number, if there is one."""
    try:
        info = control.get_dev_info(dev_id)
    except CommandError as error:
        if error.errno == errno.ENODEV:
            return None  # deleted since it was listed
        raise
    state = states.read(dev_id)
    if state and state.cookie != info.cookie:
        state = None  # of an earlier device of that number
    return Found(info=info, size=control.get_size(dev_id), state=state)


def find(control: Control, states: StateDir, word: str) -> Found:
    """The device that a number, a name or a node's path means. Raises UblkdError."""
    match = NODE.fullmatch(word) or NODE.fullmatch(_led_to(word))
    if match:  # the others are not asked: one of them may hang
        dev_id = int(match[1])
    else:
        name = named(word)
        called = (i for i in states.ids() if (state := states.read(i)) and state.name == name)
        dev_id = next(called, -1)
    device = look(control, states, dev_id) if dev_id >= 0 else None
    if device is None or not (match or device.state):
        raise UblkdError(
            f"there is no ublk device {quoted(word)}",
            hint="a number, a name, or a path like /dev/ublkb0; 'ublkd list' shows them",
        )
    return device


def _led_to(word: str) -> str:
    """The node that a link in /dev leads to; of our own links only the name counts."""
    is_link = word.startswith("/dev/") and named(word) == word and "\0" not in word
    return os.path.realpath(word) if is_link else ""


def counters(states: StateDir, device: Found) -> list[dict[str, Any]]:
    """The counters of each queue; nothing for somebody else's device."""
    return stats.read(states.counters(device.info.id)) if device.state else []


def refuse_foreign(device: Found) -> None:
    """Raise UblkdError for a device that another program has made."""
    if not device.ours:
        raise UblkdError(
            f"{device.node} was not made by ublkd and is left alone",
            hint="use the program that made it",
        )


def refuse_being_made(device: Found) -> None:
    """Raise UblkdError for a device that is no disk yet, and about to become one."""
    if device.is_being_made:
        assert device.state
        raise UblkdError(
            f"{device.called} is still being made by process {device.state.pid}",
            hint="try again in a moment",
        )


def gone(device: Found) -> UblkdError:
    """The error for a device that has gone since it was found."""
    return UblkdError(f"{device.called} is gone", hint="see 'ublkd list'")


def again(control: Control, states: StateDir, found: Found) -> Found | None:
    """The device as it is now; None if it is gone, or another one has its number."""
    refuse_foreign(found)
    states.prepare()  # what others may have written of it is not to be trusted
    now = look(control, states, found.info.id)
    return now if now and now.info.cookie == found.info.cookie else None
