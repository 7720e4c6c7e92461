"""The null target: a disk that forgets what is written and reads as zeroes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

from ublkd._core import ffi, lib
from ublkd.errors import UblkdError, reason
from ublkd.target import API_VERSION, BLOCK_SIZE, Native, Option, OptionValue, Params

UNBOUNDED = 0xFFFFFFFF // 512 * 512
"""Bytes: the most that one request without data can name, in the driver's 32-bit sectors."""


class NullTarget:
    """Needs nothing from its machine: for measuring ublkd itself, and for trying it out."""

    api_version: ClassVar[int] = API_VERSION
    options: ClassVar[Sequence[Option]] = (
        Option(
            name="size",
            help="size of the disk (default 250G)",
            kind="size",
            default=250 << 30,
            minimum=4096,
            maximum=1 << 60,
            is_size=True,
        ),
        BLOCK_SIZE,
    )

    def __init__(self, size: int, block: int) -> None:
        """``size`` and ``block`` in bytes; raises UblkdError where there is no /dev/zero."""
        usable = size - size % block
        self.params = Params(
            size=usable,
            logical_block=block,
            physical_block=block,
            io_min=block,
            io_opt=block,
            volatile_cache=True,
            fua=True,
            discard_granularity=block,
            max_discard=UNBOUNDED,
            max_write_zeroes=UNBOUNDED,
            recovery="reissue",
        )
        try:
            self._zero = os.open("/dev/zero", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise UblkdError(
                f"cannot open /dev/zero: {reason(error)}", hint="is /dev mounted?"
            ) from error

    @classmethod
    def from_options(cls, options: Mapping[str, OptionValue]) -> Self:
        """The options ``size`` and ``block_size``, bytes."""
        size, block = options["size"], options["block_size"]
        assert isinstance(size, int)
        return cls(size, block if isinstance(block, int) else 512)

    def files(self) -> Sequence[int]:
        """/dev/zero: what reads are filled from."""
        return (self._zero,)

    def native(self) -> Native:
        """See null.c."""
        return Native(lib.null_ops(), ffi.NULL)

    def describe(self) -> Mapping[str, OptionValue]:
        """Nothing stands behind it."""
        return {}

    def size_now(self) -> int:
        """What was asked for."""
        return self.params.size

    def close(self) -> None:
        """Let go of /dev/zero."""
        os.close(self._zero)
