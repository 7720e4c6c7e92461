"""Waits for what comes with a new disk, by the announcements of the kernel and of udev."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable

from ublkd.errors import UblkdError, reason

DEAF_SECONDS = 1
"""How long an event may be missed."""


def _open_error(node: str) -> OSError | None:
    try:
        fd = os.open(node, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return error
    os.close(fd)
    return None


def wait_for_node(node: str, seconds: float, is_there: Callable[[], bool] = lambda: True) -> None:
    """Return once ``node`` can be opened; UblkdError after ``seconds``, or when ``is_there`` says
    that the disk has gone.

    With devtmpfs the node is there as soon as the device is started, so most of the time nothing
    is waited for; elsewhere it is udev that makes it, some time after the kernel's event.
    """
    if not wait_until(lambda: _open_error(node) is None or not is_there(), seconds):
        error = _open_error(node)
        raise UblkdError(
            f"{node} could not be opened within {seconds:g} seconds: "
            f"{reason(error) if error else 'only now it can be'}",
            hint="is udev running, and is /dev a devtmpfs?",
        )
    if not is_there():
        raise UblkdError(
            f"{node} was stopped or deleted before it could be opened", hint="see 'ublkd list'"
        )


def wait_until(is_true: Callable[[], bool], seconds: float) -> bool:
    """Whether it comes true in that time; it is asked again after each event of the kernel's, and
    of udev's when that has done its part.
    """
    return is_true() or _wait(is_true, seconds)


def _wait(is_true: Callable[[], bool], seconds: float) -> bool:
    from pyroute2.netlink.uevent import UeventSocket  # heavy, and rarely needed

    until = time.monotonic() + seconds
    with UeventSocket() as socket:
        socket.bind()  # to the groups of both
        # asked only now, because an event from before the bind is lost
        while not is_true():
            left = until - time.monotonic()
            if left <= 0:
                return False
            # in another network namespace udev cannot be heard
            if select.select([socket.fileno()], [], [], min(left, DEAF_SECONDS))[0]:
                socket.get()
    return True
