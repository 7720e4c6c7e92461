"""A disk that grows with what stands behind it: the daemon asks once a second."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ublkd.control import Control, refuse_fixed_size
from ublkd.errors import UblkdError, reason
from ublkd.target import FOLLOW_SIZE, OptionValue, Target
from ublkd.uapi import Feature

SECONDS = 1.0


def wanted(options: Mapping[str, OptionValue]) -> bool:
    """Whether a device with these options grows so."""
    return bool(options.get(FOLLOW_SIZE.key))


def refuse_impossible(options: Mapping[str, OptionValue], offered: Feature) -> None:
    """Raise NotPossibleError for options that want it of a driver that cannot."""
    if wanted(options):
        refuse_fixed_size(offered)


def refuse_odd(size: int, block: int) -> None:
    """Raise UblkdError for what a target has said of its size, if no disk can have it (bytes)."""
    if size <= 0 or size % block:
        raise UblkdError(
            f"its target says that there are {size} bytes, and a disk has whole blocks of {block}",
            hint="see what stands behind it; a plug-in must round down to whole blocks",
        )


class Follower:
    """For a daemon's main thread. It never cuts a disk, and says each thing once."""

    def __init__(
        self, control: Control, dev_id: int, target: Target, log: Callable[[str], None]
    ) -> None:
        self._control, self._id, self._target, self._log = control, dev_id, target, log
        self._seen: int | None = None  # bytes that the disk could have, when it was last looked at
        self._said = ""

    def forget(self) -> None:
        """Nobody follows for now: the disk may have any size when somebody does again."""
        self._seen, self._said = None, ""

    def look(self) -> None:
        """Make the disk larger if it can be."""
        try:
            now = self._size_now()
            if now is None or now == self._seen:
                return
            params = self._control.get_params(self._id)
            disk = params.size
            if now > disk:
                refuse_odd(now, params.logical_block)
                self._control.update_size(self._id, now)
                self._say(f"has grown with what stands behind it, from {disk} to {now} bytes")
            elif now < disk:
                self._say(
                    f"has {disk} bytes, and what stands behind it {now} now: it is not cut, and "
                    "what lies beyond cannot be read"
                )
            self._seen = now
        except UblkdError as error:
            self._say(f"cannot follow the size of what stands behind it: {error.message}")

    def _size_now(self) -> int | None:
        hook: Callable[[], int | None] | None = getattr(self._target, "size_now", None)
        try:
            return hook() if hook else None
        except OSError as error:
            raise UblkdError(reason(error)) from error

    def _say(self, words: str) -> None:
        if words != self._said:
            self._log(f"/dev/ublkb{self._id} {words}")
        self._said = words
