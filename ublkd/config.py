"""Options as text -> a frozen DeviceConfig. Every option is checked here and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ublkd import access, registry
from ublkd.errors import UblkdError, UsageError, printable, quoted
from ublkd.features import Lease, Recovery
from ublkd.target import Option, OptionValue
from ublkd.uapi import MAX_DEPTH, MAX_IO_BYTES, MAX_QUEUES

MAX_SECONDS = 1_000_000_000
MAX_ID = (1 << 20) - 1  # the driver's: minor numbers have 20 bits
MIN_IO_BYTES = 4096
SUFFIXES = {unit: 1 << (10 * power) for power, unit in enumerate(["", *"KMGTPE"])}
SIZE = re.compile(r"([0-9]{1,19})([KMGTPE]?)(?:I?B)?", re.ASCII | re.IGNORECASE)
# not what reads as the node of a device: with such a name `del` could mean another disk; nor as a
# partition's link, which another device may have
NAME = re.compile(r"(?!ublk[bc][0-9]+\Z)(?!.*-part[0-9]+\Z)[A-Za-z_][A-Za-z0-9_.-]{0,62}")


@dataclass(frozen=True, kw_only=True)
class DeviceConfig:
    """One device as it was asked for: complete, checked, and independent of the folder it was
    asked for in.
    """

    target: str
    options: Mapping[str, OptionValue]  # the target's, parsed
    name: str | None = None
    id: int | None = None  # None: the driver chooses
    queues: int = 1
    depth: int = 128  # tags of a queue
    max_io: int = 512 << 10  # bytes of the largest request
    lease: Lease | None = None  # None: the best there is
    partscan: bool = True  # the kernel looks for partitions
    recovery: Recovery | None = None  # None: what the target says
    owner: str | None = None  # of the node; None: as it comes
    group: str | None = None
    mode: str | None = None
    paths: tuple[str, ...] = ()  # those among the options
    asked: Mapping[str, OptionValue] = field(default_factory=dict)
    """What was asked for beside the target's options, by the option's name, where it is not the
    default: the driver may have made less of it."""
    origin: str | None = None  # the file it was asked for in

    @property
    def access(self) -> dict[str, str]:
        """Those of owner, group and mode that were asked for."""
        asked = {"owner": self.owner, "group": self.group, "mode": self.mode}
        return {key: value for key, value in asked.items() if value is not None}


def parse_size(text: str) -> int:
    """Bytes: a whole number with an optional suffix K, M, G, T, P or E (powers of 1024).

    Raises ValueError.
    """
    match = SIZE.fullmatch(text.strip())
    if not match:
        raise ValueError(f"{quoted(text)} is not a size")
    return int(match[1]) * SUFFIXES[match[2].upper()]


def format_size(size: int) -> str:
    """The shortest exact text that parse_size reads back: 512K, 250G, 1000001."""
    for suffix, unit in reversed(SUFFIXES.items()):
        if size and size % unit == 0:
            return f"{size // unit}{suffix}"
    return str(size)


def _in_range(option: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise UsageError(f"--{option} {value} is out of range", hint=f"from {low} to {high}")
    return value


def _number(option: str, text: str, low: int, high: int) -> int:
    if not re.fullmatch(r"-?[0-9]{1,19}", text):
        raise UsageError(
            f"--{option} {quoted(text)} is not a whole number", hint=f"from {low} to {high}"
        )
    return _in_range(option, int(text), low, high)


def _size(option: Option, text: str) -> int:
    span = f"from {format_size(option.minimum)} to {format_size(option.maximum)}"
    if option.power_of_two:
        span += ", a power of two"
    elif option.multiple_of > 1:
        span += f", a multiple of {option.multiple_of}"
    try:
        size = parse_size(text)
    except ValueError as error:
        raise UsageError(
            f"--{option.name} {error}", hint=f"bytes, or with a suffix (4K, 1M, 250G): {span}"
        ) from error
    wrong_power = option.power_of_two and size & (size - 1)
    if not option.minimum <= size <= option.maximum or wrong_power or size % option.multiple_of:
        raise UsageError(f"--{option.name} {printable(text)} is out of range", hint=span)
    return size


def parse_seconds(option: str, text: str, most: int = MAX_SECONDS) -> float:
    """A time of an option in seconds, more than 0 and at most ``most``. Raises UsageError."""
    if not re.fullmatch(r"[0-9]{1,10}(\.[0-9]{1,9})?", text, re.ASCII):
        raise UsageError(f"--{option} {quoted(text)} is not a time", hint="seconds, like 30 or 0.5")
    seconds = float(text)
    if not 0 < seconds <= most:
        raise UsageError(
            f"--{option} {text} is out of range", hint=f"seconds: more than 0, at most {most}"
        )
    return seconds


def _wait(option: Option, text: str) -> float | str:
    """Seconds, or ``inf``: a text, which every file format has."""
    if text in ("inf", "0"):
        return text if text == "inf" else 0.0
    try:
        return parse_seconds(option.name, text)
    except UsageError as error:
        hint = f"{error.hint}; 0 for not at all, inf for ever"
        raise UsageError(error.message, hint=hint) from error


def _absolute(option: Option, raw: str) -> str:
    """With the links kept: what a later start from another folder must find again."""
    if Path(raw).is_absolute():
        return str(Path(raw))
    try:
        return str(Path.cwd() / raw)
    except OSError as error:
        raise UsageError(
            f"--{option.name} {quoted(raw)} starts from a folder that is gone",
            hint="give an absolute path",
        ) from error


RawOption = str | bool | tuple[str, ...] | None
"""An option as the command line has it; None or an empty tuple: not given."""


def _parsed(option: Option, raw: RawOption) -> OptionValue:
    if isinstance(raw, tuple):
        return tuple(str(_parsed(option, one)) for one in raw)
    if raw is None or isinstance(raw, bool):
        return raw
    if "\0" in raw:  # from a file: no word of a command line has one, and no path
        raise UsageError(f"--{option.name} {quoted(raw)} has a NUL", hint="leave it out")
    if option.kind == "size":
        return _size(option, raw)
    if option.kind == "seconds":
        return parse_seconds(option.name, raw)
    if option.kind == "wait":
        return _wait(option, raw)
    if option.kind == "number":
        return _number(option.name, raw, option.minimum, option.maximum)
    if option.kind == "path":
        if not raw:
            raise UsageError(f"--{option.name} is empty", hint="give a path")
        return _absolute(option, raw)
    if option.kind == "choice" and raw not in option.choices:
        raise UsageError(
            f"--{option.name} {quoted(raw)} is none of its choices",
            hint="one of " + ", ".join(option.choices),
        )
    return option.kept(raw) if option.kept else raw


def parse_options(
    target: str, known: Mapping[str, Option], raw: Mapping[str, RawOption]
) -> dict[str, OptionValue]:
    """A target's options, by key. Raises UsageError for one that is wrong, missing or unknown."""
    unknown = [name for name in raw if name not in known]
    if unknown:
        raise UsageError(
            f"target {target} has no option --{printable(unknown[0])}",
            hint=f"its options: {', '.join('--' + name for name in known) or 'none'}",
        )
    values: dict[str, OptionValue] = {}
    for name, option in known.items():
        given = raw.get(name)
        missing = given is None or given == ()
        if missing and option.required:
            raise UsageError(f"target {target} needs --{name}", hint=option.help)
        if isinstance(given, tuple) and given:
            _refuse_times(target, option, len(given))
        values[option.key] = option.default if missing else _parsed(option, given)
    return values


