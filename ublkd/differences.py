"""What a device's file says now, beside what the device was made with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ublkd import registry
from ublkd.config import GENERAL, DeviceConfig, format_size
from ublkd.errors import printable
from ublkd.state import DeviceState
from ublkd.target import Option, OptionValue


@dataclass(frozen=True, kw_only=True)
class Change:
    """One option; its values as texts."""

    key: str  # as in the file
    old: str
    new: str
    live: bool = False  # it can be changed while the disk is there

    def __str__(self) -> str:
        return f"{self.key} {self.old} -> {self.new}"


def between(state: DeviceState, wanted: DeviceConfig) -> list[Change]:
    """From a device as it was asked for to the one that its file asks for."""
    if state.target != wanted.target:
        return [Change(key="target", old=printable(state.target), new=printable(wanted.target))]
    return [*_general(state, wanted), *_of_target(state, wanted)]


def live(state: DeviceState, wanted: DeviceConfig) -> dict[str, OptionValue]:
    """What of it can be changed while the disk is there: the values that the file has, by key."""
    keys = [change.key.replace("-", "_") for change in between(state, wanted) if change.live]
    return {key: wanted.options[key] for key in keys}


def _general(state: DeviceState, wanted: DeviceConfig) -> Iterator[Change]:
    for entry in GENERAL:
        option = entry.option
        if option.name == "name":
            continue
        old, new = (asked.get(option.name) for asked in (state.asked, wanted.asked))
        if old != new:
            usual = "the default" if entry.default is None else entry.default
            if option.kind == "flag":
                usual = False
            shown = [usual if value is None else value for value in (old, new)]
            yield Change(
                key=option.name, old=_shown(option, shown[0]), new=_shown(option, shown[1])
            )


def _of_target(state: DeviceState, wanted: DeviceConfig) -> Iterator[Change]:
    known = registry.options_of(wanted.target, lambda name: _named(wanted, name))
    for option in known.values():
        new = wanted.options.get(option.key, option.default)
        old = state.options.get(option.key, option.default)
        if isinstance(old, list):  # JSON has no tuples
            old = tuple(old)
        if old != new:
            live = bool(getattr(option, "live", False))
            yield Change(
                key=option.name, old=_shown(option, old), new=_shown(option, new), live=live
            )


def _named(wanted: DeviceConfig, name: str) -> str | None:
    value = wanted.options.get(name.replace("-", "_"))
    return value if isinstance(value, str) else None


def _shown(option: Option, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if option.kind == "size" and isinstance(value, int):
        return format_size(value)
    if isinstance(value, float):
        return f"{value:.9f}".rstrip("0").rstrip(".")
    if isinstance(value, tuple):
        return ", ".join(printable(str(one)) for one in value)
    return "none" if value is None else printable(str(value))
