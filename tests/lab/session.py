"""One boot: start virtiofsd and QEMU, pass the job's output on, end them."""

import contextlib
import dataclasses
import enum
import os
import select
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from . import confine, kernellog, machine
from .control import Message, Reader, Word
from .errors import Exit, LabError, say

_QUIET = 30.0  # seconds without output after which what a job left behind is not waited for
_DUMP = 30.0  # seconds a stuck guest has to show its tasks


class End(enum.Enum):
    """How a boot ended."""

    DONE = enum.auto()
    NO_INIT = enum.auto()  # before the first line of the guest's init
    NO_JOB = enum.auto()  # after that line, with nothing of the job run
    DIED = enum.auto()  # while the job ran
    DEADLINE = enum.auto()


@dataclasses.dataclass(frozen=True)
class Result:
    """The end of a boot; ``status`` is the job's when it is DONE."""

    end: End
    status: int = 0
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Limits:
    """Seconds the guest has: to init's first line, from there to the job, and for the job.

    None stands for ever.
    """

    init: float
    start: float
    job: float | None


@dataclasses.dataclass(frozen=True)
class Programs:
    """Where virtiofsd is, and what it says its version is."""

    virtiofsd: Path
    version: str


class Session:
    """The processes and sockets of one boot; use as a context manager."""

    def __init__(self, what: machine.Machine, programs: Programs, folder: Path) -> None:
        self.machine = what
        self.folder = folder
        self.log = folder / "kernel.log"
        self._programs = programs
        self._children: list[subprocess.Popen[bytes]] = []
        self._ours: list[socket.socket] = []
        self._theirs: list[socket.socket] = []

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        for child in reversed(self._children):
            child.kill()
        for child in self._children:
            child.wait()
        for end in self._ours + self._theirs:
            end.close()

    def start(self, *, shell: bool) -> None:
        """Start both programs. Raises LabError."""
        self.log.write_bytes(b"")
        ports = tuple(self._pair() for _ in range(3))
        console = self._pair() if shell else None
        root = self.folder / "root.sock"
        root.unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._theirs.append(listening)
        listening.bind(str(root))
        listening.listen(1)
        self._spawn(
            machine.virtiofsd(
                self._programs.virtiofsd,
                listening.fileno(),
                self._programs.version,
            ),
            confine.read_only_root,
            "virtiofsd.log",
        )
        wiring = machine.Wiring(
            self.folder, root, self.log, (ports[0], ports[1], ports[2]), console
        )
        self._spawn(machine.qemu(self.machine, wiring), confine.die_with_parent, "qemu.log")
        for end in self._theirs:
            end.close()
        self._theirs = []

    def _pair(self) -> int:
        ours, theirs = socket.socketpair()
        self._ours.append(ours)
        self._theirs.append(theirs)
        return theirs.fileno()

    def _spawn(self, command: list[str], prepare: Callable[[], None], log: str) -> None:
        # A session of its own: the terminal's Ctrl-C is for the lab, which ends it in order.
        with (self.folder / log).open("wb") as out:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                pass_fds=[end.fileno() for end in self._theirs],
                preexec_fn=prepare,  # noqa: PLW1509 (the lab has no threads)
                start_new_session=True,
            )
        self._children.append(child)

    def tell(self, line: str) -> None:
        """Send one line to the guest's init."""
        with contextlib.suppress(OSError):  # it is gone, and the loop is about to see that
            self._ours[0].sendall(line.encode() + b"\n")

    def kernel_log(self) -> str:
        """Return what the kernel said so far."""
        text = self.log.read_bytes().decode(errors="replace")
        return text.replace("\r\n", "\n")

    def said(self) -> str:
        """Return the last line of QEMU, else of virtiofsd, which may tell why they ended."""
        for name in ("qemu.log", "virtiofsd.log"):
            lines = (self.folder / name).read_text(errors="replace").strip().splitlines()
            if lines:
                return f"{name.removesuffix('.log')} said: {lines[-1]}"
        return ""

    def run(self, limits: Limits) -> Result:
        """Pass output on until the job has ended, or the guest has."""
        return _Loop(self, self._ours, limits).run()


