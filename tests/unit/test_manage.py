from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from tests.unit.fakes import FakeControl, Log, dev_info
from tests.unit.helpers import is_one_line, open_fds
from ublkd import ending, holders, manage
from ublkd.control import CommandError, Control, DevInfo
from ublkd.errors import UblkdError
from ublkd.holders import Holders, Process
from ublkd.manage import Found
from ublkd.state import DeviceState, StateDir
from ublkd.uapi import Cmd, DevState, Feature

OURS = 0x75626B64 << 32
FAR = 900_000  # no device of this machine has such a number


class Machine:
    """Three devices: FAR (ours, "db"), FAR + 1 (another program's), FAR + 2 (ours, forgotten)."""

    def __init__(self, folder: Path) -> None:
        self.log = Log()
        self.fake = FakeControl(self.log)
        self.control = cast("Control", self.fake)
        self.states = StateDir(folder / "run")
        self.states.prepare()
        self.classes = folder / "class"
        self.classes.mkdir()
        for number, cookie in enumerate((OURS | 1, 7, OURS | 2)):
            self.fake.known[FAR + number] = dev_info(FAR + number, cookie=cookie)
            (self.classes / f"ublkc{FAR + number}").touch()
        self.remember(FAR, OURS | 1)
        self.remember(FAR + 2, OURS | 99)

    def remember(self, dev_id: int, cookie: int) -> None:
        self.states.write(
            DeviceState(
                id=dev_id, cookie=cookie, pid=1, name="db", target="loop", lease="copy",
                options={"file": "/srv/\udcff"}, describe={"backing": "/srv/\udcff"},
            )
        )  # fmt: skip

    def found(self, word: str) -> Found:
        return manage.find(self.control, self.states, word)

    def devices(self) -> list[Found]:
        return manage.devices(self.control, self.states)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    monkeypatch.setattr(manage, "CHAR_CLASS", made.classes)
    return made


def test_every_device_is_listed_by_number_with_what_is_known_of_it(machine: Machine) -> None:
    for name in ("ublkcx", "ublkb5", "ublkc", ".ublkc7"):
        (machine.classes / name).touch()
    found = machine.devices()
    assert [device.info.id for device in found] == [FAR, FAR + 1, FAR + 2]
    assert [device.ours for device in found] == [True, False, True]
    # the third one's file is of an earlier device of its number
    assert [bool(device.state) for device in found] == [True, False, False]


def test_without_a_driver_there_are_no_devices(machine: Machine) -> None:
    for entry in machine.classes.iterdir():
        entry.unlink()
    machine.classes.rmdir()
    assert machine.devices() == []


def test_a_device_that_vanishes_while_it_is_listed_is_left_out(machine: Machine) -> None:
    del machine.fake.known[FAR + 1]
    assert [device.info.id for device in machine.devices()] == [FAR, FAR + 2]


@pytest.mark.parametrize("word", [f"{FAR}", f"ublkb{FAR}", f"/dev/ublkb{FAR}", f"/dev/ublkc{FAR}",
                                  f"ublkc{FAR}", "db", "/dev/ublk/db",
                                  "/dev/disk/by-id/ublk-db"])  # fmt: skip
def test_a_device_is_found_by_number_node_or_name(machine: Machine, word: str) -> None:
    assert machine.found(word).info.id == FAR


@pytest.mark.parametrize("word", ["", "DB", "db ", f"{FAR + 3}", f"-{FAR}", f"/tmp/ublkb{FAR}",
                                  "a\nb", "\udcff", f"{FAR}\n", "\u0669", "9" * 5000])  # fmt: skip
def test_a_word_that_means_no_device_is_refused(machine: Machine, word: str) -> None:
    with pytest.raises(UblkdError, match="there is no ublk device") as caught:
        machine.found(word)
    assert is_one_line(caught.value.message)
    assert "ublkd list" in caught.value.hint


