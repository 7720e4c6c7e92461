"""A shutdown with disks mounted: this leaves two of them, and what looks at them behind it."""

from __future__ import annotations

import shutil
from pathlib import Path

from tools import run, wait_until

from tests.systemd import units
from tests.systemd.units import systemctl

HERE = Path(__file__).parent
LAST = Path("/run/lab/last")
"""The lab runs it when systemd has unmounted all and ended everybody."""


def test_a_shutdown_begins_with_disks_mounted_and_written() -> None:
    """By fstab, and by hand: the second mount has no dependency on the unit. Beside them is one
    that was left to the driver: nobody will serve it again.
    """
    image = units.image("left")
    run("mkfs.ext4", "-q", image)
    (units.ETC / "left.toml").write_text(f'target = "loop"\nfile = "{image}"\n')
    systemctl("start", "left")
    Path("/mnt/left").mkdir()
    run("mount", "-o", "ro", units.node("left"), "/mnt/left")
    systemctl("stop", "left")
    wait_until(lambda: units.device("left")["state"] == "quiesced", units.SOON, "quiesced")
    Path("/srv/left.disk").write_text(Path(units.node("left")).name)
    image = units.image("hand")
    run("mkfs.ext4", "-q", image)
    (units.ETC / "hand.toml").write_text(f'target = "loop"\nfile = "{image}"\n')
    systemctl("start", "hand")
    Path("/mnt/hand").mkdir()
    run("mount", units.node("hand"), "/mnt/hand")
    written = bytes(range(256)) * 32768
    for folder in ("/srv", "/mnt/disk", "/mnt/hand"):
        Path(folder, "written").write_bytes(written)  # in the page cache: nobody has synced
    shutil.copy(HERE / "last.sh", LAST)
    LAST.chmod(0o755)
    Path("/dev/kmsg").write_text("lab: the shutdown begins\n")
