"""The package is taken away, purged, and back: slow under emulation, so only `make soak-systemd`
runs it.
"""

from __future__ import annotations

from pathlib import Path

from tools import run, wait_until

from tests.systemd import units
from tests.systemd.test_package import COMMAND, MOUNT, package
from tests.systemd.units import systemctl


def test_a_package_that_is_taken_away_leaves_what_is_the_administrators() -> None:
    run("umount", MOUNT)
    systemctl("stop", "disk")
    wait_until(lambda: not units.device("disk"), units.SOON, "the disk is gone")
    run("dpkg", "-r", "ublkd")
    assert not COMMAND.exists()
    assert not Path("/usr/lib/systemd/system/ublkd@.service").exists()
    run("dpkg", "-P", "ublkd")
    assert (units.ETC / "disk.toml").exists()
    assert not list(Path("/usr/lib").glob("ublkd*"))
    run("dpkg", "-i", package())
    systemctl("start", "disk")
    run("mount", MOUNT)
    assert Path(MOUNT, "lost+found").exists()
