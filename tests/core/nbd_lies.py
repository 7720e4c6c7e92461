"""Streams that a server should never send, and what must become of the requests under them."""

from __future__ import annotations

import errno
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from .nbd_server import ESHUTDOWN, REPLY, REPLY_MAGIC, Asked, Command, reply_to

ERRNOS = {28: -errno.ENOSPC, 95: -errno.EOPNOTSUPP}
NUMBERS = (0, 1, 5, 12, 22, 27, 28, 29, 75, 95, 107, ESHUTDOWN, 109, 1 << 31, 0xFFFFFFFF)

NASTY = {
    "nothing": b"",
    "a byte": b"g",
    "zeroes": bytes(64),
    "ones": b"\xff" * 64,
    "a reply but for a byte": bytes.fromhex("67446698 00000000 00000001 000100"),
    "a reply and a byte": bytes.fromhex("67446698 00000000 00000001 00010000 67"),
    "of a READ that failed, with its payload": bytes.fromhex(
        "67446698 00000005 00000001 00010000"
    ) + b"\x67\x44\x66\x98" * 256,
    "a payload of replies": bytes.fromhex("67446698 00000000 00000001 00010000") * 65,
    "a payload that is a byte short": bytes.fromhex("67446698 00000000 00000001 00010000")
    + bytes(1023),
    "a payload that is a byte long": bytes.fromhex("67446698 00000000 00000001 00010000")
    + bytes(1025),
    "the end, and more": bytes.fromhex("67446698 0000006c 00000001 00010000") + bytes(1024),
    "the sign of the end that is none": bytes.fromhex("67446698 6c000000 00000001 00010000"),
    "the numbers in the other order": bytes.fromhex("98664467 00000000 00000100 01000000"),
    "half of the cookie": bytes.fromhex("67446698 00000000 00000000 00010000"),
    "the other half": bytes.fromhex("67446698 00000000 00000001 00000000"),
    "a tag that is a depth beyond": bytes.fromhex("67446698 00000000 00000001 00010004"),
    "the last tag": bytes.fromhex("67446698 00000000 00000001 0001ffff"),
    "a generation that is none": bytes.fromhex("67446698 00000000 ffffffff 00010000"),
    "a structured reply": bytes.fromhex("668e33ef 0001 0001 0000000100010000 00000408"
                                        "0000000000000000") + bytes(1024),
    "an extended reply": bytes.fromhex("6e8a278c 0001 0001 0000000100010000 0000000000000000"
                                       "0000000000000400") + bytes(1024),
    "a request": bytes.fromhex("25609513 00000000 0000000100010000 0000000000000000 00000400"),
    "a greeting": b"NBDMAGICIHAVEOPT\x00\x03",
    "a greeting of old": b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53" + bytes(136),
    "an option's reply": bytes.fromhex("0003e889045565a9 00000007 00000001 00000000"),
    "HTTP": b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
    "TLS": bytes.fromhex("15030300020246"),
    "SSH": b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n",
}  # fmt: skip
"""Said to a READ of 1024 bytes on tag 0 that is the first request ever."""


@dataclass
class Outcome:
    """What a stream does, if nothing but it is believed."""

    results: dict[int, int] = field(default_factory=dict)
    data: dict[int, bytes] = field(default_factory=dict)
    loss: str = "NBD_LOST_SOCKET"


def believed(stream: bytes, asked: Sequence[Asked]) -> Outcome:
    """By the protocol; behind the last byte the stream ends."""
    told = Outcome()
    waiting = {a.cookie: a for a in asked}
    at = 0
    while len(stream) - at >= REPLY.size:
        magic, error, cookie = REPLY.unpack_from(stream, at)
        at += REPLY.size
        if magic != REPLY_MAGIC:
            told.loss = "NBD_LOST_MAGIC"
            return told
        if cookie not in waiting:
            told.loss = "NBD_LOST_COOKIE"
            return told
        if error == ESHUTDOWN:
            told.loss = "NBD_LOST_SHUTDOWN"
            return told
        a = waiting.pop(cookie)
        moves = a.command in (Command.READ, Command.WRITE)
        basic = moves or a.command == Command.FLUSH
        if error:
            told.results[a.tag] = ERRNOS.get(error, -errno.EIO)
            if basic and error == 95:
                told.results[a.tag] = -errno.EIO
            continue
        if a.command == Command.READ:
            if len(stream) - at < a.length:
                return told
            told.data[a.tag] = stream[at : at + a.length]
            at += a.length
        told.results[a.tag] = a.length if moves else 0
    return told


