"""The relay between TLS and the engine: every end of it, and nothing left behind."""

from __future__ import annotations

import os
import socket
import ssl
import struct
import threading
from pathlib import Path

import pytest

from tests.unit.nbd.relays import (
    MIB,
    NEWEST,
    WAIT,
    carriers,
    ended_by_itself,
    exactly,
    filled,
    relayed,
    saying,
)
from ublkd.targets.nbd import relay
from ublkd.targets.nbd.relay import LINGER, ROOM

pytestmark = pytest.mark.usefixtures("nothing_left")

# --- the end --------------------------------------------------------------------------------


@NEWEST
def test_what_the_engine_said_last_still_arrives_and_then_the_end(
    pki: Path, newest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "LINGER", WAIT)
    with relayed(pki, newest) as (end, server, _):
        taken = filled(end)
        end.close()
        assert len(exactly(server, taken)) == taken
        assert server.recv(1) == b""
        ended_by_itself()


@NEWEST
@pytest.mark.parametrize("politely", [True, False])
def test_what_the_server_said_last_still_arrives_and_then_the_end(
    pki: Path, newest: int, politely: bool
) -> None:
    text = os.urandom(ROOM)
    with relayed(pki, newest) as (end, server, _):
        with saying(server, text):
            assert exactly(end, 1000) == text[:1000]
            assert exactly(end, len(text) - 1000) == text[1000:]
        server.setblocking(False)
        if politely:
            with pytest.raises((ssl.SSLWantReadError, ssl.SSLEOFError)):  # it may be gone by now
                server.unwrap()
        else:
            server.shutdown(socket.SHUT_WR)
        assert end.recv(1) == b""
        ended_by_itself()
        with pytest.raises(BrokenPipeError):
            end.send(b"x")


def test_a_half_close_by_the_engine_ends_both(pki: Path) -> None:
    with relayed(pki) as (end, server, _):
        end.send(b"last")
        end.shutdown(socket.SHUT_WR)
        assert exactly(server, 5) == b"last"
        assert end.recv(1) == b""
        ended_by_itself()


def test_a_reset_by_the_server_is_an_end_for_the_engine(pki: Path) -> None:
    with relayed(pki) as (end, server, _):
        server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        server.close()
        assert end.recv(1) == b""
        ended_by_itself()


def test_what_is_not_tls_is_an_end_for_the_engine(pki: Path) -> None:
    with relayed(pki) as (end, server, _):
        plain = socket.socket(fileno=os.dup(server.fileno()))
        with plain:
            plain.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        assert end.recv(1) == b""
        ended_by_itself()


@pytest.mark.parametrize("who", ["engine", "server"])
@pytest.mark.parametrize("ways", ["up", "down", "both"])
def test_a_side_that_dies_under_way_leaves_no_thread(pki: Path, who: str, ways: str) -> None:
    with relayed(pki) as (end, server, _):
        if ways != "down":
            filled(end)
        if ways != "up":
            filled(server)
        if who == "engine":
            end.close()
        else:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            server.close()
        ended_by_itself()
        if who == "server":
            while end.recv(MIB):
                pass


# --- close() --------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["idle", "up", "down", "both", "lingers", "ended"])
def test_close_ends_it_from_any_state(pki: Path, state: str) -> None:
    with relayed(pki) as (end, server, made):
        if state in ("up", "both", "lingers"):
            filled(end)
        if state in ("down", "both"):
            filled(server)
        if state == "lingers":
            end.shutdown(socket.SHUT_WR)
        if state == "ended":
            server.close()
            ended_by_itself()
        made.close()
        assert not carriers()
        made.close()
        while end.recv(MIB):
            pass
        with pytest.raises(BrokenPipeError):
            end.send(b"x")


def test_close_does_not_send_what_is_under_way(pki: Path) -> None:
    """A write of a connection that was given up must not land behind its replay."""
    with relayed(pki) as (end, server, made):
        taken = filled(end)
        made.close()
        with pytest.raises(ssl.SSLEOFError):
            exactly(server, taken)


def test_many_may_close_it_at_once(pki: Path) -> None:
    with relayed(pki) as (_, _, made):
        threads = [threading.Thread(target=made.close) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
        assert not carriers()


def test_the_linger_is_short_of_what_close_promises() -> None:
    assert LINGER < 1
