"""Devices as files: a folder with a NAME.toml for each, whose keys are the options of ``add``.

Here a file becomes a DeviceConfig, or one line that says what is wrong with it. Nothing is opened
but the files, and no driver is asked.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import stat
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from ublkd import config, registry
from ublkd.config import GENERAL, DeviceConfig, RawOption
from ublkd.errors import UblkdError, UsageError, printable, quoted, reason, redacted
from ublkd.target import Option

FOLDER = Path("/etc/ublkd")
ENDING = ".toml"
MAX_BYTES = 64 << 10
NUMBER_BITS = 64
WRITABLE = stat.S_IWGRP | stat.S_IWOTH

TYPES: Mapping[type, str] = {
    bool: "a boolean", int: "a whole number", float: "a number with a fraction", str: "a text",
    list: "a list", dict: "a table",
}  # the others are dates and times  # fmt: skip
FITTING: Mapping[str, tuple[type, ...]] = {
    "flag": (bool,), "path": (str,), "choice": (str,), "target": (str,),
    "seconds": (str, int, float), "wait": (str, int, float),
}  # the others are texts or whole numbers  # fmt: skip
OCTAL = ("mode",)
"""Texts in octal: of a whole number nobody can tell any more how it was written."""


@dataclass(frozen=True, kw_only=True)
class DeviceFile:
    """A device as its file has it."""

    name: str
    path: Path
    config: DeviceConfig


class FileError(UblkdError):
    """What is wrong with a device's file: what was asked makes no sense, unless ``exit_code`` says
    something else. As in a UsageError, a password of a URI is left out.
    """

    def __init__(
        self, path: Path, what: str, *, hint: str = "", line: int = 0,
        exit_code: int = UsageError.exit_code,
    ) -> None:  # fmt: skip
        where = f"{printable(str(path))}:{line}" if line else printable(str(path))
        super().__init__(redacted(f"{where}: {what}"), hint=hint)
        self.path, self.exit_code = path, exit_code

    @property
    def name(self) -> str:
        """The device's, if it can be one."""
        return self.path.name.removesuffix(ENDING)


class FolderError(UblkdError):
    """A folder that is not there, is none, or is not to be trusted."""


def read(folder: Path, name: str) -> DeviceFile:
    """One file. Raises UblkdError: what is wrong with the folder or with the file."""
    try:
        refuse_untrusted(folder)
    except FolderError as error:  # as with a file: to try again changes nothing
        raise UsageError(error.message, hint=error.hint) from error
    return _read(folder / f"{name}{ENDING}")


def read_all(folder: Path) -> tuple[list[DeviceFile], list[FileError]]:
    """All files by name: those that are sound, alone and together, and what is wrong with others.

    Raises UblkdError if the folder is not there, or not to be trusted.
    """
    refuse_untrusted(folder)
    files, wrong = [], []
    for path in _paths(folder):
        try:
            files.append(_read(path))
        except FileError as error:
            wrong.append(error)
    wrong += _conflicts(files)
    bad = {error.path for error in wrong}
    return [file for file in files if file.path not in bad], sorted(wrong, key=lambda e: e.path)


def names(folder: Path) -> list[str]:
    """The devices that have files, sound or not. Raises UblkdError."""
    found = (path.name.removesuffix(ENDING) for path in _paths(folder))
    return [name for name in found if config.NAME.fullmatch(name)]


def refuse_untrusted(folder: Path) -> None:
    """Raise FolderError for a folder in which others than root could have put files, or that is
    none; UblkdError for one that cannot be looked at.
    """
    shown = printable(str(folder))
    try:
        found = folder.stat()
    except (OSError, ValueError) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
        gone = isinstance(error, FileNotFoundError) and not folder.is_symlink()
        kind = FolderError if gone else UblkdError
        raise kind(
            f"cannot look at {shown}: {why}",
            hint="make it, and a file NAME.toml in it for each device; see ublkd.toml(5)",
        ) from error
    if not stat.S_ISDIR(found.st_mode):
        raise FolderError(
            f"{shown} is not a folder", hint="one with a file NAME.toml for each device"
        )
    if why := _untrusted(found):
        raise FolderError(
            f"{shown} {why}: nothing in it can be trusted",
            hint=f"'chown root: {shown}' and 'chmod go-w {shown}', once you know who wrote in it",
        )


