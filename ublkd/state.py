"""What is remembered of a running device, under /run/ublkd: its name, target, options and choices.

One JSON file per device, written atomically before the disk appears, and beside it what udev is
told of it, and the page of counters that the queues write. What the kernel says wins: a file whose
cookie is not the device's belongs to an earlier device of that number and is swept away.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ublkd import access, udev
from ublkd.access import Access
from ublkd.errors import UblkdError, printable, reason

RUN_DIR = Path("/run/ublkd")
VERSION = 1
MAX_BYTES = 1 << 20
LOCK_SECONDS = 30
CHANGE_SECONDS = 90

COOKIE_MAGIC = 0x75626B64 << 32
"""The upper half of the cookie that every device of ours carries in the driver ("ubkd")."""
COOKIE_MASK = 0xFFFFFFFF << 32


def new_cookie() -> int:
    """64 bits to give ADD_DEV: ours by the upper half, this very device by the lower."""
    return COOKIE_MAGIC | int.from_bytes(os.urandom(4))


def is_ours(cookie: int) -> bool:
    """Whether a device with that cookie was made by ublkd."""
    return cookie & COOKIE_MASK == COOKIE_MAGIC


@dataclass(frozen=True, kw_only=True)
class DeviceState:
    """One device as remembered. ``describe`` is the target's own words about itself."""

    id: int
    cookie: int
    pid: int
    name: str | None
    target: str
    options: Mapping[str, Any]
    lease: str
    refused: Mapping[str, str] = field(default_factory=dict)
    recovery_reason: str = ""
    access: Access = field(default_factory=dict)  # owner, group and mode that were asked for
    started: bool = False  # it has been a disk: the driver does not tell
    describe: Mapping[str, Any] = field(default_factory=dict)
    origin: str | None = None  # the file it was made from; None: by hand
    asked: Mapping[str, Any] = field(default_factory=dict)  # see config.DeviceConfig
    size: int | None = None  # bytes that it was last resized to; None: it never was
    revision: int = 0  # raised by whoever changes name, options or size
    answered: int = 0  # the last one that the daemon has looked at
    problem: str = ""  # and why it does not go by that one
    version: int = VERSION

    def with_changes_of(self, found: DeviceState | None) -> DeviceState:
        """The same, with what may have been changed in the file that was found."""
        if found is None or found.cookie != self.cookie:
            return self
        return replace(self, name=found.name, options=found.options, size=found.size,
                       revision=found.revision)  # fmt: skip

    @property
    def backings(self) -> list[str]:
        """The paths behind it, as its target tells them."""
        told = self.describe.get("backing", ())
        paths = told if isinstance(told, list | tuple) else [told]
        return [path for path in paths if isinstance(path, str)]


