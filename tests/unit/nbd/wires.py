"""A server's socket, plain or in TLS, of which every byte that leaves can be counted."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from typing import TypeVar

CHUNK = 64 << 10

Result = TypeVar("Result")


class Wire:
    """Bytes both ways. What leaves goes through ``send``, as it is in the cable."""

    def __init__(self, sock: socket.socket, send: Callable[[bytes], None]) -> None:
        self._sock = sock
        self._send = send
        self._tls: ssl.SSLObject | None = None
        self._came, self._goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._ahead = b""

    def start_tls(self, context: ssl.SSLContext) -> None:
        """The server's side of it. Raises OSError."""
        self._tls = context.wrap_bio(self._came, self._goes, server_side=True)
        self._patiently(self._tls.do_handshake)

    def send(self, data: bytes) -> None:
        """All of it."""
        if self._tls:
            self._patiently(self._tls.write, data)
        else:
            self._send(data)

    def recv(self, length: int, *, peek: bool = False) -> bytes:
        """So many bytes at most; to peek is to wait for all of them."""
        if not self._tls:
            return self._sock.recv(length, socket.MSG_PEEK | socket.MSG_WAITALL if peek else 0)
        while not self._ahead or (peek and len(self._ahead) < length):
            if not (more := self._patiently(self._tls.read, CHUNK)):
                break
            self._ahead += more
        data = self._ahead[:length]
        self._ahead = self._ahead[0 if peek else length :]
        return data

    def _patiently(self, call: Callable[..., Result], *words: object) -> Result:
        while True:
            try:
                return call(*words)
            except ssl.SSLWantReadError:
                pass
            finally:
                if self._goes.pending:
                    self._send(self._goes.read())
            if more := self._sock.recv(CHUNK):
                self._came.write(more)
            else:
                self._came.write_eof()
