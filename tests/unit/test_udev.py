"""What udev is told, and what the rules make of it as far as `udevadm` alone can say."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.helpers import ROOT, any_texts
from ublkd import udev
from ublkd.state import DeviceState, StateDir

RULES = ROOT / "systemd" / "60-ublkd.rules"
STATE = DeviceState(
    id=3, cookie=5, pid=77, name="db", target="null", options={}, lease="copy",
    access={"mode": "0660"},
)  # fmt: skip
TOLD = "UBLKD_PID=77\nUBLKD_NAME=db\nUBLKD_MODE=0660\n"


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with the disk ublkb3 and its partition."""
    disk = tmp_path / "block/ublkb3"
    (disk / "ublkb3p1").mkdir(parents=True)
    (disk / "diskseq").write_text("19\n")
    (disk / "dev").write_text("259:4\n")
    (tmp_path / "block/ublkb3p1").symlink_to("ublkb3/ublkb3p1")
    monkeypatch.setattr(udev, "SYSFS", tmp_path / "block")
    monkeypatch.setattr(udev, "RUN", tmp_path / "udev")
    return disk


@pytest.fixture
def states(tmp_path: Path) -> StateDir:
    made = StateDir(tmp_path / "run")
    made.prepare()
    return made


def files(states: StateDir) -> list[str]:
    return sorted(name for name in os.listdir(states.path) if name.endswith("udev"))


def test_udev_is_told_before_there_is_a_disk_and_then_of_that_very_one(
    states: StateDir, sysfs: Path
) -> None:
    states.write(STATE)
    assert files(states) == ["3.udev"]
    states.write(dataclasses.replace(STATE, started=True))
    assert files(states) == ["3.19.udev"]
    told = states.path / "3.19.udev"
    assert told.read_text() == TOLD
    assert told.stat().st_mode & 0o777 == 0o600
    assert states.ids() == [3]
    states.remove(3)
    assert files(states) == []


def test_the_name_without_a_disk_goes_only_when_the_other_is_there(
    states: StateDir, sysfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states.write(STATE)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(Exception, match="cannot write"):
        states.write(dataclasses.replace(STATE, started=True))
    assert files(states) == ["3.udev"]


def test_of_a_disk_that_is_not_there_udev_is_told_nothing(states: StateDir) -> None:
    states.write(dataclasses.replace(STATE, started=True))
    assert files(states) == []


@given(name=any_texts | st.none(), value=any_texts)
def test_no_text_becomes_a_line_of_its_own(name: str | None, value: str) -> None:
    lines = udev.facts(1, name, {"owner": value}).split("\n")
    assert lines[0] == "UBLKD_PID=1"
    assert lines[-1] == ""
    for line in lines[1:-1]:
        key, _, text = line.partition("=")
        assert text == (name if key == "UBLKD_NAME" else value)
        assert udev.PLAIN.fullmatch(text)


def test_the_disk_and_its_partitions_are_looked_at_anew(sysfs: Path) -> None:
    udev.announce(3)
    assert (sysfs / "uevent").read_text() == "change"
    assert (sysfs / "ublkb3p1/uevent").read_text() == "change"
    udev.announce(4)  # there is none


def test_udev_has_seen_a_disk_when_it_has_written_it_down(sysfs: Path, tmp_path: Path) -> None:
    assert not udev.has_seen(3)
    (tmp_path / "udev/data").mkdir(parents=True)
    assert not udev.runs()
    (tmp_path / "udev/data/b259:4").touch()
    assert udev.has_seen(3)
    assert not udev.has_seen(4)


def test_rules_are_there_unless_they_are_masked(tmp_path: Path) -> None:
    assert udev.rules(tmp_path) == ""
    shipped = tmp_path / "usr/lib/udev/rules.d/60-ublkd.rules"
    shipped.parent.mkdir(parents=True)
    shipped.write_text("# rules\n")
    assert udev.rules(tmp_path) == "/usr/lib/udev/rules.d/60-ublkd.rules"
    masking = tmp_path / "etc/udev/rules.d/60-ublkd.rules"
    masking.parent.mkdir(parents=True)
    masking.symlink_to("/dev/null")
    assert udev.rules(tmp_path) == ""


def test_every_key_that_the_rules_ask_for_is_told() -> None:
    text = RULES.read_text()
    told = udev.facts(1, "n", {"owner": "1", "group": "2", "mode": "0600"})
    for line in told.splitlines():
        assert f"ENV{{{line.partition('=')[0]}}}" in text
    for name in ("/run/ublkd/%n.udev", "/run/ublkd/%n.$env{DISKSEQ}.udev"):
        assert name in text
    assert udev.before(3) == "3.udev"


def test_a_process_serves_for_the_rules_if_it_has_the_other_node_open(tmp_path: Path) -> None:
    """As the rules ask, with a file in the node's place."""
    asked = re.findall(r"""PROGRAM!="/bin/sh -c '([^']*)'""", RULES.read_text())
    assert len(asked) == 2
    node = tmp_path / "ublkc"
    (served := tmp_path / "ublkc3").touch()
    for command in asked:
        here = re.sub(r"%n|\$env\{UBLKD_ID\}", "3", command.replace("/dev/ublkc", str(node)))

        def answers(pid: int, command: str = here) -> bool:
            words = command.replace("$env{UBLKD_PID}", str(pid))
            return not subprocess.run(
                ["sh", "-c", words], check=False, stderr=subprocess.DEVNULL
            ).returncode

        assert not answers(os.getpid())
        with served.open():
            assert answers(os.getpid())
            assert not answers(1 << 30)
        with (tmp_path / "ublkc30").open("w"):
            assert not answers(os.getpid())


@pytest.mark.skipif(not shutil.which("udevadm"), reason="no udevadm")
def test_udev_can_read_the_rules() -> None:
    usage = subprocess.run(["udevadm", "--help"], capture_output=True, text=True, check=False)
    if "verify" not in usage.stdout:
        pytest.skip("udevadm cannot verify (systemd 254)")
    subprocess.run(["udevadm", "verify", RULES], check=True)
