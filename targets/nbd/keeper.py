"""The connections of a disk: kept, and made anew when they are lost.

C moves the requests and says when a connection is gone; what becomes of it is decided here, in a
thread of its own, which may wait. Requests wait meanwhile, as long as the reconnect window is open.
The connections of one disk live and die together: what a server forgets it forgets for all.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import random
import select
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ublkd._core import ffi, lib
from ublkd.errors import UblkdError, printable, reason
from ublkd.targets.nbd.connect import Connection, connect
from ublkd.targets.nbd.dial import Address
from ublkd.targets.nbd.export import Export, Refusal
from ublkd.targets.nbd.relay import Relay
from ublkd.targets.nbd.stream import Stopped
from ublkd.targets.nbd.uri import Uri

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 16.0
"""Seconds between two tries; they double from one to the other."""
GRACE_SECONDS = 1.0
"""How long a disk that shall end may go without a request being answered."""
END_SECONDS = 10.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the user said of connections. Times in seconds, ``math.inf`` for ever."""

    uri: Uri
    connections: int = 1
    open_timeout: float = 30.0
    window: float = 30.0
    after_reconnect: str = "strict"


Dial = Callable[[Uri, float, int], Connection]


def _why(status: Any) -> str:
    """The loss of a connection in words."""
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


def worse(new: Export, old: Export, connections: int, max_io: int) -> str:
    """Why an export that came back cannot stand for what the kernel was told; empty if it can."""
    if new.disk_size != old.disk_size:
        return f"it has {new.disk_size} bytes and had {old.disk_size}"
    if new.read_only and not old.read_only:
        return "it is read-only now"
    if new.block > old.block:
        return f"it wants blocks of {new.block} bytes now and had {old.block}"
    if new.maximum < max_io:
        return f"it takes {new.maximum} bytes at once now, and the disk's requests have {max_io}"
    for name in ("flush", "fua", "trim", "write_zeroes"):
        if getattr(old, name) and not getattr(new, name):
            return f"it cannot {name.replace('_', ' ')} any more"
    if connections > 1 and not new.multi_conn:
        return "it cannot be reached over several connections any more"
    return ""


