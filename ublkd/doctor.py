"""What ``ublkd doctor`` looks at: a table of checks, each a function of what was read (machine)."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from ublkd import udev
from ublkd.control import DevInfo
from ublkd.errors import NotPossibleError, UblkdError, printable, reason
from ublkd.features import Features, names, negotiate
from ublkd.machine import Machine
from ublkd.state import is_ours
from ublkd.uapi import DevState, Feature


class Verdict(Enum):
    """What a finding means for devices here."""

    OK = "ok"
    WARNING = "warning"
    CANNOT = "cannot"


@dataclass(frozen=True)
class Finding:
    """One line: what was seen, and what to do about it; nothing if all is well."""

    verdict: Verdict
    seen: str
    fix: str = ""


Findings = Iterator[Finding]


def _ok(seen: str) -> Finding:
    return Finding(Verdict.OK, seen)


def _warning(seen: str, fix: str) -> Finding:
    return Finding(Verdict.WARNING, seen, fix)


def _cannot(seen: str, fix: str) -> Finding:
    return Finding(Verdict.CANNOT, seen, fix)


NEWER = "use Linux 6.5 or newer with CONFIG_BLK_DEV_UBLK (Debian 13, Fedora 40, Ubuntu 24.04)"


def _module(m: Machine) -> Findings:
    kernel = m.read("/proc/sys/kernel/osrelease").strip()
    modules = f"/lib/modules/{kernel}"
    if m.at("/sys/module/ublk_drv").exists():
        if m.at("/dev/ublk-control").exists():
            yield _ok(f"ublk_drv is loaded (Linux {kernel})")
        else:
            yield _cannot(
                "ublk_drv is loaded, but there is no /dev/ublk-control",
                "in a container: pass the node in; else see whether /dev is a devtmpfs",
            )
    elif "/ublk_drv.ko" in m.read(f"{modules}/modules.dep"):
        yield _cannot(
            "ublk_drv is not loaded, but this kernel has it",
            "run 'modprobe ublk_drv'; a line ublk_drv in /etc/modules-load.d/ublkd.conf does so at "
            "each boot",
        )
    elif not m.at(modules).exists():
        yield _cannot(
            f"ublk_drv is not loaded, and there are no modules of the running Linux {kernel}",
            "boot the kernel that is installed; in a container: load it outside",
        )
    else:
        yield _cannot(f"this Linux {kernel} has no ublk_drv", NEWER)


def _driver(m: Machine) -> Findings:
    if m.refused:
        yield _cannot(m.refused.message, m.refused.hint)
    elif m.offered is not None:
        yield _ok(f"it offers {', '.join(names(m.offered))}")


def _leases(m: Machine) -> Findings:
    """The ladder's verdict for each target."""
    for name, in_memory in m.in_memory.items():
        if isinstance(in_memory, UblkdError):
            yield _warning(in_memory.message, in_memory.hint)
        elif m.offered is not None:
            yield _lease(m, m.offered, name, in_memory)


def _lease(m: Machine, offered: Feature, name: str, in_memory: bool) -> Finding:
    try:
        verdict = negotiate(offered, None, groups=m.groups, in_memory=in_memory)
    except NotPossibleError as error:
        return _cannot(f"{name}: {error.message}", error.hint)
    seen = f"{name}: lease {verdict.lease.value}"
    if in_memory or _lends(verdict):
        return _ok(seen)
    why = next(iter(verdict.refused.values()))
    return _warning(f"{seen}: each byte is copied, because {why}", "use a newer kernel")


def _lends(verdict: Features) -> bool:
    return Feature.SUPPORT_ZERO_COPY in verdict.flags


def _sockets(m: Machine) -> Findings:
    if m.offered is not None and Feature.SUPPORT_ZERO_COPY in m.offered:
        how = "send and recv (Linux 7.2)" if m.streams else "write and read"
        yield _ok(f"lent pages go through them by {how}")


CAP_IPC_LOCK, CAP_SYS_ADMIN, CAP_SYS_RESOURCE = 14, 21, 24


