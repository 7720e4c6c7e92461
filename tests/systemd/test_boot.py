"""What is there when the guest is up: the package, the unit, and the disk that fstab names."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tools import run, wait_until

from tests.systemd import units

DISK = units.unit("disk")


def test_the_disk_that_fstab_names_is_mounted_at_boot() -> None:
    wait_until(lambda: os.path.ismount("/mnt/disk"), units.SOON, "the mount of fstab")
    source = run("findmnt", "--noheadings", "--output=SOURCE", "/mnt/disk").stdout.strip()
    assert source == units.node("disk") == os.path.realpath("/dev/ublk/disk")
    told = units.shown("disk", "ActiveState", "NRestarts", "ActiveEnterTimestampMonotonic")
    assert told["ActiveState"] == "active"
    assert told["NRestarts"] == "0"
    mount = run("systemctl", "show", "mnt-disk.mount",
                "--property=InactiveExitTimestampMonotonic", "--value").stdout  # fmt: skip
    assert int(told["ActiveEnterTimestampMonotonic"]) < int(mount)


def test_the_unit_makes_sense_and_exposes_little() -> None:
    assert not run("systemd-analyze", "verify", "--man=no", DISK).stderr
    told = run("systemd-analyze", "security", "--no-pager", DISK).stdout
    exposed = re.search(r"Overall exposure level for .*: ([0-9.]+)", told)
    assert exposed, told
    print(f"systemd-analyze security: {exposed[0]}")
    assert float(exposed[1]) < 5.0


def test_the_daemon_runs_as_the_unit_says() -> None:
    pid = units.pid_of("disk")
    status = Path(f"/proc/{pid}/status").read_text()
    assert "NoNewPrivs:\t1" in status
    assert "Seccomp:\t2" in status
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "-1000\n"
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert re.search(r"Max locked memory +unlimited", limits)
    assert re.search(r"Max open files +65536", limits)
    # in one of its own, it could be the last to have a filesystem of its disk mounted
    assert Path(f"/proc/{pid}/ns/mnt").readlink() == Path("/proc/1/ns/mnt").readlink()
    locked = re.search(r"VmLck:\s+(\d+) kB", status)
    assert locked
    assert int(locked[1]) > 0
    assert not units.warnings("disk")


def test_the_package_brings_manual_completion_and_driver() -> None:
    for path in ("man8/ublkd.8.gz", "man7/ublkd-service.7.gz", "man7/ublkd-nbd.7.gz"):
        assert Path("/usr/share/man", path).exists()
    assert "ublkd" in run("man", "--whatis", "--local-file", "/usr/share/man/man8/ublkd.8.gz",
                          check=False).stdout + run("lexgrog",
                          "/usr/share/man/man8/ublkd.8.gz").stdout  # fmt: skip
    assert os.access("/usr/share/bash-completion/completions/ublkd", os.R_OK)
    assert Path("/usr/lib/modules-load.d/ublkd.conf").read_text().endswith("ublk_drv\n")
    assert run("/usr/sbin/ublkd", "--version").stdout.startswith("ublkd")


def test_the_package_does_not_go_while_there_are_devices() -> None:
    done = run("dpkg", "-r", "ublkd", check=False)
    assert done.returncode
    assert "there are still devices" in done.stderr
    assert Path("/usr/sbin/ublkd").exists()
