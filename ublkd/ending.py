"""How a device ends, or its daemon: stop, delete, quiesce; and what killed verbs have left.

These are commands to the driver, and the daemon notices.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from ublkd import holders, manage
from ublkd.control import HELD, CommandError, Control
from ublkd.errors import SHORTAGE, NotPossibleError, UblkdError, reason
from ublkd.features import Recovery, recovery_of
from ublkd.manage import UNSERVED, Found, again, refuse_foreign
from ublkd.process import has_open, is_there, listens_to, serves
from ublkd.state import StateDir
from ublkd.uapi import DevState, Feature
from ublkd.writeback import write_back

GONE_SECONDS = 30
QUIESCE_SECONDS = 30
MADE_SECONDS = 15
LOOK_SECONDS = 2
"""How long a disk may be claimed by nobody who can be seen, until it is taken for in use."""
PASSING_SECONDS, PASSING_PAUSE = 5, 0.05
"""How long a disk may be open to those who only look at it, and how often that is looked at."""

CLAIMED, OPEN = "mounted, or part of another block device", "open"
"""In place of who holds a disk, where that cannot be seen."""

STOPPING = signal.SIGUSR2
"""Tells a daemon that its device is about to be stopped: the driver cannot do that before the last
request has ended, and says nothing to those who serve.
"""


def sweep(control: Control, states: StateDir) -> None:
    """Delete what an add that was killed has left: no disk, and nobody who makes it one. And forget
    devices that other programs have deleted, or a del that was killed.
    """
    states.sweep(is_there)
    there = manage.ids()
    for dev_id in sorted({*there, *states.ids()}):
        state = states.read(dev_id)
        if dev_id in there and state and (state.started or is_there(state.pid)):
            continue  # not asked: it may hang
        # whoever makes a device says what it is before letting go of this lock
        with states.lock(), contextlib.suppress(UblkdError):
            found = manage.look(control, states, dev_id)
            if found and found.is_half_made:
                control.del_dev(dev_id)
            if found is None or found.is_half_made:
                states.remove(dev_id)


def claimed(node: str) -> bool:
    """Whether the disk is mounted, swapped on, or part of another block device."""
    with _claim(node) as is_claimed:
        return is_claimed


@contextlib.contextmanager
def _claim(node: str) -> Iterator[bool]:
    """Keep a disk from being mounted or built on (open(2), O_EXCL); or whether it is already.

    Raises UblkdError where a shortage keeps that from being told.
    """
    until = time.monotonic() + LOOK_SECONDS
    while True:
        fd = None
        try:
            fd = os.open(node, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC | os.O_NONBLOCK)
            is_claimed = False
        except OSError as error:
            if error.errno in SHORTAGE:
                raise UblkdError(
                    f"cannot see whether {node} is in use: {reason(error)}", hint="try it again"
                ) from error
            is_claimed = error.errno == errno.EBUSY
        if not is_claimed or time.monotonic() > until:
            break
        time.sleep(PASSING_PAUSE)  # perhaps another verb is just looking, in this very way
    try:
        yield is_claimed
    finally:
        if fd is not None:
            os.close(fd)


def claims(dev_id: int) -> str:
    """How a disk is held by more than processes, in words for a line; empty if it is not."""
    held = holders.of(dev_id, processes=False)
    if held.is_claimed:
        return held.words()
    return CLAIMED if claimed(f"/dev/ublkb{dev_id}") else ""


@contextlib.contextmanager
def reserved(dev_id: int) -> Iterator[str]:
    """Nobody comes to hold the disk by more than a process meanwhile; or how it is held, as
    ``claims`` says it.
    """
    held = holders.of(dev_id, processes=False)
    if held.is_claimed:
        yield held.words()
        return
    with _claim(f"/dev/ublkb{dev_id}") as is_claimed:
        yield CLAIMED if is_claimed else ""


def openers(dev_id: int) -> str:
    """The same for all who hold it; those who only look at a new disk do not count."""
    held = holders.of(dev_id)
    return "" if held.is_passing else held.words()


def try_stop(control: Control, dev_id: int, is_there: Callable[[], object] = lambda: True) -> str:
    """Have the kernel stop a disk that nobody has open; or who has it open, in words for a line.

    Whoever only looks at it is waited for; ``is_there`` is asked before each try whether the number
    is still that disk's. Raises CommandError.
    """
    until = time.monotonic() + PASSING_SECONDS
    while is_there():
        try:
            control.try_stop_dev(dev_id)
        except CommandError as error:
            if error.errno != errno.EBUSY:
                raise
        else:
            return ""
        held = holders.of(dev_id)
        if not held.is_passing or time.monotonic() > until:
            return held.words() or OPEN
        time.sleep(PASSING_PAUSE)
    return ""


def _refuse(device: Found, words: str) -> None:
    """Raise the error for a disk that is not stopped because of its holders, if there are any."""
    if not words:
        return
    unseen = words in (CLAIMED, OPEN)
    first = f"see 'lsblk {device.node}', 'fuser -v {device.node}'" if unseen else "end that first"
    if device.info.state in UNSERVED:
        first = f"nobody serves it: 'ublkd recover {device.info.id}'"
    raise UblkdError(
        f"{device.called} is in use: {words}",
        hint=f"{first}, or use --force and lose what is not written yet",
    )


def _refuse_claimed(device: Found, force: bool) -> None:
    if force or device.info.state is DevState.DEAD or not claims(device.info.id):
        return
    _refuse(device, holders.of(device.info.id).words() or CLAIMED)


def stop(control: Control, states: StateDir, found: Found, *, force: bool = False) -> None:
    """Take the disk away and end its daemon; the number stays until it is deleted.

    Refuses a disk that is in use or open, unless ``force``. Where the kernel cannot refuse by
    itself (SAFE_STOP_DEV, Linux 7.0) processes are looked for, and one may come in between.
    """
    device = _made(control, states, found)
    if device is None:
        return  # it is gone, which is what was wanted
    _refuse_claimed(device, force)
    with _watch(device.pid) as daemon:
        try:
            if not force and Feature.SAFE_STOP_DEV in device.info.flags:
                there = partial(again, control, states, device)
                _refuse(device, try_stop(control, device.info.id, there))
            else:
                if not force and device.info.state is not DevState.DEAD:
                    _refuse(device, openers(device.info.id))
                _tell(daemon, device.pid)
                _write_back(device)
                _take_away(control, states, device)
        except CommandError as error:
            if error.errno != errno.ENODEV:  # it is stopped or gone, which is what was wanted
                raise
        _wait_gone(daemon, device)


def refuse_unquiescable(device: Found) -> None:
    """Raise the error for a device that cannot live without its daemon for a while."""
    refuse_foreign(device)
    manage.refuse_being_made(device)
    if device.info.state is DevState.DEAD:
        raise UblkdError(f"{device.called} is dead", hint=f"'ublkd del {device.info.id}'")
    if recovery_of(device.info.flags) is Recovery.NONE:
        raise UblkdError(
            f"{device.called} was added with recovery none: it ends with its daemon",
            hint="add it with --recovery queue or reissue",
        )
    if Feature.QUIESCE not in device.info.flags:
        raise NotPossibleError(
            f"{device.called} cannot be quiesced: the kernel lacks QUIESCE (Linux 6.16 has it)",
            hint=f"'kill -9' of its daemon and then 'ublkd recover {device.info.id}' do without",
        )


def quiesce(control: Control, states: StateDir, found: Found) -> None:
    """End the daemon and have the driver keep the device: requests wait for the next one."""
    device = _there(again(control, states, found), found)
    refuse_unquiescable(device)
    until = time.monotonic() + QUIESCE_SECONDS
    daemons: dict[int, int | None] = {}  # another may have taken it over by now
    with contextlib.ExitStack() as watched:
        while device.info.state not in UNSERVED:
            if device.pid not in daemons:
                daemons[device.pid] = watched.enter_context(_watch(device.pid))
            daemon = daemons[device.pid]
            _have_taken_back(control, states, device)
            if daemon is None or select.select([daemon], [], [], 0.1)[0]:
                time.sleep(0.005)  # the driver hears of the end a moment after it
            if time.monotonic() > until:
                raise _unquiesced(device)
            device = _there(again(control, states, device), found)
            refuse_unquiescable(device)
        for daemon in daemons.values():
            _wait_gone(daemon, found)  # it lets go of the backing after the device


def _unquiesced(device: Found) -> UblkdError:
    what = f"{device.called} is not quiesced after {QUIESCE_SECONDS} seconds"
    if not device.served:
        state = device.info.state.name.lower()
        return UblkdError(f"{what}: it is {state}, and its daemon is gone", hint=HELD)
    return UblkdError(
        f"{what}: a request is still under way, and those that came later wait",
        hint=f"wait for it and quiesce again, or end process {device.pid} with SIGKILL, and then "
        f"'ublkd recover {device.info.id}'",
    )


def _there(device: Found | None, found: Found) -> Found:
    if device is None:
        raise manage.gone(found)
    return device


def _have_taken_back(control: Control, states: StateDir, device: Found) -> None:
    """The commands of idle tags: a queue that has none is not told, and asked again.

    As long as the lock is held nobody of ours takes the device over. The driver (seen in 7.2) takes
    commands back also of a device that is not live any more, and so those that its next daemon has
    just sent: the disk would come up with nobody to hear of its requests.
    """
    with states.lock():
        now = again(control, states, device)
        if now is None or now.info.state is not DevState.LIVE:
            return
        try:
            control.quiesce_dev(now.info.id, 1)
        except CommandError as error:
            if error.errno not in (errno.EBUSY, errno.ENODEV):
                raise


def delete(control: Control, states: StateDir, found: Found, *, force: bool = False) -> str:
    """Stop the device, wait for its daemon to end, and remove every trace of it.

    Returns a warning, or nothing.
    """
    device = _made(control, states, found)
    if device is None:
        states.forget(found.info.id, found.info.cookie)
        return ""
    _refuse_claimed(device, force)
    free = True
    try:
        with _watch(device.pid) as daemon:
            _tell(daemon, device.pid)
            _write_back(device)
            _take_away(control, states, device)
            _wait_gone(daemon, device)
        with states.lock():  # as long as it is held, no add of ours takes the number
            if again(control, states, device):
                free = control.del_dev(device.info.id)
    except CommandError as error:
        if error.errno != errno.ENODEV:  # somebody else was faster
            raise
    states.forget(device.info.id, device.info.cookie)
    if free:
        return ""
    node = f"/dev/ublkc{device.info.id}"
    return f"{device.node} or {node} is still open: its number stays taken until that ends"


def _made(control: Control, states: StateDir, found: Found) -> Found | None:
    """The device as it is now, and if it is just being made, as it is once that is done.

    Raises UblkdError where that takes too long: of a device whose commands the driver has given
    back its daemon would have a disk made all the same, and Linux 7.2 crash over that.
    """
    until = time.monotonic() + MADE_SECONDS
    with states.lock():  # whoever makes a device says so before letting go of it
        device = again(control, states, found)
    while device and device.is_being_made:
        assert device.state
        if time.monotonic() > until:
            _give_up(states, device, device.state.pid)
            break
        time.sleep(0.02)
        device = again(control, states, found)
    return device


def _give_up(states: StateDir, device: Found, pid: int) -> None:
    """Have nobody make it a disk any more: who opened its node and then finds no file of it, under
    the same lock, starts nothing. Raises UblkdError if its node is open already.
    """
    with states.lock():
        if has_open(pid, f"/dev/ublkc{device.info.id}"):
            raise UblkdError(
                f"{device.called} is still being made by process {pid}",
                hint=f"wait for it, or end it with 'kill -9 {pid}', and try again",
            )
        states.remove(device.info.id)


@contextlib.contextmanager
def _watch(pid: int) -> Any:
    """A descriptor of the process, which cannot come to mean another one; or None."""
    fd = None
    if pid > 0:
        with contextlib.suppress(OSError):
            fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        if fd is not None:
            os.close(fd)


def _tell(daemon: int | None, pid: int) -> None:
    """Unless it is an older daemon, or another process: the driver's number may be from another pid
    namespace.
    """
    if daemon is None:
        return
    with contextlib.suppress(OSError):
        if listens_to(pid, STOPPING) and serves(pid):
            signal.pidfd_send_signal(daemon, STOPPING)


def _take_away(control: Control, states: StateDir, device: Found) -> None:
    """Others may have stopped or deleted it by now, and an add have its number. Raises
    CommandError.
    """
    if again(control, states, device):
        try:
            control.stop_dev(device.info.id)
        except CommandError as error:
            if error.errno != errno.ENODEV:
                raise


def _write_back(device: Found) -> None:
    if device.served and recovery_of(device.info.flags) is not Recovery.NONE:
        write_back(device.node)


def _wait_gone(daemon: int | None, device: Found) -> None:
    if daemon is not None and not select.select([daemon], [], [], GONE_SECONDS)[0]:
        raise UblkdError(
            f"the daemon of {device.called} (process {device.pid}) did not end within "
            f"{GONE_SECONDS} seconds",
            hint="its I/O may be stuck in the backing; see dmesg for blocked tasks",
        )
