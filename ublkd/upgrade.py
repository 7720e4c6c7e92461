"""Another daemon for a device that is served: the old one ends, and requests only wait."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator

from ublkd import daemon, ending, manage, recovery, units
from ublkd.background import Child, Log, Tell
from ublkd.control import Control
from ublkd.errors import UblkdError
from ublkd.manage import Found
from ublkd.state import StateDir
from ublkd.systemd import unit_of
from ublkd.uapi import DevState

GO = b"!"


def upgrade(found: Found) -> int:
    """Have a daemon with this very code take the place of the one that serves.

    That of a unit of systemd is started by systemd, or the unit would be left without it.

    Returns the milliseconds in which no request was served. Raises UblkdError: before the device is
    quiesced if the new daemon could not serve it, and else one that says how it is now.
    """
    ending.refuse_unquiescable(found)
    dev_id = found.info.id
    if not found.served:
        raise UblkdError(
            f"nobody serves {found.called}", hint=f"'ublkd recover {dev_id}' has it served again"
        )
    if unit := unit_of(found.pid):
        units.refuse_wrong_file(found)
    go_read, go_write = os.pipe2(os.O_CLOEXEC)
    with (
        open(go_write, "wb", buffering=0) as go,
        Child(
            lambda tell, log: _succeed(found, go_read, tell, log), go_read, messages=2
        ) as successor,
    ):
        os.close(go_read)
        opening = daemon.opening_seconds(found.state.options if found.state else {})
        serves = False

        def goes(seconds: float) -> None:
            with contextlib.suppress(BrokenPipeError):  # it has died, and how is heard
                go.write(GO)
            successor.hear(seconds)

        try:
            successor.hear(opening)  # it could serve
            with _uninterrupted():
                if unit:  # it has done its part
                    successor.kill()
                began = time.monotonic()
                # by systemctl stop a disk would go that is not in use
                with Control() as control:
                    ending.quiesce(control, StateDir(), found)
                if unit:
                    _await(found, lambda: units.serve(found, unit), f"systemctl start {unit}")
                else:
                    _await(found, lambda: goes(opening), f"ublkd recover {dev_id}")
                serves = True  # an interrupt that has waited so long comes only now
        except BaseException:
            if not serves:
                successor.kill()
            raise
    return _since(began)


def _since(began: float) -> int:
    return round((time.monotonic() - began) * 1000)


def _await(found: Found, next_one: Callable[[], object], again: str) -> None:
    """``again``: the command that tries it again."""
    try:
        next_one()
    except UblkdError as error:
        with Control() as control:
            now = manage.look(control, StateDir(), found.info.id)
        same = now and now.info.cookie == found.info.cookie
        if now is None or not same or now.served or now.info.state is DevState.DEAD:
            raise  # somebody else was faster, and the error says so
        raise UblkdError(
            f"{found.called} is quiesced and its requests wait: the old daemon has ended, and the "
            f"new one failed: {error.message}",
            hint=f"'{again}' tries again; {error.hint}",
        ) from error


def _succeed(found: Found, go_read: int, tell: Tell, log: Log) -> None:
    """The new daemon: as far as it can go while the old one serves, and then in its place."""
    with Control() as control:
        recovery.look(control, StateDir(), found)
    tell({})
    if os.read(go_read, 1) != GO:
        raise UblkdError("the upgrade was given up", hint="the old daemon goes on serving")
    os.close(go_read)
    daemon.serve_again(found.info.id, found.info.cookie, lambda _: tell({}), log)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """An interrupt between the two daemons, or the end of the terminal, would leave the device to
    nobody.
    """
    ends = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
