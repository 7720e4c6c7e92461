"""Several backings behind one disk: what stripe and mirror have in common."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Self

from ublkd._core import lib
from ublkd.errors import UblkdError, printable
from ublkd.target import BLOCK_SIZE, Option, OptionValue, Params
from ublkd.targets.backing import UNBOUNDED, Backing, apart


def options_for(most: int) -> tuple[Option, ...]:
    """The options of a target that takes at most so many."""
    return (
        Option(
            name="file",
            help="a file or block device; give it once for each",
            kind="path",
            required=True,
            multiple=True,
            minimum=2,
            maximum=most,
            exclusive=True,
        ),
        Option(
            name="direct-io",
            help="bypass the page cache of the backings: auto (default), on, off",
            kind="choice",
            choices=("auto", "on", "off"),
            default="auto",
        ),
        Option(
            name="share",
            help="serve the backings even if another program has them in use",
            kind="flag",
            default=False,
        ),
        BLOCK_SIZE,
    )


class Legs:
    """The open backings, in their order."""

    def __init__(self, backings: Sequence[Backing]) -> None:
        """Takes them over, to close them."""
        self.backings = backings

    @classmethod
    def from_options(cls, options: Mapping[str, OptionValue]) -> Self:
        """Open every ``file``. Raises UblkdError with the cause; nothing stays open then."""
        paths = options["file"]
        assert isinstance(paths, tuple)
        _refuse_twice(paths)
        block = options["block_size"]
        with ExitStack() as undo:
            backings: list[Backing] = []
            for path in paths:
                backing = Backing(
                    path,
                    direct_io=str(options["direct_io"]),
                    share=bool(options["share"]),
                    block=block if isinstance(block, int) else None,
                )
                undo.callback(backing.close)
                backings.append(backing)
            undo.pop_all()
        return cls(backings)

    @property
    def block(self) -> int:
        """Bytes of a block that suits them all.

        A request is cut at blocks, so a block also keeps to what direct I/O wants of memory.
        """
        return max(max(b.access.block, b.access.mem_align) for b in self.backings)

    def smallest(self, multiple: int) -> tuple[int, str]:
        """Bytes that each of them has, in whole ``multiple``, and a warning if some have more."""
        sizes = [backing.size for backing in self.backings]
        size = min(sizes) // multiple * multiple
        if size == 0:
            poor = self.backings[sizes.index(min(sizes))]
            raise UblkdError(
                f"{printable(poor.path)} has {min(sizes)} bytes, less than {multiple}",
                hint=poor.how_to_grow,
            )
        over = sum(sizes) - size * len(sizes)
        return size, f"{over} bytes of the larger ones are left out" if over else ""

    def params(self, size: int, block: int, *, max_members: int, io_opt: int) -> Params:
        """The disk of ``size`` bytes that they make."""
        physical = max(block, *(backing.physical_block for backing in self.backings))
        discards = [backing.discard() for backing in self.backings]
        return Params(
            size=size,
            logical_block=block,
            physical_block=physical,
            io_min=physical,
            io_opt=max(physical, io_opt),
            dma_align=max(backing.access.mem_align for backing in self.backings),
            io_align=max(backing.access.io_align for backing in self.backings),
            rotational=any(backing.rotational for backing in self.backings),
            volatile_cache=True,
            fua=True,
            discard_granularity=max(granularity for granularity, _ in discards),
            max_discard=min(most for _, most in discards),
            max_write_zeroes=UNBOUNDED,
            max_members=max(max_members, len(self.backings) * lib.BACKING_MAX_MEMBERS),
            recovery="reissue",
        )

    def fill_in(self, handle: Any) -> None:
        """Tell the C side what it must know of each."""
        handle.nr_legs = len(self.backings)
        for leg, backing in enumerate(self.backings):
            handle.legs[leg].block_device = backing.is_block_device

    def files(self) -> Sequence[int]:
        """Their descriptors."""
        return [backing.fd for backing in self.backings]

    def describe(self) -> dict[str, OptionValue]:
        """What is told of them."""
        told: dict[str, OptionValue] = {
            "backing": tuple(backing.path for backing in self.backings),
            "direct_io": all(backing.access.direct for backing in self.backings),
            "direct_io_reason": tuple(backing.access.reason for backing in self.backings),
        }
        return told | apart(self.backings)

    def close(self) -> None:
        """Let go of them all."""
        for backing in self.backings:
            backing.close()


def _refuse_twice(paths: Sequence[str]) -> None:
    """Before any is opened: our own lock on one would look like another program's."""
    seen: dict[tuple[int, int], str] = {}
    for path in paths:
        try:
            found = os.stat(path)
        except OSError:
            continue  # opening it says what is wrong
        key = (0, found.st_rdev) if stat.S_ISBLK(found.st_mode) else (found.st_dev, found.st_ino)
        if key in seen:
            raise UblkdError(
                f"{printable(path)} and {printable(seen[key])} are the same file",
                hint="each --file needs one of its own",
            )
        seen[key] = path