def test_what_json_tells_of_a_device_is_complete_and_json(machine: Machine) -> None:
    ours, foreign, _ = (device.as_json() for device in machine.devices())
    assert ours.keys() >= foreign.keys()
    assert (ours["name"], ours["target"], ours["lease"]) == ("db", "loop", "copy")
    assert (foreign["name"], foreign["target"], foreign["ours"]) == (None, None, False)
    assert (ours["state"], ours["size"], ours["pid"]) == ("live", 4096, None)
    assert "/srv/" in json.dumps([ours, foreign])


@pytest.mark.parametrize("force", [False, True])
def test_a_device_of_another_program_is_never_touched(machine: Machine, force: bool) -> None:
    foreign = machine.found(str(FAR + 1))
    with pytest.raises(UblkdError, match="was not made by ublkd"):
        ending.stop(machine.control, machine.states, foreign, force=force)
    with pytest.raises(UblkdError, match="was not made by ublkd"):
        ending.delete(machine.control, machine.states, foreign, force=force)
    assert list(machine.log) == []


def test_a_disk_in_use_is_kept_unless_forced(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ending, "claimed", lambda _: True)
    device = machine.found("db")
    with pytest.raises(UblkdError, match=r"\(db\) is in use") as caught:
        ending.stop(machine.control, machine.states, device)
    assert "--force" in caught.value.hint
    with pytest.raises(UblkdError, match="is in use"):
        ending.delete(machine.control, machine.states, device)
    assert list(machine.log) == []
    ending.delete(machine.control, machine.states, device, force=True)
    assert list(machine.log) == ["stop", "del"]


def test_a_disk_that_is_dead_is_in_nobodys_use(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ending, "claimed", lambda _: True)
    monkeypatch.setattr(manage, "is_there", lambda _: False)  # nobody is about to make it a disk
    machine.fake.known[FAR] = dev_info(FAR, cookie=OURS | 1, state=DevState.DEAD)
    ending.delete(machine.control, machine.states, machine.found("db"))
    assert list(machine.log) == ["stop", "del"]


def test_deleting_forgets_the_device_and_its_counters(machine: Machine) -> None:
    machine.states.counters(FAR).touch()
    ending.delete(machine.control, machine.states, machine.found("db"))
    assert machine.states.ids() == [FAR + 2]


def test_deleting_keeps_what_is_remembered_of_a_later_device(machine: Machine) -> None:
    device = machine.found("db")
    machine.remember(FAR, OURS | 5)  # the number was given away in the meantime
    ending.delete(machine.control, machine.states, device)
    assert machine.states.read(FAR) is not None


@pytest.mark.parametrize("step", ["stop", "del"])
def test_a_device_that_is_gone_already_is_forgotten_all_the_same(
    machine: Machine, step: str
) -> None:
    machine.log.fail_at, machine.log.error = step, CommandError(Cmd.DEL_DEV, errno.ENODEV)
    assert ending.delete(machine.control, machine.states, machine.found("db")) == ""
    assert list(machine.log) == ["stop", "del"]
    assert machine.states.read(FAR) is None


def test_a_number_that_stays_taken_is_a_warning(machine: Machine) -> None:
    machine.fake.number_is_free = False
    warning = ending.delete(machine.control, machine.states, machine.found("db"))
    assert is_one_line(warning)
    assert f"/dev/ublkb{FAR}" in warning
    assert machine.states.read(FAR) is None


def test_what_the_driver_refuses_is_told(machine: Machine) -> None:
    machine.log.fail_at, machine.log.error = "stop", CommandError(Cmd.STOP_DEV, errno.EPERM)
    with pytest.raises(CommandError, match="STOP_DEV: operation not permitted"):
        ending.delete(machine.control, machine.states, machine.found("db"))
    assert machine.states.read(FAR)


@pytest.mark.parametrize(
    ("flags", "force", "command"),
    [
        (Feature(0), False, "stop"),
        (Feature.SAFE_STOP_DEV, False, "try stop"),
        (Feature.SAFE_STOP_DEV, True, "stop"),
    ],
)
def test_stop_asks_carefully_where_the_kernel_can(
    machine: Machine, flags: Feature, force: bool, command: str
) -> None:
    machine.fake.known[FAR] = dev_info(FAR, cookie=OURS | 1, flags=flags)
    ending.stop(machine.control, machine.states, machine.found("db"), force=force)
    assert list(machine.log) == [command]


