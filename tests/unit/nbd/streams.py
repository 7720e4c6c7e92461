"""What servers say before the first request: streams built of parts, to be cut and spoilt."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from ublkd.targets.nbd.export import Refusal
from ublkd.targets.nbd.handshake import Goal, Handshake

GOOD_FLAGS = 0x16D  # HAS_FLAGS FLUSH FUA TRIM WRITE_ZEROES MULTI_CONN
GIB = 1 << 30

ABORT = struct.pack(">QII", 0x49484156454F5054, 2, 0)
DISC = struct.pack(">IHHQQI", 0x25609513, 0, 2, 0, 0, 0)

# The numbers stand here a second time on purpose: the tests know the protocol by themselves.
EXPORT_NAME, LIST, STARTTLS, INFO, GO = 1, 3, 5, 6, 7
ACK, SERVER, INFO_REPLY = 1, 2, 3
UNSUP, POLICY, INVALID, PLATFORM, TLS_REQD, UNKNOWN, SHUTDOWN, SIZE_REQD, TOO_BIG, EXT = (
    0x80000000 | number for number in range(1, 11)
)


def greeting(flags: int = 3) -> bytes:
    return b"NBDMAGICIHAVEOPT" + struct.pack(">H", flags)


def reply(option: int, kind: int, data: bytes = b"") -> bytes:
    return struct.pack(">QIII", 0x3E889045565A9, option, kind, len(data)) + data


def export_info(size: int = GIB, flags: int = GOOD_FLAGS, option: int = GO) -> bytes:
    return reply(option, INFO_REPLY, struct.pack(">HQH", 0, size, flags))


def sizes_info(low: int, best: int, most: int, option: int = GO) -> bytes:
    return reply(option, INFO_REPLY, struct.pack(">HIII", 3, low, best, most))


def text_info(about: int, text: bytes, option: int = GO) -> bytes:
    return reply(option, INFO_REPLY, struct.pack(">H", about) + text)


def offer(name: bytes, description: bytes = b"") -> bytes:
    return reply(LIST, SERVER, struct.pack(">I", len(name)) + name + description)


def go(*infos: bytes) -> bytes:
    return b"".join([greeting(), *infos, reply(GO, ACK)])


def listing(*offers: bytes) -> bytes:
    return b"".join([greeting(), *offers, reply(LIST, ACK)])


CORPUS: tuple[tuple[Goal, bool, bytes], ...] = (
    (Goal.SERVE, False, go(export_info())),
    (Goal.SERVE, False, go(export_info(), sizes_info(1, 4096, 32 << 20))),
    (Goal.SERVE, False, go(text_info(2, b"a \xff disk"), text_info(1, b"name"), export_info())),
    (Goal.SERVE, False, greeting(1) + reply(GO, UNSUP, b"no")
     + struct.pack(">QH", GIB, 1) + bytes(124)),
    (Goal.SERVE, False, greeting() + reply(GO, UNSUP) + struct.pack(">QH", GIB, GOOD_FLAGS)),
    (Goal.SERVE, False, greeting() + reply(GO, UNKNOWN) + offer(b"x") + reply(LIST, ACK)),
    (Goal.SERVE, False, greeting() + reply(GO, TLS_REQD, b"use TLS")),
    (Goal.SERVE, True, greeting() + reply(STARTTLS, ACK)),
    (Goal.SERVE, True, greeting() + reply(STARTTLS, POLICY)),
    (Goal.LOOK, False, greeting() + export_info(option=INFO) + reply(INFO, ACK)),
    (Goal.LOOK, False, greeting() + reply(INFO, UNSUP) + struct.pack(">QH", GIB, GOOD_FLAGS)),
    (Goal.LOOK, False, greeting() + export_info(0, option=INFO) + reply(INFO, ACK)
     + export_info() + reply(GO, ACK)),
    (Goal.LIST, False, listing(offer(b""), offer(b"a", b"the first"), offer("ü".encode()))),
    (Goal.LIST, False, greeting() + reply(LIST, POLICY, b"not for you")),
    (Goal.LIST, False, b"NBDMAGIC" + struct.pack(">QQI", 0x00420281861253, GIB, 1) + bytes(124)),
    (Goal.LIST, False, b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n"),
    (Goal.LIST, False, b"HTTP/1.1 400 Bad Request\r\n\r\n"),
)  # fmt: skip
"""Goal, whether TLS is wanted, and all that the server says."""


def option(number: int, data: bytes = b"") -> bytes:
    return b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data


def asking(number: int, name: bytes = b"disk") -> bytes:
    """GO or INFO: the name, then two infos, description and block sizes."""
    return option(number, struct.pack(">I", len(name)) + name + struct.pack(">HHH", 2, 2, 3))


HELLO = struct.pack(">I", 3)


def pieces(stream: bytes, cuts: Sequence[int]) -> Iterator[bytes]:
    """The stream, cut at these places."""
    places = sorted({cut for cut in cuts if 0 < cut < len(stream)})
    for start, end in zip([0, *places], [*places, len(stream)], strict=True):
        yield stream[start:end]


class Played:
    """How a handshake went that got a stream in pieces, to its end."""

    def __init__(
        self, goal: Goal, stream: Sequence[bytes], *, tls: bool = False, export: bytes = b"disk"
    ) -> None:
        self.handshake = Handshake(goal, export, tls=tls)
        self.sent = b""
        self.refusal: Refusal | None = None
        try:
            for piece in stream:
                self.handshake.receive(piece)
                self.sent += self.handshake.data_to_send()
        except Refusal as refusal:
            self.refusal = refusal
            self.sent += self.handshake.data_to_send()
        self.result = self.handshake.result

    @property
    def complaint(self) -> str:
        assert self.refusal is not None, self.result
        return self.refusal.message

    @property
    def outcome(self) -> tuple[object, ...]:
        """All that may not depend on how the stream was cut."""
        told = (self.refusal.message, self.refusal.hint) if self.refusal else None
        return self.result, told, self.sent, self.handshake.phase


def played(goal: Goal, stream: bytes, **how: object) -> Played:
    return Played(goal, [stream], **how)  # type: ignore[arg-type]
