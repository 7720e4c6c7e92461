"""Devices that `ublkd apply` ends, and that it is alone meanwhile."""

from __future__ import annotations

import errno
import fcntl
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest

from tests.unit.fakes import FakeControl, Log, dev_info, remembering
from tests.unit.helpers import is_one_line
from ublkd import apply, daemon, ending
from ublkd.apply import Action, Ours, Step
from ublkd.config import build
from ublkd.control import CommandError
from ublkd.devicefiles import DeviceFile
from ublkd.errors import UblkdError
from ublkd.state import DeviceState, StateDir
from ublkd.uapi import Cmd, DevState, Feature

COOKIE = (0x75626B64 << 32) + 1
KEPT = Feature.USER_RECOVERY | Feature.SAFE_STOP_DEV
STATE = DeviceState(id=3, cookie=COOKIE, pid=1, name="disk", target="null", options={},
                    lease="copy", started=True, origin="/etc/ublkd/disk.toml")  # fmt: skip
FILE = DeviceFile(name="disk", path=Path("/etc/ublkd/disk.toml"), config=build("null", {}))


class Driver(FakeControl):
    """One that knows whether its disk is open."""

    is_open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def try_stop_dev(self, dev_id: int) -> None:
        super().try_stop_dev(dev_id)
        if self.is_open:
            raise CommandError(Cmd.TRY_STOP_DEV, errno.EBUSY)


@pytest.fixture
def states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StateDir:
    made = remembering(tmp_path, STATE)
    monkeypatch.setattr(apply, "StateDir", lambda: made)
    return made


@pytest.fixture
def driver(states: StateDir, monkeypatch: pytest.MonkeyPatch) -> Driver:
    """A machine with a device of a file that nobody serves."""
    made = Driver(Log())
    made.known[3] = dev_info(3, state=DevState.QUIESCED, flags=KEPT, cookie=COOKIE)
    monkeypatch.setattr(apply, "Control", lambda: made)
    monkeypatch.setattr(ending, "claimed", lambda _: False)
    monkeypatch.setattr(ending, "PASSING_SECONDS", 0)
    return made


def step(cookie: int = COOKIE) -> Step:
    return Step(action=Action.DEL, name="disk", cookie=cookie)


def test_a_disk_that_nobody_uses_is_stopped_and_deleted(driver: Driver, states: StateDir) -> None:
    Ours().end(step())
    assert list(driver.log) == ["try stop", "stop", "del"]
    assert states.read(3) is None
    Ours().end(step())  # it is gone


def test_a_disk_that_was_opened_meanwhile_is_left_as_it_is(
    driver: Driver, states: StateDir
) -> None:
    driver.is_open = True
    with pytest.raises(UblkdError, match="is in use: open"):
        Ours().end(step())
    assert list(driver.log) == ["try stop"]
    assert states.read(3) == STATE


def test_a_device_that_was_made_meanwhile_is_not_deleted(driver: Driver, states: StateDir) -> None:
    with pytest.raises(UblkdError, match="is not the device that was looked at") as caught:
        Ours().end(step(COOKIE + 1))
    assert "ublkd apply" in caught.value.hint
    assert not driver.log
    assert states.read(3) == STATE


@pytest.mark.parametrize(("origin", "done"), [("/etc/ublkd/disk.toml", "recover"), (None, "start")])
def test_only_a_device_of_the_file_is_taken_over(
    driver: Driver, states: StateDir, monkeypatch: pytest.MonkeyPatch, origin: str | None, done: str
) -> None:
    states.write(replace(STATE, origin=origin))
    monkeypatch.setattr(daemon, "recover", lambda _: driver.log.step("recover"))
    monkeypatch.setattr(daemon, "start", lambda _: driver.log.step("start"))
    Ours().start(FILE)
    assert list(driver.log) == [done]


def test_of_two_at_once_for_a_folder_the_second_waits_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apply, "ALONE_SECONDS", 0)
    tmp_path.chmod(0o755)
    fd = os.open(tmp_path, os.O_RDONLY)
    with apply.alone(tmp_path), pytest.raises(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with pytest.raises(UblkdError, match="another ublkd has been applying") as caught, \
            apply.alone(tmp_path):  # fmt: skip
        pytest.fail("it was not alone")
    assert is_one_line(caught.value.message)
    os.close(fd)


def test_what_is_no_folder_to_be_trusted_is_not_waited_for(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(UblkdError), apply.alone(tmp_path):
        pytest.fail("it was trusted")
    with pytest.raises(UblkdError, match="cannot look at"), apply.alone(tmp_path / "nothing"):
        pytest.fail("it was trusted")


def test_the_whole_verb_is_alone_and_one_that_only_looks_waits_for_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from ublkd.cli import files

    done: list[str] = []

    class Alone:
        def __init__(self, folder: Path) -> None:
            assert folder == tmp_path

        def __enter__(self) -> None:
            done.append("lock")

        def __exit__(self, *_: object) -> None:
            done.append("unlock")

    class Driver:
        def __enter__(self) -> tuple[Any, StateDir]:
            return None, StateDir(tmp_path / "run")

        def __exit__(self, *_: object) -> None: ...

    tmp_path.chmod(0o755)
    monkeypatch.setattr(files, "driver", Driver)
    monkeypatch.setattr(apply, "alone", Alone)

    def look(*_: object) -> list[Any]:
        done.append("look")
        return []

    def act(*_: object) -> dict[str, UblkdError]:
        done.append("act")
        return {}

    monkeypatch.setattr(apply, "look", look)
    monkeypatch.setattr(apply, "carry_out", act)
    for words, expected in (([], ["lock", "look", "act", "unlock"]), (["--dry-run"], ["look"])):
        done.clear()
        ran = CliRunner().invoke(files.apply, ["--config", str(tmp_path), *words])
        assert ran.exception is None
        assert done == expected
