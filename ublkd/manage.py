"""What any root process may do to devices that exist: list, find, stop and delete them.

There is no control socket: these are commands to the driver, and the daemon notices.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ublkd import stats
from ublkd.control import CommandError, Control, DevInfo
from ublkd.errors import NotPossibleError, UblkdError, printable
from ublkd.features import Recovery, recovery_of
from ublkd.state import DeviceState, StateDir, is_ours
from ublkd.uapi import DevState, Feature
from ublkd.writeback import write_back

UNSERVED = (DevState.QUIESCED, DevState.FAIL_IO)
"""States of a device whose daemon is gone and may be followed by another."""

CHAR_CLASS = Path("/sys/class/ublk-char")
GONE_SECONDS = 30
QUIESCE_SECONDS = 30
PF_EXITING = 0x4  # <linux/sched.h>

REMEMBERED = ("name", "target", "options", "lease", "refused", "recovery_reason", "describe",
              "origin")  # fmt: skip
"""What ``list --json`` tells of what is remembered."""

STOPPING = signal.SIGUSR2
"""Tells a daemon that its device is about to be stopped: the driver cannot do that before the last
request has ended, and says nothing to those who serve.
"""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A device in the driver, with what is remembered of it (None for somebody else's)."""

    info: DevInfo
    size: int  # bytes
    state: DeviceState | None

    @property
    def node(self) -> str:
        """The block node."""
        return f"/dev/ublkb{self.info.id}"

    @property
    def ours(self) -> bool:
        """Whether ublkd made it."""
        return is_ours(self.info.cookie)

    @property
    def pid(self) -> int:
        """Of the process that serves it; 0: none.

        The driver forgets no process that died, and the number may be another's by now.
        """
        return max(0, self.info.pid) if self.info.state is DevState.LIVE else 0

    @property
    def served(self) -> bool:
        """Whether a process serves it that is not about to end."""
        return bool(self.pid) and _serves(self.pid)

    @property
    def is_orphan(self) -> bool:
        """Whether it is ours, and the driver keeps it for a daemon that is not there."""
        kept = recovery_of(self.info.flags) is not Recovery.NONE
        return self.ours and kept and self.info.state is not DevState.DEAD and not self.served

    @property
    def called(self) -> str:
        """How a message names it."""
        name = self.state.name if self.state else None
        return f"{self.node} ({printable(name)})" if name else self.node

    def as_json(self) -> dict[str, Any]:
        """Everything ``list --json`` tells."""
        info = self.info
        told: dict[str, Any] = {
            "id": info.id,
            "node": self.node,
            "name": None,
            "ours": self.ours,
            "state": info.state.name.lower(),
            "size": self.size,
            "queues": info.queues,
            "depth": info.depth,
            "max_io": info.max_io,
            "pid": self.pid or None,
            "recovery": recovery_of(info.flags).value,
            "flags": [f.name for f in Feature if f in info.flags],
            "target": None,
            "lease": None,
        }
        if self.state:
            remembered = asdict(self.state)
            for key in REMEMBERED:
                told[key] = remembered[key]
        return told


def devices(control: Control, states: StateDir) -> list[Found]:
    """Every ublk device of this machine, by number."""
    found = (look(control, states, dev_id) for dev_id in _ids())
    return [device for device in found if device]


def _ids() -> list[int]:
    try:
        names = os.listdir(CHAR_CLASS)
    except OSError:
        return []
    return sorted(int(m[1]) for n in names if (m := re.fullmatch(r"ublkc(\d+)", n)))


def look(control: Control, states: StateDir, dev_id: int) -> Found | None:
    """The device of a number, if there is one."""
    try:
        info = control.get_dev_info(dev_id)
    except CommandError as error:
        if error.errno == errno.ENODEV:
            return None  # deleted since it was listed
        raise
    state = states.read(dev_id)
    if state and state.cookie != info.cookie:
        state = None  # of an earlier device of that number
    return Found(info=info, size=control.get_size(dev_id), state=state)


def sweep(control: Control, states: StateDir) -> None:
    """Delete what an add that was killed has left: no disk, and nobody who makes it one."""
    for dev_id in sorted({*_ids(), *states.ids()}):
        state = states.read(dev_id)
        if state and (state.started or is_there(state.pid)):
            continue
        # whoever makes a device says what it is before letting go of this lock
        with states.lock(), contextlib.suppress(UblkdError):
            found = look(control, states, dev_id)
            dead = found and found.ours and found.info.state is DevState.DEAD
            if found and dead and found.state == state:
                control.del_dev(dev_id)
                states.remove(dev_id)


