"""NBD's numbers and layouts, as doc/proto.md has them. Everything on the wire is big-endian."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum, IntFlag

PORT = 10809
"""The one that IANA gave to NBD."""

# --- negotiation ----------------------------------------------------------------------------

NBDMAGIC = int.from_bytes(b"NBDMAGIC")
IHAVEOPT = int.from_bytes(b"IHAVEOPT")
OLDSTYLE = 0x00420281861253
REPLY_MAGIC = 0x3E889045565A9

MAGIC = struct.Struct(">Q")
SERVER_FLAGS = struct.Struct(">H")
CLIENT_FLAGS = struct.Struct(">I")
OPTION = struct.Struct(">QII")  # magic, option, length
REPLY = struct.Struct(">QIII")  # magic, option, kind, length
LENGTH = struct.Struct(">I")
INFO = struct.Struct(">H")
EXPORT = struct.Struct(">QH")  # size, flags
BLOCK_SIZES = struct.Struct(">III")  # minimum, preferred, maximum
EXPORT_NAME_PADDING = 124  # zeroes behind the answer to EXPORT_NAME, without NO_ZEROES

MAX_STRING = 4096
"""Bytes: the longest name or message that the protocol knows."""


class HandshakeFlag(IntFlag):
    """Of the server's greeting and of our answer to it; the numbers are the same."""

    FIXED_NEWSTYLE = 1 << 0
    NO_ZEROES = 1 << 1


class Opt(IntEnum):
    """What a client may ask for before the first request."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7


class Rep(IntEnum):
    """What a server answers to an option. Those with the highest bit are refusals."""

    ACK = 1
    SERVER = 2
    INFO = 3
    ERR_UNSUP = 1 << 31 | 1
    ERR_POLICY = 1 << 31 | 2
    ERR_INVALID = 1 << 31 | 3
    ERR_PLATFORM = 1 << 31 | 4
    ERR_TLS_REQD = 1 << 31 | 5
    ERR_UNKNOWN = 1 << 31 | 6
    ERR_SHUTDOWN = 1 << 31 | 7
    ERR_BLOCK_SIZE_REQD = 1 << 31 | 8
    ERR_TOO_BIG = 1 << 31 | 9
    ERR_EXT_HEADER_REQD = 1 << 31 | 10


REP_ERROR = 1 << 31


class Info(IntEnum):
    """What an ``INFO`` reply is about."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class ExportFlag(IntFlag):
    """What an export can do: the transmission flags."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    ROTATIONAL = 1 << 4
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_RESIZE = 1 << 9
    SEND_CACHE = 1 << 10
    SEND_FAST_ZERO = 1 << 11
    BLOCK_STATUS_PAYLOAD = 1 << 12


def pack_option(option: Opt, data: bytes = b"") -> bytes:
    """One option with its data."""
    return OPTION.pack(IHAVEOPT, option, len(data)) + data


def pack_export(name: bytes, infos: Sequence[Info]) -> bytes:
    """The data of GO and INFO: an export, and what we want to know of it."""
    wanted = b"".join(INFO.pack(info) for info in infos)
    return LENGTH.pack(len(name)) + name + INFO.pack(len(infos)) + wanted


# --- transmission ---------------------------------------------------------------------------

REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698

REQUEST = struct.Struct(">IHHQQI")  # magic, flags, command, cookie, offset, length
SIMPLE_REPLY = struct.Struct(">IIQ")  # magic, error, cookie


class Command(IntEnum):
    """What a request is for."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6


class CommandFlag(IntFlag):
    """How it shall be done."""

    FUA = 1 << 0
    NO_HOLE = 1 << 1
    FAST_ZERO = 1 << 4


class Error(IntEnum):
    """What a reply's error means. They are numbers of the protocol, not of this machine."""

    EPERM = 1
    EIO = 5
    ENOMEM = 12
    EINVAL = 22
    ENOSPC = 28
    EOVERFLOW = 75
    ENOTSUP = 95
    ESHUTDOWN = 108


def pack_request(
    command: Command, cookie: int = 0, offset: int = 0, length: int = 0, flags: int = 0
) -> bytes:
    """The header of one request; a WRITE's bytes follow it. Offset and length are bytes, ``flags``
    those of ``CommandFlag``.
    """
    return REQUEST.pack(REQUEST_MAGIC, flags, command, cookie, offset, length)
