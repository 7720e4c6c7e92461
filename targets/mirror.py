"""The mirror target: the same on several files. Decides here; mirror.c serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from ublkd._core import ffi, lib
from ublkd.errors import UblkdError
from ublkd.target import API_VERSION, Native, Option, OptionValue
from ublkd.targets.legs import Legs, options_for


class MirrorTarget:
    """Writes go to every file, reads come from the first that works.

    A file that fails is done without for as long as the device lives; ``show`` names it. Nothing
    is written down about that: a file that was left behind must not be given again.
    """

    api_version: ClassVar[int] = API_VERSION
    options: ClassVar[Sequence[Option]] = options_for(lib.MIRROR_MAX_LEGS)

    def __init__(self, legs: Legs) -> None:
        """Takes the legs over, to close them."""
        self._legs = legs
        try:
            size, self._warning = legs.smallest(legs.block)
            self.params = legs.params(size, legs.block, max_members=1, io_opt=0)
        except BaseException:
            legs.close()
            raise
        self._handle = ffi.new("struct mirror *")
        legs.fill_in(self._handle)

    @classmethod
    def from_options(cls, options: Mapping[str, OptionValue]) -> Self:
        """The options above, by key. Raises UblkdError with the cause."""
        return cls(Legs.from_options(options))

    def files(self) -> Sequence[int]:
        """The backings, in their order."""
        return self._legs.files()

    def native(self) -> Native:
        """See mirror.c."""
        return Native(lib.mirror_ops(), self._handle)

    def describe(self) -> Mapping[str, OptionValue]:
        """The backings."""
        told = self._legs.describe()
        return told | ({"warning": self._warning} if self._warning else {})

    def size_now(self) -> int:
        """Of the smallest backing at this moment."""
        return self._legs.smallest(self._legs.block)[0]

    def recovered(self, counters: Sequence[Mapping[str, Any]]) -> None:
        """What the daemon before did without may lack what the others have."""
        if not counters:
            raise UblkdError(
                "the counters of its daemon before are gone, and with them which files it did "
                "without",
                hint="delete the device, and make the files the same before they are used again",
            )
        for queue in counters:
            self._handle.failed |= queue["failed_files"] >> 1  # leg n is fixed file n + 1

    def close(self) -> None:
        """Let go of the backings."""
        self._legs.close()
