"""Tells systemd that a daemon is alive for as long as each of its queues makes turns.

An idle queue makes one when it is poked. What stands behind a disk is no matter: a queue that waits
for a server waits in its ring, and turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

AGAIN_SECONDS = 1.0
"""How soon it is looked again at queues that have not turned."""


class Watchdog:
    """``poke`` has each queue make a turn and gives the turns so far; ``feed`` tells systemd."""

    def __init__(
        self,
        seconds: float,
        poke: Callable[[], Sequence[int]],
        feed: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``seconds``: systemd ends the daemon if it is not fed for so long."""
        self._pause, self._poke, self._feed, self._clock = seconds / 2, poke, feed, clock
        self._seen = poke()
        self._due = clock() + self._pause

    def look(self) -> float:
        """Feed it, if that is due and every queue has made a turn; seconds until it is due again.

        A queue has a whole pause to make its turn: half of what systemd allows. It may take longer,
        and then this is fed as soon as it is seen to turn.
        """
        now = self._clock()
        if now >= self._due:
            turns = self._poke()
            if all(new != old for new, old in zip(turns, self._seen, strict=True)):
                self._feed()
                self._seen = turns
                self._due = now + self._pause
            else:
                self._due = now + min(AGAIN_SECONDS, self._pause)
        return max(0.0, self._due - now)
