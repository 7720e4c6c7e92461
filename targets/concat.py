"""The concat target: several files, one behind the other, as one disk.

All of it is Python, and no byte passes through it: each request becomes members that work on the
request's own pages.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import ClassVar, Self

from ublkd.errors import UblkdError, printable
from ublkd.target import API_VERSION, Group, IoDesc, Op, Option, OptionValue
from ublkd.targets.legs import Legs, options_for

MOST = 64
PUNCH_HOLE = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE


class ConcatTarget:
    """The first file's bytes, then the second's, and so on."""

    api_version: ClassVar[int] = API_VERSION
    options: ClassVar[Sequence[Option]] = options_for(MOST)

    def __init__(self, legs: Legs) -> None:
        """Takes the legs over, to close them."""
        self._legs = legs
        try:
            block = legs.block
            sizes = [backing.size // block * block for backing in legs.backings]
            for backing, size in zip(legs.backings, sizes, strict=True):
                if not size:
                    raise UblkdError(
                        f"{printable(backing.path)} has less than one block of {block} bytes",
                        hint=backing.how_to_grow,
                    )
            self._starts = [0, *accumulate(sizes)]
            self._left_out = sum(b.size for b in legs.backings) - self._starts[-1]
            self.params = legs.params(self._starts[-1], block, max_members=len(sizes), io_opt=0)
        except BaseException:
            legs.close()
            raise
        self._punches = self.params.max_discard > 0 and not any(
            backing.is_block_device for backing in legs.backings
        )

    @classmethod
    def from_options(cls, options: Mapping[str, OptionValue]) -> Self:
        """The options above, by key. Raises UblkdError with the cause."""
        return cls(Legs.from_options(options))

    def files(self) -> Sequence[int]:
        """The backings, in their order."""
        return self._legs.files()

    def describe(self) -> Mapping[str, OptionValue]:
        """The backings."""
        told = self._legs.describe()
        # where one ends and the next begins is what the disk is
        told["identity"] = tuple(
            f"{backing.identity} from byte {start}"
            for backing, start in zip(self._legs.backings, self._starts, strict=False)
        )
        if self._left_out:
            told["warning"] = f"{self._left_out} bytes behind the last whole blocks are left out"
        return told

    def close(self) -> None:
        """Let go of the backings."""
        self._legs.close()

    # --- serving ----------------------------------------------------------------------------

    def submit(self, io: IoDesc, group: Group) -> None:
        """One member for each file that the request touches."""
        if io.op is Op.FLUSH:
            for file in range(len(self._legs.backings)):
                group.fsync(file)
            return
        for file, offset, length, at in self._parts(io):
            if io.op is Op.READ:
                group.read(file, offset, length, at)
            elif io.op is Op.WRITE:
                group.write(file, offset, length, at)
            elif io.op is Op.DISCARD:
                self._discard(group, file, offset, length)
            elif io.keep_space or io.fua or not self._punches:
                group.zeroes(file, offset, length)
            else:
                group.fallocate(file, PUNCH_HOLE, offset, length)

    def _discard(self, group: Group, file: int, offset: int, length: int) -> None:
        if self._legs.backings[file].is_block_device:
            group.discard(file, offset, length)
        else:
            group.fallocate(file, PUNCH_HOLE, offset, length)

    def _parts(self, io: IoDesc) -> Iterator[tuple[int, int, int, int]]:
        """File, offset in it, length, and where in the request: for each file it touches."""
        position, end = io.offset, io.offset + io.length
        file = bisect_right(self._starts, position) - 1
        while position < end:
            length = min(end, self._starts[file + 1]) - position
            yield file, position - self._starts[file], length, position - io.offset
            position += length
            file += 1
