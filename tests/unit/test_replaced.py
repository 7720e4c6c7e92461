"""A file that is made anew in a backing's place is another one, even if it gets the same inode.

On the filesystem of this checkout, because it is hardly ever in memory.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.helpers import ROOT
from ublkd import recovery, registry
from ublkd.config import build
from ublkd.targets.backing import FS_IOC_GETVERSION

SIZE = 1 << 20
TRIES = 100
"""Somebody else may be given the number in between."""

OVER_SEVERAL = ["concat", "mirror", "stripe"]


@pytest.fixture
def folder() -> Iterator[Path]:
    """One on a disk."""
    try:
        (ROOT / ".cache").mkdir(exist_ok=True)
        made = tempfile.TemporaryDirectory(dir=ROOT / ".cache")
    except OSError as error:
        pytest.skip(f"nothing can be written in {ROOT}: {error}")
    with made as path:
        yield Path(path)


def sparse(path: Path) -> Path:
    with path.open("wb") as f:
        f.truncate(SIZE)
    return path


def remembered(kind: str, *paths: Path, **more: bool) -> dict[str, Any]:
    """What a target over the files tells, as it is read again from the state of its device."""
    files = tuple(map(str, paths))
    options = build(kind, {"file": files if kind in OVER_SEVERAL else files[0], **more}).options
    target = registry.opened(kind, options)
    told: dict[str, Any] = json.loads(json.dumps(dict(target.describe())))
    target.close()
    return told


def made_anew(path: Path) -> bool:
    """Delete it and make it: whether the new one has the inode number of the old one."""
    before = path.stat().st_ino
    path.unlink()
    return sparse(path).stat().st_ino == before


def made_anew_in_its_inode(kind: str, *paths: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is told of the files before the last of them was made anew, and behind it."""
    for _ in range(TRIES):
        before = remembered(kind, *paths)
        if "inode_generation" not in before:
            pytest.skip("the filesystem of this checkout tells no generation of an inode")
        if made_anew(paths[-1]):
            return before, remembered(kind, *paths)
    pytest.skip("the filesystem of this checkout gives no inode number to the next file")


def test_a_new_file_with_the_inode_of_the_old_one_is_another(folder: Path) -> None:
    path = sparse(folder / "disk.img")
    before, now = made_anew_in_its_inode("loop", path)
    assert before["identity"] == now["identity"]
    assert f"{path} is not what it was (a new file" in recovery.replaced(before, now)
    assert recovery.replaced(now, now) == ""


@pytest.mark.parametrize("kind", OVER_SEVERAL)
def test_so_it_is_for_one_of_several(folder: Path, kind: str) -> None:
    one, two = sparse(folder / "1.img"), sparse(folder / "2.img")
    before, now = made_anew_in_its_inode(kind, one, two)
    assert before["identity"] == now["identity"]
    assert f"{two} is not what it was (a new file" in recovery.replaced(before, now)


def test_what_an_older_daemon_has_remembered_is_compared_as_it_did(folder: Path) -> None:
    path = sparse(folder / "disk.img")
    before, now = made_anew_in_its_inode("loop", path)
    del before["inode_generation"]
    assert recovery.replaced(before, now) == ""


def test_a_file_stays_what_it_is_whatever_is_done_to_it(folder: Path) -> None:
    path, other = sparse(folder / "disk.img"), folder / "other.img"
    before = remembered("loop", path)
    path.write_bytes(b"new" * SIZE)
    os.truncate(path, 2 * SIZE)
    os.truncate(path, SIZE)
    path.chmod(0o400)
    os.utime(path, (1, 1))
    other.hardlink_to(path)
    other.unlink()
    path.rename(other)
    other.rename(path)
    for read_only in (False, True):
        now = remembered("loop", path, **{"read-only": read_only})
        assert recovery.replaced(before, now) == ""
        assert now.get("inode_generation") == before.get("inode_generation")


def test_where_the_filesystem_tells_no_generation_the_inode_must_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.ioctl

    def refuse(fd: int, request: int, *rest: Any) -> Any:
        if request == FS_IOC_GETVERSION:
            raise OSError(errno.ENOTTY, "Inappropriate ioctl for device")
        return real(fd, request, *rest)

    paths = [sparse(folder / name) for name in ("1.img", "2.img")]
    before = remembered("mirror", *paths)
    monkeypatch.setattr(fcntl, "ioctl", refuse)
    for told in (remembered("loop", *paths), now := remembered("mirror", *paths)):
        assert "inode_generation" not in told
    assert recovery.replaced(before, now) == ""
    paths[1].rename(folder / "kept.img")
    sparse(paths[1])
    assert "2.img is not what it was" in recovery.replaced(before, remembered("mirror", *paths))


def born(*generations: str) -> dict[str, Any]:
    """What is told of files whose inodes have these generations; none: of one, without."""
    paths = ("/a", "/b")[: len(generations) or 1]
    told = {"identity": tuple(f"file 8:1 {path}" for path in paths), "backing": paths}
    return told | ({"inode_generation": generations} if generations else {})


def counted(*numbers: str) -> dict[str, Any]:
    """What is told of block devices whose disks the kernel has counted so."""
    return born() | {
        "identity": tuple(f"block 8:{n}" for n, _ in enumerate(numbers)),
        "backing": ("/a", "/b")[: len(numbers)],
        "disk_id": numbers,
    }


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        ({}, {}, ""),
        ({"identity": "file 8:1 5"}, {"identity": "file 8:1 5", "backing": "/a"}, ""),
        ({"identity": ["a", "b"]}, {"identity": ("a", "b")}, ""),  # JSON has no tuples
        ({"identity": "file 8:1 5"}, {"identity": "file 8:1 6", "backing": "/a"}, "/a is not what"),
        ({"identity": ["a", "b"]}, {"identity": ("a", "c"), "backing": ("/a", "/b")}, "/b is not"),
        ({"identity": ["a", "b"]}, {"identity": ("a",)}, "had 2 backings and has 1"),
        (born("7"), born("7"), ""),
        (born("7"), born("8"), "/a is not what it was (a new file with the inode of the old one"),
        (born(), born("8"), ""),  # remembered by an older ublkd, which told none
        (born("7"), born(), ""),  # and taken over by one
        (born("7", "8"), born("7", "9"), "/b is not what"),
        (born("7", ""), born("7", ""), ""),  # the second is a block device, or on tmpfs
        (born("7", ""), born("", "9"), ""),
        (counted("7"), counted("7"), ""),
        (counted("7"), counted("8"), "/a is not what it was (another disk with the number of"),
        (counted("7"), {**counted("8"), "disk_id": None}, ""),
        (counted("", "7"), counted("", "9"), "/b is not what"),
    ],
)
def test_another_file_in_a_backings_place_is_named(
    before: dict[str, Any], now: dict[str, Any], words: str
) -> None:
    why = recovery.replaced(before, now)
    assert bool(why) == bool(words)
    assert words in why
