"""Holders of a disk, on machines that are laid out in a folder."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.helpers import is_one_line
from ublkd import ending, holders
from ublkd.holders import Holders, Process

MOUNT = "36 35 259:4 / {place} rw,noatime master:1 - ext4 {source} rw\n"


class Layout:
    """A machine with the disk ublkb3 (259:4), its partition (259:5), and process 1."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("sys/class/block/ublkb3/dev", "259:4\n")
        self.write("sys/class/block/ublkb3/ublkb3p1/dev", "259:5\n")
        self.write("sys/class/block/ublkb3p1/dev", "259:5\n")
        self.write("sys/class/block/ublkb30/dev", "259:9\n")
        self.write("proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n")
        self.process(1, "init", "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n")
        self.link("proc/self", "1")

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode("utf-8", "surrogateescape"))

    def link(self, path: str, to: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.symlink_to(to)

    def process(self, pid: int, comm: str, mounts: str, *files: str, ns: int = 1) -> None:
        self.write(f"proc/{pid}/comm", f"{comm}\n")
        self.write(f"proc/{pid}/mountinfo", mounts)
        self.link(f"proc/{pid}/ns/mnt", f"mnt:[{ns}]")
        (self.root / f"proc/{pid}/fd").mkdir()
        for number, file in enumerate(files):
            self.link(f"proc/{pid}/fd/{number}", file)

    def found(self) -> Holders:
        return holders.of(3, root=self.root)


@pytest.fixture
def machine(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


def test_a_disk_that_nobody_holds_has_no_holders(machine: Layout) -> None:
    machine.process(8, "other", "", "/dev/ublkb30", "/dev/ublkb3x", "/tmp/dev/ublkb3", "pipe:[7]")
    found = machine.found()
    assert not found
    assert found.words() == ""
    assert not holders.of(77, root=machine.root)


def test_a_mount_of_the_disk_or_a_partition_is_found_in_every_namespace(machine: Layout) -> None:
    mounts = MOUNT.format(place="/mnt", source="/dev/ublkb3")
    part = mounts.replace("259:4", "259:5").replace("/mnt", "/srv/a\\040b")
    machine.write("proc/1/mountinfo", mounts)
    machine.process(8, "copy", mounts + part, ns=2)
    machine.process(9, "same", mounts + part, ns=2)
    found = machine.found()
    assert found.mounted_on == ("/mnt", "/srv/a b (for process 8)")
    assert found.words() == "mounted on /mnt, /srv/a b (for process 8)"
    assert found.is_claimed


def test_a_filesystem_without_a_number_of_its_own_is_found_by_its_source(machine: Layout) -> None:
    line = "36 35 0:50 / /pool rw - btrfs /dev/sdz rw\n"
    machine.write("proc/1/mountinfo", line.replace("sdz", "ublkb3p1"))
    assert machine.found().mounted_on == ("/pool",)
    machine.write("proc/1/mountinfo", line)
    assert not machine.found()
    for name in ("sdz", "ublkb3"):  # one btrfs of two devices
        machine.write(f"sys/fs/btrfs/uuid/devices/{name}/x", "")
    assert machine.found().mounted_on == ("/pool",)


def test_swap_and_devices_above_are_told_by_name(machine: Layout) -> None:
    machine.write("proc/swaps", "Filename Type Size Used Priority\n/dev/ublkb3p1 partition 9 0 -2\n"
                  "/dev/ublkb30 partition 9 0 -3\n")  # fmt: skip
    machine.write("sys/class/block/ublkb3/holders/dm-0/x", "")
    machine.write("sys/class/block/dm-0/dm/name", "vg-lv\n")
    machine.write("sys/class/block/ublkb3p1/holders/md127/x", "")
    machine.write("sys/class/block/loop4/loop/backing_file", "/dev/ublkb3\n")
    machine.write("sys/class/block/loop5/loop/backing_file", "/srv/dev/ublkb3\n")
    assert machine.found().words() == (
        "swapped on: /dev/ublkb3p1, part of dm-0 (vg-lv), md127, loop4"
    )


def test_processes_are_told_by_number_and_command_and_what_they_serve(machine: Layout) -> None:
    machine.process(123, "fio", "", "/dev/null", "/dev/ublkb3", "/dev/ublkb3")
    machine.process(45, "ublkd", "", "/dev/ublkb3p1", "/dev/ublkc7")
    found = machine.found()
    assert found.words() == ("open by ublkd (process 45, for /dev/ublkb7), fio (process 123)")
    assert not found.is_claimed
    assert not found.is_passing
    assert json.loads(json.dumps(found.as_json()))["open_by"][1] == {
        "pid": 123, "command": "fio", "serves": [],
    }  # fmt: skip
    assert not holders.of(3, processes=False, root=machine.root)


@pytest.mark.parametrize("name", ["systemd-udevd", "(udev-worker)", "udevadm"])
def test_udev_is_only_passing(machine: Layout, name: str) -> None:
    machine.process(5, name, "", "/dev/ublkb3")
    assert machine.found().is_passing
    machine.process(6, "udev-fan", "", "/dev/ublkb3")
    assert not machine.found().is_passing


def test_who_asks_is_no_holder(machine: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.process(123, "ublkd", "", "/dev/ublkb3")
    monkeypatch.setattr(os, "getpid", lambda: 123)
    assert not machine.found()


def test_only_so_much_time_is_spent_on_processes(
    machine: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.process(123, "fio", "", "/dev/ublkb3")
    monkeypatch.setattr(holders, "SECONDS", -1)
    found = machine.found()
    assert not found
    assert found.words() == "perhaps open by others"
    assert not found.is_passing  # whoever was not looked at may stay
    monkeypatch.setattr(holders, "of", lambda _: found)
    assert ending.openers(3) == "perhaps open by others"


def test_of_many_some_are_named_and_the_others_counted(machine: Layout) -> None:
    for pid in range(20, 26):
        machine.process(pid, "cat", "", "/dev/ublkb3")
    assert machine.found().words() == (
        "open by cat (process 20), cat (process 21), cat (process 22) and 3 more"
    )


@given(places=st.lists(st.text(), max_size=9), commands=st.lists(st.text(), max_size=9))
def test_whatever_they_are_called_it_is_one_line(places: list[str], commands: list[str]) -> None:
    found = Holders(
        mounted_on=tuple(places),
        open_by=tuple(Process(pid=n, command=c) for n, c in enumerate(commands)),
    )
    assert is_one_line(found.words())
    assert bool(found) is bool(places or commands)


@given(st.text())
def test_no_text_of_a_file_is_a_traceback(text: str) -> None:
    list(holders.mounted(text, {"1:2"}, {"ublkb3"}))
    list(holders.swapped(text, {"ublkb3"}))


def test_names_that_are_no_text_are_one_line_all_the_same(machine: Layout) -> None:
    machine.write("proc/1/mountinfo", MOUNT.format(place="/a\udcff\\012b", source="/dev/ublkb3"))
    assert is_one_line(machine.found().words())


@pytest.mark.parametrize("call", ["os.listdir", "os.readlink", "pathlib.Path.read_bytes"])
def test_that_there_was_no_descriptor_to_look_with_is_not_that_nobody_holds_it(
    machine: Layout, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fails(number: int) -> None:
        def short(*_: object) -> None:
            raise OSError(number, "short")

        monkeypatch.setattr(call, short)

    fails(errno.EMFILE)
    with pytest.raises(OSError, match="short"):
        machine.found()
    fails(errno.EACCES)
    assert not machine.found()
