"""Writes told to a server again: in an order that nobody can tell from theirs, and by its word."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.nbd.faults import (
    FLUSH,
    FUA,
    NO_HOLE,
    REPLY,
    REPLY_MAGIC,
    REQUEST,
    REQUEST_MAGIC,
    TRIM,
    WRITE,
    WRITE_ZEROES,
)
from ublkd.targets.nbd.export import Refusal
from ublkd.targets.nbd.replay import MOST, MOST_BYTES, Write, replay
from ublkd.targets.nbd.stream import Patience, Stopped, Stream

PATIENCE = 30.0
"""Seconds: no wait here is meant to be this long."""
SHORT = 0.05


def reply(cookie: int, error: int = 0, magic: int = REPLY_MAGIC) -> bytes:
    return REPLY.pack(magic, error, cookie)


@dataclass
class Heard:
    flags: int
    command: int
    cookie: int
    offset: int
    length: int
    data: bytes


def parsed(stream: bytearray) -> Iterator[Heard]:
    """The requests that are there whole; they are taken out."""
    while len(stream) >= REQUEST.size:
        magic, flags, command, cookie, offset, length = REQUEST.unpack_from(stream)
        assert magic == REQUEST_MAGIC
        end = REQUEST.size + (length if command == WRITE else 0)
        if len(stream) < end:
            return
        yield Heard(flags, command, cookie, offset, length, bytes(stream[REQUEST.size : end]))
        del stream[:end]


# --- a server that takes its time, without a socket -------------------------


@dataclass
class Lazy:
    """In the place of a Stream: does what it has heard when it must, in any order, and some."""

    random: random.Random
    content: bytearray
    heard: bytearray = field(default_factory=bytearray)
    waiting: list[Heard] = field(default_factory=list)
    most: int = 0
    most_bytes: int = 0
    seen: list[Heard] = field(default_factory=list)
    """But for flushes."""
    flushes: list[int] = field(default_factory=list)
    """How many had been seen before each."""
    _says: bytes = b""

    def send(self, data: bytes | memoryview) -> None:
        self.heard += data
        for request in parsed(self.heard):
            if request.command == FLUSH:
                assert not self.waiting, "a flush covers what is acknowledged before it"
                self.flushes.append(len(self.seen))
            else:
                self.seen.append(request)
            self.waiting.append(request)
        self.most = max(self.most, len(self.waiting))
        self.most_bytes = max(self.most_bytes, sum(len(w.data) for w in self.waiting))

    def recv(self) -> bytes:
        assert not self.heard, "it waits with a request that was sent in part"
        if not self._says:
            assert self.waiting, "it waits for nothing"
            self.random.shuffle(self.waiting)
            for _ in range(self.random.randint(1, len(self.waiting))):
                self._says += reply(self._done(self.waiting.pop()))
        size = self.random.choice([1, 7, 16, 17, 1 << 16])
        data, self._says = self._says[:size], self._says[size:]
        return data

    def _done(self, request: Heard) -> int:
        data = request.data if request.command == WRITE else bytes(request.length)
        self.content[request.offset : request.offset + request.length] = data
        return request.cookie

    def take(self, writes: list[Write]) -> None:
        safe: list[Write] = []
        replay(self, writes, Patience(PATIENCE), safe.append)  # type: ignore[arg-type]
        assert [writes[seen - 1] for seen in self.flushes] == safe
        assert safe[-1:] == writes[-1:]
        assert not self.waiting
        assert not self._says
        assert not self.heard


def written(writes: list[Write], content: bytes) -> bytearray:
    """One after the other."""
    result = bytearray(content)
    for w in writes:
        result[w.offset : w.offset + w.length] = w.data or bytes(w.length)
    return result


SIZE = 64


@st.composite
def a_write(draw: st.DrawFn) -> Write:
    offset = draw(st.integers(0, SIZE - 1))
    length = draw(st.integers(1, SIZE - offset))
    command = draw(st.sampled_from([WRITE, WRITE, TRIM, WRITE_ZEROES]))
    data = bytes([draw(st.integers(1, 255))]) * length if command == WRITE else b""
    flags = draw(st.sampled_from([0, FUA, NO_HOLE] if command == WRITE_ZEROES else [0, FUA]))
    return Write(command, flags, offset, length, data)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(writes=st.lists(a_write(), max_size=30), seed=st.integers(0, 1 << 32))
def test_what_is_there_in_the_end_is_what_one_after_the_other_had_made(
    writes: list[Write], seed: int
) -> None:
    """Whatever the server does first of what it has."""
    before = bytes(range(SIZE))
    server = Lazy(random.Random(seed), bytearray(before))
    server.take(writes)
    assert server.content == written(writes, before)
    told = [(w.command, w.flags, w.offset, w.length, bytes(w.data)) for w in writes]
    assert [(h.command, h.flags, h.offset, h.length, h.data) for h in server.seen] == told


@pytest.mark.parametrize("number", [0, 1, MOST, MOST + 1, 3 * MOST + 5])
def test_no_more_are_on_their_way_than_their_replies_have_room(number: int) -> None:
    server = Lazy(random.Random(number), bytearray(4 * number))
    server.take([Write(WRITE, 0, 4 * i, 4, b"abcd") for i in range(number)])
    assert server.most == min(number, MOST)
    assert server.content == b"abcd" * number
    assert server.flushes == [*range(MOST, number, MOST), *[number] * bool(number)]


@pytest.mark.parametrize("size", [MOST_BYTES // 4, MOST_BYTES // 4 + 1])
def test_nor_so_many_bytes(size: int) -> None:
    server = Lazy(random.Random(0), bytearray(12 * size))
    server.take([Write(WRITE, 0, i * size, size, bytes([i]) * size) for i in range(12)])
    assert server.most_bytes == 4 * size
    assert server.content == b"".join(bytes([i]) * size for i in range(12))


def test_those_that_touch_and_do_not_overlap_go_together() -> None:
    server = Lazy(random.Random(0), bytearray(30))
    server.take([Write(WRITE, 0, at, 10, b"x" * 10) for at in (10, 0, 20)])
    assert server.most == 3


@pytest.mark.parametrize("second", [(0, 30), (10, 10), (12, 2), (19, 5), (5, 6)])
def test_those_that_overlap_do_not(second: tuple[int, int]) -> None:
    server = Lazy(random.Random(0), bytearray(30))
    server.take([Write(WRITE, 0, 10, 10, b"x" * 10), Write(TRIM, 0, *second)])
    assert server.most == 1


# --- servers on a socket ----------------------------------------------------

Serve = Callable[[socket.socket], object]
THREE = [Write(WRITE, 0, 4 * i, 4, b"abcd") for i in range(3)]
LARGE = [Write(WRITE, 0, i << 20, 1 << 20, bytes(1 << 20)) for i in range(8)]


@pytest.fixture
def told(nothing_left: None) -> Iterator[Callable[..., None]]:
    """What replay does with a server that runs in a thread; it hears the end then. ``safe`` gets
    what a flush has covered.
    """
    ours, theirs = socket.socketpair()
    threads: list[threading.Thread] = []

    def run(
        serve: Serve,
        writes: list[Write],
        patience: Patience | None = None,
        safe: list[Write] | None = None,
    ) -> None:
        threads.append(threading.Thread(target=serve, args=(theirs,)))
        threads[0].start()
        patience = patience or Patience(PATIENCE)
        flushed = [] if safe is None else safe
        replay(Stream(ours, patience), writes, patience, flushed.append)

    ours.setblocking(False)
    yield run
    ours.close()
    for thread in threads:
        thread.join()
    theirs.close()


def hear(sock: socket.socket, number: int) -> list[Heard]:
    stream = bytearray()
    heard: list[Heard] = []
    while len(heard) < number and (data := sock.recv(1 << 20)):
        stream += data
        heard += parsed(stream)
    return heard


def saying(text: bytes, to_flush: bytes = b"") -> Serve:
    """Says so once it has heard three writes, the other to the flush behind them, and ends."""

    def serve(sock: socket.socket) -> None:
        hear(sock, 3)
        sock.sendall(text)
        if to_flush:
            hear(sock, 1)
            sock.sendall(to_flush)
        sock.shutdown(socket.SHUT_WR)

    return serve


def stay_silent(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # who has given up closes over what it has not read
        while sock.recv(1 << 20):
            pass


def test_a_server_that_does_all_is_good(told: Callable[..., None]) -> None:
    done: list[Heard] = []

    def serve(sock: socket.socket) -> None:
        stream = bytearray()
        while data := sock.recv(1 << 20):
            stream += data
            for request in parsed(stream):
                done.append(request)
                sock.sendall(reply(request.cookie))

    safe: list[Write] = []
    told(serve, LARGE, safe=safe)
    assert [request.offset for request in done[:-1]] == [write.offset for write in LARGE]
    assert done[-1].command == FLUSH
    assert safe == LARGE[-1:]


def test_replies_may_come_in_pieces_and_in_any_order(told: Callable[..., None]) -> None:
    def serve(sock: socket.socket) -> None:
        for number in (3, 1):  # and the flush
            for request in reversed(hear(sock, number)):
                for byte in reply(request.cookie):
                    sock.sendall(bytes([byte]))

    told(serve, THREE)


@pytest.mark.parametrize("answer", [reply(3, 5), reply(0), b""])
def test_without_a_flush_nothing_is_safe(told: Callable[..., None], answer: bytes) -> None:
    """And what was answered before is no answer to it."""
    safe: list[Write] = []
    with pytest.raises((Refusal, ConnectionResetError)):
        told(saying(reply(0) + reply(1) + reply(2), answer), THREE, safe=safe)
    assert safe == []


@pytest.mark.parametrize(
    ("error", "name"), [(1, "EPERM"), (5, "EIO"), (28, "ENOSPC"), (108, "ESHUTDOWN"), (77, "77")]
)
def test_an_error_is_a_refusal(told: Callable[..., None], error: int, name: str) -> None:
    with pytest.raises(Refusal) as caught:
        told(saying(reply(0) + reply(2, error)), THREE)
    assert caught.value.message == f"it refuses what it had acknowledged before: {name}"


LIES = {
    "magic": reply(0, magic=0x668E33EF),
    "cookie": reply(3),
    "large cookie": reply(1 << 32),
    "twice": reply(1) * 2,
    "too many": reply(0) + reply(1) + reply(2) + reply(0),
    "more": reply(0) + reply(1) + reply(2) + b"\x67",
}


@pytest.mark.parametrize("lie", LIES)
def test_what_is_no_reply_is_refused(told: Callable[..., None], lie: str) -> None:
    with pytest.raises(Refusal, match=r"^what the server sent is no reply$"):
        told(saying(LIES[lie]), THREE)


@pytest.mark.parametrize("said", range(0, 3 * REPLY.size, 5))
def test_the_end_of_the_stream_is_no_answer(told: Callable[..., None], said: int) -> None:
    text = reply(0) + reply(1) + reply(2)
    with pytest.raises(ConnectionResetError):
        told(saying(text[:said]), THREE)


def test_a_server_that_ends_while_it_is_told(told: Callable[..., None]) -> None:
    def serve(sock: socket.socket) -> None:
        sock.recv(1000)
        sock.shutdown(socket.SHUT_RDWR)

    with pytest.raises(OSError):
        told(serve, LARGE)


@pytest.mark.parametrize("text", [b"", reply(0), reply(0)[:15]])
def test_silence_is_a_refusal_when_the_time_is_over(told: Callable[..., None], text: bytes) -> None:
    def serve(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):  # perhaps nobody waits any more
            sock.sendall(text)
        stay_silent(sock)

    with pytest.raises(Refusal) as caught:
        told(serve, THREE, Patience(SHORT))
    assert caught.value.message == "what it may have lost was not written again within 0.05 seconds"


def test_so_is_a_server_that_hears_nothing(told: Callable[..., None]) -> None:
    with pytest.raises(Refusal, match="was not written again within"):
        told(lambda _: None, LARGE, Patience(SHORT))


@pytest.mark.parametrize("writes", [THREE, LARGE])
@pytest.mark.parametrize("heard", [False, True])
def test_it_ends_when_it_is_told_to_stop(
    told: Callable[..., None], writes: list[Write], heard: bool
) -> None:
    """While it sends, and while it waits."""
    stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def serve(sock: socket.socket) -> None:
        if heard:
            hear(sock, 3)
        os.eventfd_write(stop, 1)

    try:
        with pytest.raises(Stopped):
            told(serve, writes, Patience(PATIENCE, stop))
    finally:
        os.close(stop)


def test_nothing_to_tell_is_told_to_nobody(told: Callable[..., None]) -> None:
    told(lambda _: None, [])
