"""From a URI to a connection whose next byte is a request's: names, sockets, TLS, the handshake.

Every failure is one line that begins with the URI, and a hint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from socket import socket

from ublkd.errors import UblkdError, UsageError, printable, reason
from ublkd.targets.nbd import tls
from ublkd.targets.nbd.dial import HINTS, Address, addresses_of, dial
from ublkd.targets.nbd.export import Export, Refusal
from ublkd.targets.nbd.handshake import Goal, Handshake, Offer, Phase
from ublkd.targets.nbd.stream import Patience, Stream, TimedOut
from ublkd.targets.nbd.uri import Uri

OPEN_SECONDS = 30.0
"""From the name's look-up to the end of the handshake."""
WAIT_LONGER = "--open-timeout SECONDS waits longer"


@dataclass(frozen=True)
class Connection:
    """A socket on which requests may be sent. It does not block; in TLS it is an SSLSocket."""

    socket: socket
    export: Export


def with_certificates(uri: Uri, folder: str | None) -> Uri:
    """The URI with the folder of ``--tls-certificates``. Raises UsageError if it has no use."""
    if folder is None:
        return uri
    if not uri.tls:
        raise UsageError(
            f"--tls-certificates has no use for {printable(str(uri))}",
            hint="nbds:// and nbds+unix:// are the URIs with TLS",
        )
    if uri.certificates not in (None, folder):
        raise UsageError("--tls-certificates is not the tls-certificates of the URI",
                         hint="give one of them")  # fmt: skip
    return dataclasses.replace(uri, certificates=folder)


def connect(
    uri: Uri,
    seconds: float = OPEN_SECONDS,
    *,
    stop: int | None = None,
    addresses: Sequence[Address] | None = None,
    context: ssl.SSLContext | None = None,
) -> Connection:
    """Ready for requests, within ``seconds`` in all.

    ``stop`` is a descriptor that ends the wait when it can be read; ``addresses`` are what
    ``addresses_of`` has found before, and ``context`` what ``tls.context`` has read. Raises
    UblkdError.
    """
    sock, export = _meet(uri, Goal.SERVE, Patience(seconds, stop), addresses, context)
    assert isinstance(export, Export)
    return Connection(sock, export)


def look(uri: Uri, seconds: float = OPEN_SECONDS) -> Export:
    """What the export is. Raises UblkdError."""
    sock, export = _meet(uri, Goal.LOOK, Patience(seconds))
    sock.close()
    assert isinstance(export, Export)
    return export


def offers(uri: Uri, seconds: float = OPEN_SECONDS) -> list[Offer]:
    """What the server offers, whatever export the URI names. Raises UblkdError."""
    sock, found = _meet(uri, Goal.LIST, Patience(seconds))
    sock.close()
    assert isinstance(found, list)
    return found


def _meet(
    uri: Uri,
    goal: Goal,
    patience: Patience,
    addresses: Sequence[Address] | None = None,
    context: ssl.SSLContext | None = None,
) -> tuple[socket, Export | list[Offer]]:
    """A negotiated connection; no socket is left behind a failure."""
    try:
        if not patience.left:  # other connections have used it up
            raise Refusal("no time is left to connect", hint=WAIT_LONGER)
        if uri.tls and context is None:
            context = tls.context(uri)
        if addresses is None:
            addresses = addresses_of(uri, patience)
        handshake = Handshake(goal, uri.export_bytes, tls=uri.tls)
        meeting = _Meeting(uri, handshake, patience, Stream(dial(addresses, patience), patience))
        return meeting.hold(context)
    except UblkdError as error:
        message = f"{printable(str(uri))}: {error.message}"
        raise type(error)(message, hint=error.hint) from error


class _Meeting:
    """One handshake over one socket."""

    def __init__(self, uri: Uri, handshake: Handshake, patience: Patience, stream: Stream) -> None:
        self._uri = uri
        self._handshake = handshake
        self._patience = patience
        self._stream = stream
        self._heard_in_tls = False

    def hold(self, context: ssl.SSLContext | None) -> tuple[socket, Export | list[Offer]]:
        """To its end. Raises Refusal or Stopped; the socket is closed then."""
        try:
            result = self._hold(context)
            self._take_leave()
        except BaseException as error:
            self._take_leave()
            self._stream.socket.close()
            if isinstance(error, TimedOut):
                raise self._too_slow() from error
            raise
        return self._stream.socket, result

    def _hold(self, context: ssl.SSLContext | None) -> Export | list[Offer]:
        handshake = self._handshake
        while handshake.result is None:
            try:
                self._stream.send(handshake.data_to_send())
                if handshake.phase is Phase.TLS:
                    self._start_tls(context)
                    continue
                data = self._stream.recv()
            except OSError as error:
                raise self._lost(error) from error
            if not data:
                raise self._lost(ConnectionResetError())
            self._heard_in_tls = isinstance(self._stream.socket, ssl.SSLSocket)
            handshake.receive(data)
        return handshake.result

    def _start_tls(self, context: ssl.SSLContext | None) -> None:
        assert context is not None
        sock = tls.start(context, self._stream.socket, self._uri, self._patience)
        self._stream = Stream(sock, self._patience)
        self._handshake.tls_started()

    def _lost(self, error: OSError) -> Refusal:
        """A client's certificate may be refused after our part of TLS 1.3 is done."""
        in_tls = isinstance(self._stream.socket, ssl.SSLSocket)
        if isinstance(error, ssl.SSLError) or (in_tls and not self._heard_in_tls):
            return tls.failed(error, self._uri)
        if not isinstance(error, ConnectionError):
            return Refusal(f"the connection broke in the handshake: {reason(error)}",
                           hint=HINTS.get(error.errno or 0, "is the network up?"))  # fmt: skip
        return self._handshake.end_of_stream()

    def _take_leave(self) -> None:
        """If there is something to say: once, and without waiting."""
        if data := self._handshake.data_to_send():
            with contextlib.suppress(OSError):
                self._stream.socket.send(data)

    def _too_slow(self) -> Refusal:
        owed, seconds = self._handshake.waiting_for, f"{self._patience.seconds:g} seconds"
        if self._handshake.received:
            return Refusal(f"after {seconds} the server has not sent {owed}", hint=WAIT_LONGER)
        return Refusal(
            f"the server has said nothing for {seconds}",
            hint=f"is it an NBD server? Others wait for the client to begin. {WAIT_LONGER}",
        )
