"""Telling a server again what it may have lost, before anything else goes over a new connection."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ublkd.targets.nbd import wire
from ublkd.targets.nbd.export import Refusal
from ublkd.targets.nbd.stream import Patience, Stream, TimedOut
from ublkd.targets.nbd.wire import SIMPLE_REPLY, SIMPLE_REPLY_MAGIC, Command, Error

MOST = 64
"""Requests on their way at a time: their replies fit into what any socket holds."""
MOST_BYTES = 4 << 20


@dataclass(frozen=True)
class Write:
    """A write, a trim or a zeroing that was acknowledged. Offset and length are bytes."""

    command: int
    flags: int
    offset: int
    length: int
    data: memoryview | bytes = b""
    order: int = 0  # of the acknowledgement


def _rounds(writes: Sequence[Write]) -> Iterator[list[Write]]:
    """In their order; those of one round do not overlap, so a server may do them in any."""
    round_: list[Write] = []
    for write in writes:
        full = len(round_) == MOST or sum(len(w.data) for w in round_) >= MOST_BYTES
        end = write.offset + write.length
        if full or any(w.offset < end and write.offset < w.offset + w.length for w in round_):
            yield round_
            round_ = []
        round_.append(write)
    if round_:
        yield round_


def replay(
    stream: Stream,
    writes: Sequence[Write],
    patience: Patience,
    flushed: Callable[[Write], None],
) -> None:
    """All of them, each acknowledged. Raises Refusal, Stopped or OSError.

    The server is told to flush now and then, and at the end: the writes up to the one that
    ``flushed`` is called with are safe. So a connection that does not live long is of use, too.
    """
    told = _Telling(stream)
    try:
        for at in range(0, len(writes), MOST):
            part = writes[at : at + MOST]
            for round_ in _rounds(part):
                told.ask(round_)
            told.ask([Write(Command.FLUSH, 0, 0, 0)])
            flushed(part[-1])
    except TimedOut:
        raise Refusal(f"what it may have lost was not written again within {patience.seconds:g} "
                      "seconds") from None  # fmt: skip


class _Telling:
    """One stream, and what of the next reply has come."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._heard = b""
        self._asked = 0

    def ask(self, round_: Sequence[Write]) -> None:
        """All of it, and wait for every answer."""
        first, self._asked = self._asked, self._asked + len(round_)
        waiting = set(range(first, self._asked))  # no cookie twice: nor can an answer count so
        for cookie, write in enumerate(round_, first):
            self._stream.send(wire.pack_request(
                Command(write.command), cookie, write.offset, write.length, write.flags
            ))  # fmt: skip
            if write.data:
                self._stream.send(write.data)
        while waiting:
            if not (data := self._stream.recv()):
                raise ConnectionResetError
            self._heard += data
            while len(self._heard) >= SIMPLE_REPLY.size:
                _take(self._heard[: SIMPLE_REPLY.size], waiting)
                self._heard = self._heard[SIMPLE_REPLY.size :]
        if self._heard:
            raise Refusal("what the server sent is no reply")


def _take(raw: bytes, waiting: set[int]) -> None:
    magic, error, cookie = SIMPLE_REPLY.unpack(raw)
    if magic != SIMPLE_REPLY_MAGIC or cookie not in waiting:
        raise Refusal("what the server sent is no reply")
    if error:
        name = Error(error).name if error in list(Error) else str(error)
        raise Refusal(f"it refuses what it had acknowledged before: {name}")
    waiting.remove(cookie)
