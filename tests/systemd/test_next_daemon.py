"""Another daemon for a disk of a unit: the disk stays the same, and so does what stands on it."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

from tools import run, ublkd, wait_until

from tests.systemd import units
from tests.systemd.units import Describe, systemctl


def diskseq(node: str) -> str:
    return Path("/sys/block", Path(node).name, "diskseq").read_text()


def mounted_since(unit: str) -> str:
    return run("systemctl", "show", unit, "--property=ActiveEnterTimestampMonotonic").stdout


def test_an_upgraded_disk_that_nobody_uses_stays_as_it_was(described: Describe) -> None:
    described("idle", units.loop("idle"))
    systemctl("start", "idle")
    node, pid = units.node("idle"), units.pid_of("idle")
    ublkd("resize", "idle", "16M")
    before = diskseq(node)
    ublkd("upgrade", "idle")
    assert units.pid_of("idle") not in (0, pid)
    assert (units.node("idle"), diskseq(node)) == (node, before)
    assert units.device("idle")["size"] == 16 * units.MIB
    systemctl("stop", "idle")
    assert not units.device("idle")


def test_a_mount_of_fstab_stays_mounted_below_another_daemon() -> None:
    node, pid, since = units.node("disk"), units.pid_of("disk"), mounted_since("mnt-disk.mount")
    with Path("/mnt/disk/held").open("w") as held:
        ublkd("upgrade", "disk")
        pid = units.served_by_another_than(pid, "disk")
        held.write("through")
        held.flush()
        os.fsync(held.fileno())
        os.kill(pid, signal.SIGKILL)
        units.served_by_another_than(pid, "disk")
        os.fsync(held.fileno())
    assert Path("/mnt/disk/held").read_text() == "through"
    assert mounted_since("mnt-disk.mount") == since
    assert units.node("disk") == node


def test_what_a_unit_served_is_recovered_by_the_unit(described: Describe) -> None:
    described("left", units.loop("left"))
    systemctl("start", "left")
    fd = os.open(units.node("left"), os.O_RDWR)
    try:
        systemctl("stop", "left")
        wait_until(lambda: units.device("left")["state"] == "quiesced", units.SOON, "quiesced")
        ublkd("recover", "--all")
        assert units.shown("left", "SubState")["SubState"] == "running"
        shutil.move(units.ETC / "left.toml", "/srv")
        kept = ublkd("apply", check=False)
        assert (kept.returncode, kept.stderr) == (1, "")
        assert "keep left: in use (its file is gone)" in kept.stdout
        assert units.pid_of("left")
        assert units.device("left")["state"] == "live"
    finally:
        os.close(fd)
    ublkd("apply")
    assert not units.device("left")
    assert units.shown("left", "ActiveState")["ActiveState"] == "inactive"
    shutil.move("/srv/left.toml", units.ETC)
