"""Connections that were given up: how their servers are heard out, and how they end."""

from __future__ import annotations

import errno
import math
import os
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.nbd.relays import MIB, NEWEST, exactly, filled, saying, tcp_pair, tls_pair
from ublkd.errors import UblkdError
from ublkd.targets.nbd import parting
from ublkd.targets.nbd.parting import Parting
from ublkd.targets.nbd.relay import Relay
from ublkd.targets.nbd.stream import Stopped

pytestmark = pytest.mark.usefixtures("nothing_left")

Pair = tuple[socket.socket, socket.socket]
LONG, SHORT = 20.0, 0.05
WARNING = "nbd://there: the server has not ended the old connection: a write that it has from "


@pytest.fixture(autouse=True)
def bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits for the end of it, unless it says so."""
    monkeypatch.setattr(parting, "BOUND", LONG)


@pytest.fixture
def stop() -> Iterator[int]:
    fd = os.eventfd(0)
    yield fd
    os.close(fd)


@pytest.fixture
def keeps(stop: int) -> Iterator[Parting]:
    made = Parting("nbd://there", stop)
    yield made
    made.close()


@pytest.fixture(params=[socket.socketpair, tcp_pair])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Ours, whose other descriptor belongs to a link, and the server's."""
    ours, theirs = request.param()
    theirs.settimeout(LONG)
    with ours, theirs:
        yield ours, theirs


def given_up(keeps: Parting, sock: socket.socket, *, unsure: bool = True) -> None:
    keeps.take([sock])
    keeps.give_up([unsure])


def is_over(sock: socket.socket) -> bool:
    """In both directions."""
    poll = select.poll()
    poll.register(sock, 0)
    return bool(poll.poll(LONG * 1000))


def test_the_server_hears_the_end_and_is_heard_to_its_own(keeps: Parting, pair: Pair) -> None:
    ours, theirs = pair
    ours.sendall(b"the last")
    given_up(keeps, ours)
    heard = []

    def serve() -> None:
        heard.append(exactly(theirs, MIB))  # to the end
        theirs.sendall(bytes(8 * MIB))  # more than any socket holds
        heard.append(b"and ended")
        theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    keeps.hear_out(math.inf)
    assert heard == [b"the last", b"and ended"]
    thread.join()


