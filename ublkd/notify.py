"""What systemd hears of a daemon, and what it says to one: sd_notify(3), sd_watchdog_enabled(3).
And the levels of lines on standard error: sd-daemon(3).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

SEND_SECONDS = 1.0
"""How long a message may wait for room; then it is lost."""
ERROR, WARNING, INFO = 3, 4, 6
"""Levels of syslog(3)."""


class Notifier:
    """Tells systemd, if it wants to be told. Never fails: it is no reason not to serve."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")

    @property
    def wanted(self) -> bool:
        """Whether anybody listens."""
        return self._address[:1] in ("/", "@")

    def ready(self, status: str) -> None:
        """The disk can be opened."""
        self._send(f"READY=1\nSTATUS={status}")

    def status(self, line: str) -> None:
        """What ``systemctl status`` shows."""
        self._send(f"STATUS={line}")

    def extend(self, seconds: float) -> None:
        """The start or the stop takes so much longer, from now on."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}")

    def stopping(self, status: str) -> None:
        """The end has begun."""
        self._send(f"STOPPING=1\nSTATUS={status}")

    def alive(self) -> None:
        """Feed the watchdog."""
        self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if not self.wanted:
            return
        import socket  # not for those who only have a line to say

        # an address of the abstract kind begins with a zero byte
        address = b"\0" + os.fsencode(self._address[1:])
        if self._address.startswith("/"):
            address = os.fsencode(self._address)
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender,
        ):
            sender.settimeout(SEND_SECONDS)
            sender.sendto(message.encode("utf-8", "backslashreplace"), address)


def watchdog_seconds(environ: Mapping[str, str] = os.environ) -> float | None:
    """How often systemd wants to be told that this process is alive; None: it does not care."""
    pid, period = environ.get("WATCHDOG_PID", ""), environ.get("WATCHDOG_USEC", "")
    if pid not in ("", str(os.getpid())) or not (period.isascii() and period.isdecimal()):
        return None
    return int(period) / 1_000_000 or None


def is_journal(fd: int = 2, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a descriptor leads to the journal, which reads levels: systemd.exec(5)."""
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def levelled(line: str, level: int) -> str:
    """The line with its level for the journal, if standard error leads there."""
    return f"<{level}>{line}" if is_journal() else line
