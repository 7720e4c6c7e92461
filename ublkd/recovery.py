"""A device whose daemon is gone, and what must be true before another one may take it over.

What the driver says of the disk wins over what was remembered of it. The target is opened anew, and
refused if it is not what the disk was made of.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ublkd import config, manage, registry, stats
from ublkd.config import DeviceConfig
from ublkd.control import CommandError, Control, DevInfo
from ublkd.device import Device, Taken
from ublkd.errors import UblkdError, UsageError, printable, reason
from ublkd.features import IN_MEMORY, Features, Lease, Recovery, lease_of, lends, recovery_of
from ublkd.manage import Found
from ublkd.state import DeviceState, StateDir
from ublkd.target import OptionValue, Params, Target
from ublkd.uapi import DevState

TAKE_SECONDS = 30
"""How long a dead daemon may take to let go: its I/O in the backing has to end first."""
FIRST_PAUSE, LONGEST_PAUSE = 0.005, 0.5


def refuse_unrecoverable(found: Found) -> DeviceState:
    """What is remembered of a device that can be taken over. Raises UblkdError if it cannot be."""
    manage.refuse_foreign(found)
    manage.refuse_being_made(found)
    away = f"'ublkd del {found.info.id}' removes it"
    if found.info.state is DevState.DEAD:
        raise UblkdError(
            f"{found.called} is dead: it was stopped, or never became a disk", hint=away
        )
    if found.served:
        raise UblkdError(
            f"{found.called} is served by process {found.pid}",
            hint="there is nothing to recover; another recover may have been faster",
        )
    if recovery_of(found.info.flags) is Recovery.NONE:
        raise UblkdError(
            f"{found.called} was added with recovery none", hint=f"wait for its end: {away}"
        )
    if found.state is None:
        raise forgotten(found.called, found.info.id)
    return found.state


def forgotten(called: str, dev_id: int) -> UblkdError:
    """The error for a device of ours whose file in the state folder is not there, or not sound."""
    return UblkdError(
        f"what was remembered of {called} is gone: nobody knows what stands behind it",
        hint=f"'ublkd del {dev_id}' removes it, with --force if it is in use",
    )


def take(control: Control, states: StateDir, dev_id: int, cookie: int) -> Taken:
    """Become the one who serves it; requests wait on. Raises UblkdError.

    Waits for a dead daemon to let go. Of several that try at once one gets it, and the others say
    who it was.
    """
    until, pause = time.monotonic() + TAKE_SECONDS, FIRST_PAUSE
    while True:
        with states.lock():  # no other device of ours gets the number in between
            found = manage.look(control, states, dev_id)
            if found is None or found.info.cookie != cookie:
                raise UblkdError(f"/dev/ublkb{dev_id} is gone", hint="see 'ublkd list'")
            state = refuse_unrecoverable(found)
            dev_fd = _try(control, dev_id)
        if dev_fd is not None:
            return Taken(info=found.info, state=state, dev_fd=dev_fd)
        if time.monotonic() > until:
            raise UblkdError(
                f"{found.called} is still held by another process after {TAKE_SECONDS} seconds",
                hint=f"see 'fuser -v /dev/ublkc{dev_id}': another recover, or a dead daemon whose "
                "I/O does not end",
            )
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def _try(control: Control, dev_id: int) -> int | None:
    try:
        control.start_recovery(dev_id)
    except CommandError as error:
        if error.errno == errno.EBUSY:
            return None
        if error.errno != errno.EINVAL:  # 6.12: whoever was let in before has not served since
            raise
    try:
        return os.open(f"/dev/ublkc{dev_id}", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise UblkdError(
                f"cannot open /dev/ublkc{dev_id}: {reason(error)}",
                hint="is udev running, or /dev a devtmpfs?",
            ) from error
    return None


def device(control: Control, states: StateDir, taken: Taken) -> Device:
    """The device, to be entered. Raises UblkdError with what does not fit."""
    try:
        with _remembered():
            wanted, lease = described(taken.state, taken.info)
            target = registry.opened(wanted.target, wanted.options)
        try:
            refuse_unfit(control, target, taken.state, taken.info, lease)
            _tell_what_was(target, states, taken.info)
            return Device(
                control,
                wanted,
                target,
                _features(taken.state, taken.info, lease),
                states,
                cookie=taken.info.cookie,
                taken=taken,
            )
        except BaseException:
            target.close()
            raise
    except BaseException:
        os.close(taken.dev_fd)
        raise


@contextlib.contextmanager
def entered(control: Control, disk: Device, taken: Taken) -> Iterator[Device]:
    """The device while it is served. Raises UblkdError as its ``__enter__`` does, or one that says
    that it was ended meanwhile: whoever stops or deletes a device does not wait for its recovery.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(disk)
        except UblkdError as error:
            if not _is_ended(control, taken.info):
                raise
            raise UblkdError(
                f"/dev/ublkb{taken.info.id} was stopped or deleted while it was recovered",
                hint="see 'ublkd list'",
            ) from error
        yield disk


