"""A relay between two ends that a test holds, with real TLS."""

from __future__ import annotations

import select
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.unit.nbd.certificates import serves
from ublkd.targets.nbd.relay import Relay

NEWEST = pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
WAIT = 20
"""Seconds: for what comes at once."""
MIB = 1 << 20


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        return ours, listener.accept()[0]


@contextmanager
def tls_pair(
    pki: Path, newest: int = ssl.TLSVersion.TLSv1_3
) -> Iterator[tuple[ssl.SSLSocket, ssl.SSLSocket]]:
    """The client's end, which does not block, and the server's."""
    served = serves(pki, newest=newest)
    trusting = ssl.create_default_context(cafile=str(pki / "ca-cert.pem"))
    ours, theirs = tcp_pair()
    theirs.settimeout(WAIT)
    wrapped: list[ssl.SSLSocket] = []

    def wrap() -> None:  # not suppressing tells an end in order from any other
        wrapped.append(served.wrap_socket(theirs, server_side=True, suppress_ragged_eofs=False))

    thread = threading.Thread(target=wrap)
    thread.start()
    with trusting.wrap_socket(ours, server_hostname="localhost") as client:
        thread.join()
        with wrapped[0] as server:
            client.setblocking(False)
            yield client, server


@contextmanager
def relayed(pki: Path, newest: int = ssl.TLSVersion.TLSv1_3) -> Iterator[Any]:
    """The engine's end, the server's end, and the relay between."""
    with tls_pair(pki, newest) as (client, server):
        made = Relay(client)
        try:
            with made.end:
                made.end.settimeout(WAIT)
                yield made.end, server, made
        finally:
            made.close()


def exactly(sock: socket.socket, length: int, gulp: int = MIB) -> bytes:
    data = b""
    while len(data) < length and (more := sock.recv(min(gulp, length - len(data)))):
        data += more
    return data


def at_once(sock: ssl.SSLSocket, data: bytes, length: int) -> bytes:
    """Says all of it and hears so many bytes meanwhile: no two threads may use one TLS socket."""
    sock.setblocking(False)
    left, heard = memoryview(data), b""
    while left or len(heard) < length:
        before = len(left), len(heard)
        with suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
            left = left[sock.send(left[:MIB]) :] if left else left
        with suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
            heard += sock.recv(MIB)
        if before == (len(left), len(heard)):
            assert select.select([sock], [sock] if left else [], [], WAIT) != ([], [], [])
    return heard


@contextmanager
def saying(sock: socket.socket, data: bytes, sip: int = MIB) -> Iterator[None]:
    """All of it while the block runs."""

    def say() -> None:
        for start in range(0, len(data), sip):
            sock.sendall(data[start : start + sip])

    thread = threading.Thread(target=say)
    thread.start()
    yield
    thread.join(WAIT)
    assert not thread.is_alive()


def filled(sock: socket.socket) -> int:
    """Says more than fits on the whole way; how much of it was taken."""
    sock.settimeout(0.3)
    taken = 0
    with pytest.raises(TimeoutError):
        while taken < 64 * MIB:
            taken += sock.send(bytes(64 << 10))
    sock.settimeout(WAIT)
    return taken


def carriers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "nbd-tls"]


def ended_by_itself() -> None:
    for thread in carriers():
        thread.join(WAIT)
    assert not carriers()
