"""Waits for a block node to appear, by the kernel's own announcement and never by polling."""

from __future__ import annotations

import os
import select
import time

from ublkd.errors import UblkdError, reason


def _open_error(node: str) -> OSError | None:
    try:
        fd = os.open(node, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return error
    os.close(fd)
    return None


def wait_for_node(node: str, seconds: float) -> None:
    """Return once ``node`` can be opened; UblkdError after ``seconds``.

    With devtmpfs the node is there as soon as the device is started, so most of the time nothing
    is waited for; elsewhere it is udev that makes it, some time after the kernel's event.
    """
    error = _open_error(node)
    if error is not None:
        error = _wait(node, seconds)
    if error is not None:
        raise UblkdError(
            f"{node} could not be opened within {seconds:g} seconds: {reason(error)}",
            hint="is udev running, and is /dev a devtmpfs?",
        )


def _wait(node: str, seconds: float) -> OSError | None:
    from pyroute2.netlink.uevent import UeventSocket  # heavy, and rarely needed

    until = time.monotonic() + seconds
    with UeventSocket() as socket:
        socket.bind()
        # asked only now, because an event from before the bind is lost
        while (error := _open_error(node)) is not None:
            left = until - time.monotonic()
            if left <= 0 or not select.select([socket.fileno()], [], [], left)[0]:
                return error
            socket.get()
    return None
