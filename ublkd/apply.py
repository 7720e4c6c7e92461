"""Makes the devices be what a folder of files says: first what is to be done, then doing it.

Only devices that were made from a file of that folder are ever changed or deleted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from ublkd import daemon, devicefiles, differences, ending, manage, setting, systemd
from ublkd.control import Control
from ublkd.devicefiles import FOLDER, DeviceFile
from ublkd.differences import Change
from ublkd.errors import NotPossibleError, UblkdError, printable
from ublkd.manage import Found
from ublkd.service import named
from ublkd.state import StateDir, locked
from ublkd.systemd import systemctl, unit
from ublkd.uapi import DevState

ALONE_SECONDS = 30
"""How long another apply of the same folder may take."""


class Action(StrEnum):
    """What becomes of a device."""

    ADD = "add"
    DEL = "del"
    CHANGE = "change"  # deleted, and made anew
    SET = "set"  # changed while the disk is there, and may be in use
    RECOVER = "recover"
    KEEP = "keep"  # it should be changed or deleted, and cannot be
    SAME = "same"


@dataclass(frozen=True, kw_only=True)
class Present:
    """A device that has a name and is in the driver."""

    name: str
    origin: str | None  # the file it was made from
    node: str = ""
    cookie: int = 0
    served: bool = True
    dead: bool = False
    claimed: bool = False  # mounted, part of another block device, or open
    changes: Sequence[Change] = ()  # what its file says now beside what it was made with


@dataclass(frozen=True, kw_only=True)
class Step:
    """What is to be done with one device, and why."""

    action: Action
    name: str
    why: str = ""
    changes: Sequence[Change] = ()
    cookie: int = 0  # of the device that was looked at; 0: there was none

    def __str__(self) -> str:
        return f"{self.action} {self.name}" + (f": {self.why}" if self.why else "")


def plan(
    folder: Path, wanted: Collection[str], wrong: Collection[str], present: Sequence[Present]
) -> list[Step]:
    """What is to be done, by name. ``wanted`` have a sound file in the folder, ``wrong`` another.

    A pure function.
    """
    there = {device.name: device for device in present}
    steps = [_wanted(folder, name, there.get(name)) for name in wanted]
    for device in present:
        if device.name not in wanted and _is_from(folder, device):
            steps.append(_unwanted(device, device.name in wrong))
    return sorted(steps, key=lambda step: step.name)


def _is_from(folder: Path, device: Present) -> bool:
    return device.origin is not None and Path(device.origin).parent == folder


def _wanted(folder: Path, name: str, device: Present | None) -> Step:
    if device is None:
        return Step(action=Action.ADD, name=name)
    if not _is_from(folder, device):
        origin = "by hand" if device.origin is None else f"from {printable(device.origin)}"
        return Step(action=Action.KEEP, name=name, why=f"{device.node} was made {origin}")
    if device.dead:
        why = "it is dead (anew)"
        return Step(action=Action.CHANGE, name=name, why=why, cookie=device.cookie)
    changes, why = device.changes, ", ".join(map(str, device.changes))
    live = [change for change in changes if change.live]
    all_live = len(live) == len(changes)
    if not device.served and (all_live or device.claimed):
        action, changes, why = Action.RECOVER, live, ", ".join(map(str, live))
    elif not changes:
        action = Action.SAME
    elif all_live:
        action = Action.SET
    elif device.claimed:
        action, why = Action.KEEP, f"in use ({why})"
    else:
        action, why = Action.CHANGE, f"{why} (anew)"
    return Step(action=action, name=name, why=why, changes=changes, cookie=device.cookie)


def _unwanted(device: Present, wrong: bool) -> Step:
    if wrong:
        return Step(action=Action.KEEP, name=device.name, why="its file is wrong")
    if device.claimed and not device.dead:
        return Step(action=Action.KEEP, name=device.name, why="in use (its file is gone)")
    why = "its file is gone"
    return Step(action=Action.DEL, name=device.name, why=why, cookie=device.cookie)


# --- the machine ----------------------------------------------------------------------------


def look(
    control: Control, states: StateDir, files: Sequence[DeviceFile], wrong: Collection[str]
) -> list[Present]:
    """The devices that have names."""
    by_name = {file.name: file for file in files}
    return list(_present(manage.devices(control, states), by_name, wrong))


def _present(
    devices: Sequence[Found], files: Mapping[str, DeviceFile], wrong: Collection[str]
) -> Iterator[Present]:
    for device in devices:
        state = device.state
        if state is None or state.name is None:
            continue
        file = files.get(state.name)
        other = differences.between(state, file.config) if file else []
        making = device.is_being_made
        dead = device.info.state is DevState.DEAD and not making
        anew = any(not change.live for change in other)
        goes = not dead and state.name not in wrong and (anew or not file)
        yield Present(
            name=state.name,
            origin=state.origin,
            node=device.node,
            cookie=device.info.cookie,
            served=device.served or making,
            dead=dead,
            # asked only where it matters: for that moment nobody else could have claimed it
            claimed=goes and state.origin is not None and _is_in_use(device.info.id),
            changes=other,
        )


def _is_in_use(dev_id: int) -> bool:
    return bool(ending.claims(dev_id) or ending.openers(dev_id))


class Hands(Protocol):
    """Who starts, ends and changes devices. All raise UblkdError."""

    def start(self, file: DeviceFile) -> None:
        """Have the device of a file served: made, or taken over."""
        ...

    def end(self, step: Step) -> None:
        """Have the device of a step gone, if it is not in use."""
        ...

    def change(self, file: DeviceFile) -> None:
        """Have it go by what the file says and can change while the disk is there."""
        ...


def hands(folder: Path) -> Hands:
    """systemd's, where it runs and has our unit, which serves /etc/ublkd; else our own."""
    return Systemd() if folder == FOLDER and systemd.has_unit() else Ours()


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One at a time for a folder, from the first look to the last act. Raises UblkdError."""
    devicefiles.refuse_untrusted(folder)
    with locked(folder, ALONE_SECONDS, f"applying {printable(str(folder))}"):
        yield


def carry_out(
    steps: Sequence[Step], files: Sequence[DeviceFile], by: Hands
) -> dict[str, UblkdError]:
    """Do it, and go on where one fails: what failed, by name.

    First what ends: what it stands on may be for another device.
    """
    by_name, failed = {file.name: file for file in files}, dict[str, UblkdError]()
    for step in steps:
        if step.action in (Action.DEL, Action.CHANGE):
            try:
                by.end(step)
            except UblkdError as error:
                failed[step.name] = error
    for step in steps:
        if step.name not in failed:
            try:
                _begin(step, by_name, by)
            except UblkdError as error:
                failed[step.name] = error
    return failed


def _begin(step: Step, files: Mapping[str, DeviceFile], by: Hands) -> None:
    if step.action in (Action.ADD, Action.CHANGE, Action.RECOVER):
        by.start(files[step.name])
    # not before it is served: whoever serves it may say that it cannot, and goes on as before
    if step.action is Action.SET or (step.action is Action.RECOVER and step.changes):
        by.change(files[step.name])


class Ours:
    """Daemons in the background, as of ``add``."""

    def start(self, file: DeviceFile) -> None:
        """See Hands."""
        with Control() as control:
            found = named(control, StateDir(), file.name)
        if found and found.is_orphan and _is_of(found, file):
            daemon.recover(found)
        else:  # which is refused if another device has the name
            daemon.start(file.config)

    def end(self, step: Step) -> None:
        """See Hands. It is stopped first: ``delete`` takes a disk away that is only open."""
        with Control() as control:
            states = StateDir()
            found = named(control, states, step.name)
            if found is None:
                return
            if found.info.cookie != step.cookie:
                raise _is_another(found)
            ending.stop(control, states, found)
            ending.delete(control, states, found)

    def change(self, file: DeviceFile) -> None:
        """See Hands. As of ``set``, and what is live is asked anew: it may be another device."""
        with Control() as control:
            states = StateDir()
            found = named(control, states, file.name)
            if found is None or found.state is None:
                raise UblkdError(f"{file.name} is gone", hint="see 'ublkd list'")
            if not _is_of(found, file):
                raise _is_another(found)
            if values := differences.live(found.state, file.config):
                try:
                    setting.set_values(control, states, found, values)
                except NotPossibleError as error:
                    raise UblkdError(f"{found.called}: {error.message}", hint=error.hint) from error


def _is_of(found: Found, file: DeviceFile) -> bool:
    return found.state is not None and found.state.origin == str(file.path)


def _is_another(found: Found) -> UblkdError:
    return UblkdError(
        f"{found.called} is not the device that was looked at: it was made meanwhile",
        hint="run 'ublkd apply' again",
    )


class Systemd(Ours):
    """Units, one for each device."""

    def start(self, file: DeviceFile) -> None:
        """See Hands."""
        systemd.start(unit(file.name))

    def end(self, step: Step) -> None:
        """See Hands. First the disk, and its daemon ends with it: a unit that is stopped leaves a
        disk that is in use without a daemon, and one whose file is gone cannot be started again.
        """
        super().end(step)
        systemctl("stop", unit(step.name))
