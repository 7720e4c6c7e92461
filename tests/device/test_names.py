"""Links, owner and mode by a real udev, and who holds a disk. The test starts the udev."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tools import device, mounted, nothing_left, refused, run, sparse, ublkd, ublkd_json, wait_until

from ublkd import names
from ublkd.control import Control
from ublkd.state import StateDir

RULES = Path(__file__).resolve().parents[2] / "systemd/60-ublkd.rules"
MIB = 1 << 20
UDEV_IS_SLOW = "udev has not made"
UUID = "7d3f8e52-1c9c-4cd3-9f0b-2b0f0e4a5c11"
USER, GROUP = 12345, 23456  # nobody's


@pytest.fixture
def udev(scratch: Path, lab_only: None) -> Iterator[None]:
    """A udev with our rules. The lab has none, so that other tests see what the kernel does."""
    folder = Path("/run/udev/rules.d")
    folder.mkdir(parents=True)
    (folder / RULES.name).write_bytes(RULES.read_bytes())
    daemon = subprocess.Popen(["/lib/systemd/systemd-udevd"], start_new_session=True)
    wait_until(Path("/run/udev/control").exists, 30, "udev's socket")
    run("udevadm", "settle")
    yield
    ublkd("del", "--all", "--force", check=False)
    daemon.send_signal(signal.SIGTERM)
    daemon.wait(60)
    subprocess.run(["rm", "-rf", "/run/udev"], check=True)


def leads(link: str, node: str) -> bool:
    """Whether the link is there and leads to that node."""
    return os.path.islink(link) and os.path.realpath(link) == node


def links(name: str) -> list[str]:
    return [f"/dev/ublk/{name}", f"/dev/disk/by-id/ublk-{name}"]


def settle(node: str = "") -> None:
    """Have udev look at a node again, and wait for the end of all it does."""
    if node:
        run("udevadm", "trigger", "--action=change", node)
    run("udevadm", "settle")


def partition(node: str, start: int, sectors: int) -> None:
    """Make one, with a table as DOS had it."""
    table = bytearray(512)
    table[440:444] = b"\x01\x02\x03\x04"
    struct.pack_into("<4x4xII", table, 446, start, sectors)
    table[446 + 4] = 0x83
    table[510:] = b"\x55\xaa"
    with open(node, "r+b") as disk:
        disk.write(table)
    run("blockdev", "--rereadpt", node)


@pytest.mark.usefixtures("udev")
def test_a_name_is_a_link_to_the_disk_and_its_partitions_for_as_long_as_there_is_one(
    scratch: Path,
) -> None:
    disk = sparse(scratch / "disk.img", 64 * MIB)
    added = ublkd("add", "--target", "loop", "--file", disk, "--name", "data",
                  "--owner", str(USER), "--group", str(GROUP), "--mode", "0640")  # fmt: skip
    node = added.stdout.strip()
    assert not added.stderr or UDEV_IS_SLOW in added.stderr
    wait_until(lambda: all(leads(link, node) for link in links("data")), 60, "its links")
    found = os.stat(node)
    assert (found.st_uid, found.st_gid) == (USER, GROUP)
    assert stat.S_IMODE(found.st_mode) == 0o640
    told = ublkd_json("show", "/dev/disk/by-id/ublk-data")
    assert told["links"] == links("data")
    assert told["access"] == {"owner": str(USER), "group": str(GROUP), "mode": "0640"}

    partition(node, 2048, 65536)
    run("mkfs.ext4", "-q", "-U", UUID, "-L", "inside", f"{node}p1")
    settle(f"{node}p1")
    for link in (*links("data-part1"), "/dev/disk/by-label/inside", f"/dev/disk/by-uuid/{UUID}",
                 "/dev/disk/by-partuuid/04030201-01"):  # fmt: skip
        assert leads(link, f"{node}p1"), link
    assert os.stat(f"{node}p1").st_uid == USER

    # a daemon that is killed takes no link along, and udev does not wait for the next one
    os.kill(told["pid"], signal.SIGKILL)
    wait_until(lambda: ublkd_json("show", "data")["state"] == "quiesced", 30, "quiesced")
    # nor for one that has its number by now
    (facts,) = Path("/run/ublkd").glob("0.*.udev")
    facts.write_text(facts.read_text().replace(f"PID={told['pid']}\n", f"PID={os.getpid()}\n"))
    assert f"={os.getpid()}\n" in facts.read_text()
    settle(node)
    settle(f"{node}p1")
    assert leads("/dev/disk/by-label/inside", f"{node}p1")
    ublkd("recover", "data")
    settle(f"{node}p1")
    assert all(leads(link, node) for link in links("data"))
    assert leads("/dev/disk/by-label/inside", f"{node}p1")
    assert os.stat(node).st_uid == USER
    ublkd("stop", "data")
    settle()
    assert not any(map(os.path.lexists, [*links("data"), *links("data-part1")]))
    ublkd("del", "data")
    nothing_left()


@pytest.mark.one_kernel
@pytest.mark.usefixtures("udev")
def test_links_follow_a_new_name(scratch: Path) -> None:
    with device("null", "--size", "4M", "--name", "old") as node:
        wait_until(lambda: leads("/dev/ublk/old", node), 60, "its link")
        with Control() as control:
            state = StateDir().read(0)
            assert state
            assert not names.rename(control, StateDir(), 0, state.cookie, "new")
        assert not os.path.lexists("/dev/ublk/old")
        assert all(leads(link, node) for link in links("new"))
        assert ublkd_json("show", "/dev/ublk/new")["name"] == "new"


@pytest.mark.one_kernel
@pytest.mark.usefixtures("udev")
def test_what_was_left_of_a_disk_names_no_other_one(scratch: Path) -> None:
    """Our file stays behind when another program deletes the device; the number is given anew."""
    ublkd("add", "--target", "null", "--size", "4M", "--name", "mine")
    (told,) = Path("/run/ublkd").glob("0.*.udev")
    kept = told.read_bytes()
    settle()
    ublkd("del", "mine")
    with device("null", "--size", "4M", "--id", "0") as node:
        told.write_bytes(kept)
        too_early = told.with_name("0.udev")  # of a daemon that was killed in START_DEV
        too_early.write_text(f"UBLKD_PID={os.getpid()}\nUBLKD_NAME=mine\n")  # a number of now
        settle(node)
        assert not os.path.lexists("/dev/ublk/mine")
        assert run("udevadm", "info", "--query=property", node).stdout.count("UBLKD_PID=") == 1
        for file in (told, too_early):
            file.unlink()


def test_without_udev_the_node_is_given_away_all_the_same_and_a_name_is_only_a_name(
    scratch: Path, lab_only: None
) -> None:
    added = ublkd("add", "--target", "null", "--name", "n", "--group", "6", "--mode", "660")
    with contextlib.closing(open(added.stdout.strip())):
        found = os.stat(added.stdout.strip())
    assert (found.st_gid, stat.S_IMODE(found.st_mode)) == (6, 0o660)
    assert "there is no /dev/ublk/n: udev does not run" in added.stderr
    ublkd("del", "n")
    assert "no user 'nobody-at-all'" in refused(
        "add", "--target", "null", "--owner", "nobody-at-all"
    )
    nothing_left()


def test_stop_says_who_holds_the_disk(scratch: Path) -> None:
    disk = sparse(scratch / "disk.img", 64 * MIB)
    with device("loop", "--file", disk, "--name", "held") as node:
        run("mkfs.ext4", "-q", node)
        with mounted(node, scratch / "mnt"):
            assert f"(held) is in use: mounted on {scratch}/mnt" in refused("stop", "held")
        run("dmsetup", "create", "above", said=f"0 8 linear {node} 0\n")
        try:
            assert "part of dm-0 (above)" in refused("stop", "held")
            assert "part of dm-0 (above)" in refused("del", "held")
        finally:
            run("dmsetup", "remove", "above")
        with open(node, "rb"):
            said = refused("stop", "held")
            assert (
                f"open by {Path('/proc/self/comm').read_text().strip()} (process {os.getpid()})"
                in said
            )
            assert ublkd_json("show", "held")["holders"]["open_by"][0]["pid"] == os.getpid()
        ublkd("stop", "held")
    nothing_left()
