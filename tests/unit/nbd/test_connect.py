"""Sockets, deadlines and words: a scripted server that cuts, trickles, stalls and lies."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.helpers import is_one_line
from tests.unit.nbd.links import Clock
from tests.unit.nbd.scripted import (
    Peer,
    Scripted,
    full_listener,
    hangs_up,
    resets,
    says,
    trickles,
)
from tests.unit.nbd.streams import (
    ABORT,
    ACK,
    DISC,
    GIB,
    GO,
    HELLO,
    INFO,
    LIST,
    UNKNOWN,
    asking,
    export_info,
    go,
    greeting,
    listing,
    offer,
    option,
    reply,
)  # fmt: skip
from ublkd.errors import UblkdError, UsageError
from ublkd.targets.nbd import connect, stream
from ublkd.targets.nbd.dial import Address, addresses_of
from ublkd.targets.nbd.handshake import Offer
from ublkd.targets.nbd.stream import Patience, Stopped, Stream, TimedOut
from ublkd.targets.nbd.uri import parse

pytestmark = pytest.mark.usefixtures("nothing_left")

SOON = 2.0
"""Seconds: for what never comes."""
STALLED = 8
"""Seconds: for what comes only in part; the part must have come by then."""

GOOD = go(export_info())


def local(place: str) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in place else socket.AF_INET) as probe:
        try:
            probe.bind((place, 0))
        except OSError:
            return False
        return True


LOOPBACKS = [place for place in ("127.0.0.1", "::1") if local(place)]


def refusal(uri: str, seconds: float = 20, **how: object) -> UblkdError:
    with pytest.raises(UblkdError) as caught:
        connect.connect(parse(uri), seconds, **how)  # type: ignore[arg-type]
    assert caught.value.message.startswith(f"{parse(uri)}: ")
    assert is_one_line(caught.value.message)
    assert is_one_line(caught.value.hint)
    return caught.value


def told(error: UblkdError) -> str:
    """The message without the URI."""
    return error.message.partition(": ")[2]


# --- the good ways --------------------------------------------------------------------------


@pytest.mark.parametrize("place", LOOPBACKS)
def test_a_connection_by_tcp_is_ready_for_requests(place: str) -> None:
    with Scripted(says(GOOD), place) as server:
        made = connect.connect(parse(server.uri()))
        with made.socket as sock:
            assert made.export.size == GIB
            assert not sock.getblocking()
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            for option, value in (
                (socket.TCP_USER_TIMEOUT, 30_000),
                (socket.TCP_KEEPIDLE, 10),
                (socket.TCP_KEEPINTVL, 5),
                (socket.TCP_KEEPCNT, 3),
            ):
                assert sock.getsockopt(socket.IPPROTO_TCP, option) == value
            sock.send(DISC)
    assert server.heard == [HELLO + asking(GO) + DISC]


def test_a_connection_by_a_local_socket(tmp_path: Path) -> None:
    with Scripted(says(GOOD), tmp_path) as server:
        connect.connect(parse(server.uri())).socket.close()
    assert server.heard == [HELLO + asking(GO)]


def test_a_connection_by_an_abstract_socket() -> None:
    name = f"\0ublkd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen()
        with pytest.raises(UblkdError, match="said nothing"):
            connect.look(parse(f"nbd+unix:///?socket=%00{name[1:]}"), SOON)


def test_a_byte_at_a_time_is_fast_enough_if_the_time_is(tmp_path: Path) -> None:
    with Scripted(trickles(GOOD, 0), tmp_path) as server:
        connect.connect(parse(server.uri())).socket.close()


def test_the_longest_time_that_can_be_asked_for(tmp_path: Path) -> None:
    with Scripted(trickles(GOOD, 0), tmp_path) as server:
        connect.connect(parse(server.uri()), 1_000_000_000).socket.close()


def test_a_look_and_a_list_take_their_leave(tmp_path: Path) -> None:
    looked_at = greeting() + export_info(option=INFO) + reply(INFO, ACK)
    with Scripted(says(looked_at), tmp_path) as server:
        assert connect.look(parse(server.uri())).size == GIB
    assert server.heard == [HELLO + asking(INFO) + ABORT]
    with Scripted(says(listing(offer(b"a", b"first"))), tmp_path) as server:
        assert connect.offers(parse(server.uri("any"))) == [Offer(b"a", "first")]
    assert server.heard == [HELLO + option(LIST) + ABORT]


def test_a_vsock_is_addressed_by_its_numbers() -> None:
    found = addresses_of(parse("nbd+vsock://3:7/x"), Patience(1))
    assert found == [Address(socket.AF_VSOCK, (3, 7), "vsock 3:7")]


def test_known_addresses_are_used_without_asking_again(tmp_path: Path) -> None:
    with Scripted(says(GOOD), tmp_path) as server:
        known = addresses_of(parse(server.uri()), Patience(1))
        connect.connect(parse("nbd://no.such.host.invalid/disk"), addresses=known).socket.close()


# --- a server that cuts ---------------------------------------------------------------------


@pytest.mark.parametrize("how", [hangs_up, resets])
def test_a_stream_cut_at_any_byte_ends_in_words(tmp_path: Path, how: object) -> None:
    for cut in range(len(GOOD)):
        script = how(GOOD[:cut])  # type: ignore[operator]
        if how is resets and cut < 18:
            continue  # it would wait for our answer to less than a greeting
        with Scripted(script, tmp_path) as server:
            error = refusal(server.uri())
            assert "closed the connection" in told(error)
            assert error.hint


def test_a_connection_that_is_torn_down_by_tcp_ends_in_words() -> None:
    with Scripted(resets(greeting())) as server:
        assert told(refusal(server.uri())) == (
            "the server closed the connection before it had sent an answer about the export"
        )


# --- a server that is slow ------------------------------------------------------------------


def test_a_silent_server_is_given_up() -> None:
    with Scripted(says(b"")) as server:
        error = refusal(server.uri(), SOON)
        assert told(error) == "the server has said nothing for 2 seconds"
        assert "--open-timeout" in error.hint


def test_a_server_that_stalls_is_told_by_what_it_owes(tmp_path: Path) -> None:
    with Scripted(says(GOOD[:-1]), tmp_path) as server:
        error = refusal(server.uri(), STALLED)
        assert told(error) == "after 8 seconds the server has not sent an answer about the export"


def test_a_byte_now_and_then_does_not_move_the_deadline(tmp_path: Path) -> None:
    """With a deadline for each byte it would go on for a minute."""
    with Scripted(trickles(GOOD, 1), tmp_path) as server:
        error = refusal(server.uri(), STALLED)
        assert told(error) == "after 8 seconds the server has not sent a greeting"


def test_who_always_has_one_more_byte_is_late_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits for such a server, so no wait ends."""
    clock = Clock()
    monkeypatch.setattr(stream, "time", clock)

    class Endless:
        def recv(self, _: int) -> bytes:
            clock.now += 1
            return b"x"

    endless = Stream(Endless(), Patience(5))  # type: ignore[arg-type]
    assert [endless.recv() for _ in range(5)] == [b"x"] * 5
    with pytest.raises(TimedOut):
        endless.recv()