def _refuse_times(target: str, option: Option, times: int) -> None:
    """Raise UsageError for an option that is given too often, or not often enough."""
    if option.minimum <= times <= option.maximum:
        return
    span = f"at least {option.minimum}"
    if option.maximum != Option.maximum:
        span = f"{option.minimum} to {option.maximum}"
    raise UsageError(
        f"target {target} takes --{option.name} {span} times, not {times}", hint=option.help
    )


def parse_name(text: str) -> str:
    """A device name. Raises UsageError."""
    if not NAME.fullmatch(text):
        raise UsageError(
            f"--name {quoted(text)} cannot be a name",
            hint="a letter or '_', then letters, digits, '.', '_' or '-', at most 63 in all, and "
            "not what a device (ublkb0) or a partition (NAME-part1) is called",
        )
    return text


def _paths(known: Mapping[str, Option], values: Mapping[str, OptionValue]) -> tuple[str, ...]:
    found: list[str] = []
    for option in (o for o in known.values() if o.kind == "path"):
        value = values[option.key]
        found += value if isinstance(value, tuple) else [value] if isinstance(value, str) else []
    return tuple(found)


def remembered(target: str, kept: Mapping[str, Any], **rest: Any) -> DeviceConfig:
    """A device that was asked for before, by the options as they were kept in a file.

    ``rest`` are the other fields. Raises UblkdError for an option that no longer exists.
    """
    known = registry.options_of(target, lambda option: _text(kept.get(option.replace("-", "_"))))
    values = {option.key: option.default for option in known.values()}
    if lost := sorted(set(kept) - set(values)):
        raise UblkdError(
            f"target {target} has no option {quoted(lost[0])} any more, with which the device "
            "was added",
            hint="install the version of ublkd, or of the plug-in, that has it",
        )
    # JSON has no tuples
    values |= {key: tuple(v) if isinstance(v, list) else v for key, v in kept.items()}
    return DeviceConfig(target=target, options=values, paths=_paths(known, values), **rest)