def test_an_open_disk_is_called_open_if_it_stays_so(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ending, "PASSING_SECONDS", 0)
    machine.fake.known[FAR] = dev_info(FAR, cookie=OURS | 1, flags=Feature.SAFE_STOP_DEV)
    machine.log.fail_at, machine.log.error = "try stop", CommandError(Cmd.STOP_DEV, errno.EBUSY)
    with pytest.raises(UblkdError, match="is in use: open") as caught:
        ending.stop(machine.control, machine.states, machine.found("db"))
    assert "fuser" in caught.value.hint


def held(monkeypatch: pytest.MonkeyPatch, *commands: str) -> None:
    """These have the disk open."""
    open_by = tuple(Process(pid=n + 7, command=c) for n, c in enumerate(commands))
    monkeypatch.setattr(holders, "of", lambda *_, **__: Holders(open_by=open_by))


def test_udev_s_glance_at_a_disk_is_waited_for(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.fake.known[FAR] = dev_info(FAR, cookie=OURS | 1, flags=Feature.SAFE_STOP_DEV)
    tries = [errno.EBUSY, errno.EBUSY, 0]

    def try_stop(_: int) -> None:
        machine.log.step("try stop")
        if error := tries.pop(0):
            raise CommandError(Cmd.TRY_STOP_DEV, error)

    monkeypatch.setattr(machine.fake, "try_stop_dev", try_stop)
    held(monkeypatch, "(udev-worker)")
    ending.stop(machine.control, machine.states, machine.found("db"))
    assert list(machine.log) == ["try stop"] * 3
    tries[:] = [errno.EBUSY]
    held(monkeypatch, "(udev-worker)", "fio")
    with pytest.raises(UblkdError, match=r"open by .*, fio \(process 8\)"):
        ending.stop(machine.control, machine.states, machine.found("db"))


def test_another_disk_that_got_the_number_meanwhile_is_not_stopped(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def try_stop(_: int) -> None:
        machine.log.step("try stop")
        machine.fake.known[FAR] = dev_info(FAR, cookie=OURS | 2, flags=Feature.SAFE_STOP_DEV)
        raise CommandError(Cmd.TRY_STOP_DEV, errno.EBUSY)

    machine.fake.known[FAR] = dev_info(FAR, cookie=OURS | 1, flags=Feature.SAFE_STOP_DEV)
    monkeypatch.setattr(machine.fake, "try_stop_dev", try_stop)
    held(monkeypatch, "(udev-worker)")
    ending.stop(machine.control, machine.states, machine.found("db"))
    assert list(machine.log) == ["try stop"]


def test_where_the_kernel_cannot_refuse_processes_are_looked_for(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    held(monkeypatch, "fio")
    with pytest.raises(UblkdError, match=r"\(db\) is in use: open by fio \(process 7\)"):
        ending.stop(machine.control, machine.states, machine.found("db"))
    assert list(machine.log) == []
    ending.stop(machine.control, machine.states, machine.found("db"), force=True)
    held(monkeypatch, "systemd-udevd")
    ending.stop(machine.control, machine.states, machine.found("db"))
    assert list(machine.log) == ["stop"] * 2


@pytest.mark.parametrize("verb", [ending.stop, ending.delete])
def test_a_disk_that_is_held_without_a_claim_is_kept_as_well(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, verb: Callable[..., object]
) -> None:
    """The kernel's loop device claims nothing that it stands on."""
    monkeypatch.setattr(holders, "of", lambda *_, **__: Holders(part_of=("loop0",)))
    with pytest.raises(UblkdError, match="is in use: part of loop0"):
        verb(machine.control, machine.states, machine.found("db"))
    assert list(machine.log) == []


@pytest.mark.parametrize("what", ["stop", "delete"])
def test_the_daemon_is_waited_for_and_named_when_it_does_not_end(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def act() -> None:
        device = machine.found("db")
        if what == "stop":
            ending.stop(machine.control, machine.states, device)
        else:
            ending.delete(machine.control, machine.states, device)

    monkeypatch.setattr(ending, "GONE_SECONDS", 0.05)
    before = open_fds()
    daemon = "import signal; signal.pthread_sigmask(0, [12]); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", daemon], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        process.stdout.readline()
        machine.fake.known[FAR] = dev_info(FAR, cookie=OURS | 1, pid=process.pid)
        with pytest.raises(UblkdError, match=f"process {process.pid}") as caught:
            act()
        assert caught.value.hint
        machine.fake.known[FAR] = dev_info(FAR, cookie=OURS | 1, pid=process.pid)
        process.kill()
        monkeypatch.setattr(ending, "GONE_SECONDS", 30)
        act()
    assert open_fds() == before


def test_only_devices_of_ours_that_are_remembered_have_counters(machine: Machine) -> None:
    for device in machine.devices():
        assert manage.counters(machine.states, device) == []
    machine.states.counters(FAR + 1).write_bytes(os.urandom(5000))
    assert manage.counters(machine.states, machine.found(str(FAR + 1))) == []


def test_a_file_that_is_only_open_is_not_claimed(tmp_path: Path) -> None:
    assert not ending.claimed(str(tmp_path / "nothing"))


def test_a_missing_state_is_any(machine: Machine) -> None:
    told: dict[str, Any] = machine.found(str(FAR + 2)).as_json()
    assert (told["ours"], told["target"]) == (True, None)


@pytest.mark.parametrize("force", [False, True])
def test_a_number_that_another_device_has_by_now_is_not_touched(
    machine: Machine, force: bool
) -> None:
    before = machine.found("db")
    machine.fake.known[FAR] = dev_info(FAR, cookie=OURS | 5)
    machine.remember(FAR, OURS | 5)
    machine.states.counters(FAR).touch()
    assert ending.delete(machine.control, machine.states, before, force=force) == ""
    ending.stop(machine.control, machine.states, before, force=force)
    assert list(machine.log) == []
    assert machine.fake.known[FAR].cookie == OURS | 5
    state = machine.states.read(FAR)
    assert state
    assert state.cookie == OURS | 5
    assert machine.states.counters(FAR).exists()


def test_a_number_that_changes_hands_while_it_is_stopped_is_not_deleted(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(dev_id: int) -> None:
        machine.log.step("stop")
        machine.fake.known[dev_id] = dev_info(dev_id, cookie=OURS | 5)
        machine.remember(dev_id, OURS | 5)

    monkeypatch.setattr(machine.fake, "stop_dev", stop)
    assert ending.delete(machine.control, machine.states, machine.found("db")) == ""
    assert list(machine.log) == ["stop"]
    state = machine.states.read(FAR)
    assert state
    assert state.cookie == OURS | 5


def test_a_device_that_is_gone_is_neither_stopped_nor_deleted(machine: Machine) -> None:
    before = machine.found("db")
    del machine.fake.known[FAR]
    ending.stop(machine.control, machine.states, before)
    assert ending.delete(machine.control, machine.states, before) == ""
    assert list(machine.log) == []


@pytest.mark.parametrize(
    ("word", "asked"),
    [(f"{FAR + 2}", [FAR + 2]), (f"/dev/ublkb{FAR + 1}", [FAR + 1]), ("db", [FAR])],
)
def test_to_find_one_device_no_other_is_asked(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, word: str, asked: list[int]
) -> None:
    seen: list[int] = []
    real = machine.fake.get_dev_info

    def ask(dev_id: int) -> DevInfo:
        seen.append(dev_id)
        return real(dev_id)

    monkeypatch.setattr(machine.fake, "get_dev_info", ask)
    assert machine.found(word).info.id == asked[0]
    assert seen == asked
