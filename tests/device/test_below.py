"""A disk may stand on another ublk disk, but not on itself, whatever lies between."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tools import device, digest, mounted, nothing_left, patiently, refused, run, sparse, ublkd_json

MIB = 1 << 20


@contextlib.contextmanager
def linear(node: str, name: str) -> Iterator[str]:
    """A device-mapper disk that is all of that one."""
    run("modprobe", "dm-mod")
    sectors = run("blockdev", "--getsz", node).stdout.strip()
    run("dmsetup", "create", name, "--table", f"0 {sectors} linear {node} 0")
    run("dmsetup", "mknodes", name)  # no udev here
    try:
        yield f"/dev/mapper/{name}"
    finally:
        patiently("dmsetup", "remove", name)


@contextlib.contextmanager
def kernel_loop(path: Path) -> Iterator[str]:
    """A loop device of the kernel's over a file."""
    node = run("losetup", "--find", "--show", path).stdout.strip()
    try:
        yield node
    finally:
        run("losetup", "--detach", node)


def own(*words: str | Path) -> str:
    """What `add --id 0` says of a backing on /dev/ublkb0; one line, whatever else is wrong."""
    said = refused("add", "--id", "0", "--target", *words)
    assert "/dev/ublkb0 would stand on itself" in said
    return said


def test_a_number_whose_disk_stands_below_is_refused_however_it_is_reached(scratch: Path) -> None:
    link = scratch / "link"
    other = sparse(scratch / "other.img", MIB)
    with device("loop", "--id", "0", "--file", sparse(scratch / "disk.img", 32 * MIB)) as node:
        link.symlink_to(node)
        own("loop", "--file", node)
        own("loop", "--file", link)
        own("mirror", "--file", other, "--file", link)
        own("faulty", "--over", "loop", "--file", link)
        with linear(node, "below") as mapped:
            assert "through /dev/dm-" in own("loop", "--file", mapped)
            own("loop", "--file", link)  # although it is in use as well
        run("mkfs.ext4", "-q", node)
        with mounted(node, scratch / "mnt") as mnt:
            inside = sparse(mnt / "inside.img", MIB)
            own("loop", "--file", inside)
            with kernel_loop(inside) as loop:
                assert f"through {loop}: " in own("loop", "--file", loop)
            with device("loop", "--id", "1", "--file", inside) as second:
                assert f"through {second}: " in own("loop", "--file", second)
        said = refused("add", "--id", "0", "--target", "loop", "--file", other)
        assert "number 0 is taken" in said
        assert ublkd_json("show", node)["state"] == "live"
    nothing_left()


def test_a_disk_on_another_ublk_disk_is_served(scratch: Path) -> None:
    path = sparse(scratch / "disk.img", 8 * MIB)
    with (
        device("loop", "--id", "0", "--file", path) as below,
        device("loop", "--id", "1", "--file", below) as above,
    ):
        run("dd", "if=/dev/urandom", f"of={above}", "bs=1M", "count=8", "oflag=direct")
        assert digest(path, 8 * MIB) == digest(below, 8 * MIB) == digest(above, 8 * MIB)
    nothing_left()
