"""The relay between TLS and the engine: every byte, both ways, and who is slow is waited for."""

from __future__ import annotations

import os
import random
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.nbd.relays import (
    MIB,
    NEWEST,
    WAIT,
    at_once,
    ended_by_itself,
    exactly,
    filled,
    relayed,
    saying,
)
from ublkd.targets.nbd import relay
from ublkd.targets.nbd.relay import ROOM, Relay

pytestmark = pytest.mark.usefixtures("nothing_left")

# --- bytes ----------------------------------------------------------------------------------


@NEWEST
def test_all_bytes_arrive_in_both_directions_at_once(pki: Path, newest: int) -> None:
    up, down = os.urandom(5 * MIB + 1), os.urandom(3 * MIB + 7)
    with relayed(pki, newest) as (end, server, _), saying(end, up):
        heard: list[bytes] = []
        thread = threading.Thread(target=lambda: heard.append(at_once(server, down, len(up))))
        thread.start()
        assert exactly(end, len(down)) == down
        thread.join(WAIT)
        assert heard == [up]


class Moody:
    """A socket as TLS makes it: a call moves few bytes, or asks for the other direction first."""

    def __init__(self, sock: socket.socket, moods: list[int | type[ssl.SSLError]]) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._moods = moods
        self._random = random.Random(1)  # in turns, one call might always get the same
        self.tries = 0

    def _most(self) -> int:
        self.tries += 1
        mood = self._random.choice(self._moods)
        if isinstance(mood, int):
            return mood
        raise mood

    def recv_into(self, area: memoryview) -> int:
        most = self._most()
        try:
            return self._sock.recv_into(area[:most])
        except BlockingIOError:
            raise ssl.SSLWantReadError from None

    def send(self, area: memoryview) -> int:
        most = self._most()
        try:
            return self._sock.send(area[:most])
        except BlockingIOError:
            raise ssl.SSLWantWriteError from None

    def fileno(self) -> int:
        return self._sock.fileno()

    def unwrap(self) -> None:
        self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._sock.close()


moods = st.lists(
    st.one_of(
        st.integers(1, 100_000),
        # a socket that can be written to is no wait, so this may stand anywhere
        st.just(ssl.SSLWantWriteError),
    ),
    min_size=1,
    max_size=8,
).filter(lambda found: any(isinstance(mood, int) for mood in found))


@settings(max_examples=40)
@given(moods, st.integers(1, 300_000), st.integers(500, 100_000), st.integers(500, 100_000))
def test_chunks_of_any_size_become_the_same_stream(
    how: list[int | type[ssl.SSLError]], length: int, gulp: int, sip: int
) -> None:
    text = os.urandom(min(length, 100 * max(m for m in how if isinstance(m, int))))
    ours, theirs = socket.socketpair()
    made = Relay(cast(ssl.SSLSocket, Moody(ours, how)))
    try:
        with made.end as end, theirs:
            theirs.settimeout(WAIT)
            end.settimeout(WAIT)
            with saying(end, text, sip):
                assert exactly(theirs, len(text), gulp) == text
            with saying(theirs, text, sip):
                assert exactly(end, len(text), gulp) == text
    finally:
        made.close()


def test_a_send_that_waits_for_bytes_goes_on_although_a_recv_took_them() -> None:
    """As in a renegotiation: either call may take what the other one waits for."""
    ours, theirs = socket.socketpair()
    sock = Moody(ours, [MIB])
    asked = threading.Event()

    def send(area: memoryview) -> int:
        if not asked.is_set():
            asked.set()
            raise ssl.SSLWantReadError
        return ours.send(area)

    sock.send = send  # type: ignore[method-assign]
    made = Relay(cast(ssl.SSLSocket, sock))
    try:
        with made.end as end, theirs:
            theirs.settimeout(WAIT)
            end.settimeout(WAIT)
            end.send(b"up")
            assert asked.wait(WAIT)
            theirs.send(b"down")
            assert theirs.recv(2) == b"up"
            assert end.recv(4) == b"down"
    finally:
        made.close()


