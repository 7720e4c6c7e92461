"""Every line of ``ublkd doctor``, on machines that are laid out in a folder."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.fakes import dev_info
from tests.unit.helpers import DRIVER_THERE, is_one_line, ublkd
from ublkd.doctor import CHECKS, Finding, Verdict, examine
from ublkd.errors import NotPossibleError, UblkdError
from ublkd.machine import Machine, look
from ublkd.uapi import DevState, Feature

ALL = Feature(0xFFFFF)
OLD = Feature(0x1FE)
STATUS = "Name:\tublkd\nCapEff:\t000001ffffffffff\nSeccomp:\t0\nSeccomp_filters:\t0\n"
LIMITS = (
    "Limit                     Soft Limit           Hard Limit           Units     \n"
    "Max open files            {files:<20} 524288               files     \n"
    "Max locked memory         {locked:<20} unlimited            bytes     \n"
)
UBLKS_MAX = "sys/module/ublk_drv/parameters/ublks_max"
UNIT = "usr/lib/systemd/system/ublkd@.service"
RULES = "usr/lib/udev/rules.d/60-ublkd.rules"
DEP = "lib/modules/7.2.0/modules.dep"

Change = Callable[[Path], object]


@pytest.fixture
def healthy(tmp_path: Path) -> Machine:
    """A machine on which everything is as it should be."""
    files = {
        "proc/sys/kernel/osrelease": "7.2.0\n",
        "proc/sys/kernel/io_uring_disabled": "0\n",
        "proc/self/status": STATUS,
        "proc/self/limits": LIMITS.format(files=65536, locked="unlimited"),
        "proc/self/maps": "7f00-7f01 r-xp 00000000 08:01 7 /usr/lib/liburing.so.2.9\n",
        "proc/42/comm": "ublkd\n",
        "dev/ublk-control": "",
        UBLKS_MAX: "64\n",
        UNIT: "",
        RULES: "# rules\n",
        DEP: "kernel/drivers/block/ublk_drv.ko.zst:\n",
        "run/udev/control": "",
        "run/systemd/system/.there": "",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for process in ("self", "1"):
        (tmp_path / "proc" / process / "ns").mkdir(parents=True)
        (tmp_path / "proc" / process / "ns/mnt").symlink_to("mnt:[4026531841]")
    (tmp_path / "run/ublkd").mkdir(mode=0o700)
    (tmp_path / "sys/class/ublk-char/ublkc3").mkdir(parents=True)
    return Machine(
        root=tmp_path, owner=os.getuid(), offered=ALL, streams=True,
        devices=[dev_info(3, pid=42)], in_memory={"loop": False, "ram": True},
    )  # fmt: skip


def bad(machine: Machine) -> list[tuple[str, Finding]]:
    """What is not well, by check."""
    found = [(name, f) for name, all_ in examine(machine).items() for f in all_]
    for _, finding in found:
        assert is_one_line(finding.seen)
        assert is_one_line(finding.fix)
        assert bool(finding.fix) is (finding.verdict is not Verdict.OK)
    return [(name, f) for name, f in found if f.verdict is not Verdict.OK]


def test_a_healthy_machine_has_a_line_for_each_check_and_nothing_to_mend(healthy: Machine) -> None:
    assert bad(healthy) == []
    told = examine(healthy)
    assert [name for name, found in told.items() if not found] == []
    seen = "\n".join(f.seen for found in told.values() for f in found)
    for words in ("Linux 7.2.0", "AUTO_BUF_REG", "loop: lease auto", "ram: lease copy", "send and",
                  "65536 files", "it is 64, and 0 devices", "60-ublkd.rules", "ublkd@.service",
                  "2.9", "none among 1"):  # fmt: skip
        assert words in seen


def gone(name: str) -> Change:
    def change(root: Path) -> None:
        path = root / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()

    return change


def text(name: str, content: str) -> Change:
    return lambda root: (root / name).write_text(content)


def status(before: str, after: str) -> Change:
    assert before in STATUS
    return text("proc/self/status", STATUS.replace(before, after))


def both(*changes: Change) -> Change:
    return lambda root: [change(root) for change in changes]


def relink(root: Path) -> None:
    (root / "proc/self/ns/mnt").unlink()
    (root / "proc/self/ns/mnt").symlink_to("mnt:[7]")


LAID_OUT: list[tuple[str, Change, Verdict, str, str]] = [
    ("module", gone("dev/ublk-control"), Verdict.CANNOT, "no /dev/ublk-control", "container"),
    ("module", gone("sys/module"), Verdict.CANNOT, "is not loaded", "modprobe ublk_drv"),
    ("module", both(gone("sys/module"), gone("lib/modules")), Verdict.CANNOT,
     "no modules of the running Linux 7.2.0", "boot the kernel"),
    ("module", both(gone("sys/module"), text(DEP, "a/loop.ko:\n")), Verdict.CANNOT,
     "has no ublk_drv", "CONFIG_BLK_DEV_UBLK"),
    ("privilege", status("1ffffffffff", "1ffffdfffff"), Verdict.CANNOT, "CAP_SYS_ADMIN", "sudo"),
    ("privilege", gone("proc/self/status"), Verdict.CANNOT, "CAP_SYS_ADMIN", "sudo"),
    ("privilege", status("1ffffffffff", "1fffeffffff"), Verdict.WARNING, "CAP_SYS_RESOURCE",
     "grant"),
    ("limits", text("proc/self/limits", LIMITS.format(files=1023, locked="unlimited")),
     Verdict.WARNING, "only 1023 files", "LimitNOFILE"),
    ("limits", both(status("1ffffffffff", "1ffffffbfff"),
                    text("proc/self/limits", LIMITS.format(files=1024, locked="8388608"))),
     Verdict.WARNING, "only 8388608 bytes", "LimitMEMLOCK"),
    ("udev", gone(RULES), Verdict.WARNING, "/dev/disk/by-id", "make install"),
    ("udev", gone("run/udev"), Verdict.WARNING, "does not run", "systemd-udevd"),
    ("systemd", gone(UNIT), Verdict.WARNING, "no unit", "make install"),
    ("state", lambda root: (root / "run/ublkd").chmod(0o777), Verdict.CANNOT, "only root", "rm -r"),
    ("state", lambda root: (root / "run/ublkd").chmod(0o720), Verdict.CANNOT, "only root", "rm -r"),
    ("state", both(gone("run/ublkd"), text("run/ublkd", "")), Verdict.CANNOT, "folder", "rm -r"),
    ("state", both(gone("run/ublkd"), lambda root: (root / "run/ublkd").symlink_to("/tmp")),
     Verdict.CANNOT, "folder", "rm -r"),
    ("state", both(gone("run"), text("run", "")), Verdict.CANNOT, "not a directory", "/run"),
    ("state", lambda root: (root / "run/ublkd").chmod(0o755), Verdict.WARNING, "read", "chmod"),
    ("liburing", text("proc/self/maps", "/lib/liburing.so.2.2\n"), Verdict.CANNOT, "2.2", "2.3"),
    ("namespace", relink, Verdict.WARNING, "process 1", "nsenter"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "change", "verdict", "seen", "fix"), LAID_OUT)
def test_what_is_wrong_on_disk_is_told_with_its_fix(
    healthy: Machine, check: str, change: Change, verdict: Verdict, seen: str, fix: str
) -> None:
    change(healthy.root)
    found = [f for name, f in bad(healthy) if name == check]
    assert [f.verdict for f in found] == [verdict]
    assert seen in found[0].seen
    assert fix in found[0].fix


def test_somebody_else_s_folder_of_state_is_refused(healthy: Machine) -> None:
    (found,) = bad(replace(healthy, owner=os.getuid() + 1))
    assert found[1].verdict is Verdict.CANNOT
    assert "rm -r /run/ublkd" in found[1].fix


BROKEN = UblkdError("target 'odd' does not load: two\nlines", hint="reinstall it")
REFUSED = NotPossibleError("ublk devices need root", hint="run it with sudo")

ASKED: list[tuple[str, dict[str, Any], Verdict, str, str]] = [
    ("driver", {"offered": None, "refused": REFUSED, "devices": ()}, Verdict.CANNOT, "need root",
     "sudo"),
    ("leases", {"offered": OLD, "in_memory": {"loop": False}}, Verdict.WARNING,
     "loop: lease copy: each byte is copied, because the kernel lacks", "newer kernel"),
    ("leases", {"offered": Feature(0), "in_memory": {"ram": True}}, Verdict.CANNOT,
     "CMD_IOCTL_ENCODE", "6.5"),
    ("leases", {"in_memory": {"odd": BROKEN}}, Verdict.WARNING, "does not load", "reinstall"),
    ("io_uring", {"ring": errno.ENOSYS}, Verdict.CANNOT, "not implemented", "seccomp"),
    ("io_uring", {"ring": errno.ENOMEM}, Verdict.CANNOT, "locked", "ulimit -l"),
    ("leftovers", {"devices": [dev_info(7, state=DevState.DEAD)]}, Verdict.WARNING,
     "/dev/ublkb7 is dead", "ublkd del 7"),
    ("leftovers", {"devices": [dev_info(7, state=DevState.QUIESCED, pid=43)]}, Verdict.WARNING,
     "/dev/ublkb7 is quiesced", "ublkd recover 7"),
    ("leftovers", {"devices": [dev_info(7, state=DevState.DEAD, cookie=1)]}, Verdict.WARNING,
     "nobody serves it", "ask who made it"),
    ("leftovers", {"unanswered": 9}, Verdict.WARNING, "device 9", "dmesg"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "change", "verdict", "seen", "fix"), ASKED)
def test_what_the_driver_says_is_told_with_its_fix(
    healthy: Machine, check: str, change: dict[str, Any], verdict: Verdict, seen: str, fix: str
) -> None:
    found = [f for name, f in bad(replace(healthy, **change)) if name == check]
    assert [f.verdict for f in found] == [verdict]
    assert seen in found[0].seen
    assert fix in found[0].fix


@pytest.mark.parametrize("setting", ["1", "2"])
def test_a_refused_ring_is_laid_to_the_setting_that_refuses_it(
    healthy: Machine, setting: str
) -> None:
    text("proc/sys/kernel/io_uring_disabled", f"{setting}\n")(healthy.root)
    assert bad(healthy) == []  # it does not refuse us
    (found,) = bad(replace(healthy, ring=errno.EPERM))
    assert found[0] == "io_uring"
    assert found[1].verdict is Verdict.CANNOT
    assert "io_uring_disabled=0" in found[1].fix


def test_a_filter_is_blamed_only_if_it_refuses(healthy: Machine) -> None:
    status("Seccomp:\t0", "Seccomp:\t2")(healthy.root)
    assert bad(healthy) == []
    found = dict(bad(replace(healthy, ring=errno.EPERM)))
    assert set(found) == {"io_uring", "seccomp"}
    assert "io_uring_setup" in found["seccomp"].fix


def test_only_devices_that_count_are_held_against_ublks_max(healthy: Machine) -> None:
    for number in range(4, 6):
        (healthy.root / f"sys/class/ublk-char/ublkc{number}").mkdir()
    text(UBLKS_MAX, "3\n")(healthy.root)
    assert bad(healthy) == []
    unprivileged = [dev_info(n, pid=42, flags=Feature.UNPRIVILEGED_DEV) for n in range(3)]
    for machine in (
        replace(healthy, offered=OLD, in_memory={}),
        replace(healthy, devices=unprivileged),
    ):
        (found,) = bad(machine)
        assert found[0] == "ublks_max"
        assert "3, and 3 devices" in found[1].seen
        assert found[1].fix == f"echo 1024 > /{UBLKS_MAX}"


def test_a_device_that_a_process_still_serves_is_no_leftover(healthy: Machine) -> None:
    kept = replace(healthy, devices=[dev_info(7, state=DevState.QUIESCED, pid=42)])
    held = healthy.root / "proc/42/fd"
    held.mkdir(parents=True)
    (held / "5").symlink_to("/dev/ublkc8")
    assert [found.seen for _, found in bad(kept)] == [
        "/dev/ublkb7 is quiesced and nobody serves it"
    ]
    (held / "6").symlink_to("/dev/ublkc7")
    assert bad(kept) == []


@pytest.mark.parametrize(
    "change",
    [gone("run/ublkd"), gone("run/systemd"), gone("proc/1"), gone("proc/self/maps"),
     gone("proc/sys/kernel/io_uring_disabled"), gone(UBLKS_MAX)],
)  # fmt: skip
def test_what_need_not_be_there_is_not_missed(healthy: Machine, change: Change) -> None:
    change(healthy.root)
    assert bad(healthy) == []


@pytest.mark.parametrize("place", ["etc/systemd/system", "usr/local/lib/systemd/system"])
def test_a_unit_may_be_in_any_of_systemd_s_folders(healthy: Machine, place: str) -> None:
    (healthy.root / place).mkdir(parents=True)
    (healthy.root / UNIT).rename(healthy.root / place / "ublkd@.service")
    assert bad(healthy) == []
    assert [f.seen for f in examine(healthy)["systemd"]] == [f"the unit is /{place}/ublkd@.service"]


def test_a_machine_with_nothing_at_all_is_told_so(tmp_path: Path) -> None:
    found = bad(Machine(root=tmp_path, ring=errno.ENOSYS))
    assert {"module", "privilege", "io_uring"} <= {
        name for name, f in found if f.verdict is Verdict.CANNOT
    }


def test_the_command_tells_what_is_seen_here_and_whether_it_suffices() -> None:
    here = examine(look())
    can = not any(f.verdict is Verdict.CANNOT for found in here.values() for f in found)
    ran = ublkd("doctor", "--json")
    assert (ran.returncode, ran.stderr) == (0 if can else 3, "")
    told = json.loads(ran.stdout)
    assert told["works"] is can
    assert [line["check"] for line in told["checks"]] == [
        name for name in CHECKS for _ in here[name]
    ]
    lines = ublkd("doctor").stdout.splitlines()
    assert len(lines) == len(told["checks"]) + sum(bool(line["fix"]) for line in told["checks"])
    assert all(line.startswith((*(v.value for v in Verdict), "         fix: ")) for line in lines)


@pytest.mark.skipif(DRIVER_THERE, reason="this machine has a ublk driver")
def test_without_the_driver_it_works_and_says_so() -> None:
    ran = ublkd("doctor")
    assert (ran.returncode, ran.stderr) == (3, "")
    assert "cannot   module: " in ran.stdout
