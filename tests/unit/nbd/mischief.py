"""One connection of a misbehaving server: where its faults happen."""

from __future__ import annotations

import random
import select
import socket
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tests.unit.nbd.faults import (
    DISC,
    ESHUTDOWN,
    REPLY,
    REPLY_MAGIC,
    REQUEST,
    WRITE,
    Fault,
    Request,
    complaint,
)
from tests.unit.nbd.wires import Wire

if TYPE_CHECKING:
    from tests.unit.nbd.misbehaving import Misbehaving

WAIT = 30
"""Seconds: no wait is meant to be this long."""


class Ended(Exception):
    """The connection is over."""


class Connection:
    """One client."""

    def __init__(self, server: Misbehaving, sock: socket.socket, number: int) -> None:
        if sock.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._server = server
        self._sock = sock
        self._wire = Wire(sock, self._send)
        self._said = 0
        self._number = number
        self._in_flight: set[int] = set()
        self._answered: list[int] = []
        self._waiting: list[tuple[Request, Fault | None, int, bytes]] = []
        self._fault: Fault | None = None

    def serve(self) -> None:
        """To its end."""
        self._fault = self._server.due(self._number, None)
        self._negotiate()
        while True:
            if not self._more_comes():
                self._answer_waiting()
            self._one()

    # --- bytes ------------------------------------------------------------------------------

    def _take(self, length: int, place: str = "", *, peek: bool = False) -> bytes:
        data = b""
        for part in self._parts(length, place):
            wanted = len(data) + part
            while len(data) < wanted:
                more = self._wire.recv(wanted - len(data), peek=peek)
                if not more or (peek and len(more) < length):
                    raise Ended
                data += more
        return data

    def _give(self, data: bytes, place: str = "") -> None:
        start = 0
        for part in self._parts(len(data), place):
            self._wire.send(data[start : start + part])
            start += part

    def _send(self, raw: bytes) -> None:
        """Of a greeting every byte counts, that of TLS as well."""
        start = 0
        for part in self._parts(len(raw), "greeting"):
            self._sock.sendall(raw[start : start + part])
            self._said += part
            start += part

    def _parts(self, length: int, place: str) -> Iterator[int]:
        """The lengths to move at once; what goes wrong happens between them."""
        fault = self._fault if place and self._fault and self._fault.place == place else None
        at = fault.at if fault else 0
        if place == "greeting":  # it is said in several parts
            at = max(0, at - self._said)
        if fault is None or (place == "greeting" and at > length):
            yield length
            return
        first = min(at, length)
        yield first
        if fault.what == "trickle":
            yield from [1] * (length - first)
            return
        self._go_wrong(fault)
        yield length - first

    def _go_wrong(self, fault: Fault) -> None:
        if fault.what == "stall":
            self._server.going_on.wait(WAIT)
            if self._server.listens:
                return
        if fault.what == "reset":
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise Ended

    # --- before the first request -----------------------------------------------------------

    def _negotiate(self) -> None:
        offer = self._server.offer
        self._give(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3))
        self._take(4)
        while True:
            option, length = struct.unpack(">8xII", self._take(16))
            self._take(length)
            if option in (6, 7):  # INFO, GO
                export = struct.pack(">HQH", 0, offer.size, offer.flags)
                sizes = struct.pack(">HIII", 3, offer.minimum, offer.preferred, offer.maximum)
                for kind, data in ((3, export), (3, sizes), (1, b"")):
                    self._reply_to_option(option, kind, data)
                if option == 7:
                    self._server.greeted = self._said
                    return
            elif option == 5 and self._server.tls:
                self._reply_to_option(option, 1)
                self._wire.start_tls(self._server.tls)
            elif option == 3:  # LIST
                self._reply_to_option(option, 2, bytes(4))
                self._reply_to_option(option, 1)
            else:
                self._reply_to_option(option, 1 if option == 2 else 1 << 31 | 1)
                if option == 2:
                    raise Ended

    def _reply_to_option(self, option: int, kind: int, data: bytes = b"") -> None:
        self._give(struct.pack(">QIII", 0x3E889045565A9, option, kind, len(data)) + data)

    # --- requests ---------------------------------------------------------------------------

    def _more_comes(self) -> bool:
        """Within a moment; only who shuffles waits for it."""
        return bool(self._waiting and select.select([self._sock], [], [], 0.01)[0])

    def _one(self) -> None:
        self._fault = None
        magic, *fields = REQUEST.unpack(self._take(REQUEST.size, peek=True))
        request = Request(self._number, *fields)
        self._server.came(request, complaint(self._server.offer, magic, request, self._in_flight))
        self._fault = fault = self._server.due(self._number, request.command)
        self._take(REQUEST.size, "request")
        if request.command == DISC:
            raise Ended
        self._in_flight.add(request.cookie)
        what = fault.what if fault else ""
        if what == "early":
            self._give(REPLY.pack(REPLY_MAGIC, 0, request.cookie))
        payload = self._take(request.length, "payload") if request.command == WRITE else b""
        self._take(0, "apply")
        if fault and what in ("error", "farewell"):
            result = (fault.error if what == "error" else ESHUTDOWN), b""
        else:
            result = self._server.apply(request, payload)
        if self._server.shuffle:
            self._waiting.append((request, fault, *result))
        else:
            self._answer(request, fault, *result)

    def _answer_waiting(self) -> None:
        random.Random(len(self._answered)).shuffle(self._waiting)
        while self._waiting:
            self._answer(*self._waiting.pop())

    def _answer(self, request: Request, fault: Fault | None, error: int, data: bytes) -> None:
        self._fault = fault
        what, cookie, magic = fault.what if fault else "", request.cookie, REPLY_MAGIC
        self._in_flight.discard(cookie)
        if what in ("silent", "early"):
            return
        if what == "magic":
            magic ^= 1 << 8
        elif what == "cookie":
            cookie ^= 0x5A5A0000
        elif what == "old":
            cookie = self._answered[0]
        elif what == "stale":
            others = (r.cookie for r in self._server.requests if r.connection != self._number)
            cookie = next(others)
        elif what == "unasked":
            self._give(REPLY.pack(magic, 0, cookie ^ 0x5A5A0000))
        for _ in range(2 if what == "twice" else 1):
            self._give(REPLY.pack(magic, error, cookie), "reply")
            self._give(data, "data")
        self._answered.append(request.cookie)
        if what == "farewell":
            raise Ended