def test_with_no_time_left_nothing_is_tried(tmp_path: Path) -> None:
    with Scripted(says(GOOD), tmp_path) as server:
        assert told(refusal(server.uri(), 0)) == "no time is left to connect"
    assert server.heard == []


def test_a_server_that_takes_no_connection_is_given_up() -> None:
    with full_listener() as (host, port):
        error = refusal(f"nbd://{host}:{port}", SOON)
        assert told(error) == "cannot connect: no answer (127.0.0.1)"


def test_a_local_socket_whose_line_is_full_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "full.sock"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(path))
        listener.listen(0)
        first.connect(str(path))
        assert "no answer" in told(refusal(f"nbd+unix:///?socket={path}", SOON))


# --- nobody there ---------------------------------------------------------------------------


def test_a_closed_port_is_connection_refused() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # taken, and nobody listens
        error = refusal(f"nbd://127.0.0.1:{closed.getsockname()[1]}")
    assert told(error) == "cannot connect: connection refused (127.0.0.1)"
    assert "running" in error.hint


def test_a_socket_that_is_not_there_or_is_a_file(tmp_path: Path) -> None:
    missing = f"nbd+unix:///?socket={tmp_path}/none"
    assert "cannot connect: no such file or directory" in told(refusal(missing))
    (tmp_path / "file").touch()
    assert "connection refused" in told(refusal(f"nbd+unix:///?socket={tmp_path}/file"))


