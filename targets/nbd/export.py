"""What a server says of an export, what of it cannot be, and what becomes of it as a disk."""

from __future__ import annotations

from dataclasses import dataclass

from ublkd.errors import UblkdError, printable
from ublkd.target import Params
from ublkd.targets.nbd.wire import ExportFlag

SECTOR = 512
PAGE = 4096
"""The largest logical block that a disk can have here."""

MAX_SIZE = (1 << 63) - 1
MAX_MINIMUM = 64 << 10  # the protocol's
UNLIMITED = 0xFFFFFFFF
DEFAULT_MAXIMUM = 32 << 20
"""Bytes of one request that a server takes which names no sizes."""


class Refusal(UblkdError):
    """What the server did cannot be lived with. The message does not name the server."""


def shown(raw: bytes, most: int = 256) -> str:
    """What a server wrote, as a short line of valid text whatever it was."""
    text = printable(raw[:most].decode("utf-8", "backslashreplace"))
    return text + "..." if len(raw) > most else text


@dataclass(frozen=True)
class BlockSizes:
    """What the server wants of offsets and lengths, in bytes."""

    minimum: int
    preferred: int
    maximum: int


@dataclass(frozen=True, kw_only=True)
class Export:
    """An export as the server described it. Sizes in bytes.

    Made by ``checked``, so what it says can be. What the server did not say is not there.
    """

    name: str  # as the URI has it
    size: int
    flags: ExportFlag
    sizes: BlockSizes | None = None
    description: str = ""

    @property
    def block(self) -> int:
        """The logical block of the disk."""
        return max(SECTOR, self.sizes.minimum) if self.sizes else SECTOR

    @property
    def preferred(self) -> int:
        """What it is best read and written in."""
        return max(self.block, self.sizes.preferred) if self.sizes else self.block

    @property
    def maximum(self) -> int:
        """The longest request, in whole blocks."""
        most = self.sizes.maximum if self.sizes else DEFAULT_MAXIMUM
        return most // self.block * self.block

    @property
    def disk_size(self) -> int:
        """The bytes of it that are whole blocks."""
        return self.size // self.block * self.block

    @property
    def left_out(self) -> int:
        """The bytes behind the last whole block."""
        return self.size - self.disk_size

    @property
    def read_only(self) -> bool:
        """Whether it takes no writes."""
        return ExportFlag.READ_ONLY in self.flags

    @property
    def flush(self) -> bool:
        """Whether it has a cache that can be flushed."""
        return ExportFlag.SEND_FLUSH in self.flags

    @property
    def fua(self) -> bool:
        """Whether a write can be durable by itself; Linux has no use for it without a flush."""
        return self.flush and ExportFlag.SEND_FUA in self.flags

    @property
    def trim(self) -> bool:
        """Whether it takes discards."""
        return not self.read_only and ExportFlag.SEND_TRIM in self.flags

    @property
    def write_zeroes(self) -> bool:
        """Whether zeroes can be written without sending them."""
        return not self.read_only and ExportFlag.SEND_WRITE_ZEROES in self.flags

    @property
    def rotational(self) -> bool:
        """Whether seeking costs."""
        return ExportFlag.ROTATIONAL in self.flags

    @property
    def multi_conn(self) -> bool:
        """Whether a flush on one connection covers the writes of all."""
        return ExportFlag.CAN_MULTI_CONN in self.flags


def checked(export: Export) -> Export:
    """The same. Raises Refusal if it says what cannot be, or what cannot be a disk."""
    if ExportFlag.HAS_FLAGS not in export.flags:
        raise Refusal(
            f"the server sends export flags {int(export.flags):#x}, without HAS_FLAGS",
            hint="its answer makes no sense: the server is at fault",
        )
    if not 0 < export.size <= MAX_SIZE:
        raise Refusal(
            "the export is empty" if not export.size
            else f"the export has {export.size} bytes, and no disk can have 2^63 or more",
            hint="see the size of what the server serves",
        )  # fmt: skip
    if export.sizes:
        _check(export.sizes, export.size)
    if not export.disk_size:
        raise Refusal(
            f"the export has {export.size} bytes, less than one block of {export.block}",
            hint="see the size of what the server serves",
        )
    return export


def worse(
    new: Export, old: Export, params: Params, connections: int, *, least: int | None = None
) -> str:
    """Why an export that came back cannot stand for what the kernel was told; empty if it can.

    It must be as large as before, or with ``least`` have so many bytes and not less than before.
    """
    longest = max(params.max_discard, params.max_write_zeroes, params.max_io)
    if new.disk_size != old.disk_size and (least is None or new.disk_size < old.disk_size):
        return f"it has {new.disk_size} bytes and had {old.disk_size}"
    if least is not None and new.disk_size < least:
        return f"it has {new.disk_size} bytes, and the disk shall have {least}"
    if new.read_only and not params.read_only:
        return "it is read-only now"
    if new.block > params.logical_block:
        return f"it wants blocks of {new.block} bytes now and had {old.block}"
    if new.maximum < longest:
        return f"it takes {new.maximum} bytes at once now, and the disk asks for up to {longest}"
    for name in () if params.read_only else ("flush", "fua", "trim", "write_zeroes"):
        if getattr(old, name) and not getattr(new, name):
            return f"it cannot {name.replace('_', ' ')} any more"
    if connections > 1 and not new.multi_conn:
        return "it cannot be reached over several connections any more"
    return ""


def _check(sizes: BlockSizes, export_size: int) -> None:
    low, best, most = sizes.minimum, sizes.preferred, sizes.maximum
    wrong = ""
    if not 1 <= low <= MAX_MINIMUM or low & (low - 1):
        wrong = f"{low} at least, which is no power of two from 1 to {MAX_MINIMUM}"
    elif best < max(SECTOR, low) or best & (best - 1):
        wrong = f"{best} preferred, which is no power of two from {max(SECTOR, low)} on"
    elif most != UNLIMITED and (most % low or most < min(best, export_size)):
        wrong = f"{most} at most, with {low} at least and {best} preferred"
    elif low > PAGE:
        raise Refusal(
            f"the server wants requests in blocks of {low} bytes, and a disk here has {PAGE} at "
            "most",
            hint="serve it with a smaller minimum block size",
        )
    elif most < max(SECTOR, low):
        wrong = f"{most} at most, less than a block of {max(SECTOR, low)}"
    if wrong:
        raise Refusal(
            f"the server's block sizes cannot be: {wrong}",
            hint="its answer makes no sense: the server is at fault",
        )