def _is_ended(control: Control, before: DevInfo) -> bool:
    try:
        now = control.get_dev_info(before.id)
    except CommandError as error:
        return error.errno == errno.ENODEV
    is_another = now.cookie != before.cookie
    return is_another or now.state is DevState.DEAD or not control.is_listed(before.id)


def look(control: Control, states: StateDir, found: Found) -> None:
    """Raise UblkdError if the device could not be taken over, though it is served still.

    Its target is opened beside the one that serves, with ``share`` where there is that option.
    """
    now = manage.again(control, states, found)
    if now is None:
        raise manage.gone(found)
    if now.state is None:
        raise forgotten(now.called, now.info.id)
    states.try_write(now.state)
    with beside(now) as (target, lease):
        refuse_unfit(control, target, now.state, now.info, lease)
        _tell_what_was(target, states, now.info)


@contextlib.contextmanager
def beside(found: Found, **others: OptionValue) -> Iterator[tuple[Target, Lease]]:
    """The target of a device, opened once more though it may be served, with ``share`` where there
    is that option, and ``others`` in the place of those that it was added with; and its lease.
    """
    assert found.state is not None
    with _remembered():
        wanted, lease = described(found.state, found.info)
        shared = {"share": True} if "share" in wanted.options else {}
        target = registry.opened(wanted.target, {**wanted.options, **shared, **others})
    try:
        yield target, lease
    finally:
        target.close()


@contextlib.contextmanager
def _remembered() -> Iterator[None]:
    """What makes no sense in it was not on the command line: whoever recovers did not say it."""
    try:
        yield
    except UsageError as error:
        raise UblkdError(error.message, hint=error.hint) from error


def described(state: DeviceState, info: DevInfo) -> tuple[DeviceConfig, Lease]:
    """A device as it was asked for, and its lease. Raises UblkdError."""
    lease = lease_of(info.flags, state.lease)
    if lease is None:
        raise UblkdError(
            f"/dev/ublkb{info.id} has no lease that this ublkd knows",
            hint=f"use the version of ublkd that made it, or 'ublkd del {info.id}'",
        )
    return config.remembered(
        state.target, state.options, name=state.name, id=info.id, queues=info.queues,
        depth=info.depth, max_io=info.max_io, lease=lease, recovery=recovery_of(info.flags),
        origin=state.origin, asked=state.asked, **state.access,
    ), lease  # fmt: skip


def _features(state: DeviceState, info: DevInfo, lease: Lease) -> Features:
    known = {kind.value: kind for kind in Lease}
    refused = {known[word]: why for word, why in state.refused.items() if word in known}
    return Features(lease, info.flags, refused, recovery_of(info.flags), state.recovery_reason)


# --- what must fit --------------------------------------------------------------------------