def _text(raw: RawOption) -> str | None:
    return raw if isinstance(raw, str) else None


@dataclass(frozen=True, kw_only=True)
class General:
    """An option that a device has whatever its target: in ``add`` and in its file."""

    option: Option
    metavar: str = "KIND"  # how help shows its value
    field: str = ""  # of DeviceConfig; "": the option's key
    becomes: Callable[[Any], Any] = lambda value: value
    """From the parsed value to the field's; asked only where the option is given."""

    @property
    def attribute(self) -> str:
        """The field."""
        return self.field or self.option.key

    @property
    def default(self) -> Any:
        """The field's value where the option is not given."""
        return DeviceConfig.__dataclass_fields__[self.attribute].default


GENERAL = (
    General(
        option=Option(name="name", help="A name to call the device by.", kept=parse_name),
        metavar="NAME",
    ),
    General(
        option=Option(
            name="id",
            help="Its number; by default the first that is free.",
            kind="number",
            maximum=MAX_ID,
        ),
        metavar="N",
    ),
    General(
        option=Option(
            name="queues",
            help="Hardware queues, each with a thread (default 1).",
            kind="number",
            minimum=1,
            maximum=MAX_QUEUES,
        ),
        metavar="N",
    ),
    General(
        option=Option(
            name="depth",
            help="Requests in flight per queue (default 128).",
            kind="number",
            minimum=1,
            maximum=MAX_DEPTH,
        ),
        metavar="N",
    ),
    General(
        option=Option(
            name="max-io",
            help="The largest request (default 512K).",
            kind="size",
            minimum=MIN_IO_BYTES,
            maximum=MAX_IO_BYTES,
            multiple_of=4096,
        ),
        metavar="BYTES",
    ),
    General(
        option=Option(
            name="lease",
            help="Insist on one way to reach a request's pages: auto, register, group, copy, "
            "user-copy.",
            kind="choice",
            choices=tuple(lease.value for lease in Lease),
        ),
        becomes=Lease,
    ),
    General(
        option=Option(
            name="recovery",
            help="What becomes of it when its daemon dies: none, queue, reissue, fail.",
            kind="choice",
            choices=tuple(recovery.value for recovery in Recovery),
        ),
        becomes=Recovery,
    ),
    General(
        option=Option(name="no-partscan", help="Do not look for partitions on it.", kind="flag"),
        field="partscan",
        becomes=lambda no: not no,
    ),
    General(
        option=Option(
            name="owner", help="Whose its node is, by name or number.", kept=access.parse_owner
        ),
        metavar="USER",
    ),
    General(
        option=Option(
            name="group", help="The group of its node, by name or number.", kept=access.parse_group
        ),
        metavar="GROUP",
    ),
    General(
        option=Option(
            name="mode", help="Who may open its node: octal, like 0660.", kept=access.parse_mode
        ),
        metavar="MODE",
    ),
)
"""The options that every device has, in the order of the help. A new one is an entry here and a
field of DeviceConfig with its default."""


def build(target: str, options: Mapping[str, RawOption], **general: RawOption) -> DeviceConfig:
    """Check everything that can be checked without the machine. Raises UsageError.

    Values are the words of the command line; None takes the default. ``general`` are those of
    GENERAL, by key.
    """
    known = registry.options_of(target, lambda option: _text(options.get(option)))
    values = parse_options(target, known, options)
    registry.check(target, values)
    fields: dict[str, Any] = {}
    asked: dict[str, OptionValue] = {}
    for entry in GENERAL:
        given = general.pop(entry.option.key, None)
        if given is None:
            continue
        parsed = _parsed(entry.option, given)
        fields[entry.attribute] = entry.becomes(parsed)
        if entry.attribute != "name" and fields[entry.attribute] != entry.default:
            asked[entry.option.name] = parsed
    assert not general, f"no general options: {general}"
    return DeviceConfig(
        target=target, options=values, paths=_paths(known, values), asked=asked, **fields
    )
