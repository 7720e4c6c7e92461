"""The faulty target: another target whose members fall short, stumble, fail and dawdle.

For tests of whatever stands above or below. What happens follows from ``--seed`` alone: the same
requests meet the same faults. Decides here; faulty.c serves.
"""

from __future__ import annotations

import dataclasses
import errno
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from ublkd import registry
from ublkd._core import ffi, lib
from ublkd.errors import UsageError, printable, quoted
from ublkd.target import API_VERSION, Native, Option, OptionValue, Target
from ublkd.target.bridge import serving

UNITS = {"us": 1_000, "ms": 1_000_000, "s": 1_000_000_000}
"""Nanoseconds."""
TOLD = ("short", "odd", "walk", "again", "error", "delay")


def _share(name: str, text: str) -> int:
    """A probability, as a share of 2^32. Raises UsageError."""
    try:
        share = float(text)
    except ValueError:
        share = -1
    if not 0 <= share <= 1:
        raise UsageError(
            f"--{name} {quoted(text)} is not a probability", hint="a number from 0 to 1"
        )
    return round(share * (1 << 32))


def _error(text: str) -> tuple[int, int]:
    """NAME:SHARE as a negative errno and a share."""
    name, _, share = text.partition(":")
    number = getattr(errno, name.upper(), None) if re.fullmatch("[A-Za-z0-9]+", name) else None
    if not isinstance(number, int):
        raise UsageError(
            f"--error {quoted(text)} names no errno", hint="like EIO:0.001 or ENOSPC:0.1"
        )
    return -number, _share("error", share or "1")


def _delay(text: str) -> tuple[int, int]:
    """TIME:SHARE as nanoseconds and a share."""
    match = re.fullmatch(r"(\d{1,9})(us|ms|s)(?::(.*))?", text, re.ASCII)
    if not match:
        raise UsageError(f"--delay {quoted(text)} is not a time", hint="like 5ms:0.01 or 1s")
    return int(match[1]) * UNITS[match[2]], _share("delay", match[3] or "1")


class _Faults:
    """What happens, and how often. Raises UsageError for what makes no sense."""

    def __init__(self, options: Mapping[str, OptionValue]) -> None:
        seed = str(options["seed"])
        if not re.fullmatch("[0-9]{1,18}", seed, re.ASCII):
            raise UsageError(f"--seed {quoted(seed)} is not a number", hint="like 7")
        self.seed = int(seed)
        self.walk = bool(options["walk"])
        shares = (_share(name, str(options[name])) for name in ("short", "odd", "again"))
        self.short_by_block, self.short_by_byte, self.again = shares
        error, delay = options["error"], options["delay"]
        self.error_number, self.error = (0, 0) if error is None else _error(str(error))
        self.delay_ns, self.delay = (0, 0) if delay is None else _delay(str(delay))

    def fill_in(self, handle: Any) -> None:
        """Tell the C side, whose struct has the same names."""
        for name, value in vars(self).items():
            setattr(handle, name, value)


def _connected(over: str) -> UsageError:
    return UsageError(
        f"faulty cannot stand before {printable(over)}, which has connections of its own",
        hint="try it over loop, stripe or mirror",
    )


def _of_other(inner: type[Target], options: Mapping[str, OptionValue]) -> Mapping[str, OptionValue]:
    """Those among the options that are the other target's."""
    return {option.key: options[option.key] for option in inner.options}


class FaultyTarget:
    """Stands before the target named with ``--over``, whose options it takes as well."""

    api_version: ClassVar[int] = API_VERSION
    options: ClassVar[Sequence[Option]] = (
        Option(name="over", help="the target to spoil", kind="target", required=True),
        Option(name="short", help="share of transfers cut short at a block (0 to 1)", default="0"),
        Option(name="odd", help="share of transfers cut short at any byte", default="0"),
        Option(
            name="walk",
            help="cut each request's first transfers after as many bytes as its sector's number",
            kind="flag",
            default=False,
        ),
        Option(name="again", help="share of transfers that say EAGAIN", default="0"),
        Option(name="error", help="ERRNO:SHARE of requests that fail (like EIO:0.001)"),
        Option(name="delay", help="TIME:SHARE of requests that wait (like 5ms:0.01)"),
        Option(name="seed", help="a number; the same one brings the same faults", default="0"),
    )

    def __init__(self, over: Target, options: Mapping[str, OptionValue]) -> None:
        """Takes the other target over, to close it."""
        self._over = over
        self._told = {key: options[key] for key in TOLD}
        faults = _Faults(options)
        if over.params.streams:
            raise _connected(str(options["over"]))
        inner = self._inner = serving(over, str(options["over"]))
        self._handle = ffi.new("struct faulty *")
        self._handle.over = inner.ops
        self._handle.over_target = inner.handle
        self._handle.block = over.params.logical_block
        faults.fill_in(self._handle)
        self.params = dataclasses.replace(over.params, max_members=over.params.max_members + 1)

    @classmethod
    def check_options(cls, options: Mapping[str, OptionValue]) -> None:
        """Its own, then those of the other target. Raises UsageError."""
        _Faults(options)
        over = str(options["over"])
        inner = registry.load(over)
        if issubclass(inner, FaultyTarget):
            raise UsageError("faulty over faulty makes no sense", hint="name another target")
        if getattr(inner, "has_connections", False):
            raise _connected(over)
        registry.check(over, _of_other(inner, options))

    @classmethod
    def from_options(cls, options: Mapping[str, OptionValue]) -> Self:
        """The options above and those of the other target, by key. Raises UblkdError."""
        cls.check_options(options)
        name = str(options["over"])
        over = registry.opened(name, _of_other(registry.load(name), options))
        try:
            return cls(over, options)
        except BaseException:
            over.close()
            raise

    def files(self) -> Sequence[int]:
        """The other target's."""
        return self._over.files()

    def native(self) -> Native:
        """See faulty.c."""
        ops = ffi.new("struct ublkd_target_ops *", lib.faulty_ops()[0])
        ops.flags = self._inner.ops.flags  # what the other one needs
        return Native(ops, self._handle, keep=self._inner)

    def describe(self) -> Mapping[str, OptionValue]:
        """The other target's words, and the faults."""
        faults = {f"fault_{key}": value for key, value in self._told.items() if value is not None}
        return dict(self._over.describe()) | faults

    def recovered(self, counters: Sequence[Mapping[str, Any]]) -> None:
        """For the other target."""
        if hook := getattr(self._over, "recovered", None):
            hook(counters)

    def stopping(self) -> None:
        """For the other target."""
        if hook := getattr(self._over, "stopping", None):
            hook()

    def size_now(self) -> int | None:
        """The other target's."""
        hook = getattr(self._over, "size_now", None)
        return hook() if hook else None

    def resizing(self, size: int) -> None:
        """For the other target."""
        if hook := getattr(self._over, "resizing", None):
            hook(size)

    def changed(self, options: Mapping[str, OptionValue]) -> None:
        """For the other target, whose options they are: of these here none is live."""
        if hook := getattr(self._over, "changed", None):
            hook(options)

    def close(self) -> None:
        """Let go of the other target."""
        self._over.close()
