"""What a plug-in may get wrong, told as its own fault: its target's name and its package.

Whatever its code raises is one line and a hint like any other failure, and never a defect of ublkd.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args, get_type_hints

from ublkd.errors import DefectError, UblkdError, printable, quoted, told
from ublkd.target import Native, NativeTarget, Option, OptionValue, Params
from ublkd.target.bridge import serving

KINDS = get_args(get_type_hints(Option)["kind"])
DEFAULTS: Mapping[str, type] = {
    "size": int, "number": int, "seconds": float, "wait": float, "flag": bool,
}  # the others are texts  # fmt: skip
OPTION_NAME = re.compile("[a-z][a-z0-9-]*")


@dataclass(frozen=True)
class Maker:
    """Who made a target: what it is called, and the package that brought it."""

    target: str
    package: str

    def __str__(self) -> str:
        return f"target {quoted(self.target)} (from {printable(self.package)})"

    def fault(self, what: str) -> DefectError:
        """The error for something that is wrong with it."""
        return DefectError(
            f"{self} {what}",
            hint=f"this is a defect of {printable(self.package)}: tell whoever made it",
        )

    def failed(self, where: str, error: BaseException) -> DefectError:
        """The error for an exception that it raised."""
        return self.fault(f"failed in {where}: {told(error)}")


@contextlib.contextmanager
def blamed(maker: Maker, where: str) -> Iterator[None]:
    """Whatever the block raises is the maker's fault, except what is an UblkdError already."""
    try:
        yield
    except UblkdError:
        raise
    except (Exception, SystemExit) as error:
        raise maker.failed(where, error) from error


class Guarded:
    """A target whose members fail in the name of its maker, and give what they must give.

    What is not named here passes unguarded: what serves requests cannot afford it.
    """

    def __init__(self, target: Any, maker: Maker) -> None:
        self._target, self._maker = target, maker

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    @property
    def params(self) -> Params:
        """As the target has them."""
        with blamed(self._maker, "params"):
            return cast("Params", self._expected("params", self._target.params, Params))

    def files(self) -> Sequence[int]:
        """As the target gives them."""
        with blamed(self._maker, "files()"):
            return [cast("int", self._expected("files()", fd, int)) for fd in self._target.files()]

    def native(self) -> Native:
        """As the target gives it, or the way into its ``submit``."""
        where = "native()" if hasattr(self._target, "native") else "submit()"
        with blamed(self._maker, where):
            native = serving(self._target, self._maker.target)
            return cast("Native", self._expected(where, native, Native))

    def describe(self) -> Mapping[str, OptionValue]:
        """As the target tells, if it can be written down."""
        with blamed(self._maker, "describe()"):
            words = dict(self._target.describe())
            json.dumps(words)
            return words

    def recovered(self, counters: Sequence[Mapping[str, Any]]) -> None:
        """If the target wants to know."""
        if hook := getattr(self._target, "recovered", None):
            with blamed(self._maker, "recovered()"):
                hook(counters)

    def size_now(self) -> int | None:
        """As the target tells; None if it has no word for it."""
        if not (hook := getattr(self._target, "size_now", None)):
            return None
        with blamed(self._maker, "size_now()"):
            return cast("int", self._expected("size_now()", hook(), int))

    def resizing(self, size: int) -> None:
        """If the target wants to know."""
        if hook := getattr(self._target, "resizing", None):
            with blamed(self._maker, "resizing()"):
                hook(size)

    def changed(self, options: Mapping[str, OptionValue]) -> None:
        """If the target wants to know."""
        if hook := getattr(self._target, "changed", None):
            with blamed(self._maker, "changed()"):
                hook(options)

    def close(self) -> None:
        """Let go of the target."""
        with blamed(self._maker, "close()"):
            self._target.close()

    def _expected(self, where: str, value: object, kind: type) -> object:
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self._maker.fault(
                f"has {type(value).__name__} in {where}, where {kind.__name__} is needed"
            )
        return value


def guarded(target: object, maker: Maker) -> NativeTarget:
    """The target, so that its failures are its maker's."""
    return cast("NativeTarget", Guarded(target, maker))


def refuse_shared_streams(target: str, files: Sequence[int], queues: int) -> None:
    """Two queues, or two lanes, on one stream would put messages into each other's."""
    streams = [os.fstat(fd).st_ino for fd in files if _is_stream(fd)]
    if len(set(streams)) < len(streams):
        raise UblkdError(
            f"target {target} names one socket twice in files()",
            hint="this is a defect of the target: tell whoever made it",
        )
    if queues > 1 and streams:
        raise UblkdError(
            f"target {target} has a socket, which {queues} queues cannot share",
            hint="use --queues 1; its Params should say so in max_queues",
        )


def _is_stream(fd: int) -> bool:
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return False
    with socket.socket(fileno=os.dup(fd)) as probe:
        return probe.type == socket.SOCK_STREAM


# --- the options of a class -----------------------------------------------------------------


def wrong_options(options: object) -> str:
    """Why these cannot be the options of a target; empty if they can."""
    if not isinstance(options, list | tuple):
        return f"options is {type(options).__name__}, not a tuple of Option"
    keys: set[str] = set()
    for option in options:
        if not isinstance(option, Option):
            return f"options has {type(option).__name__} where an Option is needed"
        if why := _wrong(option):
            return f"its option {quoted(str(option.name))} {why}"
        if option.key in keys:
            return f"its option {option.name!r} is there twice"
        keys.add(option.key)
    return ""


def _wrong(option: Option) -> str:
    """What is wrong with one; its fields may be of any type, whatever they are declared as."""
    if not isinstance(option.name, str) or not OPTION_NAME.fullmatch(option.name):
        return "has a name that is not lower case letters, digits and '-'"
    if option.name == "help":
        return "is what every command has already"
    if not isinstance(option.help, str):
        return "has no text for its help"
    if option.kind not in KINDS:
        return f"is of the unknown kind {quoted(str(option.kind))}"
    if option.multiple and option.kind not in ("text", "path"):
        return f"is of kind {option.kind} and cannot be given many times"
    if option.kept is not None and (option.kind != "text" or not callable(option.kept)):
        return "has something in kept that cannot be"
    if option.kind == "choice" and not _texts(option.choices):
        return "has no choices"
    if option.is_size and option.kind != "size":
        return f"is of kind {option.kind} and cannot be the size of the disk"
    numbers = (option.minimum, option.maximum, option.multiple_of)
    if not all(isinstance(n, int) for n in numbers) or option.multiple_of < 1:
        return "has a bound that is not a number"
    wanted = tuple if option.multiple else DEFAULTS.get(option.kind, str)
    if option.default is not None and type(option.default) is not wanted:
        return f"has a default that is not {wanted.__name__}"
    return ""


def _texts(values: object) -> bool:
    return isinstance(values, list | tuple) and bool(values) and all(type(v) is str for v in values)
