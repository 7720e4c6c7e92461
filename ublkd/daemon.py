"""One process, one device: how it starts, tells that it is ready, and ends."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import syslog
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ublkd import below, manage, registry
from ublkd.config import DeviceConfig
from ublkd.control import Control
from ublkd.device import Device
from ublkd.errors import BY_EXIT_CODE, UblkdError, internal, printable, trace_of
from ublkd.features import groups, negotiate
from ublkd.state import StateDir, new_cookie
from ublkd.target import Target
from ublkd.uevent import wait_for_node

START_SECONDS = 120
"""How long ``add`` waits for the daemon. Each step has a shorter deadline of its own."""
NODE_SECONDS = 15
POLL_SECONDS = 3600  # a wait without an end is cut into these


@dataclass(frozen=True, kw_only=True)
class Ready:
    """What the daemon tells once the disk is there."""

    id: int
    warnings: list[str] = field(default_factory=list)

    @property
    def node(self) -> str:
        """The block node."""
        return f"/dev/ublkb{self.id}"


Log = Callable[[str], None]


def _open_target(config: DeviceConfig) -> Target:
    if config.id is not None:  # before it is opened: see below.py
        below.refuse_paths(config.paths, config.id, StateDir().backings)
    return registry.opened(config.target, config.options)


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """A descriptor from which the numbers of the signals can be read that have arrived."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    chosen = [signal.SIGTERM, signal.SIGINT, manage.STOPPING]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup means it
        chosen.append(signal.SIGHUP)
    before = {number: signal.signal(number, lambda *_: None) for number in chosen}
    old_fd = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    try:
        yield read_end
    finally:
        signal.set_wakeup_fd(old_fd)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(read_end)
        os.close(write_end)


def serve(config: DeviceConfig, cookie: int, ready: Callable[[Ready], None], log: Log) -> None:
    """Serve the device until it is stopped or a signal arrives.

    ``cookie`` marks the device in the driver. ``ready`` is called once the disk exists. Raises
    UblkdError where it never did, or where a queue failed later; the device is gone in the first
    case and dead in the second.
    """
    from ublkd.log import logged  # slow to load, and not for those who only start a daemon

    with Control() as control:
        offered = control.get_features()
        target = _open_target(config)
        try:
            features = negotiate(
                offered,
                config.lease,
                groups=groups(),
                partscan=config.partscan,
                in_memory=target.params.in_memory,
            )
            device = Device(control, config, target, features, StateDir(), cookie=cookie)
        except BaseException:
            target.close()
            raise
        with logged(log), _signals() as signalled, device as disk:
            ready(Ready(id=disk.id, warnings=_warnings(config, target, disk)))
            log(f"/dev/ublkb{disk.id} is ready: target {config.target}, lease "
                f"{features.lease.value}")  # fmt: skip
            _wait(disk, signalled)
            if failure := disk.failure:
                disk.leave()
                raise UblkdError(f"/dev/ublkb{disk.id} failed: {failure}")
            if disk.stopped_by_others:
                disk.leave()
            log(f"/dev/ublkb{disk.id} ends")


def _warnings(config: DeviceConfig, target: Target, disk: Device) -> list[str]:
    warnings = []
    if said := target.describe().get("warning"):
        warnings.append(str(said))
    if disk.queues < config.queues:
        most = target.params.queues or target.params.max_queues
        why = "one per CPU" if most != disk.queues else f"target {config.target} takes no more"
        warnings.append(f"{config.queues} queues were asked for, {disk.queues} made: {why}")
    return warnings


def _wait(disk: Device, signalled: int) -> None:
    """Until a signal arrives that means the end, or the queues end."""
    while not disk.wait(0):
        woken, _, _ = select.select([signalled, disk.ended_fd], [], [], POLL_SECONDS)
        if signalled not in woken:
            continue
        if any(number != manage.STOPPING for number in os.read(signalled, 4096)):
            return
        disk.stopping()


# --- in the background ----------------------------------------------------------------------


