"""Other values for options of a device that is there: its name, and what its target calls live."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ublkd import changes, config, follow, manage, names, recovery, registry
from ublkd.config import RawOption
from ublkd.control import Control
from ublkd.errors import UblkdError, UsageError, printable
from ublkd.manage import Found
from ublkd.state import DeviceState, StateDir
from ublkd.target import Option, OptionValue
from ublkd.uapi import DevState


def options_of(found: Found) -> Mapping[str, Option]:
    """The options of a device's target, and of the one that it is put over. Raises UblkdError."""
    state = _refuse_unchangeable(found)
    return registry.options_of(state.target, lambda name: state.options.get(name.replace("-", "_")))


def fixed(found: Found, option: str) -> UblkdError:
    """The error for an option that cannot have another value while the device is there."""
    return UblkdError(
        f"--{option} cannot be changed while {found.called} is there",
        hint="delete it and add it anew, or change its device file and run 'ublkd apply'",
    )


def set_options(
    control: Control,
    states: StateDir,
    found: Found,
    given: Mapping[str, RawOption],
    *,
    name: str | None = None,
) -> str:
    """Change what was given, all of it or nothing; returns once the daemon goes by it, and with
    another name its links do.

    Returns a warning, or nothing. Raises UblkdError.
    """
    state, known = _refuse_unchangeable(found), options_of(found)
    if not given and name is None:
        raise UsageError("set takes an option and its value", hint=_hint(known))
    for word in given:
        if not known[word].live:
            raise fixed(found, word)
    values = config.parse_options(state.target, {word: known[word] for word in given}, given)
    if values:
        wanted = config.remembered(state.target, {**state.options, **values})
        registry.check(state.target, wanted.options)
    called = None if name is None else config.parse_name(name)
    return set_values(control, states, found, values, called=called)


def set_values(
    control: Control,
    states: StateDir,
    found: Found,
    values: Mapping[str, OptionValue],
    *,
    called: str | None = None,
) -> str:
    """The same for what is checked already: values of live options by key, and a name."""
    follow.refuse_impossible(values, control.get_features())

    def edit(now: DeviceState) -> DeviceState:
        if called is not None and called != now.name:
            _refuse_of_file(found, now)
            names.refuse_taken(control, states, called, but=now.id)
        return replace(now, name=called or now.name, options={**now.options, **values})

    with states.changing(found.info.id):
        device = manage.again(control, states, found)
        if device is None:
            raise manage.gone(found)
        before = _refuse_unchangeable(device)
        if values and not device.served:
            _try(device, values)
        changes.change(states, device, edit)
        return names.renamed(before, called) if called not in (None, before.name) else ""


def _refuse_unchangeable(found: Found) -> DeviceState:
    manage.refuse_foreign(found)
    manage.refuse_being_made(found)
    if found.info.state is DevState.DEAD:
        raise UblkdError(f"{found.called} is dead", hint=f"'ublkd del {found.info.id}' removes it")
    if found.state is None:
        raise recovery.forgotten(found.called, found.info.id)
    return found.state


def _refuse_of_file(found: Found, state: DeviceState) -> None:
    """Whoever starts the device of a file finds it by its name: under another one it would be
    taken for gone, and a second disk be made of what stands behind it.
    """
    if state.origin is not None:
        raise UblkdError(
            f"{found.called} is called like its file, {printable(state.origin)}",
            hint="delete it, give the file the other name, and start that",
        )


def _try(device: Found, values: Mapping[str, OptionValue]) -> None:
    """What no daemon looks at now the next one could not go by: its target is opened for a moment.

    Raises UblkdError.
    """
    try:
        with recovery.beside(device, **values):
            pass
    except UblkdError as error:
        raise UblkdError(
            f"{device.called} goes on as before, its next daemon could not serve it so: "
            f"{error.message}",
            hint=error.hint,
        ) from error


def _hint(known: Mapping[str, Option]) -> str:
    live = [f"--{option.name}" for option in known.values() if option.live]
    return f"what can change here: {', '.join(['--name', *live])}"
