"""What changes of a device that is there: written down, told to its daemon, and answered.

Whoever changes something raises the revision in the device's file and sends CHANGED. The daemon
reads the file, goes by it, and writes down which revision it has looked at and what was wrong with
it. What it does not go by is taken back.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from ublkd import config, process
from ublkd.device import Device
from ublkd.errors import UblkdError, printable, told
from ublkd.manage import Found, gone
from ublkd.state import DeviceState, StateDir
from ublkd.target import OptionValue

CHANGED = signal.SIGRTMIN + 1
"""Tells a daemon that its device's file has changed."""
ANSWER_SECONDS = 30
LOOK_SECONDS = 0.02
LOCK_SECONDS, AGAIN_SECONDS = 0.2, 1.0
"""How long a daemon waits for the folder's lock, and when it tries again."""

Edit = Callable[[DeviceState], DeviceState]
Log = Callable[[str], None]

# --- whoever changes something --------------------------------------------------------------


def change(states: StateDir, found: Found, edit: Edit) -> None:
    """Change what is remembered of a device, and have its daemon go by it, if it has one.

    For whoever holds ``states.changing``. Raises UblkdError, and all is as it was then: a daemon
    that is late goes by that.
    """
    before = states.read(found.info.id)
    if before is None:
        raise _lost(found)
    try:
        asked = ask(states, found, edit)
        if asked.revision != before.revision and found.served:
            _await_answer(states, found, asked)
        # else there is nothing new, or a daemon that comes later reads it
    except BaseException:
        take_back(states, found, before)
        raise


def ask(states: StateDir, found: Found, edit: Edit) -> DeviceState:
    """Write it down under a revision of its own, if it is something new."""

    def revised(state: DeviceState) -> DeviceState:
        edited = edit(state)
        if edited == state:
            return state
        return replace(edited, revision=state.revision + 1, problem="")

    asked = states.update(found.info.id, found.info.cookie, revised)
    if asked is None:
        raise _lost(found)
    return asked


def _lost(found: Found) -> UblkdError:
    return UblkdError(f"{found.called} is gone, or what was remembered of it is",
                      hint="see 'ublkd list'")  # fmt: skip


def take_back(states: StateDir, found: Found, before: DeviceState) -> None:
    """What was remembered before, under one more revision, if anything has been written since."""

    def revised(state: DeviceState) -> DeviceState:
        if state.revision == before.revision:
            return state
        return replace(state, name=before.name, options=before.options, size=before.size,
                       revision=state.revision + 1, problem="")  # fmt: skip

    states.update(found.info.id, found.info.cookie, revised)
    with contextlib.suppress(UblkdError), _watched(found) as daemon:
        _tell(found, daemon)


def _await_answer(states: StateDir, found: Found, asked: DeviceState) -> None:
    until = time.monotonic() + ANSWER_SECONDS
    with _watched(found) as daemon:
        _tell(found, daemon)
        while not _answered(states, found, asked):
            if select.select([daemon], [], [], LOOK_SECONDS)[0]:
                raise _ended(found)
            if time.monotonic() > until:
                raise UblkdError(
                    f"the daemon of {found.called} (process {found.pid}) did not answer within "
                    f"{ANSWER_SECONDS} seconds: nothing has changed",
                    hint="is it stopped, or does it wait for what stands behind the disk? See the "
                    "system log for ublkd",
                )


def _answered(states: StateDir, found: Found, asked: DeviceState) -> bool:
    state = states.read(found.info.id)
    if state is None or state.cookie != found.info.cookie:
        raise gone(found)
    if state.answered < asked.revision:
        return False
    if state.problem:
        raise UblkdError(
            f"{found.called} goes on as before: {state.problem}",
            hint="see the system log for ublkd, and 'ublkd show' for what it goes by",
        )
    return True


@contextlib.contextmanager
def _watched(found: Found) -> Iterator[int]:
    """A descriptor of the daemon, which cannot come to mean another process."""
    try:
        daemon = os.pidfd_open(found.pid)
    except OSError as error:
        raise _ended(found) from error
    try:
        yield daemon
    finally:
        os.close(daemon)


def _ended(found: Found) -> UblkdError:
    return UblkdError(
        f"the daemon of {found.called} has ended meanwhile: nothing has changed",
        hint=f"see 'ublkd list'; 'ublkd recover {found.info.id}' if it is quiesced",
    )


