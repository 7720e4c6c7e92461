"""A disk that grows with what stands behind it: the daemon asks once a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from queue import SimpleQueue

from ublkd.control import Control, refuse_fixed_size
from ublkd.errors import UblkdError, reason
from ublkd.target import FOLLOW_SIZE, OptionValue, Target
from ublkd.uapi import Feature

SECONDS = 1.0
PATIENCE_SECONDS = 0.2
"""How long the main thread waits for the size; whoever says it later is heard at the next look."""
SLOW_SECONDS = 10
"""When a size that does not come is worth a line in the log."""

Hook = Callable[[], int | None]


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


class _Question:
    """Asked of a target at some time, and answered or not yet."""

    def __init__(self) -> None:
        self.since = time.monotonic()
        self.done = threading.Event()
        self.size: int | None = None
        self.error: Exception | None = None


class _Asker:
    """A thread in which a target says its size: a file on a server that is gone makes it wait, and
    the main thread has the watchdog to feed.
    """

    def __init__(self, hook: Hook) -> None:
        """Raises UblkdError where no thread can be had."""
        self._hook = hook
        self._questions: SimpleQueue[_Question | None] = SimpleQueue()
        # it may hang for ever, which must not keep the process from ending
        self._thread = threading.Thread(target=self._serve, name="size", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            hint = "see 'ulimit -u', and TasksMax of its unit"
            raise UblkdError(f"there is no thread for it: {error}", hint=hint) from error

    def ask(self) -> _Question:
        question = _Question()
        self._questions.put(question)
        return question

    def end(self) -> None:
        """Wait a moment for it: the target is about to be closed."""
        self._questions.put(None)
        self._thread.join(PATIENCE_SECONDS)

    def _serve(self) -> None:
        for question in iter(self._questions.get, None):
            try:
                question.size = self._hook()
            except Exception as error:
                question.error = error
            question.done.set()


class Follower:
    """For a daemon's main thread, which never waits for what stands behind the disk. It never cuts
    a disk, and says each thing once.
    """

    def __init__(
        self, control: Control, dev_id: int, target: Target, log: Callable[[str], None]
    ) -> None:
        self._control, self._id, self._target, self._log = control, dev_id, target, log
        self._seen: int | None = None  # bytes that the disk could have, when it was last looked at
        self._said = ""
        self._asker: _Asker | None = None
        self._question: _Question | None = None

    def forget(self) -> None:
        """Nobody follows for now: the disk may have any size when somebody does again."""
        self._seen, self._said, self._question = None, "", None

    def close(self) -> None:
        """Ask no more."""
        if self._asker:
            self._asker.end()

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
        """None if it is not known, or not yet."""
        hook: Hook | None = getattr(self._target, "size_now", None)
        if hook is None:
            return None
        self._asker = self._asker or _Asker(hook)
        question = self._question = self._question or self._asker.ask()
        if not question.done.wait(PATIENCE_SECONDS):
            if time.monotonic() - question.since > SLOW_SECONDS:
                self._say("waits for what stands behind it to say its size, and does not grow")
            return None
        self._question = None
        try:
            if question.error:
                raise question.error
        except OSError as error:
            raise UblkdError(reason(error), hint="it is asked again") from error
        return question.size

    def _say(self, words: str) -> None:
        if words != self._said:
            self._log(f"/dev/ublkb{self._id} {words}")
        self._said = words
