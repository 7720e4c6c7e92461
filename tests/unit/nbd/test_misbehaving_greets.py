"""The server that misbehaves, before the first request: in plain and in TLS."""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress
from pathlib import Path

import pytest

from tests.unit.nbd.certificates import serves
from tests.unit.nbd.faults import READ, REPLY, REPLY_MAGIC, REQUEST, REQUEST_MAGIC, WRITE, Fault
from tests.unit.nbd.misbehaving import Misbehaving
from tests.unit.nbd.relays import NEWEST, exactly
from tests.unit.nbd.streams import GO, HELLO, asking
from ublkd.errors import UblkdError
from ublkd.targets.nbd import connect
from ublkd.targets.nbd.uri import parse

pytestmark = pytest.mark.usefixtures("nothing_left")

WAIT = 20
PAGE = bytes(range(256)) * 16


def answer_to(server: Misbehaving, text: bytes) -> bytes:
    """To the end of it."""
    heard = b""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(WAIT)
        sock.connect(str(server.place))
        with suppress(BrokenPipeError):
            sock.sendall(text)
            sock.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):
            while data := sock.recv(1 << 16):
                heard += data
    return heard


@pytest.mark.parametrize("what", ["cut", "reset", "trickle"])
def test_a_fault_at_any_byte(tmp_path: Path, what: str) -> None:
    said = HELLO + asking(GO, b"")
    with Misbehaving(tmp_path / "sock") as server:
        whole = len(answer_to(server, said))
        assert server.greeted == whole
        server.fault(*[Fault(what, "greeting", at, connection=1 + at) for at in range(whole + 1)])
        heard = [len(answer_to(server, said)) for _ in range(whole + 1)]
    assert heard == ([whole] * (whole + 1) if what == "trickle" else list(range(whole + 1)))


@NEWEST
def test_in_tls_it_serves_as_well_and_is_cut_anywhere(pki: Path, newest: int) -> None:
    with Misbehaving(tls=serves(pki, "server", newest=newest)) as server:
        uri = parse(server.uri(f"?tls-certificates={pki}"))
        with connect.connect(uri).socket as sock:
            assert isinstance(sock, ssl.SSLSocket)
            sock.settimeout(WAIT)
            sock.sendall(REQUEST.pack(REQUEST_MAGIC, 0, WRITE, 1, 0, 4096) + PAGE)
            sock.sendall(REQUEST.pack(REQUEST_MAGIC, 0, READ, 2, 0, 4096))
            assert exactly(sock, 2 * REPLY.size + 4096) == (
                REPLY.pack(REPLY_MAGIC, 0, 1) + REPLY.pack(REPLY_MAGIC, 0, 2) + PAGE
            )
        assert server.greeted > 500
        server.fault(Fault("trickle", "greeting", connection=1))
        connect.connect(uri).socket.close()
        for number, at in enumerate((0, 18, 38, 100, 500, server.greeted - 10), start=2):
            server.fault(Fault("cut", "greeting", at, connection=number))
            with pytest.raises(UblkdError):
                connect.connect(uri)