def start(config: DeviceConfig) -> Ready:
    """Start a daemon for the device and return once its disk can be opened.

    Raises UblkdError with the daemon's own reason; there is no device and no process then.
    """
    with Control():  # no module, no privilege: better said here than by a child
        StateDir().prepare()
    cookie = new_cookie()
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    # an interrupt right behind the fork would leave a daemon that nobody ends
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    pid = os.fork()
    if pid == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(read_end)
        _daemon(config, cookie, write_end)
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(write_end)
        ready = _hear(read_end, pid)
        wait_for_node(ready.node, NODE_SECONDS)
    except BaseException:
        _end(pid)
        _sweep(cookie)
        raise
    finally:
        os.close(read_end)
    return ready


def _hear(read_end: int, pid: int) -> Ready:
    """The daemon's one message, whole; it is over when the pipe is closed."""
    until, raw = time.monotonic() + START_SECONDS, b""
    while not raw.endswith(b"\n"):
        left = max(0.0, until - time.monotonic())
        if not select.select([read_end], [], [], left)[0]:
            raise UblkdError(
                f"the daemon (process {pid}) was not ready within {START_SECONDS} seconds",
                hint="see the system log for ublkd, and dmesg",
            )
        part = os.read(read_end, 65536)
        if not part:
            raise UblkdError(
                f"the daemon died before it was ready ({_how_it_died(pid)})",
                hint="see the system log for ublkd; was it killed for lack of memory?",
            )
        raw += part
    said: dict[str, Any] = json.loads(raw)
    if "error" in said:
        raise BY_EXIT_CODE.get(said["exit_code"], UblkdError)(said["error"], hint=said["hint"])
    return Ready(id=said["id"], warnings=said["warnings"])


def _how_it_died(pid: int) -> str:
    status = os.waitpid(pid, 0)[1]
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exit status {code}"
    named = -code in {int(number) for number in signal.Signals}
    return f"signal {signal.Signals(-code).name if named else -code}"


def _end(pid: int) -> None:
    """End a daemon that is of no use: gently, then not."""
    try:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return
    except ChildProcessError:  # reaped already: the number may be somebody else's by now
        return
    for number, seconds in ((signal.SIGTERM, 30.0), (signal.SIGKILL, 10.0)):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            try:
                if os.waitpid(pid, os.WNOHANG)[0]:
                    return
            except ChildProcessError:
                return
            time.sleep(0.02)


def _sweep(cookie: int) -> None:
    """Delete what a daemon that could not clean up left in the driver."""
    states = StateDir()
    with contextlib.suppress(UblkdError), Control() as control:
        for device in manage.devices(control, states):
            if device.info.cookie == cookie:
                manage.delete(control, states, device, force=True)


def _daemon(config: DeviceConfig, cookie: int, write_end: int) -> None:
    """The child's whole life. Never returns."""
    code = 1
    try:
        _detach(write_end)
        syslog.openlog("ublkd", syslog.LOG_PID, syslog.LOG_DAEMON)
        code = _report(config, cookie, write_end)
    finally:
        os._exit(code)  # the parent's clean-up is the parent's


def _detach(keep: int) -> None:
    os.setsid()
    os.chdir("/")
    os.umask(0o077)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    keep_these = sorted({0, 1, 2, keep})
    for low, high in zip(keep_these, [*keep_these[1:], 1 << 20], strict=True):
        os.closerange(low + 1, high)


def _report(config: DeviceConfig, cookie: int, write_end: int) -> int:
    told = False

    def tell(message: dict[str, Any]) -> None:
        nonlocal told
        if told:
            return
        told = True
        os.write(write_end, json.dumps(message).encode() + b"\n")
        os.close(write_end)

    def ready(what: Ready) -> None:
        tell({"id": what.id, "warnings": what.warnings})

    try:
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        serve(config, cookie, ready, lambda line: syslog.syslog(syslog.LOG_INFO, printable(line)))
    except Exception as error:
        known = error if isinstance(error, UblkdError) else internal(error)
        for line in [*trace_of(known), known.message]:
            syslog.syslog(syslog.LOG_ERR, printable(line))
        tell({"error": known.message, "hint": known.hint, "exit_code": known.exit_code})
        return known.exit_code
    return 0
