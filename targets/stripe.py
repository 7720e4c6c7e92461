"""The stripe target: a disk laid over several files in turns. Decides here; stripe.c serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

from ublkd._core import ffi, lib
from ublkd.errors import UsageError
from ublkd.target import API_VERSION, Native, Option, OptionValue
from ublkd.targets.legs import Legs, options_for

WHOLE = 1 << 20
"""Bytes of a request that is served in one go; the rest of a larger one comes back as a new one."""


class StripeTarget:
    """Chunk 0 is on the first file, chunk 1 on the second, and so on in turns."""

    api_version: ClassVar[int] = API_VERSION
    options: ClassVar[Sequence[Option]] = (
        *options_for(lib.STRIPE_MAX_LEGS),
        Option(
            name="chunk",
            help="bytes on one file before the next one's turn (default 64K)",
            kind="size",
            default=64 << 10,
            minimum=512,
            maximum=1 << 30,
            power_of_two=True,
        ),
    )

    def __init__(self, legs: Legs, chunk: int) -> None:
        """``chunk`` in bytes. Takes the legs over, to close them."""
        self._legs = legs
        self._chunk = chunk
        try:
            _refuse_small(chunk, legs.block)
            size, self._warning = legs.smallest(chunk)
            count = len(legs.backings)
            self.params = legs.params(
                size * count,
                legs.block,
                max_members=WHOLE // chunk + 2,
                io_opt=min(chunk * count, 1 << 27),
            )
        except BaseException:
            legs.close()
            raise
        self._handle = ffi.new("struct stripe *")
        self._handle.chunk = chunk
        legs.fill_in(self._handle)

    @classmethod
    def check_options(cls, options: Mapping[str, OptionValue]) -> None:
        """The chunk beside the block that was asked for. Raises UsageError."""
        chunk, block = options["chunk"], options["block_size"]
        if isinstance(chunk, int) and isinstance(block, int):
            _refuse_small(chunk, block)

    @classmethod
    def from_options(cls, options: Mapping[str, OptionValue]) -> Self:
        """The options above, by key. Raises UblkdError with the cause."""
        chunk = options["chunk"]
        assert isinstance(chunk, int)
        return cls(Legs.from_options(options), chunk)

    def files(self) -> Sequence[int]:
        """The backings, in their order."""
        return self._legs.files()

    def native(self) -> Native:
        """See stripe.c."""
        return Native(lib.stripe_ops(), self._handle)

    def describe(self) -> Mapping[str, OptionValue]:
        """The backings, and how they are laid out."""
        told = self._legs.describe() | {"chunk": self._chunk}
        return told | ({"warning": self._warning} if self._warning else {})

    def size_now(self) -> int:
        """Of the backings as they are at this moment; what is on a chunk stays where it is."""
        return self._legs.smallest(self._chunk)[0] * len(self._legs.backings)

    def close(self) -> None:
        """Let go of the backings."""
        self._legs.close()


def _refuse_small(chunk: int, block: int) -> None:
    if chunk < block:
        raise UsageError(
            f"--chunk {chunk} is less than one block of {block} bytes",
            hint=f"a power of two from {block}",
        )
