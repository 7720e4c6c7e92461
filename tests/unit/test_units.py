"""Devices that systemd's units serve: whose they are, and who starts the next daemon."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest

from tests.unit.fakes import FakeControl, Log, dev_info, remembering
from tests.unit.helpers import is_one_line
from ublkd import daemon, manage, systemd, units
from ublkd.errors import UblkdError
from ublkd.manage import Found
from ublkd.state import DeviceState
from ublkd.uapi import DevState, Feature

COOKIE = (0x75626B64 << 32) + 1
KEPT = Feature.USER_RECOVERY
ORPHAN = dev_info(3, state=DevState.QUIESCED, flags=KEPT, cookie=COOKIE)
STATE = DeviceState(id=3, cookie=COOKIE, pid=1, name="disk", target="null", options={},
                    lease="copy", started=True)  # fmt: skip
UNIT = "ublkd@disk.service"


class Driver(FakeControl):
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


class Machine:
    """With systemd, whose unit serves the device the ``served_after``th time that it is started."""

    served_after = 1

    def __init__(self, tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = tmp_path / "etc"
        self.folder.mkdir(mode=0o755)
        self.file = self.folder / "disk.toml"
        self.file.write_text('target = "null"\n')
        self.asked: list[str] = []
        self.driver = Driver(Log())
        self.driver.known[3] = ORPHAN
        self.state = replace(STATE, origin=str(self.file))
        self.states = remembering(tmp_path, self.state)
        patch.setattr(units, "FOLDER", self.folder)
        patch.setattr(units, "has_unit", lambda: True)
        patch.setattr(units, "start", self._start)
        patch.setattr(units, "Control", lambda: self.driver)
        patch.setattr(units, "StateDir", lambda: self.states)
        patch.setattr(units, "PAUSE", 0)
        patch.setattr(daemon, "recover", self._recover)
        patch.setattr(manage, "serves", lambda pid: pid == 7)

    def _start(self, unit: str) -> None:
        self.asked.append(f"start {unit}")
        if len(self.asked) == self.served_after:
            self.driver.known[3] = replace(ORPHAN, state=DevState.LIVE, pid=7)

    def _recover(self, found: Found) -> daemon.Ready:
        self.asked.append(f"recover {found.info.id}")
        return daemon.Ready(id=found.info.id)

    def recover(self, **state: Any) -> list[str]:
        found = Found(info=self.driver.known[3], size=0, state=replace(self.state, **state))
        assert units.recover(found).id == 3
        return self.asked


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_a_device_of_a_unit_is_recovered_by_its_unit(machine: Machine) -> None:
    assert machine.recover() == [f"start {UNIT}"]


@pytest.mark.parametrize("state", [{"origin": None}, {"origin": "/else/disk.toml"}, {"name": None},
                                   {"name": "other"}])  # fmt: skip
def test_any_other_device_gets_a_daemon_in_the_background(
    machine: Machine, state: dict[str, Any]
) -> None:
    assert machine.recover(**state) == ["recover 3"]


def test_so_does_one_whose_file_is_gone_or_that_has_no_unit(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "has_unit", lambda: False)
    assert machine.recover() == ["recover 3"]
    monkeypatch.setattr(units, "has_unit", lambda: True)
    machine.file.unlink()
    assert machine.recover() == ["recover 3"] * 2


def test_a_unit_that_only_seems_to_run_is_told_again(machine: Machine) -> None:
    machine.served_after = 3
    assert machine.recover() == [f"start {UNIT}"] * 3


def test_a_unit_that_does_not_serve_is_not_waited_for_for_ever(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "SERVED_SECONDS", 0)
    machine.served_after = 1 << 30
    with pytest.raises(UblkdError, match="runs, and does not serve") as caught:
        machine.recover()
    assert is_one_line(caught.value.message)
    assert UNIT in caught.value.hint


def test_what_cannot_be_recovered_is_told_before_systemd_is(machine: Machine) -> None:
    machine.file.write_text('target = "nul"\n')
    with pytest.raises(UblkdError, match=r"disk\.toml"):
        machine.recover()
    machine.driver.known[3] = replace(ORPHAN, state=DevState.DEAD)
    with pytest.raises(UblkdError, match="is dead"):
        machine.recover()
    assert not machine.asked


def test_a_device_that_went_meanwhile_is_told_of(machine: Machine) -> None:
    found = Found(info=ORPHAN, size=0, state=machine.state)
    machine.driver.known[3] = replace(ORPHAN, cookie=COOKIE + 1)
    machine.served_after = 1 << 30
    with pytest.raises(UblkdError, match="is gone"):
        units.recover(found)


SYSTEMCTL = """#!/bin/sh
echo "$@" >> "$0.log"
test "$1" != reset-failed
"""


def test_a_unit_that_was_given_up_is_started_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "systemctl"
    script.write_text(SYSTEMCTL)
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    systemd.start(UNIT)
    asked = (tmp_path / "systemctl.log").read_text().splitlines()
    assert asked == [f"reset-failed {UNIT}", f"start {UNIT}"]