@pytest.mark.parametrize("host", ["a" * 64, "x..y", "%f0%28"])
def test_what_can_be_no_host_is_unknown(host: str) -> None:
    error = refusal(f"nbd://{host}")
    assert "is unknown" in told(error)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (socket.EAI_NONAME, "the host 'db' is unknown"),
        (socket.EAI_NODATA, "the host 'db' is unknown"),
        (socket.EAI_AGAIN, "the name 'db' cannot be looked up: temporary failure"),
    ],
)
def test_a_name_that_cannot_be_looked_up(
    monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(number, "Temporary failure")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert words in told(refusal("nbd://db"))


@pytest.fixture
def slow_names(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A resolver that answers only at the end of the test."""
    released = threading.Event()
    real = socket.getaddrinfo

    def ask(*words: object, flags: int = 0, **more: object) -> object:
        if flags & socket.AI_NUMERICHOST:
            return real(*words, flags=flags, **more)  # type: ignore[arg-type, misc]
        released.wait(30)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", ask)
    yield
    released.set()
    for thread in threading.enumerate():
        if thread.name == "resolver":  # it may not have come to ask yet
            thread.join()


def test_a_resolver_that_does_not_answer_is_given_up(slow_names: None) -> None:
    assert "no answer for the name 'db' within 2 seconds" in told(refusal("nbd://db", SOON))


def test_all_addresses_of_a_name_are_tried_and_none_eats_the_time_of_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with full_listener() as silent, socket.socket() as closed, Scripted(says(GOOD)) as server:
        closed.bind(("127.0.0.1", 0))
        places = [silent, closed.getsockname(), server.listener.getsockname()]
        known = [Address(socket.AF_INET, place, place[0]) for place in places]
        connect.connect(parse(server.uri()), 9, addresses=known).socket.close()
        error = refusal(server.uri(), SOON, addresses=known[:2])
        assert told(error) == (
            "cannot connect: no answer (127.0.0.1); connection refused (127.0.0.1)"
        )


# --- told to stop ---------------------------------------------------------------------------


@pytest.fixture
def stop() -> Iterator[int]:
    fd = os.eventfd(0)
    yield fd
    os.close(fd)


def test_a_stop_ends_every_wait_at_once(tmp_path: Path, stop: int, slow_names: None) -> None:
    """The time would be 20 seconds, and a test has 60: four waits do not fit."""

    def stops(start: bytes) -> object:
        def script(peer: Peer) -> None:
            peer.send(start)
            os.eventfd_write(stop, 1)
            peer.until_closed()

        return script

    for start in (b"", b"NBD", greeting()):
        with Scripted(stops(start), tmp_path) as server:  # type: ignore[arg-type]
            assert isinstance(refusal(server.uri(), 20, stop=stop), Stopped)
        os.eventfd_read(stop)
    os.eventfd_write(stop, 1)
    with full_listener() as (host, port):
        assert isinstance(refusal(f"nbd://{host}:{port}", 20, stop=stop), Stopped)
    assert isinstance(refusal("nbd://db", 20, stop=stop), Stopped)


# --- words ----------------------------------------------------------------------------------


def test_a_missing_export_is_told_with_those_that_are_there(tmp_path: Path) -> None:
    stream = greeting() + reply(GO, UNKNOWN) + offer(b"a") + offer(b"b c") + reply(LIST, ACK)
    with Scripted(says(stream), tmp_path) as server:
        error = refusal(server.uri("x%0ay"))
        assert told(error) == r"the server has no export 'x\ny'"
        assert error.hint == "it offers 'a', 'b c'"
    assert server.heard == [HELLO + asking(GO, b"x\ny") + option(LIST) + ABORT]


@pytest.mark.parametrize(
    ("stream", "words", "leave"),
    [
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", "speaks SSH, not NBD", b""),
        (b"HTTP/1.1 408 Request Timeout\r\n\r\n", "speaks HTTP, not NBD", b""),
        (go(export_info(0)), "the export is empty", HELLO + asking(GO) + DISC),
        (go(export_info(511)), "less than one block", HELLO + asking(GO) + DISC),
        (greeting() + bytes(40), "a reply begins otherwise", HELLO + asking(GO) + ABORT),
    ],
)
def test_a_refusal_is_one_line_and_takes_leave(
    tmp_path: Path, stream: bytes, words: str, leave: bytes
) -> None:
    with Scripted(says(stream), tmp_path) as server:
        assert words in told(refusal(server.uri()))
    assert server.heard == [leave]


def test_certificates_are_for_uris_with_tls() -> None:
    with pytest.raises(UsageError, match="no use for nbd://h"):
        connect.with_certificates(parse("nbd://h"), "/pki")
    plain = parse("nbd://h")
    assert connect.with_certificates(plain, None) is plain
    assert connect.with_certificates(parse("nbds://h"), "/pki").certificates == "/pki"
    with pytest.raises(UsageError, match="is not the tls-certificates"):
        connect.with_certificates(parse("nbds://h?tls-certificates=/a"), "/b")