def _tell(found: Found, daemon: int) -> None:
    try:
        listens = process.listens_to(found.pid, CHANGED)
        if not found.served:
            raise _ended(found)
        if not listens:
            raise UblkdError(
                f"the daemon of {found.called} (process {found.pid}) is of an older ublkd, which "
                "cannot change it",
                hint=f"'ublkd upgrade {found.info.id}' puts one of this ublkd in its place",
            )
        signal.pidfd_send_signal(daemon, CHANGED)
    except OSError as error:
        raise _ended(found) from error


# --- the daemon -----------------------------------------------------------------------------


class Changes:
    """What a daemon goes by; for its main thread, which feeds the watchdog: it does not wait for
    whoever has the lock on the folder, and writes what it owes when that is free.
    """

    def __init__(self, states: StateDir, disk: Device, log: Log) -> None:
        self._states, self._disk, self._log = states, disk, log
        self._size: int | None = None
        self._owed: list[Edit] = []
        self._said = ""
        self.options: Mapping[str, OptionValue] = disk.config.options

    def look(self) -> None:
        """Go by what is written down, and answer it; without anything new do nothing."""
        state = self._read()
        if state is None or state.answered >= state.revision:
            return
        problem = self._go_by(state)

        def answer(now: DeviceState) -> DeviceState:
            if now.revision != state.revision:
                return now  # whoever has changed it again has told so
            return replace(now, answered=state.revision, problem=problem)

        self._write(answer)

    def adopt(self, values: Mapping[str, OptionValue]) -> None:
        """Go by other values of live options that nobody has asked for, by key, and remember them.

        What the target does not take, or cannot be remembered yet, is logged.
        """
        state = self._read()
        if not values or state is None:
            return

        def edit(now: DeviceState) -> DeviceState:
            old = {key: state.options.get(key) for key in values}
            mine = {key: value for key, value in values.items() if now.options.get(key) == old[key]}
            return replace(now, options={**now.options, **mine})  # others are asked for since

        if not self._go_by(edit(state)):
            self._write(edit)

    def settle(self) -> float | None:
        """Write what is owed, if that can be done; seconds until it is to be tried again, or None.

        Whoever asked takes it back when their time is over.
        """
        if not self._owed:
            return None
        assert self._disk.info is not None
        dev_id = self._disk.id
        try:
            self._states.update(dev_id, self._disk.info.cookie, self._owing, seconds=LOCK_SECONDS)
        except UblkdError as error:
            if error.message != self._said:
                self._log(f"/dev/ublkb{dev_id}: what it goes by is not written down yet: "
                          f"{error.message}")  # fmt: skip
            self._said = error.message
            return AGAIN_SECONDS
        self._owed.clear()
        return None

    def _write(self, edit: Edit) -> None:
        self._owed.append(edit)
        self.settle()

    def _read(self) -> DeviceState | None:
        """What is written down of this very device, and what is owed, as if it were as well."""
        assert self._disk.info is not None
        state = self._states.read(self._disk.id)
        if state is None or state.cookie != self._disk.info.cookie:
            return None
        return self._owing(state)

    def _owing(self, state: DeviceState) -> DeviceState:
        for edit in self._owed:
            state = edit(state)
        return state

    def _go_by(self, state: DeviceState) -> str:
        """What is wrong with it; all is as before then."""
        target = self._disk.target
        try:
            wanted = config.remembered(state.target, state.options).options
            if wanted != self.options:
                if hook := getattr(target, "changed", None):
                    hook(wanted)
                self._log(f"/dev/ublkb{state.id}: {_difference(self.options, wanted)}")
                self.options = wanted
            if state.size is not None and state.size != self._size:
                if hook := getattr(target, "resizing", None):
                    hook(state.size)
                self._size = state.size
        except Exception as error:  # the daemon goes on, whatever it was
            problem = error.message if isinstance(error, UblkdError) else told(error)
            self._log(f"/dev/ublkb{state.id} is not changed: {problem}")
            return problem
        return ""


def _difference(old: Mapping[str, OptionValue], new: Mapping[str, OptionValue]) -> str:
    words = [
        f"{key.replace('_', '-')} {printable(str(old.get(key)))} -> {printable(str(value))}"
        for key, value in new.items()
        if value != old.get(key)
    ]
    return ", ".join(words)
