"""A package over itself, as an update is."""

from __future__ import annotations

import os
from pathlib import Path

from tools import run

from tests.systemd import units

COMMAND = Path("/usr/sbin/ublkd")
MOUNT = "/mnt/disk"


def package() -> Path:
    """The file."""
    (file,) = Path(".cache/deb/out").glob("*.deb")
    return file


def test_a_new_package_leaves_devices_and_daemons_as_they_are() -> None:
    pid = units.pid_of("disk")
    done = run("dpkg", "-i", package())
    assert "ublkd upgrade --all" in done.stdout
    assert units.pid_of("disk") == pid
    written = Path(MOUNT, "through-the-update")
    data = os.urandom(1 << 20)
    written.write_bytes(data)
    run("sync", "-f", MOUNT)
    run(COMMAND, "upgrade", "--all")
    assert units.pid_of("disk") not in (0, pid)
    assert written.read_bytes() == data
    written.unlink()