class Keeper:
    """Keeps the links of one disk connected, until ``close``."""

    def __init__(
        self,
        settings: Settings,
        connections: Sequence[Connection],
        *,
        timeout: float = math.inf,
        max_io: int = 0,
        dial: Dial | None = None,
        addresses: Sequence[Address] | None = None,
    ) -> None:
        """Takes the connections over. ``timeout`` is of a request, in seconds; ``max_io`` in bytes.

        ``dial`` makes a connection, for tests.
        """
        self._settings = settings
        self._export = connections[0].export
        self._max_io = max_io
        self._addresses = addresses
        self._dial = dial or self._connect
        self._lost = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stopping = False
        self._relays: list[Relay] = []
        config = {
            "nr_links": settings.connections,
            "timeout_ns": 0 if timeout == math.inf else int(timeout * 1e9),
            "lost_fd": self._lost,
        }
        self.links = lib.nbd_new(ffi.new("struct nbd_config *", config))
        if self.links == ffi.NULL:
            raise MemoryError
        self._attached = [0] * settings.connections
        self._attach(connections)
        self._thread = threading.Thread(target=self._run, name="nbd-keeper", daemon=True)
        self._thread.start()

    def stopping(self) -> None:
        """The disk is about to end: nothing waits for a server any more that does not answer."""
        os.eventfd_write(self._stop, 1)

    def close(self) -> None:
        """After the queues have ended."""
        self._stopping = True
        os.eventfd_write(self._stop, 1)
        os.eventfd_write(self._lost, 1)
        self._thread.join(END_SECONDS)
        self._close_relays()
        if self._thread.is_alive():
            return  # what it uses has to stay
        lib.nbd_free(self.links)
        os.close(self._lost)
        os.close(self._stop)

    # --- the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._told_to_stop(math.inf):
                self._heard()
                if why := self._what_was_lost():
                    self._reconnect(why)
        except Stopped:
            pass
        except Exception:
            log.exception("%s: the keeper of its connections has failed", self._shown)
        self._let_go()

    @property
    def _shown(self) -> str:
        return printable(str(self._settings.uri))

    def _told_to_stop(self, seconds: float) -> bool:
        """Wait for a loss, or ``seconds``; whether it is time to end."""
        timeout = None if seconds == math.inf else max(0.0, seconds)
        return self._stop in select.select([self._stop, self._lost], [], [], timeout)[0]

    def _heard(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._lost)

    def _status(self, link: int) -> Any:
        status = ffi.new("struct nbd_status *")
        lib.nbd_look(self.links, link, status)
        return status

    def _what_was_lost(self) -> str:
        """Why some connection is gone, or nothing."""
        for link, attached in enumerate(self._attached):
            status = self._status(link)
            if status.attached == attached and status.state != lib.NBD_CONNECTED:
                return _why(status)
        return ""

    def _reconnect(self, why: str) -> None:
        """Until all are connected again. Raises Stopped."""
        window = self._settings.window
        began, pause, failed, said = time.monotonic(), FIRST_PAUSE, False, ""
        self._break_all()
        waits = "for ever" if window == math.inf else f"for {window:g} seconds"
        log.warning("%s: connection lost: %s; requests wait %s", self._shown, why, waits)
        while True:
            left = began + window - time.monotonic()
            if left <= 0 and not failed:
                failed = True
                self._fail()
                log.error("%s: not connected within %g seconds; requests fail now, and it is "
                          "tried on", self._shown, window)  # fmt: skip
            try:
                seconds = self._settings.open_timeout
                self._attach(self._dialled(seconds if failed else min(seconds, max(left, 0.1))))
            except Stopped:
                raise
            except UblkdError as error:
                if error.message != said:
                    log.warning("%s", error.message)
                said = error.message
            else:
                log.warning("%s: connected again after %.1f seconds", self._shown,
                            time.monotonic() - began)  # fmt: skip
                return
            nap = pause * random.uniform(0.8, 1.2)
            if not failed:
                nap = min(nap, max(0.0, began + window - time.monotonic()))
            if select.select([self._stop], [], [], nap)[0]:
                raise Stopped("told to stop")
            pause = min(2 * pause, LONGEST_PAUSE)

    def _break_all(self) -> None:
        """Nothing is acknowledged on any of them any more. Raises Stopped."""
        links = range(self._settings.connections)
        for link in links:
            lib.nbd_break(self.links, link)
        while any(self._status(link).state == lib.NBD_CONNECTED for link in links):
            if self._told_to_stop(math.inf):
                raise Stopped("told to stop")
            self._heard()
        self._close_relays()

    def _connect(self, uri: Uri, seconds: float, stop: int) -> Connection:
        return connect(uri, seconds, stop=stop, addresses=self._addresses)

    def _dialled(self, seconds: float) -> list[Connection]:
        """All connections, each to an export that is what it was. Raises UblkdError."""
        made: list[Connection] = []
        try:
            for _ in range(self._settings.connections):
                made.append(self._dial(self._settings.uri, seconds, self._stop))
                changed = worse(
                    made[-1].export, self._export, self._settings.connections, self._max_io
                )
                if changed:
                    raise Refusal(f"{self._shown}: the export is not what it was: {changed}")
        except BaseException:
            for connection in made:
                connection.socket.close()
            raise
        return made

    def _attach(self, connections: Sequence[Connection]) -> None:
        """Hand them to the queues."""
        if lib.nbd_unflushed(self.links) and self._settings.after_reconnect == "strict":
            lib.nbd_fail_flush(self.links)
            log.warning("%s: the server may have lost writes that no flush has covered: the next "
                        "flush fails (--after-reconnect strict)", self._shown)  # fmt: skip
        for link, connection in enumerate(connections):
            sock = connection.socket
            if isinstance(sock, ssl.SSLSocket):
                relay = Relay(sock)
                self._relays.append(relay)
                sock = relay.end
            self._attached[link] += 1
            lib.nbd_attach(self.links, link, sock.detach())

    def _close_relays(self) -> None:
        for relay in self._relays:
            relay.close()
        self._relays.clear()

    def _fail(self) -> None:
        for link in range(self._settings.connections):
            lib.nbd_fail(self.links, link)

    # --- the end ------------------------------------------------------------------------------

    def _progress(self) -> tuple[int, bool]:
        """Requests that ever ended, and whether some have not while nothing can be lost."""
        states = [self._status(link) for link in range(self._settings.connections)]
        lost = any(status.state != lib.NBD_CONNECTED for status in states)
        return sum(int(status.ended) for status in states), lost

    def _let_go(self) -> None:
        """What goes on being answered may; the rest fails, and all that comes later."""
        before = -1
        while not self._stopping:
            ended, lost = self._progress()
            waiting = any(
                self._status(link).unanswered for link in range(self._settings.connections)
            )
            if lost or (waiting and ended == before):
                break
            before = ended
            self._heard()
            select.select([self._lost], [], [], GRACE_SECONDS)
        self._fail()
        while not self._stopping:
            select.select([self._lost], [], [], None)
            self._heard()
            self._fail()
