"""The connections of a disk: kept, and made anew when they are lost.

C moves the requests and says when a connection is gone; what becomes of it is decided here, in a
thread of its own, which may wait. Requests wait meanwhile, as long as the reconnect window is open.
The connections of one disk live and die together: what a server forgets it forgets for all.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import random
import select
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from socket import socket
from typing import Any

from ublkd._core import ffi, lib
from ublkd.errors import UblkdError, printable, told
from ublkd.target import Params
from ublkd.targets.nbd.connect import Connection
from ublkd.targets.nbd.export import Export, Refusal, worse
from ublkd.targets.nbd.journal import Journal
from ublkd.targets.nbd.losses import words
from ublkd.targets.nbd.parting import Parting
from ublkd.targets.nbd.relay import Relay
from ublkd.targets.nbd.replay import Write, replay
from ublkd.targets.nbd.settings import Settings, gathered
from ublkd.targets.nbd.stream import Patience, Stopped, Stream

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 16.0
"""Seconds between two tries; they double from one to the other."""
GRACE_SECONDS = 1.0
"""How long a disk that shall end may go without a request being answered."""
SLOW_SECONDS = 15.0
"""The same while one of them is a flush or a zeroing, which takes a server its time."""
STOP_SECONDS = 20.0
"""How long a disk may take to end before it is taken to live on."""
END_SECONDS = 10.0
POLL_SECONDS = 1.0
APART_SECONDS = 5.0
"""How long it may take until connections are given up that know of a smaller export."""
MOMENT = 0.1
"""Seconds: the least that a try has, however little of the window is left."""

log = logging.getLogger(__name__)

Dial = Callable[[float, int | None], Connection]


def _smallest(connections: Sequence[Connection]) -> Export:
    """It may grow while one after the other is made."""
    return min((made.export for made in connections), key=lambda export: export.disk_size)


class Keeper:
    """Keeps the links of one disk connected, until ``close``."""

    def __init__(
        self,
        settings: Settings,
        connections: Sequence[Connection],
        *,
        params: Params,
        dial: Dial,
    ) -> None:
        """Takes the connections over. ``params`` is what the kernel is told.

        ``dial`` makes a connection within some seconds, unless the descriptor can be read.
        """
        self._settings = settings
        self.export = _smallest(connections)
        self._least, self._apart = 0, threading.Event()
        self._up, self._growing = True, threading.Lock()
        self._params = params
        self._dial = dial
        self._links = range(settings.connections)
        self._ending = self._failing = False
        self._relays: list[Relay] = []
        self._pause, self._answered = FIRST_PAUSE, -1
        self.links = ffi.NULL
        self._attached = [0 for _ in self._links]
        self._thread = threading.Thread(target=self._run, name="nbd-keeper", daemon=True)
        self.journal = Journal() if settings.after_reconnect == "replay" else None
        self._lost = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._parting = Parting(self._shown, self._stop)
        try:
            self._begin(connections)
        except BaseException:
            self._free()
            raise

    def _begin(self, connections: Sequence[Connection]) -> None:
        settings = self._settings
        config = {
            "nr_links": settings.connections,
            "timeout_ns": settings.timeout_ns,
            "window_ns": settings.window_ns,
            "lost_fd": self._lost,
            "gather_bytes": gathered(settings),
            "journal_bytes": self.journal.bytes if self.journal else 0,
            "journal": self.journal.memory if self.journal else ffi.NULL,
            "flushes": self.export.flush and not self._params.read_only and settings.doubts,
        }
        self.links = lib.nbd_new(ffi.new("struct nbd_config *", config))
        if self.links == ffi.NULL:
            raise MemoryError
        self._attach(connections)
        self._thread.start()

    def recovered(self, acked: int, flushed: int) -> None:
        """A daemon before this one has died: it had acknowledged so many writes, and the server had
        flushed them up to that one. Its journal has died with it.
        """
        lib.nbd_inherit(self.links, acked, flushed)
        if lib.nbd_unflushed(self.links) and self._settings.doubts:
            lib.nbd_fail_flush(self.links)
            log.warning("%s: writes of the daemon before that no flush has covered may be lost: "
                        "the next flush fails", self._shown)  # fmt: skip

    def changed(self, settings: Settings) -> None:
        """Other times, or another word about growth; the rest is as before."""
        self._settings = settings
        lib.nbd_limits(self.links, settings.timeout_ns, settings.window_ns)

    def resizing(self, size: int) -> None:
        """The disk is about to have ``size`` bytes. Returns when no connection is used any more
        whose server holds it to fewer; what is asked of the disk then waits for others. Raises
        UblkdError.
        """
        with self._growing:
            self._apart.clear()
            self._least = size
            if not self._up or size <= self.export.disk_size:
                return
        os.eventfd_write(self._lost, 1)
        if not self._apart.wait(APART_SECONDS):
            self._least = 0
            raise UblkdError(
                f"the connections that know of {self.export.disk_size} bytes are not given up",
                hint="see the system log for ublkd: is the server there?",
            )

    def stopping(self) -> None:
        """The disk is about to end: nothing waits for a server any more that does not answer."""
        lib.nbd_stopping(self.links, True)
        os.eventfd_write(self._stop, 1)

    def close(self) -> None:
        """After the queues have ended."""
        self._ending = True
        os.eventfd_write(self._stop, 1)
        os.eventfd_write(self._lost, 1)
        self._thread.join(END_SECONDS)
        if self._thread.is_alive():
            return  # what it uses has to stay
        if self._failing:  # what they have not sent yet must not arrive any more
            self._parting.end_used()
        self._close_relays(linger=True)
        self._free()

    def _free(self) -> None:
        self._close_relays()
        self._parting.close()
        if self.links != ffi.NULL:
            lib.nbd_free(self.links)
        os.close(self._lost)
        os.close(self._stop)
        if self.journal:
            self.journal.close()

    # --- the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._ending:
            try:
                self._keep()
            except Stopped:
                self._let_go()
            except Exception:  # whatever it was, somebody has to go on
                log.exception("%s: keeping its connections failed", self._shown)
                self._fail()
                select.select([self._stop], [], [], LONGEST_PAUSE)

    def _keep(self) -> None:
        """Raises Stopped."""
        while True:
            self._heard()
            if self._least > self.export.disk_size:
                self._answered = -1  # nothing was wrong with it
                self._reconnect("it is given up for one to a larger export")
            elif why := self._what_was_lost():
                self._reconnect(why)
            if self._stop in select.select([self._stop, self._lost], [], [])[0]:
                raise Stopped("told to stop")

    @property
    def _shown(self) -> str:
        return printable(str(self._settings.uri))

    def _heard(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._lost)

    def _status(self, link: int) -> Any:
        status = ffi.new("struct nbd_status *")
        lib.nbd_look(self.links, link, status)
        return status

    def _is_down(self, link: int) -> bool:
        """It has no connection, and none that it was given and has not looked at."""
        status = self._status(link)
        return bool(status.attached == self._attached[link] and status.state != lib.NBD_CONNECTED)

    def _what_was_lost(self) -> str:
        """Why some connection is gone, or nothing."""
        return next((words(self._status(link)) for link in self._links if self._is_down(link)), "")

    # --- connecting again ---------------------------------------------------------------------

    def _reconnect(self, why: str) -> None:
        """Until all are connected again. Raises Stopped."""
        began, said, failed = time.monotonic(), "", False
        self._break_all()
        self._up = False
        self._apart.set()
        window = self._settings.window
        waits = "for ever" if window == math.inf else f"{window:g} seconds"
        log.warning("%s: connection lost: %s; requests wait %s", self._shown, why, waits)
        if self._answered != self._ended():
            self._pause = FIRST_PAUSE
        else:  # the last one was good for nothing: it would be lost as fast
            self._nap(window)
        while True:
            window = self._settings.window
            left = began + window - time.monotonic()
            if left <= 0 and not failed:
                failed = True
                self._fail()
                log.error("%s: not connected within %g seconds; requests fail now, and it is "
                          "tried on", self._shown, window)  # fmt: skip
            try:
                self._parting.hear_out(math.inf if failed else left)
                left = math.inf if failed else began + window - time.monotonic()
                made = self._dialled(min(self._settings.open_timeout, max(left, MOMENT)))
                answered = self._ended()  # what ends from here on has come over these
                self._use(made)
            except Stopped:
                raise
            except (UblkdError, OSError, RuntimeError) as error:
                message = error.message if isinstance(error, UblkdError) else told(error)
                if message != said:
                    log.warning("%s: not connected: %s", self._shown, message)
                said = message
                self._nap(math.inf if failed else began + window - time.monotonic())
            else:
                self._answered = answered
                log.warning("%s: connected again after %.1f seconds", self._shown,
                            time.monotonic() - began)  # fmt: skip
                return

    def _nap(self, most: float) -> None:
        """Between two tries. Raises Stopped."""
        seconds = min(self._pause * random.uniform(0.8, 1.2), max(0.0, most))
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        if select.select([self._stop], [], [], seconds)[0]:
            raise Stopped("told to stop")

    def _break_all(self) -> None:
        """Nothing is acknowledged on any of them any more. Raises Stopped."""
        for link in self._links:
            lib.nbd_break(self.links, link)
        while not all(self._is_down(link) for link in self._links):
            if self._stop in select.select([self._stop, self._lost], [], [], POLL_SECONDS)[0]:
                raise Stopped("told to stop")
            self._heard()
        self._close_relays()
        self._parting.give_up([self._status(link).may_still_write for link in self._links])

    def _dialled(self, seconds: float) -> list[Connection]:
        """All connections, each to an export that is what it was, and what the server may have lost
        told again: all of it within ``seconds``. Raises UblkdError or OSError.
        """
        patience = Patience(seconds, self._stop)
        made: list[Connection] = []
        try:
            for _ in self._links:
                made.append(self._dial(patience.left, self._stop))
                new, least = made[-1].export, self._least_size()
                if changed := worse(new, self.export, self._params, len(self._links), least=least):
                    raise Refusal(f"the export is not what it was: {changed}")
            self._make_good(made[0], patience)
        except BaseException:
            for connection in made:
                connection.socket.close()
            raise
        return made

    def _least_size(self) -> int | None:
        """The bytes of an export that may be larger than before; None: it must be what it was."""
        if self._least > self.export.disk_size:
            return self._least
        return self.export.disk_size if self._settings.follow else None

    def _make_good(self, connection: Connection, patience: Patience) -> None:
        """What the server may have lost. Raises UblkdError or OSError."""
        if not self.export.flush or not lib.nbd_unflushed(self.links):
            return
        if self.journal and not lib.nbd_journal_broken(self.links):
            writes = self.journal.writes(self.links)
            with self._parting.unsure(connection.socket):
                replay(Stream(connection.socket, patience), writes, patience, self._safe)
            log.warning("%s: %d writes that no flush has covered were written again",
                        self._shown, len(writes))  # fmt: skip
        elif self._settings.doubts:
            lib.nbd_fail_flush(self.links)
            log.warning("%s: the server may have lost writes that no flush has covered: the next "
                        "flush fails", self._shown)  # fmt: skip

    def _safe(self, write: Write) -> None:
        lib.nbd_note_flush(self.links, write.order)

    def _use(self, connections: Sequence[Connection]) -> None:
        """Hand them to the queues, if they are large enough still."""
        with self._growing:
            export = _smallest(connections)
            if export.disk_size < self._least:
                for connection in connections:
                    connection.socket.close()
                raise Refusal(f"the export has {export.disk_size} bytes, and the disk shall have "
                              f"{self._least}")  # fmt: skip
            self._attach(connections)
            self.export, self._up, self._failing = export, True, False

    def _attach(self, connections: Sequence[Connection]) -> None:
        """Hand them to the queues."""
        sockets: list[socket] = []
        try:
            self._parting.take(connection.socket for connection in connections)
            for connection in connections:
                sock = connection.socket
                if isinstance(sock, ssl.SSLSocket):
                    self._relays.append(Relay(sock))
                    sock = self._relays[-1].end
                sockets.append(sock)
        except BaseException:
            for sock in [*sockets, *(connection.socket for connection in connections)]:
                sock.close()
            self._close_relays()
            self._parting.end_used()
            raise
        for link, sock in enumerate(sockets):
            self._attached[link] += 1
            lib.nbd_attach(self.links, link, sock.detach())

    def _close_relays(self, *, linger: bool = False) -> None:
        for relay in self._relays:
            if linger:
                relay.wait()
            relay.close()
        self._relays.clear()

    def _fail(self) -> None:
        self._failing = True
        for link in self._links:
            lib.nbd_fail(self.links, link)

    # --- the end ------------------------------------------------------------------------------

    def _ended(self) -> int:
        """Requests, ever."""
        return sum(int(self._status(link).ended) for link in self._links)

    def _let_go(self) -> None:
        """What goes on being answered may; the rest fails, and all that comes later.

        A disk that lives on all the same has its connections again, once the old ones are heard
        out.
        """
        began = time.monotonic()
        before, until = -1, began + STOP_SECONDS
        while not self._ending and time.monotonic() < until:
            ended = self._ended()
            told = [self._status(link) for link in self._links]
            patient = any(s.slow for s in told) and time.monotonic() < began + SLOW_SECONDS
            stuck = any(s.unanswered for s in told) and ended == before and not patient
            if stuck or any(self._is_down(link) for link in self._links):
                self._fail()
            before = ended
            self._heard()
            select.select([self._lost], [], [], GRACE_SECONDS)
        lib.nbd_stopping(self.links, False)  # or it has ended by now
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._stop)
