"""Why a connection was given up, in words."""

from __future__ import annotations

import errno
from typing import Any

from ublkd._core import lib
from ublkd.errors import reason


def words(status: Any) -> str:
    """Of a ``struct nbd_status``."""
    if status.loss == lib.NBD_LOST_SOCKET:
        closed = -status.err in (errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED)
        return "the server has closed the connection" if closed else reason(-status.err)
    return {
        lib.NBD_LOST_TIMEOUT: "a request was not answered within --request-timeout",
        lib.NBD_LOST_MAGIC: "what the server sent is no reply",
        lib.NBD_LOST_COOKIE: "the server answered what it was not asked",
        lib.NBD_LOST_SHUTDOWN: "the server says that it is shutting down",
        lib.NBD_LOST_TOLD: "it was given up",
    }.get(status.loss, "no reason is known")
