"""below.py on a made-up /sys: what a file stands on, and that no disk may stand on itself."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.unit.helpers import is_one_line
from ublkd import below
from ublkd.errors import UblkdError
from ublkd.state import DeviceState, StateDir


class Machine:
    """Block devices by name, and files that stand for nodes or lie on filesystems."""

    def __init__(self, folder: Path) -> None:
        self.sys, self.files = folder / "sys", folder / "files"
        self.mounts = folder / "mountinfo"
        self.mounts.write_text("")
        self.numbers: dict[str, tuple[bool, int]] = {}
        self.backings: dict[int, list[str]] = {}
        for made in (self.sys / "dev/block", self.sys / "class/block", self.files):
            made.mkdir(parents=True)

    def disk(self, name: str, *slaves: str, loop_of: Path | None = None, within: str = "") -> int:
        """A block device; its number. `within` makes it a partition of that disk."""
        folder = self.sys / "devices" / within / name
        (folder / "slaves").mkdir(parents=True)
        number = os.makedev(259, len(self.numbers))
        places = (f"dev/block/259:{len(self.numbers)}", f"class/block/{name}")
        for place in places:
            (self.sys / place).symlink_to(folder)
        for slave in slaves:
            (folder / "slaves" / slave).symlink_to(self.sys / "class/block" / slave)
        if loop_of is not None:
            (folder / "loop").mkdir()
            (folder / "loop/backing_file").write_bytes(os.fsencode(loop_of) + b"\n")
        if within:
            (folder / "partition").write_text("1\n")
        self.numbers[str(self.node(name))] = (True, number)
        return number

    def node(self, name: str) -> Path:
        """As if it were in /dev."""
        path = self.files / name
        path.touch()
        return path

    def file(self, name: str, on: int) -> Path:
        """A file on the filesystem of a block device; of an anonymous one with 0:N."""
        path = self.node(name)
        self.numbers[str(path)] = (False, on)
        return path

    def number(self, fd: int) -> tuple[bool, int]:
        return self.numbers[os.readlink(f"/proc/self/fd/{fd}")]

    def below(self, path: Path) -> list[str]:
        fd = os.open(path, os.O_PATH)
        try:
            return list(below.devices(fd, lambda n: self.backings.get(n, [])))
        finally:
            os.close(fd)

    def refusal(self, path: Path, dev_id: int = 0) -> str:
        """What refuse_paths says of it; nothing if it is fine."""
        try:
            below.refuse_paths([str(path)], dev_id, lambda n: self.backings.get(n, []))
        except UblkdError as error:
            assert is_one_line(error.message)
            assert error.hint
            return error.message
        return ""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    monkeypatch.setattr(below, "SYSFS", made.sys)
    monkeypatch.setattr(below, "MOUNTS", made.mounts)
    monkeypatch.setattr(below, "_number", made.number)
    return made


def test_a_disk_stands_on_itself_and_so_does_a_link_to_it(machine: Machine) -> None:
    machine.disk("ublkb0")
    link = machine.files / "link"
    link.symlink_to(machine.node("ublkb0"))
    for path in (machine.node("ublkb0"), link):
        assert machine.below(path) == ["ublkb0"]
        said = machine.refusal(path)
        assert said == "/dev/ublkb0 would stand on itself: it would wait for itself"
        assert machine.refusal(path, dev_id=1) == ""


def test_a_partition_stands_on_its_disk(machine: Machine) -> None:
    machine.disk("ublkb0")
    machine.disk("ublkb0p1", within="ublkb0")
    assert machine.below(machine.node("ublkb0p1")) == ["ublkb0p1", "ublkb0"]
    assert "itself through /dev/ublkb0p1: " in machine.refusal(machine.node("ublkb0p1"))


def test_device_mapper_and_md_are_followed_down_to_the_last(machine: Machine) -> None:
    for name in ("sda", "ublkb0", "ublkb1"):
        machine.disk(name)
    machine.disk("ublkb1p2", within="ublkb1")
    machine.disk("md0", "sda", "ublkb1p2")
    machine.disk("dm-3", "md0", "ublkb0")
    found = machine.below(machine.node("dm-3"))
    assert found == ["dm-3", "md0", "ublkb0", "sda", "ublkb1p2", "ublkb1"]
    assert "itself through /dev/dm-3: " in machine.refusal(machine.node("dm-3"), 0)
    way = "through /dev/dm-3, /dev/md0, /dev/ublkb1p2: "
    assert way in machine.refusal(machine.node("dm-3"), 1)
    assert machine.refusal(machine.node("dm-3"), 2) == ""


def test_a_file_stands_on_the_device_of_its_filesystem(machine: Machine) -> None:
    file = machine.file("disk.img", on=machine.disk("ublkb0"))
    assert machine.below(file) == ["ublkb0"]


def test_the_kernels_loop_device_stands_on_its_file(machine: Machine) -> None:
    file = machine.file("odd \udcff name\n", on=machine.disk("ublkb0"))
    machine.disk("loop7", loop_of=file)
    assert machine.below(machine.node("loop7")) == ["loop7", "ublkb0"]
    assert "through /dev/loop7" in machine.refusal(machine.node("loop7"))


def test_a_loop_device_whose_file_is_gone_stands_on_nothing_more(machine: Machine) -> None:
    machine.disk("loop7", loop_of=machine.files / "gone (deleted)")
    assert machine.below(machine.node("loop7")) == ["loop7"]


def mounted(machine: Machine, file: Path, source: str) -> None:
    """A line of mountinfo for the mount that a file is really on, and one for another."""
    fd = os.open(file, os.O_PATH)
    info = Path(f"/proc/self/fdinfo/{fd}").read_text()
    os.close(fd)
    (mount,) = re.findall(r"mnt_id:\s*(\d+)", info)
    told = f"{mount} 1 0:42 / /mnt rw shared:1 - btrfs {source} rw,ssd\n"
    machine.mounts.write_text(f"{mount}9 1 0:1 / / rw - btrfs {machine.node('no')} rw\n{told}")


def test_a_filesystem_without_a_number_of_its_own_is_found_by_what_was_mounted(
    machine: Machine,
) -> None:
    machine.disk("ublkb0")
    source = machine.files / "by label"
    source.symlink_to(machine.node("ublkb0"))
    file = machine.file("disk.img", on=os.makedev(0, 42))
    mounted(machine, file, str(source).replace(" ", "\\040"))
    assert machine.below(file) == ["ublkb0"]


def test_of_a_btrfs_every_device_is_known(machine: Machine) -> None:
    for name in ("sda", "sdb"):
        machine.disk(name)
    machine.disk("dm-1", "sdb")
    folder = machine.sys / "fs/btrfs/uuid/devices"
    folder.mkdir(parents=True)
    for name in ("sda", "dm-1"):
        (folder / name).touch()
    file = machine.file("disk.img", on=os.makedev(0, 42))
    mounted(machine, file, str(machine.node("sda")))
    assert machine.below(file) == ["sda", "dm-1", "sdb"]


@pytest.mark.parametrize("source", ["overlay", "tmpfs", "server:/export", "/does/not/exist"])
def test_a_filesystem_on_no_block_device_stands_on_nothing(machine: Machine, source: str) -> None:
    file = machine.file("disk.img", on=os.makedev(0, 42))
    mounted(machine, file, source)
    assert machine.below(file) == []
    machine.mounts.unlink()
    assert machine.below(file) == []


def test_a_filesystem_that_was_mounted_from_a_file_stands_where_that_does(machine: Machine) -> None:
    image = machine.file("erofs.img", on=machine.disk("ublkb0"))
    file = machine.file("disk.img", on=os.makedev(0, 42))
    mounted(machine, file, str(image))
    assert machine.below(file) == ["ublkb0"]


def test_a_file_that_was_mounted_by_a_file_of_its_own_ends(machine: Machine) -> None:
    file = machine.file("disk.img", on=os.makedev(0, 42))
    mounted(machine, file, str(file))
    assert machine.below(file) == []


def test_a_disk_on_another_ublk_disk_is_fine_unless_that_one_stands_on_it(
    machine: Machine,
) -> None:
    own = machine.disk("ublkb0")
    machine.disk("ublkb1")
    machine.backings[1] = ["/does/not/exist"]
    assert machine.refusal(machine.node("ublkb1"), 0) == ""
    machine.backings[1] = [str(machine.file("disk.img", on=own))]
    assert "through /dev/ublkb1" in machine.refusal(machine.node("ublkb1"), 0)


def test_disks_in_a_circle_are_each_looked_at_once(machine: Machine) -> None:
    files = [machine.file(f"{n}.img", on=machine.disk(f"ublkb{n}")) for n in (0, 1)]
    machine.backings = {0: [str(files[1])], 1: [str(files[0])]}
    assert machine.below(files[0]) == ["ublkb0", "ublkb1"]


def test_what_cannot_be_looked_at_is_left_to_whoever_opens_it(machine: Machine) -> None:
    for path in (machine.files / "none", Path("/bad\0path")):
        assert machine.refusal(path) == ""


def test_every_file_of_a_target_is_looked_at(machine: Machine) -> None:
    fine = machine.file("fine", on=machine.disk("sda"))
    bad = machine.file("bad", on=machine.disk("ublkb5"))
    fds = [os.open(path, os.O_RDONLY) for path in (fine, bad)]

    def nothing(_: int) -> Sequence[str]:
        return []

    below.refuse_itself(fds[:1], 5, nothing)
    with pytest.raises(UblkdError, match="/dev/ublkb5 would stand on itself"):
        below.refuse_itself(fds, 5, nothing)
    for fd in fds:
        os.close(fd)


def test_this_machine_has_an_answer_for_every_file(tmp_path: Path) -> None:
    with open(tmp_path / "file", "w") as f:
        assert below._number(f.fileno()) == (False, os.stat(tmp_path).st_dev)
    for path in (tmp_path, Path("/proc/self/stat"), Path("/dev/null"), Path("/")):
        below.refuse_paths([str(path)], 0, lambda _: [])


@pytest.mark.parametrize(
    ("told", "paths"),
    [("/one", ["/one"]), (("/a", "/b"), ["/a", "/b"]), (None, []), ([1, "/x"], ["/x"])],
)
def test_the_backings_of_another_disk_are_as_its_target_told_them(
    tmp_path: Path, told: object, paths: list[str]
) -> None:
    states = StateDir(tmp_path / "run")
    states.prepare()
    assert states.backings(3) == []
    describe = {} if told is None else {"backing": told}
    states.write(
        DeviceState(id=3, cookie=1, pid=1, name=None, target="loop", options={}, lease="copy",
                    describe=describe)
    )  # fmt: skip
    assert states.backings(3) == paths
