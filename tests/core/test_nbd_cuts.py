"""A connection cut at any byte: what was asked is asked again, from its beginning, or fails."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from .core import Core
from .driver import DISCARD, FLUSH, READ, WRITE, WRITE_ZEROES, Kind, Outcome
from .files import noise, open_fds
from .nbd_disk import DEPTH, PAGES, DiskMaker, NbdDisk
from .nbd_server import Server, Store
from .peer import Pair, tcp_pair, unix_pair

HEADER, REPLY, SIZE, AT = 28, 16, 512, 1024
GATHERED = 2
"""The id of what goes out in one piece."""
OPS = {
    "READ": READ,
    "WRITE": WRITE,
    "FLUSH": FLUSH,
    "DISCARD": DISCARD,
    "WRITE_ZEROES": WRITE_ZEROES,
}
CONTENT = noise(4096, 1)


@dataclass
class Asking:
    """One request on tag 1, again and again, over connections that are cut."""

    disk: NbdDisk
    op: int
    of: Callable[[], Pair] = unix_pair
    turn: int = 0

    @property
    def place(self) -> tuple[int, int]:
        return (0, 0) if self.op == FLUSH else (AT, SIZE)

    @property
    def asks(self) -> int:
        return HEADER + SIZE * (self.op == WRITE)

    @property
    def answers(self) -> int:
        return REPLY + SIZE * (self.op == READ)

    def begin(self) -> Server:
        """Over a connection of its own."""
        self.turn += 1
        self.disk.fill(1, noise(SIZE, self.turn))
        server = self.disk.attach(Store(CONTENT), self.of)
        self.disk.until_connected()
        self.disk.begin(1, self.op, *self.place)
        return server

    def hear_and_cut(self, at: int, cut: Callable[[Server], None]) -> None:
        """The server takes so many bytes and ends it."""
        losses = self.disk.status.losses
        server = self.begin()
        server.hears = at
        self.disk.until(lambda: server.hears == 0)
        cut(server)
        self.disk.until_lost(losses + 1)

    def say_and_cut(self, at: int, cut: Callable[[Server], None]) -> None:
        """The server takes the request and gives so many bytes of its answer."""
        losses = self.disk.status.losses
        server = self.begin()
        self.disk.until_asked(server)
        whole = server.done(server.asked[0])
        assert len(whole) == self.answers
        server.say(whole[:at])
        assert not server.wants_to_say
        cut(server)
        self.disk.until_lost(losses + 1)

    def check_kept(self) -> None:
        self.disk.settle()
        assert not self.disk.committed(1)
        assert self.disk.status.unanswered == 1
        assert self.disk.driver.in_flight == 0

    def check_asked_again(self) -> None:
        """Over a new connection, whole, and it ends as if nothing had been."""
        ended = self.disk.status.ended
        server = self.disk.attach(Store(CONTENT), self.of)
        self.disk.until_asked(server)
        assert len(server.heard) == self.asks
        server.answer_all()
        self.disk.until_committed(1)
        self.check_done()
        if self.op == WRITE:
            assert server.store.content[AT : AT + SIZE] == noise(SIZE, self.turn)
        self.disk.settle()
        assert (self.disk.status.unanswered, self.disk.status.ended) == (0, ended + 1)
        server.shut()
        self.disk.until_waiting()

    def check_done(self) -> None:
        assert self.disk.result(1) == (SIZE if self.op in (READ, WRITE) else 0)
        if self.op == READ:
            assert self.disk.held(1, SIZE) == CONTENT[AT : AT + SIZE]
        else:
            assert self.disk.held(1, SIZE) == noise(SIZE, self.turn)

    def check_failed(self) -> None:
        """EIO, once; and the next request as well, until there is a connection."""
        self.disk.fail()
        self.disk.until_committed(1)
        assert self.disk.result(1) == -errno.EIO
        self.disk.begin(2, self.op, *self.place)
        self.disk.until_committed(2)
        assert self.disk.result(2) == -errno.EIO
        assert self.disk.status.state == self.disk.lib.NBD_FAILING
        assert self.disk.status.unanswered == 0
        server = self.begin()
        self.disk.until_asked(server)
        server.answer_all()
        self.disk.until_committed(1)
        self.check_done()
        server.shut()
        self.disk.until_waiting()

    def forget(self) -> None:
        """Closed descriptors: there are many in a test."""
        for server in self.disk.servers:
            server.close()
        self.disk.servers.clear()


def one_after_the_other(asking: Asking, bytes_: int) -> Iterator[int]:
    """Every place of a cut; and what must hold behind each."""
    for at in range(bytes_):
        yield at
        asking.check_kept()
        if at % 2:
            asking.check_failed()
        else:
            asking.check_asked_again()
        asking.forget()


@pytest.fixture(params=PAGES)
def asking_on(request: pytest.FixtureRequest, new_disk: DiskMaker) -> Callable[[str], Asking]:
    return lambda name: Asking(new_disk(pages=PAGES[request.param]), OPS[name])


@pytest.mark.parametrize("name", OPS)
def test_a_server_that_ends_at_any_byte_of_a_request_is_asked_again(
    asking_on: Callable[[str], Asking], name: str
) -> None:
    asking = asking_on(name)
    for at in one_after_the_other(asking, asking.asks + 1):
        asking.hear_and_cut(at, Server.close if at % 4 < 2 else Server.shut)


@pytest.mark.parametrize("name", OPS)
def test_a_server_that_ends_at_any_byte_of_an_answer_is_asked_again(
    asking_on: Callable[[str], Asking], name: str
) -> None:
    asking = asking_on(name)
    for at in one_after_the_other(asking, asking.answers):
        asking.say_and_cut(at, Server.close if at % 4 < 2 else Server.shut)


@pytest.mark.parametrize("name", OPS)
def test_a_socket_that_fails_at_any_byte_of_a_request_is_given_up_and_it_is_asked_again(
    asking_on: Callable[[str], Asking], name: str
) -> None:
    """The kernel has taken so many bytes when it says that there is nobody any more."""
    asking = asking_on(name)
    for at in one_after_the_other(asking, asking.asks):
        tag, (member, rest) = 1, (0, at) if at < HEADER else (1, at - HEADER)
        if name != "WRITE" or asking.disk.pages.gather_bytes:  # it is the target's own
            tag, member, rest = DEPTH, GATHERED, at
        error = (-errno.EPIPE, -errno.ECONNRESET, -errno.ETIMEDOUT)[at % 3]
        steps = [Outcome(Kind.CUT, rest)] if rest else []
        asking.disk.driver.script(tag, member, [*steps, Outcome(Kind.INSTEAD, error)])
        server = asking.begin()
        asking.disk.until_lost(asking.disk.status.losses + 1)
        assert asking.disk.status.loss == asking.disk.lib.NBD_LOST_SOCKET
        asking.disk.until_ended(server)
        assert len(server.heard) == at


@pytest.mark.parametrize("cut", [Server.close, Server.shut, Server.reset])
@pytest.mark.parametrize("name", OPS)
def test_the_same_over_tcp(new_disk: DiskMaker, name: str, cut: Callable[[Server], None]) -> None:
    """Here what was said last may be lost, with the connection."""
    asking = Asking(new_disk(), OPS[name], tcp_pair)
    for at in one_after_the_other(asking, HEADER):
        asking.hear_and_cut(at, cut)
    for at in one_after_the_other(asking, REPLY):
        asking.say_and_cut(at, cut)


@pytest.mark.parametrize("name", OPS)
def test_an_answer_that_has_arrived_whole_counts_whatever_comes_then(
    asking_on: Callable[[str], Asking], name: str
) -> None:
    asking = asking_on(name)
    asking.say_and_cut(asking.answers, Server.shut)
    asking.disk.until_committed(1)
    asking.check_done()
    assert asking.disk.status.unanswered == 0


def test_every_request_of_many_is_asked_again_after_one_cut(core: Core) -> None:
    """At every byte of a stream that answers some of them."""
    depth, answered = 4, 2
    before = open_fds()
    with NbdDisk(core, PAGES["auto"]) as disk:
        for at in range(answered * (REPLY + SIZE) + 1):
            store = Store(CONTENT)
            server = disk.attach(store)
            for tag in range(depth):
                disk.begin(tag, READ, tag * SIZE, SIZE)
            disk.until_asked(server, depth)
            text = server.done(server.asked[2]) + server.done(server.asked[0])
            server.say(text[:at])
            server.shut()
            disk.until_waiting()
            disk.settle()
            left = depth - at // (REPLY + SIZE)
            assert disk.status.unanswered == left
            server = disk.attach(store)
            disk.until_asked(server, left)
            server.answer_all()
            disk.until_committed(*range(depth))
            for tag in range(depth):
                assert disk.result(tag) == SIZE
                assert disk.held(tag, SIZE) == CONTENT[tag * SIZE :][:SIZE]
            server.shut()
            disk.until_waiting()
            for old in disk.servers:
                old.close()
            disk.servers.clear()
    assert open_fds() == before
