"""The loop target: a file or a block device as a disk. Decides here; loop.c serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

from ublkd._core import ffi, lib
from ublkd.errors import UblkdError, printable
from ublkd.target import (
    API_VERSION,
    BLOCK_SIZE,
    FOLLOW_SIZE,
    Native,
    Option,
    OptionValue,
    Params,
)
from ublkd.targets.backing import UNBOUNDED, Backing, apart, refuse_odd


class LoopTarget:
    """See docs/architecture.md for how a request travels through it."""

    api_version: ClassVar[int] = API_VERSION
    options: ClassVar[Sequence[Option]] = (
        Option(
            name="file",
            help="a file or block device to serve",
            kind="path",
            required=True,
            exclusive=True,
        ),
        Option(
            name="direct-io",
            help="bypass the page cache of the backing: auto (default), on, off",
            kind="choice",
            choices=("auto", "on", "off"),
            default="auto",
        ),
        Option(
            name="offset",
            help="where in the backing the disk starts (default 0)",
            kind="size",
            default=0,
            multiple_of=512,
        ),
        Option(
            name="sizelimit",
            help="how much of the backing the disk covers at most (default all)",
            kind="size",
            minimum=512,
            multiple_of=512,
            is_size=True,
        ),
        Option(name="read-only", help="never write", kind="flag", default=False),
        Option(
            name="share",
            help="serve the backing even if another program has it in use",
            kind="flag",
            default=False,
        ),
        FOLLOW_SIZE,
        BLOCK_SIZE,
    )

    def __init__(self, backing: Backing, *, offset: int = 0, sizelimit: int | None = None) -> None:
        """``offset`` and ``sizelimit`` in bytes. Takes the backing over, to close it."""
        self._backing = backing
        self._offset = offset
        self._sizelimit = sizelimit
        try:
            self.params, self._warning = self._describe_disk()
        except BaseException:
            backing.close()
            raise
        self._handle = ffi.new("struct loop *")
        self._handle.offset = offset
        self._handle.read_only = backing.read_only
        self._handle.backing.block_device = backing.is_block_device

    @classmethod
    def check_options(cls, options: Mapping[str, OptionValue]) -> None:
        """The offset beside the block that was asked for. Raises UsageError."""
        offset, block = options["offset"], options["block_size"]
        if isinstance(offset, int) and isinstance(block, int):
            refuse_odd(offset, block)

    @classmethod
    def from_options(cls, options: Mapping[str, OptionValue]) -> Self:
        """The options above, by key. Raises UblkdError with the cause."""
        block, offset, limit = (options[k] for k in ("block_size", "offset", "sizelimit"))
        start = offset if isinstance(offset, int) else 0
        backing = Backing(
            str(options["file"]),
            direct_io=str(options["direct_io"]),
            read_only=bool(options["read_only"]),
            share=bool(options["share"]),
            block=block if isinstance(block, int) else None,
            offset=start,
        )
        return cls(backing, offset=start, sizelimit=limit if isinstance(limit, int) else None)

    def files(self) -> Sequence[int]:
        """The backing."""
        return (self._backing.fd,)

    def native(self) -> Native:
        """See loop.c."""
        return Native(lib.loop_ops(), self._handle)

    def describe(self) -> Mapping[str, OptionValue]:
        """The backing, and how it is accessed."""
        told: dict[str, OptionValue] = {
            "backing": self._backing.path,
            "direct_io": self._backing.access.direct,
            "direct_io_reason": self._backing.access.reason,
            "read_only": self._backing.read_only,
            "offset": self._offset,
        }
        told |= {key: value for key, (value,) in apart([self._backing]).items()}
        if self._warning:
            told["warning"] = self._warning
        return told

    def size_now(self) -> int:
        """Of the backing as it is at this moment; loop.c knows no end."""
        whole = self._whole()
        return whole - whole % self._backing.access.block

    def changed(self, options: Mapping[str, OptionValue]) -> None:
        """Only the limit says something here."""
        limit = options["sizelimit"]
        self._sizelimit = limit if isinstance(limit, int) else None

    def close(self) -> None:
        """Let go of the backing."""
        self._backing.close()

    def _whole(self) -> int:
        behind = max(0, self._backing.size - self._offset)
        return behind if self._sizelimit is None else min(behind, self._sizelimit)

    def _describe_disk(self) -> tuple[Params, str]:
        backing, block = self._backing, self._backing.access.block
        whole = self._whole()
        size = whole - whole % block
        if size == 0:
            behind = f" behind offset {self._offset}" if self._offset else ""
            raise UblkdError(
                f"{printable(backing.path)} has {whole} bytes{behind}, less than one block of "
                f"{block}",
                hint="give a smaller --offset" if self._offset else backing.how_to_grow,
            )
        warning = ""
        if size != whole:
            warning = f"the last {whole - size} bytes are not a whole block and are left out"
        granularity, max_discard = backing.discard()
        params = Params(
            size=size,
            logical_block=block,
            physical_block=backing.physical_block,
            io_min=backing.physical_block,
            io_opt=backing.physical_block,
            dma_align=backing.access.mem_align,
            io_align=backing.access.io_align,
            read_only=backing.read_only,
            rotational=backing.rotational,
            volatile_cache=not backing.read_only,
            fua=not backing.read_only,
            discard_granularity=granularity,
            max_discard=max_discard,
            max_write_zeroes=0 if backing.read_only else UNBOUNDED,
            max_members=lib.BACKING_MAX_MEMBERS,
            recovery="reissue",
        )
        return params, warning
