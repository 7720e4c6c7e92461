"""What a device is called: its number and its name, which are its own, and its links in /dev."""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import replace

from ublkd import access, udev
from ublkd.access import Access
from ublkd.config import DeviceConfig
from ublkd.control import CommandError, Control
from ublkd.errors import UblkdError, quoted, reason
from ublkd.state import DeviceState, StateDir, is_ours
from ublkd.uevent import wait_until

DEV = "/dev"
PLACES = ("ublk/", "disk/by-id/ublk-")
"""What stands before a name in a link, under /dev."""
SECONDS = 10
"""How long udev may take."""


def refuse_taken(control: Control, states: StateDir, name: str, but: int | None = None) -> None:
    """Raise UblkdError if a device has that name, or may have it; but for the one of that number.

    Under the lock of ``states``, which must be held until the name is written down. What is
    remembered of a device that is gone goes.
    """
    for dev_id in states.ids():
        state = states.read(dev_id)
        if state is None or state.name != name or dev_id == but:
            continue
        if is_there(control, dev_id, state.cookie):
            raise UblkdError(
                f"the name {quoted(name)} is taken by /dev/ublkb{dev_id}",
                hint="choose another one, or delete that device",
            )
        states.remove(dev_id)


def is_there(control: Control, dev_id: int, cookie: int) -> bool:
    """Whether the number is that very device's. Raises UblkdError if nobody can tell."""
    try:
        return control.get_dev_info(dev_id).cookie == cookie
    except CommandError as error:
        if error.errno == errno.ENODEV:
            return False
        raise  # it may be there: it keeps its name, and what is remembered of it


def rename(control: Control, states: StateDir, dev_id: int, cookie: int, name: str | None) -> str:
    """Give the device another name, or none. Returns a warning, or nothing.

    Raises UblkdError if another device has it, or nothing is remembered of this one.
    """
    with states.lock():
        state = states.read(dev_id)
        if state is None or state.cookie != cookie:
            raise UblkdError(
                f"what was remembered of /dev/ublkb{dev_id} is gone", hint="see 'ublkd list'"
            )
        if name is not None:
            refuse_taken(control, states, name, but=dev_id)
        states.write(replace(state, name=name))
    return renamed(state, name)


def renamed(before: DeviceState, name: str | None) -> str:
    """Have the links follow a name that was written down. Returns a warning, or nothing."""
    udev.announce(before.id)
    return settled(before.id, name, before.access, gone=before.name)


def mend(dev_id: int, name: str | None) -> None:
    """Have udev make links that are missing: it may have looked while nobody served the disk."""
    if name and not links(dev_id, name):
        udev.announce(dev_id)


def named(word: str) -> str:
    """The name that a word means: itself, or what a link is called after."""
    for place in PLACES:
        if word.startswith(f"{DEV}/{place}"):
            return word.removeprefix(f"{DEV}/{place}")
    return word


def links(dev_id: int, name: str | None) -> list[str]:
    """Those of ours that lead to the device's node."""
    wanted = [f"{DEV}/{place}{name}" for place in PLACES] if name else []
    return [link for link in wanted if os.path.realpath(link) == f"{DEV}/ublkb{dev_id}"]


def not_added(control: Control, config: DeviceConfig, error: CommandError) -> UblkdError:
    """The driver's refusal of an ADD_DEV, in words for whoever asked for it."""
    if error.errno == errno.EEXIST:
        owner = "another ublkd device" if _is_ours(control, config.id) else "another program"
        return UblkdError(
            f"device number {config.id} is taken by {owner}",
            hint="leave --id out to get a free one; 'ublkd list' shows those in use",
        )
    if error.errno == errno.ENOSPC:
        return UblkdError("no device number is free", hint="delete devices that are not used")
    if error.errno == errno.ENOMEM:
        return UblkdError(
            f"no memory for {config.queues} queues of {config.depth} requests",
            hint="lower --queues or --depth",
        )
    return error


def _is_ours(control: Control, dev_id: int | None) -> bool:
    try:
        return dev_id is not None and is_ours(control.get_dev_info(dev_id).cookie)
    except CommandError:
        return False


def settled(dev_id: int, name: str | None, wanted: Access, gone: str | None = None) -> str:
    """Wait until the links of a device are there, and its node is whose it shall be; where udev
    does not see to the latter, do it. ``gone``: the name whose links must have gone.

    Returns a warning, or nothing.
    """
    if not name and not wanted and not gone:
        return ""
    runs, has_rules = udev.runs(), bool(udev.rules())
    disk, in_time = udev.of_disk(dev_id), True

    def is_gone() -> bool:
        return not disk or udev.of_disk(dev_id) != disk

    if runs and has_rules:
        in_time = wait_until(lambda: is_gone() or _is_settled(dev_id, name, wanted, gone), SECONDS)
    elif runs and wanted:  # what it does with any new disk must not come later
        in_time = wait_until(lambda: is_gone() or udev.has_seen(dev_id), SECONDS)
    if is_gone():  # no link comes any more, and the number may be another disk's
        return ""
    return _give(dev_id, wanted) or _why_no_links(dev_id, name, runs, has_rules, in_time)


def _is_settled(dev_id: int, name: str | None, wanted: Access, gone: str | None) -> bool:
    with contextlib.suppress(OSError):
        follows = not name or len(links(dev_id, name)) == len(PLACES)
        is_left = gone != name and links(dev_id, gone)
        return follows and not is_left and access.is_given(f"{DEV}/ublkb{dev_id}", wanted)
    return False


def _give(dev_id: int, wanted: Access) -> str:
    for part in udev.parts(dev_id) if wanted else []:
        try:
            access.give(f"{DEV}/{part}", wanted)
        except OSError as error:
            return f"{DEV}/{part} keeps its owner, group and mode: {reason(error)}"
    return ""


def _why_no_links(dev_id: int, name: str | None, runs: bool, has_rules: bool, in_time: bool) -> str:
    link = f"{DEV}/{PLACES[0]}{name}"
    if not runs:
        why = f"there is no {link}: udev does not run, and nobody else makes links"
    elif not has_rules:
        why = f"there is no {link}: udev has no rules of ublkd; see 'ublkd doctor'"
    else:
        node = f"{DEV}/ublkb{dev_id}"
        why = f"udev has not made {link} within {SECONDS} seconds; see 'udevadm info {node}'"
    return why if name and not (runs and has_rules and in_time) else ""
