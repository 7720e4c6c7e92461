"""Devices that units of systemd serve: the next daemon of one is systemd's to start."""

from __future__ import annotations

import time
from pathlib import Path

from ublkd import daemon, devicefiles, manage, recovery
from ublkd.control import Control
from ublkd.daemon import Ready
from ublkd.devicefiles import ENDING, FOLDER
from ublkd.errors import UblkdError
from ublkd.manage import Found
from ublkd.state import StateDir
from ublkd.systemd import has_unit, start, unit

SERVED_SECONDS, PAUSE = 30, 0.05
"""How long a unit that runs may not serve its device, and how often that is looked at."""


def unit_for(found: Found) -> str | None:
    """The unit that serves such a device: it was made from a file of /etc/ublkd, which is there
    still, and systemd runs and has our unit.
    """
    state = found.state
    if state is None or state.name is None or state.origin is None:
        return None
    path = Path(state.origin)
    if path != FOLDER / f"{state.name}{ENDING}" or not path.exists() or not has_unit():
        return None
    return unit(state.name)


def refuse_wrong_file(found: Found) -> None:
    """Raise UblkdError if a unit could not serve the device because of its file."""
    if found.state and found.state.origin:
        path = Path(found.state.origin)
        devicefiles.read(path.parent, path.name.removesuffix(ENDING))


def serve(found: Found, unit: str) -> None:
    """Have a unit serve a device that has no daemon; returns once it does. Raises UblkdError.

    It is started and not restarted, or systemd would restart what requires it as well: mounts of
    fstab, which cannot be unmounted while nobody serves. To systemd a unit may run for a moment
    longer than its daemon; so it is told until there is a daemon.
    """
    until = time.monotonic() + SERVED_SECONDS
    while True:
        start(unit)
        with Control() as control:
            now = manage.look(control, StateDir(), found.info.id)
        if now is None or now.info.cookie != found.info.cookie:
            raise manage.gone(found)
        if now.served:
            return
        if time.monotonic() > until:
            raise UblkdError(
                f"{unit} runs, and does not serve {found.called}",
                hint=f"see 'systemctl status {unit}' and 'journalctl -u {unit}'",
            )
        time.sleep(PAUSE)


def recover(found: Found) -> Ready:
    """Have a device served again whose daemon is gone: by its unit if it has one, else by a daemon
    in the background. Raises UblkdError.
    """
    unit = unit_for(found)
    if unit is None:
        return daemon.recover(found)
    recovery.refuse_unrecoverable(found)
    refuse_wrong_file(found)
    serve(found, unit)
    return Ready(id=found.info.id)
