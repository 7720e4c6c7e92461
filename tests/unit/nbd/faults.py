"""What goes wrong at a misbehaving server, and what its clients may not do."""

from __future__ import annotations

import struct
from collections.abc import Set
from dataclasses import dataclass

REQUEST = struct.Struct(">IHHQQI")  # magic, flags, command, cookie, offset, length
REPLY = struct.Struct(">IIQ")  # magic, error, cookie
REQUEST_MAGIC, REPLY_MAGIC = 0x25609513, 0x67446698
READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES = range(7)
FUA, NO_HOLE, FAST_ZERO = 1, 2, 16
EIO, EINVAL, ENOSPC, ESHUTDOWN = 5, 22, 28, 108

READ_ONLY, HAS_CACHE, HAS_FUA, HAS_TRIM, HAS_ZEROES, MULTI_CONN = 2, 4, 8, 32, 64, 256
ALL = 1 | HAS_CACHE | HAS_FUA | HAS_TRIM | HAS_ZEROES | MULTI_CONN

NEEDS = {FLUSH: HAS_CACHE, TRIM: HAS_TRIM, WRITE_ZEROES: HAS_ZEROES}
MAY_CARRY = {WRITE: FUA, TRIM: FUA, WRITE_ZEROES: FUA | NO_HOLE}
"""Command to the flags that it may have here; CACHE and FAST_ZERO are never offered."""


@dataclass
class Offer:
    """What the server says of its export; a client must obey it."""

    size: int = 1 << 20
    flags: int = ALL
    minimum: int = 512
    preferred: int = 4096
    maximum: int = 32 << 20


@dataclass(frozen=True)
class Request:
    """One that came, on the connection of this number."""

    connection: int
    flags: int
    command: int
    cookie: int
    offset: int
    length: int


@dataclass(frozen=True)
class Fault:
    """What happens to the ``nth`` request that it is for, and to ``times`` of them (None: to all).

    ``what`` is one of these; those of the first line happen before byte ``at`` of ``place``:

    - ``cut`` (close), ``reset``, ``stall`` (until ``go_on()``), ``trickle`` (a byte at a time)
    - ``magic``, ``cookie`` (of nobody), ``old`` (a cookie that was answered before), ``stale`` (a
      cookie of another connection): a bad reply
    - ``twice``, ``unasked``: a reply too many; ``silent``: none
    - ``error``: the reply has ``error``; ``farewell``: ESHUTDOWN, and then the end
    - ``early``: the reply is sent before a WRITE's payload is read

    Places: ``greeting`` (all before the first request), ``request`` (its header), ``payload``,
    ``apply``, ``reply`` and ``data``.
    """

    what: str
    place: str = ""
    at: int = 0
    command: int | None = None
    connection: int | None = None
    nth: int = 0
    times: int | None = 1
    error: int = EIO

    def is_for(self, connection: int, command: int | None) -> bool:
        """``command`` is None before there are requests."""
        if (self.place == "greeting") != (command is None):
            return False
        return self.command in (None, command) and self.connection in (None, connection)

    def is_due(self, count: int) -> bool:
        """Whether it is for the one of this number."""
        return count >= self.nth and (self.times is None or count < self.nth + self.times)


def complaint(offer: Offer, magic: int, request: Request, in_flight: Set[int]) -> str:
    """What a client may not do."""
    command, end = request.command, request.offset + request.length
    wrong = {
        "magic": magic != REQUEST_MAGIC,
        "unadvertised": offer.flags & NEEDS.get(command, 0) != NEEDS.get(command, 0),
        "unknown": command not in (READ, WRITE, DISC, FLUSH, TRIM, WRITE_ZEROES),
        "flags": request.flags & ~MAY_CARRY.get(command, 0),
        "FUA": request.flags & FUA and not offer.flags & HAS_FUA,
        "read-only": offer.flags & READ_ONLY and command in (WRITE, TRIM, WRITE_ZEROES),
        "cookie in flight": request.cookie in in_flight,
        "bounds": end > offer.size,
        "alignment": (request.offset | request.length) % offer.minimum,
        "too long": request.length > offer.maximum,  # ours: the protocol minds data alone
        "nothing": command in (READ, WRITE, TRIM, WRITE_ZEROES) and not request.length,
        "range of none": command in (FLUSH, DISC) and end,
    }
    return ", ".join(name for name, is_so in wrong.items() if is_so)
