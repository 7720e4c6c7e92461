"""Connections that were given up: heard out, and only then ended.

What a server has taken in it may still do when its connection is long gone, and so put an old write
over newer data. One that reads the end of its connection does what it has and ends it, too. That is
waited for before requests go anywhere else, but not for ever: NBD has nothing to fence it off with.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
from collections.abc import Iterable, Iterator, Sequence
from socket import MSG_DONTWAIT, SHUT_WR, socket

from ublkd._core import lib
from ublkd.errors import UblkdError
from ublkd.targets.nbd.stream import CHUNK, Patience, TimedOut

BOUND = 2.0
"""Seconds. A server that is well needs hardly any; one that is stuck may be so for ever, and all
requests wait meanwhile.
"""

log = logging.getLogger(__name__)


class Parting:
    """A descriptor of each connection besides that of its link, and below TLS if there is any."""

    def __init__(self, shown: str, stop: int) -> None:
        """``shown`` is where the server is; when ``stop`` can be read nothing is waited for."""
        self._shown = shown
        self._stop = stop
        self._used: list[socket] = []  # one for each link
        self._old: list[socket] = []

    def take(self, socks: Iterable[socket]) -> None:
        """Connections that are about to be used, in the order of the links. Raises OSError."""
        for sock in socks:
            self._used.append(_another(sock))

    def end_used(self) -> None:
        """Both ways and at once: nobody waits for what is under way."""
        _end(self._used)

    def end_old(self) -> None:
        """The same for those that were given up."""
        _end(self._old)

    def give_up(self, unsure: Sequence[bool]) -> None:
        """All that are used; for each whether the server may still write what it was told there."""
        used, self._used = self._used, []
        for sock, is_so in zip(used, unsure, strict=False):  # none, if they were ended before
            if is_so:
                self._old.append(sock)
            else:
                _end([sock])

    @contextlib.contextmanager
    def unsure(self, sock: socket) -> Iterator[None]:
        """A connection that is given up if the block fails; what was told there may be written."""
        own = _another(sock)
        try:
            yield
        except BaseException:
            self._old.append(own)
            raise
        own.close()

    def hear_out(self, most: float) -> None:
        """Until the server has ended all that were given up, or ``BOUND`` is over.

        Raises Stopped, and UblkdError after ``most`` seconds if these are fewer.
        """
        try:
            _hear_out(self._old, Patience(min(BOUND, most), self._stop))
        except (TimedOut, OSError):
            if most < BOUND:
                raise UblkdError(
                    "the server has not ended the old connection", hint="its log may say more"
                ) from None
            log.warning("%s: the server has not ended the old connection: a write that it has from "
                        "there may land on newer data", self._shown)  # fmt: skip
        self.end_old()

    def close(self) -> None:
        """What was said on those in use arrives."""
        self.end_old()
        while self._used:
            self._used.pop().close()


def _another(sock: socket) -> socket:
    return socket(fileno=os.dup(sock.fileno()))


def _end(socks: list[socket]) -> None:
    """The list is empty then."""
    while socks:
        with socks.pop() as sock:
            lib.stream_abort(sock.fileno())


def _hear_out(socks: Sequence[socket], patience: Patience) -> None:
    """All of them. Raises TimedOut, Stopped, or OSError where an end will never be heard of."""
    for sock in socks:
        with contextlib.suppress(OSError):  # it is over
            sock.shutdown(SHUT_WR)
    never: OSError | None = None
    for sock in socks:
        try:
            while _goes_on(sock):
                patience.wait(sock.fileno(), select.POLLIN)
        except OSError as error:  # the others' ends may be heard all the same
            never = error
    if never:
        raise never


def _goes_on(sock: socket) -> bool:
    """What has come is of no use to anybody."""
    try:
        return bool(sock.recv(CHUNK, MSG_DONTWAIT))
    except BlockingIOError:
        return True
    except (ConnectionResetError, BrokenPipeError):
        return False