class StateDir:
    """The folder: root's own, nobody else's. Every method may raise UblkdError."""

    def __init__(self, path: Path = RUN_DIR) -> None:
        self.path = path

    def prepare(self) -> None:
        """Make the folder; refuse one that somebody else could have filled."""
        try:
            with contextlib.suppress(FileExistsError):
                self.path.mkdir(mode=0o700)
            found = self.path.lstat()
        except OSError as error:
            raise UblkdError(
                f"cannot make {self.path}: {reason(error)}", hint="is /run writable?"
            ) from error
        if not stat.S_ISDIR(found.st_mode):
            raise UblkdError(
                f"{self.path} is not a folder", hint="remove it: it should be root's, mode 0700"
            )
        if found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise UblkdError(
                f"{self.path} can be written by others: nothing in it can be trusted",
                hint=f"see who made it, then 'rm -r {self.path}'",
            )

    @contextlib.contextmanager
    def lock(
        self, seconds: float | None = None, *, look: Callable[[], None] = lambda: None
    ) -> Iterator[None]:
        """One at a time: whoever chooses a name or sweeps. Waits at most so long, by default
        LOCK_SECONDS.

        ``look`` is called while it waits, and last with the lock: what it raises is the end of it.
        """
        self.prepare()
        fd = _opened(self.path, os.O_NOFOLLOW)
        try:
            _flock(fd, LOCK_SECONDS if seconds is None else seconds, "adding or deleting", look)
            look()
            yield
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def changing(self, dev_id: int) -> Iterator[None]:
        """One at a time: whoever changes a device that is there. Waits at most CHANGE_SECONDS.

        The lock is on the counters: of a device's files the one that is never replaced.
        """
        path = self.counters(dev_id)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise UblkdError(
                f"cannot open {path}: {reason(error)}", hint="was the device deleted meanwhile?"
            ) from error
        try:
            _flock(fd, CHANGE_SECONDS, f"changing device {dev_id}")
            yield
        finally:
            os.close(fd)

    def file(self, dev_id: int) -> Path:
        """Where a device's JSON is."""
        return self.path / f"{dev_id}.json"

    def counters(self, dev_id: int) -> Path:
        """Where a device's counters are."""
        return self.path / f"{dev_id}.stats"

    def write(self, state: DeviceState) -> None:
        """Write or replace what is remembered, and what udev is told: both whole or neither."""
        texts = {self.file(state.id): json.dumps(asdict(state))}
        coming, there = udev.before(state.id), udev.of_disk(state.id)
        name = there if state.started else coming
        if name is not None:
            texts[self.path / name] = udev.facts(state.pid, state.name, state.access)
        self._replace(texts)
        if name != coming:  # not before the other is there: udev looks for this one first
            (self.path / coming).unlink(missing_ok=True)

    def try_write(self, state: DeviceState) -> None:
        """Raise the UblkdError of a ``write`` that could not be done, and change nothing."""
        self._replace({self.file(state.id): json.dumps(asdict(state))}, only_try=True)

    def _replace(self, texts: Mapping[Path, str], *, only_try: bool = False) -> None:
        """All that takes space comes first: where one has none, no file is another one."""
        temporary = {path: self.path / f".{path.name}.{os.getpid()}" for path in texts}
        path = self.path
        try:
            for path, text in texts.items():
                _write_anew(temporary[path], text)
            for path in texts if not only_try else ():
                temporary[path].replace(path)
        except OSError as error:
            raise UblkdError(
                f"cannot write {path}: {reason(error)}", hint="is /run full?"
            ) from error
        finally:
            for left in temporary.values():
                with contextlib.suppress(OSError):
                    left.unlink(missing_ok=True)

    def update(
        self, dev_id: int, cookie: int, edit: Callable[[DeviceState], DeviceState], *,
        seconds: float | None = None,
    ) -> DeviceState | None:  # fmt: skip
        """Replace that very device's file by what ``edit`` makes of it; None if it is not there.

        ``seconds``: see ``lock``.
        """
        with self.lock(seconds):
            state = self.read(dev_id)
            if state is None or state.cookie != cookie:
                return None
            edited = edit(state)
            if edited != state:
                self.write(edited)
            return edited

    def read(self, dev_id: int) -> DeviceState | None:
        """The device's file, or None where it is missing, broken or foreign."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(self.file(dev_id), flags)
        except OSError:
            return None
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
                return None
            with open(fd, "rb", closefd=False) as f:
                return _decoded(f.read(MAX_BYTES), dev_id)
        finally:
            os.close(fd)

    def backings(self, dev_id: int) -> list[str]:
        """The paths behind a device, where they are known."""
        state = self.read(dev_id)
        return state.backings if state else []

    def ids(self) -> list[int]:
        """The devices that have files here, by number."""
        try:
            entries = os.listdir(self.path)
        except OSError:
            return []
        stems = {name.partition(".")[0] for name in entries if not name.startswith(".")}
        return sorted(int(stem) for stem in stems if stem.isascii() and stem.isdecimal())

    def forget(self, dev_id: int, cookie: int) -> None:
        """Forget that very device: a later one of its number keeps its files."""
        with self.lock():
            state = self.read(dev_id)
            if state is None or state.cookie == cookie:
                self.remove(dev_id)

    def sweep(self, is_there: Callable[[int], bool]) -> None:
        """Remove what writers have left that were killed; ``is_there``: whether a process lives."""
        with contextlib.suppress(OSError):
            for path in self.path.glob(".*.*"):
                pid = path.name.rpartition(".")[2]
                if pid.isascii() and pid.isdecimal() and not is_there(int(pid)):
                    path.unlink(missing_ok=True)

    def remove(self, dev_id: int) -> None:
        """Forget a device."""
        told = self.path.glob(f"{dev_id}.*udev")
        for path in (*told, self.counters(dev_id), self.file(dev_id)):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _decoded(raw: bytes, dev_id: int) -> DeviceState | None:
    try:
        found = json.loads(raw)
        state = DeviceState(**found)
    except (ValueError, TypeError, RecursionError):
        return None
    texts = all(isinstance(v, str) for v in (state.target, state.lease, state.recovery_reason,
                                               state.problem))  # fmt: skip
    maps = all(isinstance(v, dict) for v in (state.options, state.refused, state.describe,
                                               state.asked))  # fmt: skip
    counts = (state.cookie, state.pid, state.id, state.revision, state.answered, state.size or 0)
    numbers = all(isinstance(v, int) for v in counts)
    named = all(v is None or isinstance(v, str) for v in (state.name, state.origin))
    sound = texts and maps and numbers and named and access.sound(state.access)
    return state if sound and state.version == VERSION and state.id == dev_id else None


@contextlib.contextmanager
def locked(folder: Path, seconds: float, doing: str) -> Iterator[None]:
    """One at a time for a folder that is there. Raises UblkdError if another one has been ``doing``
    that for so many seconds.
    """
    fd = _opened(folder)
    try:
        _flock(fd, seconds, doing)
        yield
    finally:
        os.close(fd)


def _opened(folder: Path, flags: int = 0) -> int:
    try:
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | flags)
    except OSError as error:
        shown = printable(str(folder))
        raise UblkdError(
            f"cannot open {shown}: {reason(error)}", hint=f"see 'ls -ld {shown}'"
        ) from error


def _write_anew(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)  # of a process that had our number and was killed
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, 0o600), "w", encoding="ascii") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())


def _flock(fd: int, seconds: float, doing: str, look: Callable[[], None] = lambda: None) -> None:
    until = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EINTR):
                raise
            if time.monotonic() > until:
                raise UblkdError(
                    f"another ublkd has been {doing} for {seconds:g} seconds",
                    hint="look for a ublkd that hangs: 'ps -C ublkd'",
                ) from error
            look()
            time.sleep(0.01)
        else:
            return
