"""The server that misbehaves: each of its faults, and what it says of a client."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.helpers import ROOT
from tests.unit.nbd.faults import (
    ALL,
    ENOSPC,
    ESHUTDOWN,
    FLUSH,
    FUA,
    HAS_TRIM,
    MULTI_CONN,
    READ,
    READ_ONLY,
    REPLY,
    REPLY_MAGIC,
    REQUEST,
    REQUEST_MAGIC,
    TRIM,
    WRITE,
    WRITE_ZEROES,
    Fault,
    Offer,
)
from tests.unit.nbd.misbehaving import Misbehaving
from ublkd.targets.nbd import connect
from ublkd.targets.nbd.uri import parse

pytestmark = pytest.mark.usefixtures("nothing_left")

WAIT = 20
PAGE = bytes(range(256)) * 16


class Client:
    """Sends what it is told and hears whole replies."""

    def __init__(self, server: Misbehaving) -> None:
        made = connect.connect(parse(server.uri()))
        self.export = made.export
        self.sock = made.socket
        self.sock.settimeout(WAIT)

    def ask(self, command: int, cookie: int, at: int = 0, length: int = 0, flags: int = 0) -> None:
        data = (PAGE * (length // len(PAGE) + 1))[:length] if command == WRITE else b""
        self.sock.sendall(REQUEST.pack(REQUEST_MAGIC, flags, command, cookie, at, length) + data)

    def hear(self, length: int = REPLY.size) -> bytes:
        """Fewer at the end."""
        data = b""
        try:
            while len(data) < length and (more := self.sock.recv(length - len(data))):
                data += more
        except ConnectionResetError:
            pass
        return data

    def answer(self) -> tuple[int, int]:
        """Error and cookie."""
        magic, error, cookie = REPLY.unpack(self.hear())
        assert magic == REPLY_MAGIC
        return error, cookie

    def quiet(self) -> bool:
        self.sock.settimeout(0.1)
        try:
            self.sock.recv(1)
        except TimeoutError:
            return True
        finally:
            self.sock.settimeout(WAIT)
        return False


@contextmanager
def client(server: Misbehaving) -> Iterator[Client]:
    made = Client(server)
    with made.sock:
        yield made


@pytest.fixture(params=["unix", "tcp"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | int:
    return tmp_path / "nbd.sock" if request.param == "unix" else 0


def test_an_honest_server(place: Path | int) -> None:
    with Misbehaving(place) as server, client(server) as c:
        assert (c.export.size, c.export.block, c.export.multi_conn) == (1 << 20, 512, True)
        c.ask(WRITE, 1, 512, 4096)
        assert c.answer() == (0, 1)
        c.ask(READ, 2, 512, 4096)
        assert c.answer() == (0, 2)
        assert c.hear(4096) == PAGE
        c.ask(WRITE_ZEROES, 3, 512, 512)
        c.ask(TRIM, 4, 1024, 512, FUA)
        c.ask(FLUSH, 5)
        c.ask(READ, 6, 512, 4096)
        assert [c.answer() for _ in range(4)] == [(0, 3), (0, 4), (0, 5), (0, 6)]
        assert c.hear(4096) == bytes(1024) + PAGE[1024:]
        assert [r.command for r in server.requests] == [1, 0, 6, 4, 3, 0]
        assert [r.offset for r in server.asked(READ)] == [512, 512]
        c.ask(2, 7)
        assert c.hear() == b""


@pytest.mark.parametrize("at", [0, 1, 27, 28])
def test_a_cut_around_the_header_of_a_request(place: Path | int, at: int) -> None:
    with Misbehaving(place, Fault("cut", "request", at, nth=1)) as server, client(server) as c:
        c.ask(READ, 1, 0, 512)
        c.hear(16 + 512)
        c.ask(READ, 2, 0, 512)
        assert c.hear() == b""


@pytest.mark.parametrize("what", ["cut", "reset"])
@pytest.mark.parametrize("at", [0, 100, 4096])
def test_a_cut_around_the_payload_of_a_write(place: Path | int, what: str, at: int) -> None:
    with Misbehaving(place, Fault(what, "payload", at, WRITE)) as server, client(server) as c:
        c.ask(WRITE, 1, 0, 4096)
        assert c.hear() == b""
    assert server.data == bytes(1 << 20), "half a write was applied"


def test_a_cut_behind_the_write_itself(place: Path | int) -> None:
    with Misbehaving(place, Fault("cut", "reply", 0, WRITE)) as server, client(server) as c:
        c.ask(WRITE, 1, 0, 4096)
        assert c.hear() == b""
        assert server.data[:4096] == PAGE


@pytest.mark.parametrize(("where", "at", "heard"), [("reply", 7, 7), ("data", 0, 16),
                                                    ("data", 511, 527)])  # fmt: skip
def test_a_cut_in_an_answer(place: Path | int, where: str, at: int, heard: int) -> None:
    with Misbehaving(place, Fault("cut", where, at, READ)) as server, client(server) as c:
        c.ask(READ, 1, 0, 4096)
        assert len(c.hear(5000)) == heard


def test_a_fault_for_the_nth_of_one_connection_is_for_no_other(place: Path | int) -> None:
    fault = Fault("error", command=READ, connection=1, nth=1, times=2, error=ENOSPC)
    errors = []
    with Misbehaving(place, fault) as server:
        for number in range(3):
            with client(server) as c:
                for cookie in range(4):
                    c.ask(WRITE, 100 + cookie, 0, 512)
                    assert c.answer() == (0, 100 + cookie)
                    c.ask(READ, cookie, 0, 512)
                    error, _ = c.answer()
                    if error:
                        errors.append((number, cookie, error))
                    else:
                        c.hear(512)
    assert errors == [(1, 1, ENOSPC), (1, 2, ENOSPC)]


def test_a_trickle_is_whole_and_slow(place: Path | int) -> None:
    with Misbehaving(place, Fault("trickle", "reply", times=None)) as server, client(server) as c:
        c.ask(READ, 1, 0, 512)
        assert c.answer() == (0, 1)
        assert c.hear(512) == bytes(512)


def test_a_stalled_write_lands_late_even_without_its_client(place: Path | int) -> None:
    with Misbehaving(place, Fault("stall", "apply", command=WRITE)) as server:
        with client(server) as c:
            c.ask(WRITE, 1, 0, 512)
            assert c.quiet()
        with client(server) as c:
            c.ask(READ, 1, 0, 512)
            c.answer()
            assert c.hear(512) == bytes(512)
            server.go_on()
            found = bytes(512)
            while found == bytes(512):  # it is another thread's
                c.ask(READ, 2, 0, 512)
                c.answer()
                found = c.hear(512)
            assert found == PAGE[:512]


def test_a_stall_ends_with_the_server_and_applies_nothing(place: Path | int) -> None:
    with Misbehaving(place, Fault("stall", "apply", command=WRITE)) as server, client(server) as c:
        c.ask(WRITE, 1, 0, 512)
        assert c.quiet()
        server.stop()
        assert c.hear() == b""
        assert server.data == bytes(1 << 20)


@pytest.mark.parametrize("where", ["greeting", "request"])
def test_a_server_that_says_nothing(place: Path | int, where: str) -> None:
    with Misbehaving(place, Fault("stall", where)) as server:
        if where == "greeting":
            with pytest.raises(Exception, match="said nothing"):
                connect.connect(parse(server.uri()), 2)
            return
        with client(server) as c:
            c.ask(FLUSH, 1)
            assert c.quiet()
            server.go_on()
            assert c.answer() == (0, 1)


def test_lies(place: Path | int) -> None:
    lies = ("magic", "cookie", "old", "twice", "unasked", "silent")
    faults = [Fault(lie, nth=2 * n + 1) for n, lie in enumerate(lies)]
    with Misbehaving(place, *faults) as server, client(server) as c:
        heard = {}
        for n, lie in enumerate(lies):
            c.ask(FLUSH, 100 + n)
            assert c.answer() == (0, 100 + n)
            c.ask(FLUSH, n)
            many = {"twice": 2, "unasked": 2, "silent": 0}.get(lie, 1)
            heard[lie] = [REPLY.unpack(c.hear()) for _ in range(many)]
        assert c.quiet()
    assert heard["magic"][0][0] != REPLY_MAGIC
    assert heard["cookie"][0][2] not in range(200)
    assert heard["old"] == [(REPLY_MAGIC, 0, 100)]
    assert heard["twice"] == [(REPLY_MAGIC, 0, 3)] * 2
    assert heard["unasked"][0][2] not in range(200)
    assert heard["unasked"][1] == (REPLY_MAGIC, 0, 4)


def test_a_cookie_of_another_connection(place: Path | int) -> None:
    with Misbehaving(place, Fault("stale", connection=1)) as server:
        with client(server) as c:
            c.ask(FLUSH, 77)
            assert c.answer() == (0, 77)
        with client(server) as c:
            c.ask(FLUSH, 5)
            assert c.answer() == (0, 77)


def test_an_answer_before_the_payload(place: Path | int) -> None:
    with Misbehaving(place, Fault("early", command=WRITE)) as server, client(server) as c:
        c.sock.sendall(REQUEST.pack(REQUEST_MAGIC, 0, WRITE, 9, 0, 512))
        assert c.answer() == (0, 9)
        c.sock.sendall(PAGE[:512])
        c.ask(READ, 1, 0, 512)
        assert c.answer() == (0, 1)
        assert c.hear(512) == PAGE[:512]


def test_a_farewell(place: Path | int) -> None:
    with Misbehaving(place, Fault("farewell", command=READ)) as server, client(server) as c:
        c.ask(READ, 1, 0, 512)
        assert c.answer() == (ESHUTDOWN, 1)
        assert c.hear() == b""


def test_answers_in_any_order(place: Path | int) -> None:
    with Misbehaving(place, shuffle=True) as server, client(server) as c:
        c.sock.sendall(b"".join(
            REQUEST.pack(REQUEST_MAGIC, 0, READ, cookie, 512 * cookie, 512) for cookie in range(16)
        ))  # fmt: skip
        order = [(c.answer()[1], c.hear(512))[0] for _ in range(16)]
    assert sorted(order) == list(range(16))
    assert order != sorted(order)


def test_a_restart_keeps_the_data_and_a_power_failure_only_what_was_flushed(
    place: Path | int,
) -> None:
    with Misbehaving(place) as server:
        with client(server) as c:
            c.ask(WRITE, 1, 0, 512)
            c.ask(FLUSH, 2)
            c.ask(WRITE, 3, 0, 1024)
            c.ask(WRITE, 4, 4096, 512, FUA)
            c.ask(WRITE, 5, 8192, 512)
            assert [c.answer()[0] for _ in range(5)] == [0] * 5
            server.stop()
            assert c.hear() == b""
        assert server.data[8192 : 8192 + 512] == PAGE[:512]
        with pytest.raises(Exception, match="cannot connect"):
            Client(server)
        server.lose()
        server.start()
        with client(server) as c:
            c.ask(READ, 1, 0, 16384)
            c.answer()
            found = c.hear(16384)
    assert found[:1024] == PAGE[:512] + bytes(512)
    assert found[4096 : 4096 + 512] == PAGE[:512]
    assert found[8192:] == bytes(8192)


@pytest.mark.parametrize(
    ("command", "at", "length", "flags", "told"),
    [
        (READ, 1, 512, 0, "alignment"),
        (READ, 1 << 20, 512, 0, "bounds"),
        (READ, 0, 512, FUA, "flags"),
        (WRITE, 0, 64 << 10, 0, "too long"),
        (WRITE_ZEROES, 0, 64 << 10, 0, "too long"),
        (WRITE, 0, 512, 2, "flags"),
        (TRIM, 0, 512, 0, "unadvertised"),
        (5, 0, 512, 0, "unknown"),
        (FLUSH, 0, 512, 0, "range of none"),
        (WRITE_ZEROES, 0, 0, 0, "nothing"),
        (WRITE_ZEROES, 0, 512, 16, "flags"),
    ],
)
def test_what_a_client_may_not_do_is_told(
    tmp_path: Path, command: int, at: int, length: int, flags: int, told: str
) -> None:
    offer = Offer(flags=ALL & ~HAS_TRIM, maximum=4096)
    with Misbehaving(tmp_path / "sock", offer=offer) as server, client(server) as c:
        c.ask(command, 1, at, length, flags)
        c.answer()
        (complaint,) = server.complaints
        server.complaints.clear()
    assert complaint.startswith(f"{told}: ")


def test_a_cookie_in_flight_and_a_write_to_what_cannot_be_written(tmp_path: Path) -> None:
    offer = Offer(flags=ALL | READ_ONLY)
    with (
        pytest.raises(AssertionError, match=r"cookie in flight.*read-only"),
        Misbehaving(tmp_path / "sock", offer=offer, shuffle=True) as server,
        client(server) as c,
    ):
        c.sock.sendall(REQUEST.pack(REQUEST_MAGIC, 0, READ, 7, 0, 512) * 2)
        c.ask(WRITE, 8, 0, 512)
        server.wait_for(lambda: len(server.requests) == 3)


def test_the_offer_may_change_between_two_connections(tmp_path: Path) -> None:
    with Misbehaving(tmp_path / "sock") as server:
        with client(server) as c:
            assert c.export.multi_conn
        server.offer = Offer(4096, ALL & ~MULTI_CONN, minimum=4096)
        with client(server) as c:
            assert (c.export.size, c.export.block, c.export.multi_conn) == (4096, 4096, False)


def test_as_a_process_it_is_told_by_lines(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tests.unit.nbd.misbehaving", "--unix", str(tmp_path / "sock")]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdin
        assert process.stdout
        uri = json.loads(process.stdout.readline())

        def tell(what: object) -> int:
            assert process.stdin
            assert process.stdout
            print(json.dumps(what), file=process.stdin, flush=True)
            return int(process.stdout.readline())

        tell({"what": "error", "command": READ, "error": ENOSPC})
        made = connect.connect(parse(uri))
        with made.socket as sock:
            sock.settimeout(WAIT)
            sock.send(REQUEST.pack(REQUEST_MAGIC, 0, READ, 5, 0, 512))
            assert REPLY.unpack(sock.recv(16, socket.MSG_WAITALL))[1:] == (ENOSPC, 5)
            assert tell("stop") == 1
            assert sock.recv(1) == b""
        tell("start")
        connect.connect(parse(uri)).socket.close()
        report = json.loads(process.communicate(timeout=WAIT)[0])
    assert [r["cookie"] for r in report["requests"]] == [5]
    assert report["complaints"] == []
    assert not os.path.exists(tmp_path / "sock")
