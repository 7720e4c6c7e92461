"""What the user said of the connections of a disk."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ublkd.targets.nbd.uri import Uri


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the user said of connections. Times in seconds, ``math.inf`` for ever."""

    uri: Uri
    connections: int = 1
    open_timeout: float = 30.0
    timeout: float = math.inf  # of a request
    window: float = 30.0
    after_reconnect: str = "replay"
    follow: bool = False  # whether an export that has grown is one to go on with

    @property
    def doubts(self) -> bool:
        """Whether what no flush has covered may be lost with a connection; else the next one's
        flush says so.
        """
        return self.after_reconnect != "trust"

    @property
    def timeout_ns(self) -> int:
        """As C has it."""
        return _ns(self.timeout)

    @property
    def window_ns(self) -> int:
        """As C has it."""
        return _ns(self.window)


def gathered(settings: Settings) -> int:
    """Bytes of the largest write that goes out with a copy of its data: what costs less than an
    operation more, or two where the journal needs the copy as well (docs/benchmarks.md).
    """
    return (16 << 10) if settings.after_reconnect == "replay" else (4 << 10)


def _ns(seconds: float) -> int:
    """Nanoseconds, where 0 is for ever; no time at all is the least that is not."""
    return 0 if seconds == math.inf else max(1, int(seconds * 1e9))