def _privilege(m: Machine) -> Findings:
    if m.may(CAP_SYS_ADMIN):
        yield _ok("CAP_SYS_ADMIN is there")
    else:
        yield _cannot("CAP_SYS_ADMIN is missing", "run it with sudo; a container must grant it")
        return
    if not m.may(CAP_SYS_RESOURCE):
        yield _warning(
            "CAP_SYS_RESOURCE is missing: short of memory, a device may wait for itself",
            "grant it to the daemon (PR_SET_IO_FLUSHER needs it)",
        )


def _io_uring(m: Machine) -> Findings:
    setting = m.read("/proc/sys/kernel/io_uring_disabled").strip() or "0"
    if not m.ring:
        yield _ok(f"kernel.io_uring_disabled is {setting}")
    elif setting in ("1", "2"):
        yield _cannot(
            f"kernel.io_uring_disabled is {setting}", "run 'sysctl kernel.io_uring_disabled=0'"
        )
    elif m.ring == errno.ENOMEM:
        yield _cannot("no memory may be locked for it", "run 'ulimit -l unlimited'")
    else:
        yield _cannot(
            f"it may not be used here: {reason(m.ring)}",
            "see the line about seccomp, and whether the kernel has CONFIG_IO_URING",
        )


def _seccomp(m: Machine) -> Findings:
    filtered = re.search(r"^Seccomp:\s*[12]$", m.read("/proc/self/status"), re.MULTILINE)
    if not filtered:
        yield _ok("no filter")
    elif m.ring in (errno.EPERM, errno.ENOSYS, errno.EACCES):
        yield _cannot(
            "a filter is in force, and io_uring is refused",
            "allow io_uring_setup, io_uring_enter and io_uring_register; podman and docker: "
            "--security-opt seccomp=FILE",
        )
    else:
        yield _ok("a filter is in force, which lets io_uring through")


NEEDED_FILES = 1024


def _limits(m: Machine) -> Findings:
    limits = m.read("/proc/self/limits")
    locked, files = _limit(limits, "Max locked memory"), _limit(limits, "Max open files")
    if locked is None or m.may(CAP_IPC_LOCK):
        yield _ok("any memory may be locked")
    else:
        yield _warning(
            f"only {locked} bytes of memory may be locked",
            "run 'ulimit -l unlimited'; in a unit: LimitMEMLOCK=infinity",
        )
    if files is None or files >= NEEDED_FILES:
        yield _ok(f"{'any number of' if files is None else files} files may be open")
    else:
        yield _warning(
            f"only {files} files may be open: too few for many queues and files",
            "run 'ulimit -n 65536'; in a unit: LimitNOFILE=65536",
        )


def _limit(text: str, name: str) -> int | None:
    """The soft limit; None if there is none."""
    found = re.search(rf"^{name}\s+(\d+)\s", text, re.MULTILINE)
    return int(found[1]) if found else None


UBLKS_MAX = "/sys/module/ublk_drv/parameters/ublks_max"


def _most(m: Machine) -> Findings:
    most, counted = m.read(UBLKS_MAX).strip(), len(m.device_ids())
    if not most.isdecimal():
        return
    if m.offered and Feature.SUPPORT_ZERO_COPY in m.offered:  # since then only these count
        counted = sum(Feature.UNPRIVILEGED_DEV in device.flags for device in m.devices)
    if counted < int(most):
        yield _ok(f"it is {most}, and {counted} devices count")
    else:
        yield _warning(
            f"it is {most}, and {counted} devices count: there may be no more",
            f"echo {max(2 * int(most), 1024)} > {UBLKS_MAX}",
        )


SYSTEMD = ("/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system",
           "/usr/lib/systemd/system", "/lib/systemd/system")  # fmt: skip
INSTALL = "install it: 'make install' in the source of ublkd, or its package"


def _udev(m: Machine) -> Findings:
    rules = udev.rules(m.root)
    if not rules:
        yield _warning(
            "no rules of ublkd, so no /dev/ublk/NAME and /dev/disk/by-id/ublk-NAME", INSTALL
        )
    else:
        yield _ok(f"rules are in {rules}")
    if not m.at("/run/udev/control").exists():
        yield _warning("udev does not run: nobody makes links", "start systemd-udevd")


