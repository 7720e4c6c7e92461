"""The server's end of one connection: what it hears, and what it says; nothing here waits."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

REQUEST = struct.Struct(">IHHQQI")
REPLY = struct.Struct(">IIQ")
REQUEST_MAGIC, REPLY_MAGIC = 0x25609513, 0x67446698
WIRE_FUA, WIRE_NO_HOLE = 1, 2
ESHUTDOWN = 108


class Command(IntEnum):
    READ = 0
    WRITE = 1
    FLUSH = 3
    TRIM = 4
    WRITE_ZEROES = 6


@dataclass(frozen=True)
class Asked:
    """A request as it came over the wire."""

    flags: int
    command: Command
    cookie: int
    offset: int
    length: int
    data: bytes = b""

    @property
    def tag(self) -> int:
        return self.cookie & 0xFFFF


def reply_to(cookie: int, error: int = 0, payload: bytes = b"") -> bytes:
    return REPLY.pack(REPLY_MAGIC, error, cookie) + payload


class Store:
    """What an export holds; a server that begins anew may be given an old copy of it."""

    def __init__(self, content: bytes = b"") -> None:
        self.content = bytearray(content)

    def do(self, asked: Asked) -> bytes:
        """The payload of its reply."""
        end = asked.offset + asked.length
        if asked.command == Command.READ:
            return bytes(self.content[asked.offset : end])
        if asked.command == Command.WRITE:
            self.content[asked.offset : end] = asked.data
        elif asked.command in (Command.TRIM, Command.WRITE_ZEROES):
            self.content[asked.offset : end] = bytes(asked.length)
        return b""


class Server:
    """
    One connection. `asked` are requests that were heard whole and not answered; `hears` is how
    many bytes it still takes from the socket, None for all.
    """

    def __init__(self, end: socket.socket, store: Store | None = None) -> None:
        end.setblocking(False)
        self.end = end
        self.store = store or Store()
        self.asked: list[Asked] = []
        self.heard = bytearray()
        self.hears: int | None = None
        self.trickle: Callable[[], int] | None = None
        """How many bytes leave at once."""
        self.ended = False
        self._parsed = 0
        self._says = bytearray()

    # --- hearing -----------------------------------------------------------

    def work(self) -> bool:
        """All that can be done now; whether that was anything."""
        if self.end.fileno() < 0:
            return False
        heard = self._hear()
        return self._say() or heard

    @property
    def wants_to_say(self) -> bool:
        return bool(self._says)

    @property
    def listens(self) -> bool:
        return not self.ended and self.hears != 0

    def _hear(self) -> bool:
        before = len(self.heard), self.ended
        while self.listens:
            most = 1 << 20 if self.hears is None else self.hears
            try:
                data = self.end.recv(most)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            self.ended = not data
            self.heard += data
            if self.hears is not None:
                self.hears -= len(data)
        self._parse()
        return before != (len(self.heard), self.ended)

    def _parse(self) -> None:
        while len(self.heard) - self._parsed >= REQUEST.size:
            start = self._parsed + REQUEST.size
            fields = REQUEST.unpack_from(self.heard, self._parsed)
            magic, flags, command, cookie, offset, length = fields
            assert magic == REQUEST_MAGIC
            end = start + (length if command == Command.WRITE else 0)
            if len(self.heard) < end:
                return
            data = bytes(self.heard[start:end])
            self.asked.append(Asked(flags, Command(command), cookie, offset, length, data))
            self._parsed = end

    # --- saying ------------------------------------------------------------

    def done(self, asked: Asked, error: int = 0) -> bytes:
        """Does it, unless it fails: what there is to say then."""
        self.asked.remove(asked)
        payload = b"" if error else self.store.do(asked)
        return reply_to(asked.cookie, error, payload)

    def answer(self, asked: Asked, error: int = 0) -> None:
        self.say(self.done(asked, error))

    def answer_all(self) -> None:
        while self.asked:
            self.answer(self.asked[0])

    def say(self, data: bytes) -> None:
        self._says += data
        self._say()

    def _say(self) -> bool:
        said = False
        while self._says and self.end.fileno() >= 0:
            most = self.trickle() if self.trickle else len(self._says)
            try:
                sent = self.end.send(self._says[:most])
            except BlockingIOError:
                break
            except OSError as error:
                assert error.errno in (errno.EPIPE, errno.ECONNRESET)
                self._says.clear()
                break
            del self._says[:sent]
            said = True
            if self.trickle:
                break
        return said

    # --- ending ------------------------------------------------------------

    def close(self) -> None:
        self.end.close()

    def shut(self) -> None:
        """What it has said arrives, and then the end."""
        with contextlib.suppress(OSError):
            self.end.shutdown(socket.SHUT_RDWR)

    def reset(self) -> None:
        """On TCP; what it has said may be lost."""
        linger = struct.pack("ii", 1, 0)
        self.end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.end.close()
