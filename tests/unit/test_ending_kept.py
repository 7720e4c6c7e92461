"""Devices whose daemon is gone, or shall go: quiesced, swept, and not deleted by accident."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from tests.unit.fakes import FakeControl, Log, dev_info, remembering
from tests.unit.helpers import is_one_line
from ublkd import ending, manage
from ublkd.control import CommandError, Control
from ublkd.errors import NotPossibleError, UblkdError
from ublkd.manage import Found
from ublkd.state import DeviceState, StateDir, new_cookie
from ublkd.uapi import Cmd, DevState, Feature

COOKIE = new_cookie()
KEPT = Feature.USER_RECOVERY | Feature.QUIESCE
LIVE = dev_info(3, flags=KEPT, cookie=COOKIE)
NOBODY = 1 << 22  # no process has such a number
STATE = DeviceState(
    id=3, cookie=COOKIE, pid=NOBODY, name="db", target="null", options={}, lease="copy",
    started=True,
)  # fmt: skip


class Driver(FakeControl):
    """One that takes commands back in so many tries."""

    tries = 1

    def quiesce_dev(self, dev_id: int, seconds: float) -> None:
        super().quiesce_dev(dev_id, seconds)
        self.tries -= 1
        if self.tries:
            raise CommandError(Cmd.QUIESCE_DEV, errno.EBUSY)
        self.known[3] = replace(LIVE, state=DevState.QUIESCED)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    made = Driver(Log())
    made.known[3] = LIVE
    return made


@pytest.fixture
def states(tmp_path: Path) -> StateDir:
    return remembering(tmp_path, STATE)


def found(driver: FakeControl, states: StateDir) -> Found:
    return manage.find(cast("Control", driver), states, "3")


def quiesce(driver: Driver, states: StateDir) -> None:
    ending.quiesce(cast("Control", driver), states, found(driver, states))


@pytest.mark.parametrize("tries", [1, 3])
def test_commands_are_taken_back_until_the_driver_has_them_all(
    driver: Driver, states: StateDir, tries: int
) -> None:
    driver.tries = tries
    quiesce(driver, states)
    assert list(driver.log) == ["quiesce"] * tries
    quiesce(driver, states)  # it is what was wanted
    assert list(driver.log) == ["quiesce"] * tries


def test_nothing_is_taken_back_from_the_next_daemon(
    driver: Driver, states: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have begun to recover a device that was live when it was looked at before: that waits
    for the lock, and what is quiesced by then is let alone.
    """
    looked = manage.again

    def again(control: Control, where: StateDir, device: Found) -> Found | None:
        now = looked(control, where, device)
        driver.known[3] = replace(LIVE, state=DevState.QUIESCED)
        return now

    monkeypatch.setattr(ending, "again", again)
    quiesce(driver, states)
    assert not driver.log