def _unit(m: Machine) -> Findings:
    units = m.found(SYSTEMD, "ublkd@.service")
    if not m.at("/run/systemd/system").exists():
        yield _ok("this machine does not run it")
    elif units:
        yield _ok(f"the unit is {units[0]}")
    else:
        yield _warning("there is no unit ublkd@.service: no device comes at boot", INSTALL)


def _state(m: Machine) -> Findings:
    try:
        found = m.at("/run/ublkd").lstat()
    except FileNotFoundError:
        yield _ok("/run/ublkd is not there yet: the first device makes it")
        return
    except OSError as error:
        yield _cannot(f"/run/ublkd: {reason(error)}", "see what is wrong with /run")
        return
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != m.owner or found.st_mode & 0o022:
        yield _cannot(
            "/run/ublkd is not a folder that only root can write to",
            "see who made it, then 'rm -r /run/ublkd'",
        )
    elif found.st_mode & 0o077:
        yield _warning("/run/ublkd can be read by others", "chmod 0700 /run/ublkd")
    else:
        yield _ok("/run/ublkd is root's alone")


LIBURING = (2, 3)


def _liburing(m: Machine) -> Findings:
    found = re.search(r"/liburing\.so\.([0-9]+)\.([0-9]+)", m.read("/proc/self/maps"))
    if not found:
        yield _ok("it is part of ublkd, or has no version in its name")
    elif (int(found[1]), int(found[2])) < LIBURING:
        yield _cannot(f"{found[1]}.{found[2]} is too old", "install liburing 2.3 or newer")
    else:
        yield _ok(f"{found[1]}.{found[2]}")


def _namespace(m: Machine) -> Findings:
    try:
        own, first = (os.readlink(m.at(f"/proc/{p}/ns/mnt")) for p in ("self", "1"))
    except OSError:
        yield _ok("which one it is cannot be told here")
        return
    if own == first:
        yield _ok("that of the whole machine")
    else:
        yield _warning(
            "this is not that of process 1: nodes, mounts and /run/ublkd may be others here",
            "run it outside: nsenter -t 1 -m ublkd ...",
        )


CURES = {DevState.QUIESCED: "recover", DevState.FAIL_IO: "recover"}
"""What is to be done about a device that nobody serves; the others are only to be deleted."""


def _leftovers(m: Machine) -> Findings:
    left = [d for d in m.devices if d.state is not DevState.LIVE and not _served(m, d)]
    for device in left:
        node, state = f"/dev/ublkb{device.id}", device.state.name.lower()
        verb = CURES.get(device.state, "del")
        fix = f"ublkd {verb} {device.id}" if is_ours(device.cookie) else "ask who made it"
        yield _warning(f"{node} is {state} and nobody serves it", fix)
    if m.unanswered is not None:
        yield _warning(
            f"the driver does not answer about device {m.unanswered}",
            "see dmesg for blocked tasks; end its daemon with SIGKILL",
        )
    elif m.offered is not None and not left:
        yield _ok(f"none among {len(m.devices)} devices")


def _served(m: Machine, device: DevInfo) -> bool:
    """The driver forgets no process, which may have let go or be another one by now."""
    with contextlib.suppress(OSError):
        held = m.at(f"/proc/{device.pid}/fd").iterdir()
        return any(_leads_to(fd, f"/dev/ublkc{device.id}") for fd in held)
    return False


def _leads_to(link: Path, node: str) -> bool:
    with contextlib.suppress(OSError):
        return os.readlink(link) == node
    return False


CHECKS: Mapping[str, Callable[[Machine], Findings]] = {
    "module": _module,
    "privilege": _privilege,
    "io_uring": _io_uring,
    "seccomp": _seccomp,
    "driver": _driver,
    "leases": _leases,
    "sockets": _sockets,
    "limits": _limits,
    "ublks_max": _most,
    "udev": _udev,
    "state": _state,
    "systemd": _unit,
    "liburing": _liburing,
    "namespace": _namespace,
    "leftovers": _leftovers,
}


def examine(machine: Machine) -> dict[str, list[Finding]]:
    """Every check's findings, in the order in which they are told."""
    return {name: [_printable(f) for f in check(machine)] for name, check in CHECKS.items()}


def _printable(found: Finding) -> Finding:
    return Finding(found.verdict, printable(found.seen), printable(found.fix))
