"""An NBD server that does what a plan says, at any byte of any request, and watches its client.

``python3 -m tests.unit.nbd.misbehaving`` is the same as a process: see ``main``.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import socket
import ssl
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

from tests.unit.nbd.faults import EINVAL, FLUSH, FUA, READ, Fault, Offer, Request
from tests.unit.nbd.mischief import WAIT, Connection, Ended


@dataclasses.dataclass
class Due:
    """A fault, and how many requests there were that it is for."""

    fault: Fault
    count: int = 0


class Misbehaving:
    """The server: threads of this process. Faults may be added while it serves."""

    def __init__(
        self,
        place: Path | int = 0,
        *faults: Fault,
        offer: Offer | None = None,
        shuffle: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """``place`` is a local socket's path, or a port of 127.0.0.1. ``shuffle``: answers come in
        any order. ``tls`` is for whoever asks for it.
        """
        self.place = place
        self.offer = offer or Offer()
        self.shuffle = shuffle
        self.tls = tls
        self.greeted = 0
        """Bytes that it has sent before the first request, the last time."""
        self.data = bytearray(self.offer.size)
        self.stable = bytearray(self.offer.size)
        """What a power failure leaves of it."""
        self.requests: list[Request] = []
        self.complaints: list[str] = []
        self.connections = 0
        self._dirty: list[tuple[int, int]] = []
        self._faults = [Due(fault) for fault in faults]
        self._lock = threading.Lock()
        self.changed = threading.Condition(self._lock)
        """Notified when a request has come or a connection was made."""
        self.going_on = threading.Event()
        self._threads: list[threading.Thread] = []
        self._open: set[socket.socket] = set()
        self._listener: socket.socket | None = None

    # --- its life ---------------------------------------------------------------------------

    def start(self) -> None:
        """Listen."""
        self.going_on.clear()
        if isinstance(self.place, int):
            listener = socket.create_server(("127.0.0.1", self.place))
            self.place = listener.getsockname()[1]
        else:
            self.place.unlink(missing_ok=True)
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(self.place))
            listener.listen()
        self._listener = listener
        self._start(self._accept, listener)

    def stop(self) -> None:
        """As if it had died: all connections are cut, and nobody listens."""
        with self._lock:
            listener, self._listener = self._listener, None
            self.going_on.set()
            for sock in [*self._open, *([listener] if listener else [])]:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        while self._threads:
            self._threads.pop().join(WAIT)
        if listener:
            listener.close()
            if isinstance(self.place, Path):
                self.place.unlink(missing_ok=True)

    def lose(self) -> None:
        """Forget what was not flushed."""
        with self._lock:
            for start, end in self._dirty:
                self.data[start:end] = self.stable[start:end]
            self._dirty.clear()

    @property
    def listens(self) -> bool:
        """Between start() and stop()."""
        return self._listener is not None

    def go_on(self) -> None:
        """End every stall, until faults are added again."""
        self.going_on.set()

    def fault(self, *faults: Fault) -> None:
        """From now on; those that were there before come first."""
        with self._lock:
            self.going_on.clear()
            self._faults += [Due(fault) for fault in faults]

    def heal(self) -> None:
        """No more faults."""
        with self._lock:
            self._faults.clear()
        self.go_on()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.stop()
        if kind is None:
            assert not self.complaints, self.complaints

    def uri(self, query: str = "") -> str:
        """Where it is; ``query`` begins with a ``?``."""
        if isinstance(self.place, Path):
            return f"nbd+unix:///?socket={self.place}"
        return f"nbd{'s' if self.tls else ''}://127.0.0.1:{self.place}{query}"

    # --- what its clients did ---------------------------------------------------------------

    def wait_for(self, true: Callable[[], bool], seconds: float = WAIT) -> None:
        """Until something is true of the requests or the connections."""
        with self.changed:
            assert self.changed.wait_for(true, seconds), self.requests[-5:]

    def asked(self, command: int) -> list[Request]:
        """The requests of a command, in the order in which they came."""
        return [request for request in list(self.requests) if request.command == command]

    # --- for its connections ----------------------------------------------------------------

    def due(self, connection: int, command: int | None) -> Fault | None:
        """What happens to this request."""
        with self._lock:
            mine = [due for due in self._faults if due.fault.is_for(connection, command)]
            for due in mine:
                due.count += 1
            return next((due.fault for due in mine if due.fault.is_due(due.count - 1)), None)

    def came(self, request: Request, complaint: str) -> None:
        """Into the log."""
        with self.changed:
            self.requests.append(request)
            if complaint:
                self.complaints.append(f"{complaint}: {request}")
            self.changed.notify_all()

    def apply(self, request: Request, payload: bytes) -> tuple[int, bytes]:
        """The error and a READ's data."""
        start, end = request.offset, request.offset + request.length
        with self._lock:
            if request.command != FLUSH and end > len(self.data):
                return EINVAL, b""
            if request.command == READ:
                return 0, bytes(self.data[start:end])
            if request.command == FLUSH:
                for dirty in self._dirty:
                    self.stable[slice(*dirty)] = self.data[slice(*dirty)]
                self._dirty.clear()
                return 0, b""
            self.data[start:end] = payload or bytes(request.length)
            if request.flags & FUA:
                self.stable[start:end] = self.data[start:end]
            else:
                self._dirty.append((start, end))
            return 0, b""

    def _start(self, call: Callable[..., None], *words: object) -> None:
        thread = threading.Thread(target=call, args=words, daemon=True)
        thread.start()  # first, or stop() could find one that cannot be joined
        self._threads.append(thread)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it is shut
            while True:
                sock, _ = listener.accept()
                with self.changed:
                    if self._listener is not listener:
                        sock.close()
                        return
                    self._open.add(sock)
                    number, self.connections = self.connections, self.connections + 1
                    self.changed.notify_all()
                self._start(self._one, sock, number)

    def _one(self, sock: socket.socket, number: int) -> None:
        try:
            Connection(self, sock, number).serve()
        except (Ended, OSError):
            pass
        except BaseException as error:
            self.complaints.append(f"the server failed: {error!r}")
        finally:
            with self._lock:
                self._open.discard(sock)
            sock.close()


ORDERS: dict[str, Callable[[Misbehaving], None]] = {
    "stop": Misbehaving.stop,
    "start": Misbehaving.start,
    "lose": Misbehaving.lose,
    "heal": Misbehaving.heal,
    "go_on": Misbehaving.go_on,
}


def main() -> None:
    """``--unix PATH`` or ``--port N``, ``--size BYTES``. Each line of its input is JSON: a fault,
    or one of "stop", "start", "lose", "heal", "go_on"; the answer is how many connections there
    were. At the end it prints what came.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--unix", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--size", type=int, default=1 << 20)
    parser.add_argument("--shuffle", action="store_true")
    words = parser.parse_args()
    server = Misbehaving(words.unix or words.port, offer=Offer(words.size), shuffle=words.shuffle)
    server.start()
    print(json.dumps(server.uri()), flush=True)
    for line in sys.stdin:
        told = json.loads(line)
        if isinstance(told, dict):
            server.fault(Fault(**told))
        else:
            ORDERS[told](server)
        print(server.connections, flush=True)
    server.stop()
    requests = [dataclasses.asdict(request) for request in server.requests]
    print(json.dumps({"requests": requests, "complaints": server.complaints}))


if __name__ == "__main__":
    main()
