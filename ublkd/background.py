"""A daemon as the one who starts it sees it: forked, heard, ended."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import syslog
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from ublkd import aside
from ublkd.aside import LAST_SECONDS
from ublkd.errors import BY_EXIT_CODE, UblkdError, internal, printable, trace_of

HEAR_SECONDS = 120
"""How long a message may take, beside what its task is known to take. Each step of a daemon has a
shorter deadline of its own."""

Log = Callable[[str], None]
Tell = Callable[[Mapping[str, Any]], None]
Task = Callable[[Tell, Log], None]
"""A daemon's life: it tells its starter what that waits for, and logs."""


class Child:
    """A context manager: the process goes on after it, unless it is ended."""

    def __init__(self, task: Task, *keep: int, messages: int = 1) -> None:
        """``keep`` are descriptors that the daemon needs; ``messages``: so many it will tell."""
        self._read_end, write_end = os.pipe2(os.O_CLOEXEC)
        # an interrupt right behind the fork would leave a daemon that nobody ends
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        self.pid = os.fork()
        if self.pid == 0:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
            os.close(self._read_end)
            _live(task, write_end, keep, messages)
        os.close(write_end)

    def __enter__(self) -> Self:
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        except BaseException:
            self.end()
            os.close(self._read_end)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._read_end)

    def hear(self, task_seconds: float = 0.0) -> dict[str, Any]:
        """Its next message, whole. Raises the daemon's own error, or one that says how it died."""
        seconds = HEAR_SECONDS + task_seconds
        until, raw = time.monotonic() + seconds, b""
        while not raw.endswith(b"\n"):
            left = max(0.0, until - time.monotonic())
            if not select.select([self._read_end], [], [], left)[0]:
                raise UblkdError(
                    f"the daemon (process {self.pid}) was not ready within {seconds:g} seconds",
                    hint="see the system log for ublkd, and dmesg",
                )
            part = os.read(self._read_end, 65536)
            if not part:
                raise UblkdError(
                    f"the daemon died before it was ready ({_how_it_died(self.pid)})",
                    hint="see the system log for ublkd; was it killed for lack of memory?",
                )
            raw += part
        said: dict[str, Any] = json.loads(raw)
        if "error" in said:
            self._ends_within(2 * LAST_SECONDS)  # its last words are for the log
            raise BY_EXIT_CODE.get(said["exit_code"], UblkdError)(said["error"], hint=said["hint"])
        return said

    def end(self) -> None:
        """End a daemon that is of no use, with its device: gently, then not."""
        self._end_by((signal.SIGTERM, 30.0), (signal.SIGKILL, 10.0))

    def kill(self) -> None:
        """End a daemon and leave its device as it is."""
        self._end_by((signal.SIGKILL, 10.0))

    def _end_by(self, *steps: tuple[signal.Signals, float]) -> None:
        if self._ends_within(0):
            return
        for number, seconds in steps:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return
            if self._ends_within(seconds):
                return

    def _ends_within(self, seconds: float) -> bool:
        """Whether it has ended by then."""
        until = time.monotonic() + seconds
        while True:
            try:
                if os.waitpid(self.pid, os.WNOHANG)[0]:
                    return True
            except ChildProcessError:  # reaped already: the number may be somebody else's by now
                return True
            if time.monotonic() >= until:
                return False
            time.sleep(0.02)


def _how_it_died(pid: int) -> str:
    status = os.waitpid(pid, 0)[1]
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exit status {code}"
    named = -code in {int(number) for number in signal.Signals}
    return f"signal {signal.Signals(-code).name if named else -code}"


# --- in the child ---------------------------------------------------------------------------


def _live(task: Task, write_end: int, keep: tuple[int, ...], messages: int) -> None:
    """The child's whole life. Never returns."""
    code = 1
    try:
        _detach(write_end, *keep)
        syslog.openlog("ublkd", syslog.LOG_PID, syslog.LOG_DAEMON)
        code = _report(task, write_end, messages)
    finally:
        os._exit(code)  # the parent's clean-up is the parent's


def _detach(*keep: int) -> None:
    os.setsid()
    os.chdir("/")
    os.umask(0o077)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    keep_these = sorted({0, 1, 2, *keep})
    for low, high in zip(keep_these, [*keep_these[1:], 1 << 20], strict=True):
        os.closerange(low + 1, high)


def _report(task: Task, write_end: int, messages: int) -> int:
    def tell(message: Mapping[str, Any]) -> None:
        nonlocal messages
        if not messages:
            return
        messages -= 1
        try:
            os.write(write_end, json.dumps(message).encode() + b"\n")
        finally:
            if not messages:
                os.close(write_end)

    try:
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        task(tell, lambda line: syslog.syslog(syslog.LOG_INFO, printable(line)))
    except Exception as error:
        known = error if isinstance(error, UblkdError) else internal(error)
        with contextlib.suppress(OSError):  # nobody listens any more
            tell({"error": known.message, "hint": known.hint, "exit_code": known.exit_code})
        aside.within(LAST_SECONDS, lambda: _last_words(known))
        return known.exit_code
    return 0


def _last_words(error: UblkdError) -> None:
    for line in [*trace_of(error), error.message]:
        syslog.syslog(syslog.LOG_ERR, printable(line))
