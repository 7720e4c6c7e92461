"""One process, one device: how it starts, tells that it is ready, and ends."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ublkd import (
    below,
    changes,
    ending,
    follow,
    manage,
    memory,
    names,
    recorder,
    recovery,
    registry,
    udev,
)
from ublkd.background import Child, Log, Tell
from ublkd.config import DeviceConfig
from ublkd.control import Control
from ublkd.device import Device
from ublkd.errors import UblkdError
from ublkd.features import Recovery, groups, negotiate
from ublkd.manage import Found
from ublkd.process import is_there
from ublkd.state import StateDir, new_cookie
from ublkd.target import OPEN_TIMEOUT, OptionValue, Target
from ublkd.uevent import wait_for_node

NODE_SECONDS = 15
DUMP = signal.SIGUSR1
"""Has the daemon write its last requests to the log."""
POLL_SECONDS = 3600  # a wait without an end is cut into these


@dataclass(frozen=True, kw_only=True)
class Ready:
    """What the daemon tells once the disk is there."""

    id: int
    cookie: int = 0  # what tells it from a later device of that number
    warnings: list[str] = field(default_factory=list)

    @property
    def node(self) -> str:
        """The block node."""
        return f"/dev/ublkb{self.id}"


class Manner:
    """How a daemon behaves beside serving. This one needs nobody: it ends when it is told to."""

    def pause(self, disk: Device) -> float:
        """Called again and again while the disk is served; seconds until it wants to be again."""
        return POLL_SECONDS

    def end(self, disk: Device, log: Log) -> None:
        """A signal has come that means the end: the disk goes when this returns, unless it has made
        ``disk`` be left.
        """


ALONE = Manner()


def _open_target(config: DeviceConfig) -> Target:
    if config.id is not None:  # before it is opened: see below.py
        below.refuse_paths(config.paths, config.id, StateDir().backings)
    return registry.opened(config.target, config.options)


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """A descriptor from which the numbers of the signals can be read that have arrived."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    chosen = [signal.SIGTERM, signal.SIGINT, ending.STOPPING, DUMP, changes.CHANGED]
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


def serve(
    config: DeviceConfig,
    cookie: int,
    ready: Callable[[Ready], None],
    log: Log,
    manner: Manner = ALONE,
) -> None:
    """Serve the device until it is stopped or a signal arrives.

    ``cookie`` marks the device in the driver. ``ready`` is called once the disk exists. Raises
    UblkdError where it never did, or where a queue failed later; the device is gone in the first
    case and dead in the second.
    """
    from ublkd.log import logged  # slow to load, and not for those who only start a daemon

    with Control() as control:
        memory.guard(log)  # before there is a thread, or a ring that can have one
        offered = control.get_features()
        follow.refuse_impossible(config.options, offered)
        target = _open_target(config)
        try:
            features = negotiate(
                offered,
                config.lease,
                groups=groups(config.lease),
                partscan=config.partscan,
                in_memory=target.params.in_memory,
                recovery=config.recovery,
                recovery_default=Recovery(target.params.recovery),
            )
            device = Device(control, config, target, features, StateDir(), cookie=cookie)
        except BaseException:
            target.close()
            raise
        with logged(log) as say, _signals() as signalled, device as disk:
            ready(Ready(id=disk.id, cookie=cookie, warnings=_warnings(config, target, disk)))
            say(f"/dev/ublkb{disk.id} is ready: target {config.target}, lease "
                f"{features.lease.value}, recovery {features.recovery.value}")  # fmt: skip
            _until_the_end(disk, signalled, say, manner, {})


def serve_again(
    dev_id: int,
    cookie: int,
    ready: Callable[[Ready], None],
    log: Log,
    manner: Manner = ALONE,
    *,
    live: Mapping[str, OptionValue] | None = None,
) -> None:
    """Serve a device that the driver has kept when its daemon died, until it is stopped or a signal
    arrives. Raises UblkdError as ``serve`` does; the device is then as it was before.

    ``live``: what its file says of options that can change while the disk is there, by key.
    """
    from ublkd.log import logged

    states = StateDir()
    with Control() as control:
        short: list[str] = []  # the disk is there, and a log on it would wait for this process
        memory.guard(short.append)
        taken = recovery.take(control, states, dev_id, cookie)
        device = recovery.device(control, states, taken)
        entered = recovery.entered(control, device, taken)
        with logged(log) as say, _signals() as signalled, entered as disk:
            for line in short:
                say(line)
            with contextlib.suppress(OSError):  # it is served, whether anybody hears of it or not
                ready(Ready(id=disk.id))
            say(f"/dev/ublkb{disk.id} is served again")
            _until_the_end(disk, signalled, say, manner, live or {})