def test_what_tls_has_read_ahead_is_not_forgotten(pki: Path) -> None:
    """A record is longer than the room that is left: no poll tells of its rest."""
    text = os.urandom(ROOM * 3 // 2)
    with relayed(pki) as (end, server, _), saying(server, text, 9_999):
        assert exactly(end, len(text)) == text


def test_one_byte_does_not_wait_for_another(pki: Path) -> None:
    with relayed(pki) as (end, server, _):
        for _ in range(50):
            end.send(b"?")
            assert server.recv(1) == b"?"
            server.send(b"!")
            assert end.recv(1) == b"!"


# --- back-pressure --------------------------------------------------------------------------


def test_who_is_not_listened_to_is_made_to_wait_and_nothing_is_lost(pki: Path) -> None:
    with relayed(pki) as (end, server, _):
        up = filled(end)
        down = filled(server)  # whatever stands still the other way
        assert up < 16 * MIB, "nothing held it back"
        assert down < 16 * MIB, "nothing held it back"
        assert len(exactly(server, up)) == up
        assert len(exactly(end, down)) == down
        end.send(b"more")
        assert exactly(server, 4) == b"more"


def test_a_stalled_relay_does_not_turn_in_circles() -> None:
    ours, theirs = socket.socketpair()
    sock = Moody(ours, [MIB])
    made = Relay(cast(ssl.SSLSocket, sock))
    try:
        with made.end as end, theirs:
            filled(end)
            for _ in range(50):  # it may be late, and be filled only now
                before = sock.tries
                time.sleep(0.2)
                if sock.tries == before:
                    break
            else:
                pytest.fail("it turns in circles")
    finally:
        made.close()


def test_an_engine_that_died_is_not_looked_at_over_and_over(
    pki: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While what it said last waits for the server."""
    asked = iter(range(1000))

    class Clock:
        @staticmethod
        def monotonic() -> float:
            next(asked)
            return time.monotonic()

    monkeypatch.setattr(relay, "time", Clock)
    with relayed(pki) as (end, _, _):
        filled(end)
        end.close()
        ended_by_itself()
    assert next(asked) < 20


def test_the_room_is_bounded() -> None:
    assert ROOM <= 256 << 10


# --- what TLS does by itself ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "order"),
    [("-tls1_3", "k"), ("-tls1_3", "K"), ("-tls1_2", "r"), ("-tls1_2", "R")],
    ids=["new keys", "new keys for both", "renegotiation", "renegotiation with a certificate"],
)
def test_what_tls_agrees_on_anew_stops_no_byte(pki: Path, version: str, order: str) -> None:
    """OpenSSL's own server does it on order, in the midst of what is sent."""
    words = ["openssl", "s_server", "-accept", "127.0.0.1:0", "-naccept", "1", version,
             "-cert", f"{pki}/server-cert.pem", "-key", f"{pki}/server-key.pem"]  # fmt: skip
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdin
        assert server.stdout
        while not (line := server.stdout.readline()).startswith(b"ACCEPT"):
            assert line
        trusting = ssl.create_default_context(cafile=str(pki / "ca-cert.pem"))
        sock = socket.create_connection(("127.0.0.1", int(line.split(b":")[1])))
        client = trusting.wrap_socket(sock, server_hostname="localhost")
        client.setblocking(False)
        made = Relay(client)
        with made.end as end:
            end.settimeout(WAIT)
            for number in range(20):
                server.stdin.write(f"{order}\n".encode())
                server.stdin.flush()
                end.sendall(b"up %d\n" % number)
                while line != b"up %d\n" % number:
                    line = server.stdout.readline()
                    assert line
                server.stdin.write(b"down %d\n" % number)
                server.stdin.flush()
                assert exactly(end, 5 + len(str(number))) == b"down %d" % number
                assert end.recv(1) == b"\n"
        made.close()
        done = trusting.session_stats()["connect_renegotiate"]
        # an order that comes while the last one is carried out adds none
        assert 0 < done <= 20 if version == "-tls1_2" else not done