def find(control: Control, states: StateDir, word: str) -> Found:
    """The device that a number, a name or a node's path means. Raises UblkdError."""
    match = re.fullmatch(r"(?:(?:/dev/)?ublk[bc])?([0-9]{1,7})", word)
    if match:  # the others are not asked: one of them may hang
        dev_id = int(match[1])
    else:
        named = (i for i in states.ids() if (state := states.read(i)) and state.name == word)
        dev_id = next(named, -1)
    device = look(control, states, dev_id) if dev_id >= 0 else None
    if device is None or not (match or device.state):
        raise UblkdError(
            f"there is no ublk device {printable(word)!r}",
            hint="a number, a name, or a path like /dev/ublkb0; 'ublkd list' shows them",
        )
    return device


def counters(states: StateDir, device: Found) -> list[dict[str, Any]]:
    """The counters of each queue; nothing for somebody else's device."""
    return stats.read(states.counters(device.info.id)) if device.state else []


# --- stop and delete ------------------------------------------------------------------------


def claimed(node: str) -> bool:
    """Whether the disk is mounted, swapped on, or part of another block device."""
    try:
        os.close(os.open(node, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def refuse_foreign(device: Found) -> None:
    """Raise UblkdError for a device that another program has made."""
    if not device.ours:
        raise UblkdError(
            f"{device.node} was not made by ublkd and is left alone",
            hint="use the program that made it",
        )


def _refuse_claimed(device: Found, force: bool) -> None:
    if force or device.info.state is DevState.DEAD or not claimed(device.node):
        return
    first = "unmount it first"
    if device.info.state in UNSERVED:
        first = f"nobody serves it: 'ublkd recover {device.info.id}'"
    raise UblkdError(
        f"{device.called} is in use: mounted, or part of another block device",
        hint=f"see 'lsblk {device.node}'; {first}, or use --force and lose what is not written yet",
    )


def stop(control: Control, states: StateDir, found: Found, *, force: bool = False) -> None:
    """Take the disk away and end its daemon; the number stays until it is deleted.

    Refuses a disk that is in use, and one that is only open where the kernel can tell
    (SAFE_STOP_DEV, Linux 7.0), unless ``force``.
    """
    device = _again(control, states, found)
    if device is None:
        return  # it is gone, which is what was wanted
    _refuse_claimed(device, force)
    with _watch(device.pid) as daemon:
        try:
            if force or Feature.SAFE_STOP_DEV not in device.info.flags:
                _tell(daemon, device.pid)
                _write_back(device)
                control.stop_dev(device.info.id)
            else:
                control.try_stop_dev(device.info.id)
        except CommandError as error:
            if error.errno == errno.EBUSY:
                raise UblkdError(
                    f"{device.called} is open",
                    hint=f"see 'fuser -v {device.node}', or use --force",
                ) from error
            if error.errno != errno.ENODEV:  # it is stopped or gone, which is what was wanted
                raise
        _wait_gone(daemon, device)


def refuse_unquiescable(device: Found) -> None:
    """Raise the error for a device that cannot live without its daemon for a while."""
    refuse_foreign(device)
    if device.info.state is DevState.DEAD:
        raise UblkdError(f"{device.called} is dead", hint=f"'ublkd del {device.info.id}'")
    if recovery_of(device.info.flags) is Recovery.NONE:
        raise UblkdError(
            f"{device.called} was added with recovery none: it ends with its daemon",
            hint="add it with --recovery queue or reissue",
        )
    if Feature.QUIESCE not in device.info.flags:
        raise NotPossibleError(
            f"{device.called} cannot be quiesced: the kernel lacks QUIESCE (Linux 6.16 has it)",
            hint=f"'kill -9' of its daemon and then 'ublkd recover {device.info.id}' do without",
        )


def quiesce(control: Control, states: StateDir, found: Found) -> None:
    """End the daemon and have the driver keep the device: requests wait for the next one."""
    device = _again(control, states, found)
    if device is None:
        raise UblkdError(f"{found.called} is gone", hint="see 'ublkd list'")
    refuse_unquiescable(device)
    until = time.monotonic() + QUIESCE_SECONDS
    with _watch(device.pid) as daemon:
        while device.info.state not in UNSERVED:
            _have_taken_back(control, device)
            if daemon is None or select.select([daemon], [], [], 0.1)[0]:
                time.sleep(0.005)  # the driver hears of the end a moment after it
            if time.monotonic() > until:
                raise UblkdError(
                    f"{device.called} is not quiesced: a request is still under way after "
                    f"{QUIESCE_SECONDS} seconds; those that came later wait",
                    hint=f"wait for it and quiesce again, or end process {device.pid} with "
                    f"SIGKILL, and then 'ublkd recover {device.info.id}'",
                )
            device = _again(control, states, device)
            if device is None:
                raise UblkdError(f"{found.called} is gone", hint="see 'ublkd list'")
        _wait_gone(daemon, found)  # it lets go of the backing after the device


def _have_taken_back(control: Control, device: Found) -> None:
    """The commands of idle tags: a queue that has none is not told, and asked again."""
    try:
        control.quiesce_dev(device.info.id, 1)
    except CommandError as error:
        if error.errno not in (errno.EBUSY, errno.ENODEV):
            raise


def delete(control: Control, states: StateDir, found: Found, *, force: bool = False) -> str:
    """Stop the device, wait for its daemon to end, and remove every trace of it.

    Returns a warning, or nothing.
    """
    device = _again(control, states, found)
    if device is None:
        states.forget(found.info.id, found.info.cookie)
        return ""
    _refuse_claimed(device, force)
    free = True
    try:
        with _watch(device.pid) as daemon:
            _tell(daemon, device.pid)
            _write_back(device)
            control.stop_dev(device.info.id)
            _wait_gone(daemon, device)
        with states.lock():  # as long as it is held, no add of ours takes the number
            if _again(control, states, device):
                free = control.del_dev(device.info.id)
    except CommandError as error:
        if error.errno != errno.ENODEV:  # somebody else was faster
            raise
    states.forget(device.info.id, device.info.cookie)
    if free:
        return ""
    return f"a program still has {device.node} open: its number stays taken until that ends"


def _again(control: Control, states: StateDir, found: Found) -> Found | None:
    """The device as it is now; None if it is gone, or another one has its number."""
    refuse_foreign(found)
    now = look(control, states, found.info.id)
    return now if now and now.info.cookie == found.info.cookie else None


@contextlib.contextmanager
def _watch(pid: int) -> Any:
    """A descriptor of the process, which cannot come to mean another one; or None."""
    fd = None
    if pid > 0:
        with contextlib.suppress(OSError):
            fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        if fd is not None:
            os.close(fd)


def _tell(daemon: int | None, pid: int) -> None:
    """For whoever does not listen to the signal it would be the end: an older daemon, or another
    process if the driver's number is from another pid namespace.
    """
    if daemon is None:
        return
    with contextlib.suppress(OSError, ValueError):
        status = Path(f"/proc/{pid}/status").read_text()
        caught = int(status.partition("SigCgt:")[2].split(maxsplit=1)[0], 16)
        if caught >> (STOPPING - 1) & 1 and _serves(pid):
            signal.pidfd_send_signal(daemon, STOPPING)


def _serves(pid: int) -> bool:
    """Whether the process has a device, and is not about to end."""
    process = Path(f"/proc/{pid}")
    try:
        links = list((process / "fd").iterdir())
        return any(map(_leads_to_ublk, links)) and not _is_ending(process)
    except (OSError, ValueError):
        return False


def is_there(pid: int) -> bool:
    """Whether the process lives; one that nobody has asked for its end does not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def _is_ending(process: Path) -> bool:
    """Whether it has been killed: it may take a while until it is gone (proc(5))."""
    flags = int((process / "stat").read_text().rpartition(")")[2].split()[6])
    status = (process / "status").read_text()
    pending = int(status.partition("SigPnd:")[2].split(maxsplit=1)[0], 16)
    return bool(flags & PF_EXITING or pending >> (signal.SIGKILL - 1) & 1)


def _leads_to_ublk(link: Path) -> bool:
    with contextlib.suppress(OSError):
        return os.readlink(link).startswith("/dev/ublkc")
    return False


def _write_back(device: Found) -> None:
    if device.served and recovery_of(device.info.flags) is not Recovery.NONE:
        write_back(device.node)


def _wait_gone(daemon: int | None, device: Found) -> None:
    if daemon is not None and not select.select([daemon], [], [], GONE_SECONDS)[0]:
        raise UblkdError(
            f"the daemon of {device.called} (process {device.pid}) did not end within "
            f"{GONE_SECONDS} seconds",
            hint="its I/O may be stuck in the backing; see dmesg for blocked tasks",
        )