def _until_the_end(
    disk: Device,
    signalled: int,
    log: Log,
    manner: Manner,
    adopted: Mapping[str, OptionValue],
) -> None:
    dump = recorder.Dump(StateDir().counters(disk.id), log)
    changed = changes.Changes(StateDir(), disk, log)
    changed.look()  # what was changed between the last daemon and this one
    changed.adopt(adopted)
    follower = follow.Follower(disk.control, disk.id, disk.target, log)

    def pause() -> float:
        seconds = manner.pause(disk)
        if (again := changed.settle()) is not None:
            seconds = min(seconds, again)
        if not follow.wanted(changed.options):
            follower.forget()
            return seconds
        follower.look()
        return min(seconds, follow.SECONDS)

    asked = {DUMP: dump.asked, changes.CHANGED: changed.look, ending.STOPPING: disk.stopping}
    with contextlib.closing(follower):
        try:
            _wait(disk, signalled, asked, pause)
        except BaseException:  # a fault of ours is no reason to take a disk from who uses it
            disk.leave(at_once=True)
            raise
    if failure := disk.failure:
        disk.leave()
        dump.write()
        raise UblkdError(f"/dev/ublkb{disk.id} failed: {failure}", hint="see 'ublkd list'")
    if disk.stopped_by_others:
        disk.leave()
    else:
        manner.end(disk, log)
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


def _wait(
    disk: Device,
    signalled: int,
    asked: Mapping[int, Callable[[], None]],
    pause: Callable[[], float],
) -> None:
    """Until the queues end, or a signal arrives that is none of those that ask for something."""
    while not disk.wait(0):
        woken, _, _ = select.select([signalled, disk.ended_fd], [], [], pause())
        if signalled not in woken:
            continue
        numbers = os.read(signalled, 4096)
        if not asked.keys() >= set(numbers):
            return
        for number in asked.keys() & set(numbers):
            asked[number]()


# --- in the background ----------------------------------------------------------------------


def start(config: DeviceConfig) -> Ready:
    """Start a daemon for the device and return once its disk can be opened.

    Raises UblkdError with the daemon's own reason; there is no device and no process then.
    """
    with Control() as control:  # no module, no privilege: better said here than by a child
        StateDir().prepare()
        ending.sweep(control, StateDir())
    cookie = new_cookie()

    def task(tell: Tell, log: Log) -> None:
        serve(config, cookie, lambda ready: tell(asdict(ready)), log)

    try:
        with Child(task) as child:
            try:
                ready = Ready(**child.hear(opening_seconds(config.options)))
                await_node(config, ready)
            except BaseException:
                child.end()
                raise
    except BaseException:
        take_back(cookie)
        raise
    return ready


def opening_seconds(options: Mapping[str, Any]) -> float:
    """How long a target may take to open what stands behind its disk, if it has an option that
    says so.
    """
    seconds = options.get(OPEN_TIMEOUT.key)
    return seconds if isinstance(seconds, int | float) else 0.0


def await_node(config: DeviceConfig, ready: Ready) -> None:
    """Return once the disk can be opened, by its links as well; what is wrong with these becomes a
    warning. Raises UblkdError.
    """
    wait_for_node(ready.node, NODE_SECONDS, lambda: udev.is_disk(ready.id))
    found = StateDir().read(ready.id)
    if ready.cookie and found and found.cookie != ready.cookie:
        raise Control.deleted(ready.id)  # what it was to have, owner and mode, is not for another
    if warning := names.settled(ready.id, config.name, config.access):
        ready.warnings.append(warning)


@contextlib.contextmanager
def awaiting(config: DeviceConfig) -> Iterator[Callable[[Ready], Ready]]:
    """For a process that serves itself: ``await_node`` as a function that has another process do
    it, because the memory that waiting takes (pyroute2) would stay locked here. Enter before there
    is a thread.
    """
    read_end, write_end = os.pipe2(os.O_CLOEXEC)

    def task(tell: Tell, log: Log) -> None:
        if said := os.read(read_end, 4096):
            ready = Ready(**json.loads(said))
            await_node(config, ready)
            tell(asdict(ready))

    with open(write_end, "wb", buffering=0) as pipe, Child(task, read_end) as child:
        os.close(read_end)

        def awaited(ready: Ready) -> Ready:
            with contextlib.suppress(BrokenPipeError):  # it has died, and how is heard
                pipe.write(json.dumps(asdict(ready)).encode())
            told = Ready(**child.hear())
            child.kill()  # it has ended, or is about to
            return told

        try:
            yield awaited
        finally:
            child.kill()


def recover(found: Found) -> Ready:
    """Start a daemon for a device whose own is gone; returns once it is served again.

    Raises UblkdError with the daemon's own reason; the device is then as it was before.
    """

    def task(tell: Tell, log: Log) -> None:
        serve_again(found.info.id, found.info.cookie, lambda ready: tell(asdict(ready)), log)

    opening = opening_seconds(found.state.options if found.state else {})
    with Child(task) as child:
        try:
            ready = Ready(**child.hear(opening))
        except UblkdError:
            child.kill()
            raise
    if found.state:
        names.mend(ready.id, found.state.name)
    return ready


def take_back(cookie: int) -> None:
    """Delete the device of a daemon that could not clean up, or of which nobody learnt."""
    states = StateDir()
    with contextlib.suppress(UblkdError), Control() as control:
        for device in manage.devices(control, states):
            if device.info.cookie == cookie:
                ending.delete(control, states, device, force=True)
        states.sweep(is_there)  # what it was just writing when it was killed