# --- of every shape -------------------------------------------------------------------------------


def honest(rng: random.Random, asked: Sequence[Asked]) -> list[bytes]:
    """Replies to all, in any order, some of them errors."""
    replies = []
    for a in rng.sample(asked, len(asked)):
        error = rng.choice(NUMBERS) if rng.random() < 0.2 else 0
        payload = rng.randbytes(a.length) if a.command == Command.READ and not error else b""
        replies.append(reply_to(a.cookie, error, payload))
    return replies


def _a_bit(rng: random.Random, replies: list[bytes]) -> None:
    """Of a header, for the most part."""
    i = rng.randrange(len(replies))
    text = bytearray(replies[i])
    at = rng.randrange(min(len(text), 16) if rng.random() < 0.8 else len(text))
    text[at] ^= 1 << rng.randrange(8)
    replies[i] = bytes(text)


def _a_number(rng: random.Random, replies: list[bytes]) -> None:
    """In the place of one in a header."""
    i = rng.randrange(len(replies))
    text = bytearray(replies[i])
    at, size = rng.choice([(0, 4), (4, 4), (8, 8), (8, 4), (12, 2), (14, 2)])
    number = rng.choice([0, 1, 4, 0xFFFF, rng.getrandbits(8 * size), (1 << 8 * size) - 1])
    text[at : at + size] = (number & (1 << 8 * size) - 1).to_bytes(size)
    replies[i] = bytes(text)


def _a_hole(rng: random.Random, replies: list[bytes]) -> None:
    i = rng.randrange(len(replies))
    at = rng.randrange(len(replies[i]))
    replies[i] = replies[i][:at] + replies[i][at + rng.choice([1, 4, 16, 511, 1024]) :]


def _more(rng: random.Random, replies: list[bytes]) -> None:
    i = rng.randrange(len(replies))
    at = rng.choice([0, 16, len(replies[i]), rng.randrange(len(replies[i]))])
    what = rng.choice([rng.randbytes(rng.choice([1, 16, 600])), b"\0", replies[i][:16]])
    replies[i] = replies[i][:at] + what + replies[i][at:]


def _twice(rng: random.Random, replies: list[bytes]) -> None:
    replies.insert(rng.randrange(len(replies) + 1), rng.choice(replies))


def _without_one(rng: random.Random, replies: list[bytes]) -> None:
    del replies[rng.randrange(len(replies))]


def _other_heads(rng: random.Random, replies: list[bytes]) -> None:
    """The payload of one behind the head of another."""
    i, j = rng.randrange(len(replies)), rng.randrange(len(replies))
    replies[i], replies[j] = (
        replies[j][:16] + replies[i][16:],
        replies[i][:16] + replies[j][16:],
    )


MUTATIONS = (_a_bit, _a_number, _a_hole, _more, _twice, _without_one, _other_heads)


def hostile(rng: random.Random, asked: Sequence[Asked]) -> bytes:
    """One stream."""
    kind = rng.random()
    if kind < 0.05:
        return rng.randbytes(rng.choice([1, 15, 16, 17, 200, 3000]))
    replies = honest(rng, asked)
    for _ in range(rng.choice([0, 1, 1, 1, 2, 4])):
        replies = [reply for reply in replies if reply]
        if replies:
            rng.choice(MUTATIONS)(rng, replies)
    stream = b"".join(replies)
    if kind < 0.15:
        stream = stream[: rng.randrange(len(stream) + 1)]
    return stream