@pytest.mark.parametrize("already", [False, True])
def test_a_server_that_is_gone_is_not_waited_for(
    keeps: Parting, pair: Pair, already: bool, caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = pair
    if already:
        ours.sendall(b"nobody reads it")  # with TCP it is a reset then
    theirs.close()
    given_up(keeps, ours)
    keeps.hear_out(math.inf)
    assert not caplog.records


def test_of_several_each_is_heard_out(keeps: Parting, stop: int) -> None:
    pairs = [socket.socketpair() for _ in range(3)]
    keeps.take([ours for ours, _ in pairs])
    for ours, _ in pairs:
        ours.close()
    keeps.give_up([True, False, True])
    assert pairs[1][1].recv(1) == b""
    pairs[0][1].close()
    os.eventfd_write(stop, 1)
    with pytest.raises(Stopped):
        keeps.hear_out(math.inf)
    os.eventfd_read(stop)
    pairs[2][1].close()
    keeps.hear_out(math.inf)
    pairs[1][1].close()


class Dead(socket.socket):
    """One that TCP has given up (TCP_USER_TIMEOUT)."""

    def recv(self, *_: object) -> bytes:
        raise OSError(errno.ETIMEDOUT, "timed out")


def test_one_whose_end_nobody_will_hear_does_not_cut_the_others_short(
    keeps: Parting, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    keeps.take([ours for ours, _ in pairs])
    for ours, _ in pairs:
        ours.close()
    dead = keeps._used[0] = Dead(fileno=keeps._used[0].detach())
    keeps.give_up([True, True])
    done = []

    def serve() -> None:
        pairs[1][1].recv(1)  # the end
        done.append(dead.fileno() >= 0)  # what it has still in hand is done now
        pairs[1][1].close()

    thread = threading.Thread(target=serve)
    thread.start()
    keeps.hear_out(math.inf)
    assert done
    assert WARNING in caplog.text
    thread.join()
    pairs[0][1].close()


def test_one_that_never_ends_is_ended_and_told_of(
    keeps: Parting,
    pair: Pair,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parting, "BOUND", SHORT)
    ours, theirs = pair
    given_up(keeps, ours)
    with saying(theirs, b"on and on"):
        pass
    keeps.hear_out(math.inf)
    assert is_over(theirs)
    assert [r.getMessage() for r in caplog.records] == [WARNING + "there may land on newer data"]
    keeps.hear_out(math.inf)  # there is nothing any more
    assert len(caplog.records) == 1


def test_what_it_has_not_received_by_then_it_never_does(
    keeps: Parting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parting, "BOUND", SHORT)
    ours, theirs = tcp_pair()
    with ours, theirs:
        taken = filled(ours)
        given_up(keeps, ours)
        keeps.hear_out(math.inf)
        with pytest.raises(ConnectionResetError):
            exactly(theirs, taken + 1)


def test_less_time_than_that_is_a_failed_try_and_another_may_follow(
    keeps: Parting, pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = pair
    given_up(keeps, ours)
    with pytest.raises(UblkdError, match="has not ended the old connection"):
        keeps.hear_out(SHORT)
    assert not caplog.records
    theirs.close()
    keeps.hear_out(math.inf)


def test_the_end_of_the_disk_ends_the_wait(keeps: Parting, pair: Pair, stop: int) -> None:
    ours, theirs = pair
    given_up(keeps, ours)
    os.eventfd_write(stop, 1)
    with pytest.raises(Stopped):
        keeps.hear_out(math.inf)
    keeps.end_old()
    assert is_over(theirs)


def unsure_fails(keeps: Parting, sock: socket.socket) -> None:
    with pytest.raises(ZeroDivisionError), keeps.unsure(sock):
        raise ZeroDivisionError


@pytest.mark.parametrize("give_up", [given_up, unsure_fails])
def test_it_is_not_ended_before(
    keeps: Parting, pair: Pair, stop: int, give_up: Callable[[Parting, socket.socket], None]
) -> None:
    ours, theirs = pair
    give_up(keeps, ours)
    ours.close()
    theirs.sendall(b"still there")
    os.eventfd_write(stop, 1)
    with pytest.raises(Stopped):
        keeps.hear_out(math.inf)
    theirs.sendall(b"still there")


def test_one_that_was_written_to_whole_is_not_given_up(keeps: Parting, pair: Pair) -> None:
    ours, theirs = pair
    with keeps.unsure(ours):
        pass
    keeps.hear_out(math.inf)
    ours.sendall(b"x")
    assert theirs.recv(1) == b"x"


@pytest.mark.parametrize("how", ["sure", "at once"])
def test_what_is_not_waited_for_is_over_at_once(keeps: Parting, pair: Pair, how: str) -> None:
    """Whoever else has a descriptor of it."""
    ours, theirs = pair
    if how == "sure":
        given_up(keeps, ours, unsure=False)
    else:
        keeps.take([ours])
        keeps.end_used()
    assert is_over(theirs)
    keeps.hear_out(math.inf)


def test_at_the_end_what_was_said_still_arrives(keeps: Parting, pair: Pair) -> None:
    ours, theirs = pair
    keeps.take([ours])
    with saying(ours, bytes(MIB)):
        assert exactly(theirs, MIB) == bytes(MIB)
    ours.sendall(b"bye")
    ours.close()
    keeps.close()
    assert exactly(theirs, 4) == b"bye"


def test_without_descriptors_nothing_is_taken(keeps: Parting, pair: Pair) -> None:
    ours, theirs = pair
    gone = socket.socket()
    gone.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        keeps.take([ours, gone])
    keeps.end_used()
    assert is_over(theirs)


@NEWEST
def test_in_tls_it_is_the_connection_below_that_ends(
    keeps: Parting, pki: Path, newest: int
) -> None:
    """The relay is gone by then, and has said what it had of it."""
    with tls_pair(pki, newest) as (client, server):
        keeps.take([client])
        relay = Relay(client)
        with relay.end as end:
            end.sendall(b"the last")
            assert exactly(server, 8) == b"the last"
        relay.close()
        keeps.give_up([True])
        heard = []

        def serve() -> None:
            try:
                heard.append(server.recv(1))
            except ssl.SSLEOFError:
                heard.append(b"")
            server.close()

        thread = threading.Thread(target=serve)
        thread.start()
        keeps.hear_out(math.inf)
        thread.join()
        assert heard == [b""]
