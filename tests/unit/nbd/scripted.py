"""A server that does what a script says: speaks, cuts, trickles, stalls, and listens."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

WAIT = 30
"""Seconds: no wait of a server is meant to be this long."""


class Peer:
    """The server's end of one connection."""

    def __init__(self, sock: socket.socket, ended: threading.Event) -> None:
        sock.settimeout(WAIT)
        self.sock = sock
        self.ended = ended
        self.heard = b""

    def send(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # a client may have had enough
            self.sock.sendall(data)

    def recv(self, length: int) -> bytes:
        """That many bytes; fewer if the client hangs up."""
        data = b""
        while len(data) < length and (more := self.sock.recv(length - len(data))):
            data += more
        self.heard += data
        return data

    def until_closed(self) -> None:
        """All that the client says until it hangs up."""
        with contextlib.suppress(OSError):
            while more := self.sock.recv(65536):
                self.heard += more

    def start_tls(self, context: ssl.SSLContext) -> None:
        """The server's side of it; whatever goes wrong is for the client to tell."""
        with contextlib.suppress(OSError):
            self.sock = context.wrap_socket(self.sock, server_side=True)


Script = Callable[[Peer], None]


class Scripted:
    """Serves one connection after the other by one script, on TCP or on a local socket."""

    def __init__(self, script: Script, place: Path | str = "127.0.0.1") -> None:
        """A folder as ``place`` means a local socket in it."""
        self.script = script
        self.heard: list[bytes] = []
        self.failures: list[BaseException] = []
        self.ended = threading.Event()
        if isinstance(place, Path):
            self.path = place / "nbd.sock"
            self.path.unlink(missing_ok=True)
            self.listener = socket.socket(socket.AF_UNIX)
            self.listener.bind(str(self.path))
        else:
            self.listener = socket.create_server(
                (place, 0), family=socket.AF_INET6 if ":" in place else socket.AF_INET
            )
        self.listener.listen()
        self.thread = threading.Thread(target=self._serve)

    def uri(self, export: str = "disk", scheme: str = "nbd", query: str = "") -> str:
        """Where it is."""
        if self.listener.family == socket.AF_UNIX:
            return f"{scheme}+unix:///{export}?socket={self.path}" + (f"&{query}" if query else "")
        host, port = self.listener.getsockname()[:2]
        where = f"[{host}]" if ":" in host else host
        return f"{scheme}://{where}:{port}/{export}" + (f"?{query}" if query else "")

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.listener.shutdown(socket.SHUT_RDWR)  # ends the accept()
        self.thread.join(WAIT)
        self.listener.close()
        assert not self.thread.is_alive()
        if self.failures:
            raise self.failures[0]

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # the listener is shut
            while True:
                sock, _ = self.listener.accept()
                self._one(sock)

    def _one(self, sock: socket.socket) -> None:
        peer = Peer(sock, self.ended)
        try:
            self.script(peer)
        except BaseException as error:
            self.failures.append(error)
        finally:
            self.heard.append(peer.heard)
            peer.sock.close()


# --- scripts --------------------------------------------------------------------------------


def says(stream: bytes) -> Script:
    """All of it at once, then it listens."""

    def script(peer: Peer) -> None:
        peer.send(stream)
        peer.until_closed()

    return script


def hangs_up(stream: bytes) -> Script:
    """All of it, then the end of the stream; it goes on to listen, so nothing is reset."""

    def script(peer: Peer) -> None:
        peer.send(stream)
        with contextlib.suppress(OSError):
            peer.sock.shutdown(socket.SHUT_WR)
        peer.until_closed()

    return script


def resets(stream: bytes) -> Script:
    """All of it, and once the client has answered the connection is torn down."""

    def script(peer: Peer) -> None:
        peer.send(stream)
        peer.recv(1)
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    return script


def trickles(stream: bytes, seconds: float) -> Script:
    """A byte at a time."""

    def script(peer: Peer) -> None:
        for byte in stream:
            peer.send(bytes([byte]))
            if peer.ended.wait(seconds):
                return
        peer.until_closed()

    return script


def in_tls(context: ssl.SSLContext, stream: bytes, before: bytes, first: int = 4 + 16) -> Script:
    """``before`` in plain, then ``stream`` in TLS once the client has sent ``first`` bytes."""

    def script(peer: Peer) -> None:
        peer.send(before)
        peer.recv(first)
        peer.start_tls(context)
        peer.send(stream)
        peer.until_closed()

    return script


@contextlib.contextmanager
def full_listener() -> Iterator[tuple[str, int]]:
    """A TCP address that takes no further connection and answers nothing."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        place = listener.getsockname()
        for _ in range(8):  # its line is full after a few, and then SYNs are dropped
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(place)
        yield place
