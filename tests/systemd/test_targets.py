"""What the unit's sandbox leaves possible: each target, with all that a disk can be asked for."""

from __future__ import annotations

from pathlib import Path

from nbd import Mortal
from tools import fio, run

from tests.systemd import units
from tests.systemd.units import Describe, systemctl

NAMES = ("file", "block", "local", "tcp", "both", "turns", "behind")


def test_every_target_works_in_the_sandbox(described: Describe) -> None:
    run("modprobe", "brd", "rd_nr=1", "rd_size=32768")
    folders = [Path("/srv", name) for name in ("local", "tcp")]
    for folder in folders:
        folder.mkdir()
    with (
        Mortal(folders[0], "memory", "32M") as local,
        Mortal(folders[1], "memory", "32M", tcp=True) as tcp,
    ):
        described("file", units.loop("file"))
        described("block", 'target = "loop"\nfile = "/dev/ram0"\n')
        described("local", f'target = "nbd"\nuri = "{local.uri()}"\n')
        described("tcp", f'target = "nbd"\nuri = "{tcp.uri()}"\n')
        for name, target in (("both", "mirror"), ("turns", "stripe"), ("behind", "concat")):
            legs = [str(units.image(f"{name}-{leg}")) for leg in "ab"]
            described(name, f'target = "{target}"\nfile = {legs}\n')
        systemctl("start", *NAMES)
        for name in NAMES:
            disk = units.node(name)
            fio(disk, "--rw=randwrite", "--bs=16k", "--size=1m", "--iodepth=8",
                "--verify=crc32c", "--fsync=32")  # fmt: skip
            run("blkdiscard", "--zeroout", "--length", "1M", disk)
            if name != "block":  # a ram disk
                run("blkdiscard", "--offset", "1M", "--length", "1M", disk)
            assert not units.warnings(name)
            assert "EPERM" not in units.said(name)
        systemctl("stop", *NAMES)
        for name in NAMES:
            assert not units.device(name)
