"""Devices' files that are sound alone: what two of them cannot both have."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.test_devicefiles import put
from ublkd.devicefiles import read_all


def problems(folder: Path) -> dict[str, str]:
    """What is wrong, by file; the others are sound."""
    files, bad = read_all(folder)
    assert not {file.name for file in files} & {error.name for error in bad}
    assert len(files) + len({error.name for error in bad}) == len(list(folder.glob("*.toml")))
    said: dict[str, str] = {}
    for error in bad:
        said.setdefault(error.name, error.message.partition(": ")[2])
    return said


def test_two_devices_cannot_have_one_number(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        put(tmp_path, f'target = "null"\nid = {7 + (name == "c")}\n', name)
    assert problems(tmp_path) == {
        "a": f"id 7 is in {tmp_path}/b.toml as well",
        "b": f"id 7 is in {tmp_path}/a.toml as well",
    }


def test_two_devices_cannot_have_one_file_whatever_it_is_called(tmp_path: Path) -> None:
    disk, link = tmp_path / "disk.img", tmp_path / "link.img"
    disk.touch()
    link.symlink_to(disk)
    put(tmp_path, f'target = "loop"\nfile = "{disk}"\n', "a")
    put(tmp_path, f'target = "mirror"\nfile = ["/else", "{link}"]\n', "b")
    put(tmp_path, f'target = "faulty"\nover = "loop"\nfile = "{tmp_path}/./disk.img"\n', "c")
    put(tmp_path, 'target = "loop"\nfile = "/other"\n', "d")
    found = problems(tmp_path)
    assert set(found) == {"a", "b", "c"}
    assert found["a"] == f"file {disk} is in {tmp_path}/b.toml as well"


def test_a_file_that_is_not_there_yet_is_one_all_the_same(tmp_path: Path) -> None:
    put(tmp_path, 'target = "loop"\nfile = "/none/there"\n', "a")
    put(tmp_path, 'target = "loop"\nfile = "/none/./there"\n', "b")
    assert set(problems(tmp_path)) == {"a", "b"}


def test_one_file_is_not_two_legs(tmp_path: Path) -> None:
    put(tmp_path, 'target = "mirror"\nfile = ["/a", "/b", "/a"]\n', "m")
    assert problems(tmp_path) == {"m": "file /a is there twice"}


@pytest.mark.parametrize(
    ("one", "other", "fits"),
    [
        ("", "", False),
        ("share = true", "share = true", True),
        ("read-only = true", "read-only = true", True),
        ("read-only = true", "share = true", True),
        ("share = true", "", False),
        ("read-only = true", "", False),
    ],
)
def test_whoever_shares_or_only_reads_may_have_it_with_others_who_do(
    tmp_path: Path, one: str, other: str, fits: bool
) -> None:
    (tmp_path / "disk.img").touch()
    for name, more in (("a", one), ("b", other)):
        put(tmp_path, f'target = "loop"\nfile = "{tmp_path}/disk.img"\n{more}\n', name)
    assert problems(tmp_path).keys() == (set() if fits else {"a", "b"})


def nbd(folder: Path, name: str, uri: str, more: str = "") -> None:
    put(folder, f'target = "nbd"\nuri = "{uri}"\n{more}\n', name)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("nbd://h/x", "nbd://h/x", True),
        ("nbd://h/x", "NBD://h:10809/%78", True),
        ("nbd+unix:///x?socket=/run/s", "nbd+unix:///x?socket=/run/./s", True),
        ("nbd://h/x", "nbd://h/y", False),
        ("nbd://h/x", "nbd://h:10810/x", False),
        ("nbd://h/x", "nbd://g/x", False),
    ],
)
def test_two_devices_cannot_have_one_export_however_its_uri_is_written(
    tmp_path: Path, one: str, other: str, same: bool
) -> None:
    nbd(tmp_path, "a", one)
    nbd(tmp_path, "b", other)
    assert problems(tmp_path) == (
        {"a": f"uri {one} is in {tmp_path}/b.toml as well",
         "b": f"uri {one} is in {tmp_path}/a.toml as well"} if same else {}
    )  # fmt: skip
    for error in read_all(tmp_path)[1]:
        assert error.hint == "each device needs its own, or all of them read-only = true"


@pytest.mark.parametrize("other", ["read-only = true", "read-only = false"])
def test_an_export_may_be_read_by_several_devices_if_none_writes(
    tmp_path: Path, other: str
) -> None:
    nbd(tmp_path, "a", "nbd://h/x", "read-only = true")
    nbd(tmp_path, "b", "nbd://h/x", other)
    assert problems(tmp_path).keys() == (set() if "true" in other else {"a", "b"})