def _paths(folder: Path) -> list[Path]:
    try:
        entries = os.listdir(folder)
    except OSError as error:
        shown = printable(str(folder))
        raise UblkdError(
            f"cannot read {shown}: {reason(error)}", hint=f"see 'ls -ld {shown}'"
        ) from error
    return [folder / n for n in sorted(entries) if n.endswith(ENDING) and not n.startswith(".")]


def _untrusted(found: os.stat_result) -> str:
    """Why others than root could have written it; empty if they could not."""
    if found.st_uid not in (0, os.geteuid()):
        return f"belongs to user {found.st_uid}"
    return "can be written by others than its owner" if found.st_mode & WRITABLE else ""


# --- one file -------------------------------------------------------------------------------


def _read(path: Path) -> DeviceFile:
    name = path.name.removesuffix(ENDING)
    try:
        config.parse_name(name)
    except UsageError as error:
        raise FileError(path, "its name cannot be a device's", hint=error.hint) from error
    keys = _parsed(path, _content(path))
    made = _config(path, name, keys)
    return DeviceFile(name=name, path=path, config=replace(made, origin=str(path)))


def _content(path: Path) -> bytes:
    """What is in a file that only root can have written."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        hint, code = "see 'ls -l'", UblkdError.exit_code
        if error.errno == errno.ENOENT and not path.is_symlink():
            hint = "'ublkd config check' lists the devices that have files"
            code = UsageError.exit_code
        said = f"cannot be opened: {reason(error)}"
        raise FileError(path, said, hint=hint, exit_code=code) from error
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise FileError(path, "is not a regular file", hint="a device's file is a text in TOML")
        # a link is as good as what it leads to, and whoever could put that there
        real = path.resolve()
        for what, seen in ((real, found), (real.parent, real.parent.stat())):
            if why := _untrusted(seen):
                raise _written_by_others(path, what, why)
        with open(fd, "rb", closefd=False) as f:
            content = f.read(MAX_BYTES + 1)
    except OSError as error:
        said = f"cannot be read: {reason(error)}"
        hint = f"see 'ls -l {printable(str(path))}'"
        raise FileError(path, said, hint=hint, exit_code=UblkdError.exit_code) from error
    finally:
        os.close(fd)
    if len(content) > MAX_BYTES:
        raise FileError(path, f"has more than {MAX_BYTES} bytes", hint="is it a device's file?")
    return content


def _written_by_others(path: Path, what: Path, why: str) -> FileError:
    shown = printable(str(what))
    return FileError(
        path, why if what == path else f"{shown} {why}",
        hint=f"'chown root: {shown}' and 'chmod go-w {shown}', once you know who wrote it",
    )  # fmt: skip


def _parsed(path: Path, content: bytes) -> dict[str, Any]:
    hint = "see ublkd.toml(5) for an example"
    try:
        return tomllib.loads(content.decode())
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise FileError(path, "is not UTF-8", hint=hint, line=line) from error
    except RecursionError as error:
        raise FileError(path, "has too many brackets", hint=hint) from error
    except tomllib.TOMLDecodeError as error:
        said = str(error)
        match = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", said)
        line = int(match[1]) if match and match[1] else content.count(b"\n") + 1
        what = said[: match.start()] if match else said
        raise FileError(path, f"is not TOML: {printable(what)}", hint=hint, line=line) from error
    except ValueError as error:  # Python reads no number that is longer yet
        raise FileError(path, f"has a number of more than {NUMBER_BITS} bits", hint=hint) from error


def _config(path: Path, name: str, keys: Mapping[str, Any]) -> DeviceConfig:
    target = keys.get("target")
    if not isinstance(target, str):
        what = "has no target" if target is None else f"target is {_type(target)}, not a text"
        raise FileError(path, what, hint='for example: target = "loop"')
    general = {entry.option.name: entry.option for entry in GENERAL}
    try:
        theirs = registry.options_of(target, lambda option: _text(keys.get(option)))
        known = theirs | general
        del known["name"]
        for key in keys:
            if key not in known and key != "target":
                raise _unknown(path, key, known)
        given = {key: _raw(path, known[key], keys[key]) for key in keys if key != "target"}
        return config.build(
            target,
            {key: value for key, value in given.items() if key not in general},
            name=name,
            **{general[key].key: value for key, value in given.items() if key in general},
        )
    except FileError:
        raise
    except UblkdError as error:  # in a file an option has no dashes
        said = re.sub(r"(?<!\S)--(?=[a-z])", "", error.message)
        raise FileError(path, said, hint=error.hint, exit_code=error.exit_code) from error


def _unknown(path: Path, key: str, known: Mapping[str, Option]) -> FileError:
    if key == "name":
        return FileError(path, "has a key 'name'", hint="a device is called like its file")
    near = difflib.get_close_matches(key.replace("_", "-"), known, 1)
    hint = f"did you mean '{near[0]}'?" if near else f"the keys are: target, {', '.join(known)}"
    return FileError(path, f"unknown key {quoted(key)}", hint=hint)


def _type(value: object) -> str:
    return TYPES.get(type(value), "a date or time")


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _raw(path: Path, option: Option, value: Any) -> RawOption:
    """A value of TOML as the command line would have it."""
    if option.multiple:
        many = value if isinstance(value, list) else [value]
        return tuple(_word(path, option, one) for one in many)
    if option.kind == "flag" and isinstance(value, bool):
        return value
    return _word(path, option, value)


def _word(path: Path, option: Option, value: Any) -> str:
    fitting = FITTING.get(option.kind, (str, int))
    hint = "true or false" if option.kind == "flag" else option.help
    if option.name in OCTAL:
        fitting, hint = (str,), f'{option.name} = "0640"'
    if type(value) not in fitting or option.kind == "flag":
        wanted = " or ".join(TYPES[kind] for kind in fitting)
        raise FileError(path, f"{option.name} is {_type(value)}, not {wanted}", hint=hint)
    if isinstance(value, int) and value.bit_length() > NUMBER_BITS:  # Python may not print it
        what = f"{option.name} is a number of more than {NUMBER_BITS} bits"
        raise FileError(path, what, hint=option.help)
    if option.kind == "path" and value and not Path(value).is_absolute():
        raise FileError(
            path, f"{option.name} {quoted(value)} is not an absolute path",
            hint="a file has no folder to start from",
        )  # fmt: skip
    if isinstance(value, float):
        return f"{value:.9f}".rstrip("0").rstrip(".")
    return str(value)


# --- several files --------------------------------------------------------------------------


class Claim(NamedTuple):
    """Something that is for one device alone, unless both who want it are ``loose``."""

    called: str
    what: object
    loose: bool
    hint: str


def _conflicts(files: Sequence[DeviceFile]) -> Iterator[FileError]:
    """What cannot be there twice: in two files, or in one."""
    claims = {file.name: list(_claims(file)) for file in files}
    for file in files:
        there = Counter(claim.what for claim in claims[file.name])
        for called in {c.called for c in claims[file.name] if there[c.what] > 1}:
            yield FileError(file.path, f"{called} is there twice", hint="give each once")
            break
    for one, other in combinations(files, 2):
        if one.config.id is not None and one.config.id == other.config.id:
            yield from _of_both(one, other, f"id {one.config.id}", "leave one of them out")
        for mine in claims[one.name]:
            theirs = [claim for claim in claims[other.name] if claim.what == mine.what]
            if theirs and not (mine.loose and all(claim.loose for claim in theirs)):
                yield from _of_both(one, other, mine.called, mine.hint)
                break


def _of_both(one: DeviceFile, other: DeviceFile, what: str, hint: str) -> Iterator[FileError]:
    for file, theirs in ((one, other), (other, one)):
        shown = printable(str(theirs.path))
        yield FileError(file.path, f"{what} is in {shown} as well", hint=hint)


def _claims(file: DeviceFile) -> Iterator[Claim]:
    """What its options name that is for one device alone."""
    options = file.config.options
    known = registry.options_of(
        file.config.target, lambda o: _text(options.get(o.replace("-", "_")))
    )
    share, reads = bool(options.get("share")), bool(options.get("read_only"))
    flag = next((name for name in ("share", "read-only") if name in known), "")
    hint = "each device needs its own" + (f", or all of them {flag} = true" if flag else "")
    for option in (o for o in known.values() if o.exclusive and o.kind in ("path", "text")):
        value = options[option.key]
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str):
                what, many_may_read = _identity(option, text)
                called = f"{option.name} {printable(text)}"
                yield Claim(called, what, share or (reads and many_may_read), hint)


def _identity(option: Option, text: str) -> tuple[object, bool]:
    """What is there, and whether any number of devices may have it that only read."""
    if option.kind != "path":
        return (option.name, text), True
    try:
        found = os.stat(text)
    except (OSError, ValueError):
        return os.path.normpath(text), False
    if stat.S_ISBLK(found.st_mode):
        return (0, found.st_rdev), False
    return (found.st_dev, found.st_ino), stat.S_ISREG(found.st_mode)
