"""Another size for a disk that is there, served or not: a command to the driver.

What stands behind it is opened beside the daemon that serves, if one does, and asked how large the
disk can be.
"""

from __future__ import annotations

import contextlib
import errno
import stat
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ublkd import changes, ending, follow, manage, recovery, registry
from ublkd.config import format_size
from ublkd.control import CommandError, Control, refuse_fixed_size
from ublkd.errors import UblkdError, UsageError
from ublkd.manage import Found
from ublkd.state import DeviceState, StateDir
from ublkd.target import Option, OptionValue, Params
from ublkd.uapi import SECTOR, DevState


def resize(
    control: Control, states: StateDir, found: Found, size: int | None, *, force: bool = False
) -> tuple[int, int]:
    """Give a disk ``size`` bytes, or as many as what stands behind it has; not more than these.

    Returns the bytes it had and has. Cuts a disk that is in use only with ``force``. Raises
    UblkdError, and the disk is as it was then.
    """
    state = _refuse_unresizable(control, found)
    if size is not None and (size == 0 or size % SECTOR):
        raise UsageError(f"a disk cannot have {size} bytes", hint=f"a multiple of {SECTOR}")
    with states.changing(found.info.id):
        device = manage.again(control, states, found)
        if device is None:
            raise manage.gone(found)
        state = _refuse_unresizable(control, device)
        disk = control.get_params(device.info.id)
        bounds = {} if size is None else _bounds(state, size)
        new = _new_size(control, device, disk, size, bounds)
        sizes = disk.size, new
        with _unused(device, sizes) if new < disk.size and not force else contextlib.nullcontext():
            _change(control, states, device, sizes, bounds)
    return disk.size, new


def _refuse_unresizable(control: Control, found: Found) -> DeviceState:
    manage.refuse_foreign(found)
    manage.refuse_being_made(found)
    if found.info.state is DevState.DEAD:
        raise UblkdError(
            f"{found.called} is dead: it is no disk any more",
            hint=f"'ublkd del {found.info.id}' removes it",
        )
    if found.state is None:
        raise recovery.forgotten(found.called, found.info.id)
    refuse_fixed_size(control.get_features())
    return found.state


def _options(state: DeviceState) -> Mapping[str, Option]:
    return registry.options_of(state.target, lambda name: state.options.get(name.replace("-", "_")))


def _bounds(state: DeviceState, size: int) -> dict[str, OptionValue]:
    """The options that the device has for its size, with another one. Raises UsageError."""
    found: dict[str, OptionValue] = {}
    for option in _options(state).values():
        if not option.is_size or state.options.get(option.key) is None:
            continue
        if not option.minimum <= size <= option.maximum or size % option.multiple_of:
            raise UsageError(
                f"--{option.name} of target {state.target} cannot be {size}",
                hint=f"from {format_size(option.minimum)} to {format_size(option.maximum)}, a "
                f"multiple of {option.multiple_of}",
            )
        found[option.key] = size
    return found


def _new_size(
    control: Control,
    device: Found,
    disk: Params,
    size: int | None,
    bounds: Mapping[str, OptionValue],
) -> int:
    """The bytes that it shall have, if it can. Raises UblkdError."""
    assert device.state is not None
    if size is not None and size % disk.logical_block:
        raise UsageError(
            f"{size} bytes are not whole blocks of {device.called}",
            hint=f"a multiple of {disk.logical_block}",
        )
    with recovery.beside(device, **bounds) as (target, lease):
        recovery.refuse_unfit(control, target, device.state, device.info, lease, any_size=True)
        possible: int | None = target.size_now() if hasattr(target, "size_now") else None
    if possible is None:
        raise UblkdError(
            f"target {device.state.target} does not say that its disks can be resized",
            hint="delete the device and add it anew",
        )
    if size is None:
        follow.refuse_odd(possible, disk.logical_block)
        return possible
    if size > possible:
        raise UblkdError(
            f"{device.called} cannot have {size} bytes: what stands behind it has {possible}",
            hint=_how_to_grow(device.state),
        )
    if size < possible and follow.wanted(device.state.options):
        raise UblkdError(
            f"{device.called} follows the size of what stands behind it, which is {possible} bytes",
            hint=f"'ublkd set {device.info.id} --no-follow-size' first",
        )
    return size


def _how_to_grow(state: DeviceState) -> str:
    if not all(path.startswith("/") for path in state.backings):
        return "see the size of what the server serves"
    if any(_is_block_device(path) for path in state.backings):
        return "make the device behind it larger first"
    return "make that larger first, for example with 'truncate -s SIZE'"


def _is_block_device(path: str) -> bool:
    try:
        return stat.S_ISBLK(Path(path).stat().st_mode)
    except OSError:
        return False


@contextlib.contextmanager
def _unused(device: Found, sizes: tuple[int, int]) -> Iterator[None]:
    """Refuse a disk that is in use, and keep it from being used while it is cut."""
    with ending.reserved(device.info.id) as words:
        if words:
            raise UblkdError(
                f"{device.called} is in use, and would be cut from {sizes[0]} to {sizes[1]} bytes: "
                f"{words}",
                hint="end that first, or use --force and lose what is behind the new end",
            )
        yield


def _change(
    control: Control,
    states: StateDir,
    device: Found,
    sizes: tuple[int, int],
    bounds: Mapping[str, Any],
) -> None:
    """The kernel last when it grows, and first when it is cut: at no moment has the disk a part
    that nobody serves, or that a daemon after a dead one would miss.
    """
    assert device.state is not None
    old, new = sizes

    def edit(state: DeviceState) -> DeviceState:
        return replace(state, options={**state.options, **bounds}, size=new)

    if new < old:
        try:
            _update(control, states, device, new)
            changes.change(states, device, edit)
        except BaseException:
            _put_back(control, states, device, old)
            raise
        return
    changes.change(states, device, edit)
    if new > old:
        try:
            _update(control, states, device, new)
        except BaseException:
            changes.take_back(states, device, replace(device.state, size=old))
            raise


def _update(control: Control, states: StateDir, device: Found, size: int) -> None:
    """Others may have deleted it by now, and an add have its number."""
    if manage.again(control, states, device) is None:
        raise manage.gone(device)
    control.update_size(device.info.id, size)


def _put_back(control: Control, states: StateDir, device: Found, old: int) -> None:
    """What was cut has its size again. The daemon may have gone by the cut, and hears of it first.

    Raises UblkdError if the disk stays cut.
    """
    assert device.state is not None
    with contextlib.suppress(UblkdError):
        changes.take_back(states, device, replace(device.state, size=old))
    try:
        now = manage.again(control, states, device)
        if now and control.get_params(device.info.id).size != old:
            control.update_size(device.info.id, old)
    except UblkdError as error:
        if isinstance(error, CommandError) and error.errno == errno.ENODEV:
            return  # it is gone, and whoever has failed says so
        raise UblkdError(
            f"{device.called} was cut, failed then, and cannot have its {old} bytes back: "
            f"{error.message}",
            hint=f"'ublkd resize {device.info.id}' tries again",
        ) from error