class _Loop:
    """What `Session.run` knows while it runs."""

    def __init__(self, session: Session, ours: list[socket.socket], limits: Limits) -> None:
        self.session = session
        self.limits = limits
        self.reader = Reader()
        self.selector = selectors.DefaultSelector()
        control, out, err, *console = ours
        self.selector.register(control, selectors.EVENT_READ, self._control)
        self.selector.register(out, selectors.EVENT_READ, _to(out, sys.stdout.fileno()))
        self.selector.register(err, selectors.EVENT_READ, _to(err, sys.stderr.fileno()))
        for port in console:
            self.selector.register(port, selectors.EVENT_READ, _to(port, sys.stdout.fileno()))
            keys = _from(sys.stdin.fileno(), port)
            self.selector.register(sys.stdin, selectors.EVENT_READ, keys)
        self.socket = control
        self.init = False
        self.job = False
        self.drained = False
        self.status: int | None = None
        self.failed = ""
        self.late = False
        self.until: float | None = time.monotonic() + limits.init

    def run(self) -> Result:
        try:
            while self._alive():
                left = None if self.until is None else max(0.0, self.until - time.monotonic())
                ready = self.selector.select(left)
                if not ready and self._timed_out():
                    break
                for key, _ in ready:
                    if not key.data():
                        self.selector.unregister(key.fileobj)
                if self.status is not None and not self.drained and ready:
                    self.until = time.monotonic() + _QUIET
                if self.drained:
                    self._drain()
                    break
        finally:
            self.selector.close()
        return self._result()

    def _alive(self) -> bool:
        return self.socket in self._open() and not self.failed

    def _open(self) -> list[object]:
        return [key.fileobj for key in self.selector.get_map().values()]

    def _drain(self) -> None:
        # All of it is in the sockets by now: the guest waited for the host to take it.
        while ready := [key for key, _ in self.selector.select(0) if key.fileobj is not sys.stdin]:
            for key in ready:
                if not key.data():
                    self.selector.unregister(key.fileobj)

    def _timed_out(self) -> bool:
        """Say whether to give up now."""
        if not self.job or self.status is not None or self.late:
            return True
        self.late = True
        self.until = time.monotonic() + _DUMP
        self.session.tell("deadline")
        return False

    def _control(self) -> bool:
        data = _receive(self.socket)
        for message in self.reader.feed(data):
            self._hear(message)
        return bool(data)

    def _hear(self, message: Message) -> None:
        match message.word:
            case Word.INIT:
                self.init = True
                self.until = time.monotonic() + self.limits.start
            case Word.FAIL:
                self.failed = message.text
            case Word.JOB:
                self.job = True
                job = self.limits.job
                self.until = None if job is None else time.monotonic() + job
            case Word.EXIT:
                self.status = message.status
                self.until = time.monotonic() + _QUIET
            case Word.DRAINED:
                self.drained = True
            case Word.DUMPED:
                self.until = time.monotonic()

    def _result(self) -> Result:
        if self.late:
            return Result(End.DEADLINE)
        if self.status is not None:
            return Result(End.DONE, self.status)
        if self.job:
            return Result(End.DIED, reason=self.failed)
        end = End.NO_JOB if self.init else End.NO_INIT
        return Result(end, reason=self.failed or self.session.said())


def _receive(port: socket.socket) -> bytes:
    try:
        return port.recv(1 << 16)
    except ConnectionError:
        return b""


def _to(port: socket.socket, fd: int) -> Callable[[], bool]:
    """Return what passes a part of the guest's output on; False at its end."""

    def copy() -> bool:
        data = _receive(port)
        _write(fd, data)
        return bool(data)

    return copy


def _write(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:  # whoever shares our stdout has made it non-blocking
            select.select([], [fd], [])


def _from(fd: int, port: socket.socket) -> Callable[[], bool]:
    def copy() -> bool:
        data = os.read(fd, 4096)
        try:
            port.sendall(data)
        except OSError:
            return False
        return bool(data)

    return copy


def find_virtiofsd(places: tuple[str, ...]) -> Programs:
    """Return the first virtiofsd among ``places``. Raises LabError."""
    for place in places:
        if os.access(place, os.X_OK):
            done = subprocess.run([place, "--version"], capture_output=True, text=True, check=False)
            return Programs(Path(place), done.stdout + done.stderr)
    raise LabError(
        "no virtiofsd on this machine",
        hint="install virtiofsd (Debian 12 has it in qemu-system-common)",
        status=Exit.IMPOSSIBLE,
    )


def report(session: Session, result: Result) -> None:
    """Print on stderr what the kernel has to say about a boot that went wrong."""
    log = session.kernel_log()
    if result.end is End.DEADLINE:
        print(kernellog.blocked(log) or "(no task is blocked)", file=sys.stderr)
        if test := kernellog.last_test(log):
            say(f"in {test}")
        return
    if log:
        print(kernellog.death(log), file=sys.stderr)
    while_ = "while the job ran" if result.end is End.DIED else "before the job"
    say(f"the guest died {while_}{f': {result.reason}' if result.reason else ''}")
