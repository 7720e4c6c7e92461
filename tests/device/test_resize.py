"""Disks that get another size while they are used, and options that change meanwhile."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from load import files, kill
from nbd import SOON, Mortal
from pyroute2.netlink.uevent import UeventSocket
from tools import (
    device,
    mounted,
    nothing_left,
    refused,
    run,
    sparse,
    ublkd,
    ublkd_json,
    wait_until,
)

MIB = 1 << 20

pytestmark = pytest.mark.deadline(240)


def can_resize() -> bool:
    return "UPDATE_SIZE" in ublkd_json("features")["features"]


def size_of(node: str) -> int:
    """What programs see, and sysfs says the same."""
    size = blockdev_size(node)
    assert int(Path("/sys/class/block", Path(node).name, "size").read_text()) * 512 == size
    return size


def await_size(node: str, size: int) -> None:
    """For one that follows: programs may see it a moment before sysfs, or behind."""
    told = Path("/sys/class/block", Path(node).name, "size")
    wait_until(lambda: int(told.read_text()) * 512 == size, SOON, f"a disk of {size} bytes")
    wait_until(lambda: blockdev_size(node) == size, SOON, f"a disk of {size} bytes")


def blockdev_size(node: str) -> int:
    return int(run("blockdev", "--getsize64", node).stdout)


def grow(path: Path, size: int) -> None:
    with path.open("r+b") as f:
        f.truncate(size)


@contextlib.contextmanager
def announced(node: str) -> Iterator[None]:
    """The kernel says during the block that the disk has another size."""
    with UeventSocket() as heard:
        heard.bind()
        yield
        while select.select([heard.fileno()], [], [], SOON)[0]:
            for event in heard.get():
                said = event.get("header", {}), {k: v for k, v in event.items() if k != "header"}
                if "RESIZE" in str(said) and Path(node).name in str(said):
                    return
    raise AssertionError("the kernel has announced no other size")


def test_a_filesystem_grows_on_its_disk_which_is_then_taken_over_and_cut(scratch: Path) -> None:
    backing = scratch / "0.img"
    with device("loop", *files(scratch), "--sizelimit", "48M") as node:
        if not can_resize():
            assert "lacks UPDATE_SIZE" in refused("resize", node, code=3)
            assert "lacks UPDATE_SIZE" in refused("set", node, "--follow-size", code=3)
            ublkd("set", node, "--name", "other")
            assert ublkd_json("list")[0]["name"] == "other"
            return
        run("mkfs.ext4", "-q", node)
        grow(backing, 64 * MIB)
        with mounted(node, scratch / "mnt") as mnt:
            (mnt / "kept").write_text("before")
            with announced(node):
                # the limit that it was added with holds, until SIZE says otherwise
                assert ublkd("resize", node).stdout == f"{node}: 32M -> 48M\n"
            assert ublkd_json("resize", node, "64M")["old_size"] == 48 * MIB
            assert size_of(node) == 64 * MIB
            assert ublkd_json("show", node)["options"]["sizelimit"] == 64 * MIB
            run("resize2fs", node)
            (mnt / "large").write_bytes(os.urandom(MIB) * 40)
            said = refused("resize", node, "32M")
            assert "is in use" in said
            assert "67108864 to 33554432" in said
            assert size_of(node) == 64 * MIB
            kill(node)
            ublkd("recover", node)
            assert size_of(node) == 64 * MIB
            assert (mnt / "kept").read_text() == "before"
        run("e2fsck", "-fn", node)
        with backing.open("rb") as f:
            f.seek(33 * MIB)
            assert any(f.read(31 * MIB)), "nothing lies behind the old end"
        ublkd("resize", node, "52M")  # nobody uses it now
        kill(node)
        ublkd("resize", node, "56M")  # nobody serves it now
        ublkd("recover", node)
        assert size_of(node) == ublkd_json("show", node)["size"] == 56 * MIB
    nothing_left()


def test_a_size_that_cannot_be_is_refused_and_the_disk_is_as_it_was(scratch: Path) -> None:
    if not can_resize():
        said = refused("add", "-t", "loop", *files(scratch), "--follow-size", code=3)
        assert "lacks UPDATE_SIZE" in said
        nothing_left()
        return
    with device("loop", *files(scratch), "--block-size", "4096") as node:
        for size in ("0", "511", "31M5", "16777728"):  # the last is no whole block of 4096
            refused("resize", node, size, code=2)
        assert "what stands behind it has 33554432" in refused("resize", node, "64M")
        assert size_of(node) == 32 * MIB
        os.truncate(scratch / "0.img", 16 * MIB)
        assert ublkd("resize", node).stdout == f"{node}: 32M -> 16M\n"
        ublkd("stop", node)
        assert "is dead" in refused("resize", node)
        assert "is dead" in refused("set", node, "--name", "other")
    with subprocess.Popen([sys.executable, str(Path(__file__).with_name("foreign.py"))],
                          stdout=subprocess.PIPE, text=True) as foreign:  # fmt: skip
        assert foreign.stdout
        number = foreign.stdout.readline().strip()
        assert "was not made by ublkd" in refused("resize", number)
        assert "was not made by ublkd" in refused("set", number, "--name", "other")
        foreign.terminate()
    with device("null", "--size", "1G") as node:
        assert ublkd("resize", node, "2G").stdout == f"{node}: 1G -> 2G\n"
        assert ublkd("resize", node).stdout == f"{node}: 2G -> 2G\n"
        run("dd", f"if={node}", "of=/dev/null", "bs=1M", "skip=2047", "iflag=direct")
    nothing_left()


@pytest.mark.one_kernel
def test_a_disk_follows_its_file_for_as_long_as_it_is_told_to(scratch: Path) -> None:
    backing = scratch / "0.img"
    with device("loop", *files(scratch), "--follow-size", "--name", "first") as node:
        grow(backing, 64 * MIB)
        await_size(node, 64 * MIB)
        assert "follows the size" in refused("resize", node, "32M")
        ublkd("set", "first", "--no-follow-size", "--name", "second")
        assert [told["name"] for told in ublkd_json("list")] == ["second"]
        grow(backing, 96 * MIB)
        ublkd("set", "second", "--name", "third")  # it has looked around since
        assert size_of(node) == 64 * MIB
        kill(node)
        ublkd("set", node, "--follow-size")  # nobody serves it: the next daemon goes by it
        ublkd("recover", node)
        await_size(node, 96 * MIB)
        os.truncate(backing, 32 * MIB)
        assert "cannot be changed while" in refused("set", node, "--direct-io", "off")
        assert "cannot be changed while" in refused("set", node, "--queues", "2")
        assert "No such option" in refused("set", node, "--follow-sice", code=2).replace("no", "No")
        assert "takes an option" in refused("set", node, code=2)
        assert size_of(node) == 96 * MIB
    nothing_left()


@pytest.mark.one_kernel
def test_an_nbd_disk_grows_with_its_export(scratch: Path) -> None:
    backing = sparse(scratch / "disk.img", 32 * MIB)
    with (
        Mortal(scratch, "file", backing) as server,
        device("nbd", "--uri", server.uri(), "--reconnect-window", "inf") as node,
    ):
        # this server tells a new client what its file has now, and holds the old one to what it had
        grow(backing, 64 * MIB)
        assert ublkd("resize", node).stdout == f"{node}: 32M -> 64M\n"
        run("dd", "if=/dev/urandom", f"of={node}", "bs=1M", "seek=60", "count=4", "oflag=direct")
        ublkd("set", node, "--follow-size", "--reconnect-window", "120", "--request-timeout", "5")
        assert ublkd_json("show", node)["options"]["reconnect_window"] == 120
        assert "leaves no time" in refused("set", node, "--request-timeout", "0", code=2)
        assert ublkd_json("show", node)["options"]["request_timeout"] == 5
        server.end()
        grow(backing, 96 * MIB)
        server.start()
        await_size(node, 96 * MIB)
        run("dd", "if=/dev/urandom", f"of={node}", "bs=1M", "seek=92", "count=4", "oflag=direct")
    nothing_left()
