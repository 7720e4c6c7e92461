"""The package's ways: put over itself, taken away, purged, and back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tools import run, wait_until

from tests.systemd import units
from tests.systemd.units import systemctl

COMMAND = Path("/usr/sbin/ublkd")
MOUNT = "/mnt/disk"


@pytest.fixture
def package() -> Iterator[Path]:
    """The file; behind the test it is installed, and the disk mounted that is there at boot."""
    (file,) = Path(".cache/deb/out").glob("*.deb")
    yield file
    if not COMMAND.exists():
        run("dpkg", "-i", file)
    systemctl("start", "disk")
    if not os.path.ismount(MOUNT):
        run("mount", MOUNT)


def test_a_new_package_leaves_devices_and_daemons_as_they_are(package: Path) -> None:
    pid = units.pid_of("disk")
    done = run("dpkg", "-i", package)
    assert "ublkd upgrade --all" in done.stdout
    assert units.pid_of("disk") == pid
    written = Path(MOUNT, "through-the-update")
    written.write_bytes(os.urandom(1 << 20))
    run("sync", "-f", MOUNT)
    run(COMMAND, "upgrade", "--all")
    assert units.pid_of("disk") not in (0, pid)
    assert len(written.read_bytes()) == 1 << 20
    written.unlink()


def test_a_package_that_is_taken_away_leaves_what_is_the_administrators(package: Path) -> None:
    run("umount", MOUNT)
    systemctl("stop", "disk")
    wait_until(lambda: not units.device("disk"), units.SOON, "the disk is gone")
    run("dpkg", "-r", "ublkd")
    assert not COMMAND.exists()
    assert not Path("/usr/lib/systemd/system/ublkd@.service").exists()
    assert run("dpkg", "-P", "ublkd", check=False).returncode == 0
    assert (units.ETC / "disk.toml").exists()
    assert not list(Path("/usr/lib").glob("ublkd*"))
    run("dpkg", "-i", package)
    systemctl("start", "disk")
    run("mount", MOUNT)
    assert Path(MOUNT, "lost+found").exists()
