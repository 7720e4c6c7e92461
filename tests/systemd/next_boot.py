"""Behind a shutdown with disks mounted, another boot: what was written is there.

`make systemd` runs it in a second guest, with the disk that the first one had; test_shutdown.py
left on it what is looked for here.
"""

from __future__ import annotations

import os
from pathlib import Path

from tools import run, ublkd_json, wait_until

from tests.systemd import units
from tests.systemd.units import Describe, systemctl

WRITTEN = Path("/srv/written")


def test_the_disk_that_fstab_names_came_back_with_all_that_was_written() -> None:
    wait_until(lambda: os.path.ismount("/mnt/disk"), units.SOON, "the mount of fstab")
    source = run("findmnt", "--noheadings", "--output=SOURCE", "/mnt/disk").stdout.strip()
    assert source == units.node("disk")
    assert units.shown("disk", "NRestarts")["NRestarts"] == "0"
    assert Path("/mnt/disk/written").read_bytes() == WRITTEN.read_bytes()


def test_nothing_else_of_the_last_boot_is_there() -> None:
    assert [told["name"] for told in ublkd_json("list")] == ["disk"]


def test_a_disk_that_was_mounted_by_hand_has_all_that_was_written(described: Describe) -> None:
    described("hand", 'target = "loop"\nfile = "/srv/hand.img"\n')
    systemctl("start", "hand")
    folder = Path("/mnt/hand")
    folder.mkdir()
    run("mount", "-o", "ro", units.node("hand"), folder)
    try:
        assert (folder / "written").read_bytes() == WRITTEN.read_bytes()
    finally:
        run("umount", folder)
