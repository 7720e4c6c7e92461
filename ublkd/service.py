"""A daemon that systemd runs: the device of a file, served in the foreground.

A device that the driver has kept is taken over, with the options that it was made with. When the
service ends, a disk that is in use is left to the driver, for the next start to take over.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable

from ublkd import (
    aside,
    daemon,
    differences,
    ending,
    follow,
    holders,
    manage,
    names,
    notify,
    systemd,
)
from ublkd.aside import LAST_SECONDS
from ublkd.background import Log
from ublkd.control import SLOW_SECONDS, CommandError, Control
from ublkd.daemon import POLL_SECONDS, Manner, Ready
from ublkd.device import EXIT_SECONDS, Device
from ublkd.devicefiles import DeviceFile
from ublkd.errors import NotPossibleError, UblkdError, printable, told
from ublkd.features import Recovery, recovery_of
from ublkd.manage import Found
from ublkd.notify import INFO, WARNING, Notifier
from ublkd.recovery import TAKE_SECONDS
from ublkd.state import StateDir, new_cookie
from ublkd.systemd import is_going_down
from ublkd.target import OptionValue
from ublkd.uapi import DevState, Feature
from ublkd.watchdog import Watchdog

QUIESCE_SECONDS = 30
DECIDE_SECONDS = (
    SLOW_SECONDS + ending.PASSING_SECONDS + 2 * holders.SECONDS + systemd.ASK_SECONDS
    + LAST_SECONDS
)  # fmt: skip
"""How long it may take to see whether a disk is in use, and to stop it if it is not; or to say what
becomes of it.
"""
START_SECONDS = 90
"""How long all of a start may take but opening what stands behind the disk, as the unit has it."""
DEAD_SECONDS = 30
"""How long the driver may take to notice that a daemon has died."""

Say = Callable[[str, int], None]
"""Logs a line with its level."""


class Supervised(Manner):
    """Feeds the watchdog; and leaves a disk that is in use to the driver, if it is to ``keep``."""

    def __init__(self, notifier: Notifier, say: Say, *, keep: bool) -> None:
        self._notifier, self._say, self._keep = notifier, say, keep
        self._watchdog: Watchdog | None = None

    def ready(self, disk: Ready, status: str) -> None:
        """Tell that the disk is there: from now on the watchdog wants to be fed."""
        for warning in disk.warnings:
            self._say(f"warning: {warning}", WARNING)
        self._notifier.ready(status)

    def pause(self, disk: Device) -> float:
        """Seconds until the watchdog is to be fed again."""
        if self._watchdog is None:
            seconds = notify.watchdog_seconds()
            if seconds is None:
                return POLL_SECONDS
            self._watchdog = Watchdog(seconds, disk.poke, self._notifier.alive)
        return min(POLL_SECONDS, self._watchdog.look())

    def end(self, disk: Device, log: Log) -> None:
        """See ublkd(8), under ``run``."""
        self._notifier.stopping(f"/dev/ublkb{disk.id} ends")
        self._notifier.extend(DECIDE_SECONDS)
        try:
            if self._keep:
                self._keep_if_used(disk)
        finally:  # what is dirty is written back, and queues end
            self._notifier.extend(EXIT_SECONDS)

    def _keep_if_used(self, disk: Device) -> None:
        try:
            used = _stopped_or_used(disk)
        except Exception as error:  # nobody can tell, and what is used must stay
            why = error.message if isinstance(error, UblkdError) else told(error)
            used = f"perhaps in use ({why})"
        if used and self._stays(disk, used):
            self._leave(disk)

    def _stays(self, disk: Device, used: str) -> bool:
        """Whether a disk that is used can be left to the driver; what becomes of it is said."""
        assert disk.info is not None
        what = f"/dev/ublkb{disk.id} is {used}"
        if recovery_of(disk.info.flags) is Recovery.NONE:
            why = "its recovery is none, so it ends all the same"
            self._say(f"warning: {what}: {why}", WARNING)
            return False
        if is_going_down():
            self._say(f"warning: {what}, and the system goes down: it ends", WARNING)
            return False
        self._say(f"{what}: it is left to the driver, and what is asked of it waits for the next "
                  "start", INFO)  # fmt: skip
        return True

    def _leave(self, disk: Device) -> None:
        """The driver shall keep it, with the requests that come."""
        assert disk.info is not None
        disk.leave()
        self._notifier.extend(2 * QUIESCE_SECONDS)
        if Feature.QUIESCE not in disk.info.flags or not _quiesced(disk.control, disk.id):
            _vanish()


def _stopped_or_used(disk: Device) -> str:
    """Stop the disk; or how it is used, if it is. Raises where that cannot be told.

    By the Control that the disk has: there may be no memory or descriptor for another one.
    """
    assert disk.info is not None
    if words := ending.claims(disk.id):
        return f"in use: {words}"
    try:
        if Feature.SAFE_STOP_DEV in disk.info.flags:
            words = ending.try_stop(disk.control, disk.id)
        else:  # the driver itself cannot tell
            words = ending.openers(disk.id)
    except CommandError as error:
        if error.errno != errno.ENODEV:
            raise
        return ""  # somebody else has stopped it
    return f"in use: {words}" if words else ""


def _quiesced(control: Control, dev_id: int) -> bool:
    """Have the driver take back what it can, until each queue can end; whether that was in time."""
    until = time.monotonic() + QUIESCE_SECONDS
    while time.monotonic() < until:
        try:
            control.quiesce_dev(dev_id, 1)
        except CommandError as error:
            if error.errno != errno.EBUSY:
                return False
        except UblkdError:
            return False
        else:
            return True
    return False


def _vanish() -> None:
    """End as if killed: the driver keeps a device whose daemon is gone, and nothing else would have
    it do so.
    """
    os._exit(0)


# --- run ------------------------------------------------------------------------------------


def run(file: DeviceFile, say: Say, notifier: Notifier, *, keep: bool) -> None:
    """Serve the device of a file until it is stopped or a signal arrives.

    One that the driver has kept is taken over. Raises UblkdError: with the cause if it cannot be
    served, and if a queue fails later.
    """
    states = StateDir()
    notifier.status(f"opens what stands behind {file.name}")

    def briefly(line: str, level: int) -> None:  # the log may be on the disk, and wait for us
        aside.within(LAST_SECONDS, lambda: say(line, level))

    with Control() as control:
        states.prepare()
        ending.sweep(control, states)
        kept = _kept(control, states, file)
        live = _live(control, kept, file, briefly) if kept else {}
    manner = Supervised(notifier, briefly, keep=keep)

    def log(line: str) -> None:
        say(line, INFO)

    if kept is None:
        notifier.extend(START_SECONDS + daemon.opening_seconds(file.config.options))
        with daemon.awaiting(file.config) as awaited:

            def first(ready: Ready) -> None:
                manner.ready(awaited(ready), f"serves {ready.node}, target {file.config.target}")

            daemon.serve(file.config, new_cookie(), first, log, manner)
        return
    notifier.status(f"takes {kept.called} over")
    opening = daemon.opening_seconds(
        kept.state.options if kept.state else {}
    )  # not by the file's yet
    notifier.extend(START_SECONDS + TAKE_SECONDS + opening)

    def again(ready: Ready) -> None:
        names.mend(ready.id, file.name)
        manner.ready(ready, f"serves {ready.node} again, target {file.config.target}")

    info = kept.info
    daemon.serve_again(info.id, info.cookie, again, log, manner, live=live)


def _live(control: Control, kept: Found, file: DeviceFile, say: Say) -> dict[str, OptionValue]:
    """What a file says otherwise of a device that is there, and can be so while it is; by key.

    The rest is logged.
    """
    if kept.state is None:
        return {}
    values = differences.live(kept.state, file.config)
    for change in differences.between(kept.state, file.config):
        if not change.live:
            say(f"{file.path} says {change.key} {change.new}, and {kept.called} was made with "
                f"{change.old}: that waits until it is made anew", WARNING)  # fmt: skip
    if values:
        try:
            follow.refuse_impossible(values, control.get_features())
        except NotPossibleError as error:
            say(f"{kept.called} goes on as it was made: {error.message}", WARNING)
            return {}
    return values


def _kept(control: Control, states: StateDir, file: DeviceFile) -> Found | None:
    """The device that was made from the file, if nobody serves it and it can be taken over.

    A dead one is deleted. Raises UblkdError for one that is served, or was not made from the file.
    """
    until = time.monotonic() + DEAD_SECONDS
    while True:
        found = named(control, states, file.name)
        if found is None:
            return None
        _refuse_other(found, file)
        if found.is_orphan:
            return found
        if found.served:
            raise UblkdError(
                f"{found.called} is served by process {found.pid} already",
                hint=f"'ublkd del {printable(file.name)}' ends it; a device has one daemon",
            )
        if found.is_being_made:
            assert found.state
            raise UblkdError(
                f"{found.called} is being made by process {found.state.pid}",
                hint="a device has one daemon",
            )
        if found.info.state is DevState.DEAD:
            ending.delete(control, states, found)
            return None
        if time.monotonic() > until:  # without recovery, and its daemon has just died
            raise UblkdError(f"{found.called} has no daemon and is not dead yet", hint="see dmesg")
        time.sleep(0.05)


def _refuse_other(found: Found, file: DeviceFile) -> None:
    """Raise UblkdError for a device that only has the file's name: it is not the file's."""
    assert found.state
    if (origin := found.state.origin) == str(file.path):
        return
    made = "by hand" if origin is None else f"from {printable(origin)}"
    raise UblkdError(
        f"{found.called} was made {made}, and not from {printable(str(file.path))}",
        hint=f"give one of them another name, or delete the device: 'ublkd del {found.info.id}'",
    )


def named(control: Control, states: StateDir, name: str) -> Found | None:
    """The device of ours with that name, if there is one."""
    found = (manage.look(control, states, dev_id) for dev_id in states.ids()
             if (state := states.read(dev_id)) and state.name == name)  # fmt: skip
    return next((device for device in found if device and device.state), None)


# --- release --------------------------------------------------------------------------------


def release(name: str | None) -> list[str]:
    """What is to be done when a service has ended: if the system goes down, nobody will take over
    what the driver has kept, and whoever waits for it would wait for ever. So the device of that
    name, or each that nobody serves, is deleted, and what they were is returned. Else nothing
    happens.

    Raises UblkdError: the last of those that went wrong.
    """
    if not is_going_down():
        return []
    with Control() as control:
        states = StateDir()
        if name is None:
            found = [device for device in manage.devices(control, states) if device.is_orphan]
        else:
            found = [device for device in [named(control, states, name)] if device]
        released: list[str] = []
        failure: UblkdError | None = None
        for device in found:
            if device.served:
                continue
            try:
                ending.delete(control, states, device, force=True)
                released.append(device.called)
            except UblkdError as error:
                failure = error
        if failure:
            raise failure
        return released


def await_unused(name: str, seconds: float) -> None:
    """If the system goes down, wait so long for the disk to be neither mounted nor claimed.

    The mounts of fstab that require a service end before it does. Of others systemd does not know
    that they stand on it, and unmounts them while the service is told to end.
    """
    if not is_going_down():
        return
    with Control() as control:
        found = named(control, StateDir(), name)
    until = time.monotonic() + seconds
    while found and ending.claims(found.info.id) and time.monotonic() < until:
        time.sleep(0.1)