def test_while_commands_are_taken_back_nobody_takes_the_device_over(
    driver: Driver, states: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def quiesce_dev(*_: object) -> None:
        with pytest.raises(UblkdError, match="another ublkd"), states.lock(0):
            pytest.fail("it was not held")
        driver.known[3] = replace(LIVE, state=DevState.QUIESCED)

    monkeypatch.setattr(driver, "quiesce_dev", quiesce_dev)
    quiesce(driver, states)


def test_each_daemon_that_was_quiesced_is_waited_for(
    driver: Driver, states: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recover may have come in between: then the second one holds the backing."""
    waited = []

    def wait(daemon: int, _: object) -> None:
        told = Path(f"/proc/self/fdinfo/{daemon}").read_text().split()
        waited.append(int(told[told.index("Pid:") + 1]))

    monkeypatch.setattr(ending, "_wait_gone", wait)
    coming = iter([replace(LIVE, pid=os.getpid()), replace(LIVE, state=DevState.QUIESCED)])
    monkeypatch.setattr(driver, "quiesce_dev", lambda *_: driver.known.update({3: next(coming)}))
    driver.known[3] = replace(LIVE, pid=os.getppid())
    quiesce(driver, states)
    assert waited == [os.getppid(), os.getpid()]


@pytest.mark.parametrize("end", [{"state": DevState.DEAD}, None])
def test_a_disk_that_ends_meanwhile_is_not_waited_for(
    driver: Driver, states: StateDir, monkeypatch: pytest.MonkeyPatch, end: dict[str, Any] | None
) -> None:
    def quiesce_dev(*_: object) -> None:
        driver.known = {3: replace(LIVE, **end)} if end else {}

    monkeypatch.setattr(driver, "quiesce_dev", quiesce_dev)
    with pytest.raises(UblkdError, match="is dead" if end else "is gone"):
        quiesce(driver, states)


@pytest.mark.parametrize(
    ("served", "words", "hint"),
    [
        (True, "a request is still under way", "ublkd recover 3"),
        (False, "it is live, and its daemon is gone", "dmesg"),
    ],
)
def test_what_does_not_end_is_told_of(
    driver: Driver, states: StateDir, monkeypatch: pytest.MonkeyPatch,
    served: bool, words: str, hint: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(ending, "QUIESCE_SECONDS", 0)
    monkeypatch.setattr(manage, "serves", lambda _: served)
    driver.tries = 1 << 30
    driver.known[3] = replace(LIVE, pid=NOBODY)
    with pytest.raises(UblkdError, match=words) as caught:
        quiesce(driver, states)
    assert hint in caught.value.hint
    assert is_one_line(caught.value.message)


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"cookie": 7}, UblkdError, "was not made by ublkd"),
        ({"state": DevState.DEAD}, UblkdError, "is dead"),
        ({"flags": Feature(0)}, UblkdError, "with recovery none"),
        ({"flags": Feature.USER_RECOVERY}, NotPossibleError, "lacks QUIESCE"),
    ],
)
def test_what_cannot_be_quiesced_says_why(
    driver: Driver, states: StateDir, change: dict[str, Any], kind: type[UblkdError], words: str
) -> None:
    driver.known[3] = replace(LIVE, **change)
    with pytest.raises(kind, match=words) as caught:
        quiesce(driver, states)
    assert caught.value.hint
    assert not driver.log


def test_the_process_of_a_device_that_nobody_serves_may_be_anybodys_by_now(
    driver: Driver, states: StateDir
) -> None:
    driver.known[3] = replace(LIVE, state=DevState.QUIESCED, pid=os.getpid())
    device = found(driver, states)
    assert device.pid == 0
    assert device.is_orphan
    assert device.as_json()["pid"] is None
    ending.delete(cast("Control", driver), states, device)  # does not wait for our end
    assert list(driver.log) == ["stop", "del"]


@pytest.mark.parametrize(
    ("change", "written"),
    [
        ({}, True),
        ({"flags": Feature(0)}, False),  # its STOP has it written
        ({"state": DevState.QUIESCED}, False),  # there is nobody who could
    ],
)
def test_what_the_kernel_holds_is_written_back_before_a_stop_would_fail_it(
    driver: Driver, states: StateDir, monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any], written: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr(manage, "serves", lambda _: True)
    monkeypatch.setattr(ending, "write_back", driver.log.step)
    driver.known[3] = replace(LIVE, pid=NOBODY, **change)
    ending.delete(cast("Control", driver), states, found(driver, states))
    assert list(driver.log) == ["/dev/ublkb3", "stop", "del"][not written :]


@pytest.mark.parametrize("verb", [ending.delete, ending.stop])
def test_a_device_that_has_its_number_by_now_is_let_alone(
    driver: Driver, states: StateDir, monkeypatch: pytest.MonkeyPatch, verb: Any
) -> None:
    """Others have deleted it while it was written back, and added another one."""
    other = replace(LIVE, cookie=COOKIE + 1, pid=NOBODY)

    def write_back(_: str) -> None:
        driver.known[3] = other

    monkeypatch.setattr(manage, "serves", lambda _: True)
    monkeypatch.setattr(ending, "openers", lambda _: "")
    monkeypatch.setattr(ending, "write_back", write_back)
    driver.known[3] = replace(LIVE, pid=NOBODY)
    verb(cast("Control", driver), states, found(driver, states))
    assert not driver.log
    assert driver.known[3] == other


@pytest.mark.parametrize("state", [DevState.QUIESCED, DevState.FAIL_IO])
def test_a_disk_in_use_that_nobody_serves_is_kept_with_a_word_of_recover(
    driver: Driver, states: StateDir, monkeypatch: pytest.MonkeyPatch, state: DevState
) -> None:
    monkeypatch.setattr(ending, "claimed", lambda _: True)
    driver.known[3] = replace(LIVE, state=state)
    with pytest.raises(UblkdError, match="is in use") as caught:
        ending.delete(cast("Control", driver), states, found(driver, states))
    assert "ublkd recover 3" in caught.value.hint
    assert not driver.log


@pytest.mark.parametrize("verb", [ending.delete, ending.stop])
def test_a_device_that_is_being_made_is_waited_for(
    driver: Driver, states: StateDir, monkeypatch: pytest.MonkeyPatch, verb: Any
) -> None:
    states.write(replace(STATE, started=False, pid=os.getpid()))
    driver.known[3] = replace(LIVE, state=DevState.DEAD)
    device = found(driver, states)

    def made(_: float) -> None:
        assert not driver.log
        driver.known[3] = LIVE
        monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it is a disk"))

    monkeypatch.setattr(time, "sleep", made)
    verb(cast("Control", driver), states, device)
    assert "stop" in driver.log


@pytest.mark.parametrize("verb", [ending.delete, ending.stop])
def test_a_device_that_is_made_for_ever_is_left_to_who_makes_it(
    driver: Driver, states: StateDir, monkeypatch: pytest.MonkeyPatch, verb: Any
) -> None:
    monkeypatch.setattr(ending, "MADE_SECONDS", 0)
    monkeypatch.setattr(ending, "has_open", lambda *which: which == (os.getpid(), "/dev/ublkc3"))
    states.write(replace(STATE, started=False, pid=os.getpid()))
    driver.known[3] = replace(LIVE, state=DevState.DEAD)
    with pytest.raises(UblkdError, match=f"still being made by process {os.getpid()}") as caught:
        verb(cast("Control", driver), states, found(driver, states))
    assert f"kill -9 {os.getpid()}" in caught.value.hint
    assert not driver.log


def test_a_process_that_has_the_number_of_who_made_a_device_is_not_waited_for(
    driver: Driver, states: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ending, "MADE_SECONDS", 0)
    states.write(replace(STATE, started=False, pid=os.getpid()))
    driver.known[3] = replace(LIVE, state=DevState.DEAD)
    stopping = driver.stop_dev

    def stop(dev_id: int) -> None:
        assert states.read(dev_id) is None, "whoever makes it could start it behind this"
        stopping(dev_id)

    monkeypatch.setattr(driver, "stop_dev", stop)
    ending.delete(cast("Control", driver), states, found(driver, states))
    assert list(driver.log) == ["stop", "del"]


def test_a_device_that_is_being_made_is_not_quiesced(driver: Driver, states: StateDir) -> None:
    states.write(replace(STATE, started=False, pid=os.getpid()))
    driver.known[3] = replace(LIVE, state=DevState.DEAD)
    with pytest.raises(UblkdError, match="still being made by process"):
        quiesce(driver, states)
    assert not driver.log


@pytest.mark.parametrize("verb", [ending.delete, ending.stop, ending.quiesce])
def test_with_a_folder_that_others_can_write_nothing_is_done(
    driver: Driver, states: StateDir, verb: Any
) -> None:
    device = found(driver, states)
    states.path.chmod(0o777)
    with pytest.raises(UblkdError, match="can be written by others"):
        verb(cast("Control", driver), states, device)
    assert not driver.log


# --- what an add that was killed leaves -----------------------------------------------------


@pytest.mark.parametrize(
    ("state", "info", "swept"),
    [
        ({"started": False}, {"state": DevState.DEAD}, True),
        ({"started": True}, {"state": DevState.DEAD}, False),  # it was stopped
        ({"started": False}, {"state": DevState.QUIESCED}, False),  # killed right behind START
        ({"started": False}, {"state": DevState.LIVE}, False),
        ({"started": False}, {"state": DevState.DEAD, "cookie": 7}, False),  # somebody else's
        ({"started": False, "pid": os.getpid()}, {"state": DevState.DEAD}, False),  # at work
    ],
)
def test_only_what_was_never_a_disk_and_has_nobody_is_swept(
    driver: Driver, states: StateDir, state: dict[str, Any], info: dict[str, Any], swept: bool
) -> None:
    states.write(replace(STATE, **state))
    driver.known[3] = replace(LIVE, **info)
    ending.sweep(cast("Control", driver), states)
    assert list(driver.log) == (["del"] if swept else [])
    assert (states.read(3) is None) == swept


def test_a_zombie_makes_no_disk(driver: Driver, states: StateDir) -> None:
    ended = subprocess.Popen(["true"])
    assert os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    states.write(replace(STATE, started=False, pid=ended.pid))
    driver.known[3] = replace(LIVE, state=DevState.DEAD)
    ending.sweep(cast("Control", driver), states)
    assert list(driver.log) == ["del"]
    ended.wait()


def test_what_cannot_be_swept_is_no_reason_not_to_add(driver: Driver, states: StateDir) -> None:
    states.write(replace(STATE, started=False))
    driver.known[3] = replace(LIVE, state=DevState.DEAD)
    driver.log.fail_at = "del"
    ending.sweep(cast("Control", driver), states)
    assert states.read(3)


@pytest.mark.parametrize(
    ("info", "swept"),
    [
        ({"state": DevState.DEAD}, True),
        ({"state": DevState.QUIESCED}, False),
        ({"state": DevState.LIVE}, False),
        ({"state": DevState.DEAD, "cookie": 7}, False),
    ],
)
def test_a_device_that_nobody_came_to_remember_is_swept(
    driver: Driver, states: StateDir, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    info: dict[str, Any], swept: bool,
) -> None:  # fmt: skip
    """Its add was killed right behind ADD_DEV."""
    (tmp_path / "class" / "ublkc3").mkdir(parents=True)
    monkeypatch.setattr(manage, "CHAR_CLASS", tmp_path / "class")
    states.remove(3)
    driver.known[3] = replace(LIVE, **info)
    ending.sweep(cast("Control", driver), states)
    assert list(driver.log) == (["del"] if swept else [])


def test_a_device_that_another_program_has_deleted_is_forgotten(
    driver: Driver, states: StateDir, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(manage, "CHAR_CLASS", tmp_path / "class")
    ending.sweep(cast("Control", driver), states)
    assert states.read(3)
    del driver.known[3]
    ending.sweep(cast("Control", driver), states)
    assert states.read(3) is None


def test_what_is_remembered_of_an_earlier_device_does_not_keep_a_half_made_one(
    driver: Driver, states: StateDir
) -> None:
    driver.known[3] = replace(LIVE, state=DevState.DEAD, cookie=new_cookie())
    ending.sweep(cast("Control", driver), states)
    assert list(driver.log) == ["del"]
    assert states.read(3) is None


def test_files_that_were_never_finished_go_with_their_writer(
    driver: Driver, states: StateDir
) -> None:
    for name in (f".3.{NOBODY}", f".4.{os.getpid()}", "notes", ".hidden", ".x.y"):
        (states.path / name).touch()
    ending.sweep(cast("Control", driver), states)
    assert sorted(os.listdir(states.path)) == [
        f".4.{os.getpid()}", ".hidden", ".x.y", "3.json", "notes",
    ]  # fmt: skip