def refuse_unfit(
    control: Control,
    target: Target,
    state: DeviceState,
    info: DevInfo,
    lease: Lease,
    *,
    any_size: bool = False,
) -> None:
    """Raise UblkdError if the target is not what the disk is made of, or cannot stand for it; a
    smaller one may do if it may have ``any_size``.
    """
    why = replaced(state.describe, target.describe())
    disk = control.get_params(info.id)
    why = why or unfit(target.params, disk, info, lease, any_size=any_size)
    if why:
        raise UblkdError(
            f"/dev/ublkb{info.id} cannot be served by what is there now: {why}",
            hint=f"bring back what was there; if nobody serves it, 'ublkd recover {info.id}' then. "
            f"What can never come back: 'ublkd del {info.id}'",
        )


def _tell_what_was(target: Target, states: StateDir, info: DevInfo) -> None:
    if hook := getattr(target, "recovered", None):
        hook(stats.read(states.counters(info.id)))


BORN = {
    "inode_generation": "a new file with the inode of the old one: generation",
    "disk_id": "another disk with the number of the old one:",
}
"""What tells two backings apart that have the same ``identity`` one after the other."""


def replaced(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Which backing is another one than before; empty if none is."""
    old, new = _listed(before.get("identity")), _listed(now.get("identity"))
    if len(old) != len(new):
        return f"it had {len(old)} backings and has {len(new)}"
    for number, (was, is_) in enumerate(zip(old, new, strict=True)):
        if was != is_:
            return _not_what_it_was(now, number, f"{is_}, and was {was}")
    for key, what in BORN.items():
        old, new = _listed(before.get(key)), _listed(now.get(key))
        for number, (was, is_) in enumerate(zip(old, new, strict=False)):
            if was and is_ and was != is_:  # an older daemon has told none
                return _not_what_it_was(now, number, f"{what} {is_}, and was {was}")
    return ""


def _not_what_it_was(now: Mapping[str, Any], number: int, why: str) -> str:
    paths = _listed(now.get("backing"))
    path = printable(str(paths[number])) if number < len(paths) else "its backing"
    return f"{path} is not what it was ({why})"


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def unfit(now: Params, disk: Params, info: DevInfo, lease: Lease, *, any_size: bool = False) -> str:
    """Why a target cannot stand for the disk that the driver knows; empty if it can."""
    if now.size < disk.size and not any_size:
        return f"it has {now.size} bytes, and the disk {disk.size}"
    if now.logical_block != disk.logical_block:
        return f"its blocks have {now.logical_block} bytes, and the disk's {disk.logical_block}"
    # before 6.15 the driver knows of no alignment, and lends nothing
    if lends(lease) and now.dma_align > disk.dma_align:
        return f"it wants memory aligned to {now.dma_align} bytes, and the disk to {disk.dma_align}"
    if now.max_io and now.max_io < info.max_io:
        return f"it takes {now.max_io} bytes at once, and the disk {info.max_io}"
    if (now.queues and now.queues != info.queues) or 0 < now.max_queues < info.queues:
        return f"it needs {now.queues or now.max_queues} queues, and the disk has {info.queues}"
    if now.in_memory and lends(lease):
        return f"{IN_MEMORY}, and the disk's pages are lent"
    return "" if disk.read_only else _incapable(now, disk)


def _incapable(now: Params, disk: Params) -> str:
    if now.read_only:
        return "it can only be read, and the disk be written"
    if now.volatile_cache and not disk.volatile_cache:
        return "it must be flushed, and the disk is not"
    for name in ("volatile_cache", "fua"):
        if getattr(disk, name) and not getattr(now, name):
            return f"it cannot {'flush' if name == 'volatile_cache' else 'write durably'} any more"
    for name in ("max_discard", "max_write_zeroes"):
        if getattr(now, name) < getattr(disk, name):
            return f"it can {name.removeprefix('max_').replace('_', ' ')} less than before"
    if disk.max_discard and now.discard_granularity > disk.discard_granularity:
        return "it discards in larger pieces than before"
    return ""
