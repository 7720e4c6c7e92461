"""Finds targets and their verbs: entry points, ours and strangers' by one door."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from typing import Any, cast

from ublkd.errors import UblkdError, UsageError, printable, quoted, reason, told
from ublkd.plugin import Maker, blamed, guarded, wrong_options
from ublkd.target import API_VERSION, NativeTarget, Option, OptionValue, Target, Verb

GROUP = "ublkd.targets"
VERBS = "ublkd.verbs"
"""What targets can be asked without a device; an entry point is called like its target."""
UNKNOWN = "an unknown package"
MEMBERS = ("options", "from_options", "files", "describe", "close")
"""What a target's class has; ``params`` may be its instances' alone."""
WAYS = ("submit", "native")
"""And one of these, to serve."""


@functools.cache
def points(group: str) -> EntryPoints:
    """All entry points of a group. A file of each installed package is read for them, so once."""
    return entry_points(group=group)


def names(group: str = GROUP) -> list[str]:
    """The names that ``--target`` takes, sorted; or those of the targets that bring ``VERBS``."""
    return sorted({point.name for point in points(group)})


def load(name: str) -> type[Target]:
    """The target class of that name.

    Raises UsageError for a name nobody registered and UblkdError for one that several packages
    did, or a plug-in that does not load, does not look like a target, or speaks another version
    of the protocol.
    """
    point = _only(GROUP, name)
    if point is None:
        what = f"unknown target {quoted(name)}"
        if not names():  # so it is as well where a shortage keeps a folder from being listed
            raise UblkdError(what, hint="no target is known: is ublkd installed properly?")
        raise UsageError(what, hint=f"targets on this machine: {', '.join(names())}")
    return _checked(point)


def opened(name: str, options: Mapping[str, OptionValue]) -> NativeTarget:
    """A target of that name; what its code raises from then on is an UblkdError as well.

    Raises UblkdError: the target's own, or one that says whose fault it is.
    """
    cls, maker = load(name), _maker_of(name)
    try:
        return guarded(cls.from_options(options), maker)
    except UblkdError:
        raise
    except OSError as error:
        where = f"{printable(str(error.filename))}: " if error.filename else ""
        raise UblkdError(
            f"target {name}: {where}{reason(error)}",
            hint=f"see 'ublkd add --target {name} --help'",
        ) from error
    except (Exception, SystemExit) as error:
        raise maker.failed("from_options()", error) from error


def check(name: str, options: Mapping[str, OptionValue]) -> None:
    """Have a target look at its parsed options, if it wants to; nothing is opened.

    Raises UblkdError as ``load`` does, and what the target raises.
    """
    if hook := getattr(load(name), "check_options", None):
        with blamed(_maker_of(name), "check_options()"):
            hook(options)


def options_of(name: str, named: Callable[[str], str | None]) -> dict[str, Option]:
    """The options of a target by name, with those of the targets that it is put over.

    ``named`` tells which target an option of kind ``target`` names. Raises as ``load`` does.
    """
    found = {option.name: option for option in load(name).options}
    for option in [o for o in found.values() if o.kind == "target"]:
        other = named(option.name)
        if other is not None and other != name:
            found = {o.name: o for o in load(other).options} | found
    return found


def verbs(name: str) -> Sequence[Verb] | None:
    """The verbs of a target by its name; None if nobody registered any.

    Raises UblkdError as ``load`` does; what their code raises is an UblkdError as well.
    """
    point = _only(VERBS, name)
    if point is None:
        return None
    who, brought = _maker(point), _loaded(point)
    if not isinstance(brought, list | tuple) or not all(isinstance(verb, Verb) for verb in brought):
        raise who.fault("brings verbs that are not a tuple of Verb")
    for verb in brought:
        if why := wrong_options([verb.argument, *verb.options]):
            raise who.fault(f"is broken: in its verb {quoted(str(verb.name))} {why}")
    return [dataclasses.replace(verb, run=_guarded_run(verb, who)) for verb in brought]


def _guarded_run(verb: Verb, who: Maker) -> Callable[[Mapping[str, OptionValue]], Any]:
    def run(values: Mapping[str, OptionValue]) -> Any:
        with blamed(who, f"its verb {verb.name}"):
            return verb.run(values)

    return run


def _only(group: str, name: str) -> EntryPoint | None:
    """The entry point of that name, if there is one. Raises UblkdError if there are several."""
    found = {(_maker(p).package, p.value): p for p in points(group).select(name=name)}
    if len(found) > 1:
        packages = " and by ".join(sorted({printable(package) for package, _ in found}))
        raise UblkdError(
            f"target {quoted(name)} is registered more than once: by {packages}",
            hint="remove all but one of them, for example with 'pip uninstall'",
        )
    return next(iter(found.values()), None)


def _maker_of(name: str) -> Maker:
    return next(map(_maker, points(GROUP).select(name=name)), Maker(name, UNKNOWN))


def _maker(point: EntryPoint) -> Maker:
    return Maker(point.name, (point.dist.name if point.dist else None) or UNKNOWN)


def _loaded(point: EntryPoint) -> Any:
    who = _maker(point)
    try:
        return point.load()
    except (Exception, SystemExit) as error:  # a stranger's code: whatever it raises is its fault
        raise UblkdError(
            f"{who} does not load: {told(error)}",
            hint=f"it is a plug-in: reinstall or remove {printable(who.package)}",
        ) from error


def _checked(point: EntryPoint) -> type[Target]:
    who, cls = _maker(point), _loaded(point)
    version = getattr(cls, "api_version", None)
    if version != API_VERSION:
        raise UblkdError(
            f"{who} speaks version {version} of the plug-in protocol, this ublkd {API_VERSION}",
            hint=f"install a version of {printable(who.package)} that fits",
        )
    missing = [name for name in MEMBERS if not hasattr(cls, name)]
    if not any(hasattr(cls, name) for name in WAYS):
        missing.append(" or ".join(WAYS))
    if missing:
        raise UblkdError(
            f"{who} is not a target: it has no {', '.join(missing)}",
            hint="see ublkd.target.Target for what a target is",
        )
    with blamed(who, "options"):
        if why := wrong_options(cls.options):
            raise who.fault(f"is broken: {why}")
    return cast("type[Target]", cls)
