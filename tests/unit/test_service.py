"""A daemon that systemd runs: what it takes over, and what becomes of its disk at the end."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, cast

import pytest

from tests.unit.fakes import FakeControl, Log, dev_info, remembering
from tests.unit.helpers import is_one_line
from ublkd import daemon, manage, service
from ublkd.config import build
from ublkd.control import CommandError
from ublkd.devicefiles import DeviceFile
from ublkd.errors import UblkdError
from ublkd.holders import Holders, Process
from ublkd.notify import Notifier
from ublkd.service import Supervised
from ublkd.state import DeviceState, StateDir
from ublkd.target import OptionValue
from ublkd.uapi import Cmd, DevState, Feature

KEPT = Feature.USER_RECOVERY | Feature.USER_RECOVERY_REISSUE
QUIESCABLE = KEPT | Feature.QUIESCE | Feature.SAFE_STOP_DEV
COOKIE = (0x75626B64 << 32) + 1
FILE = DeviceFile(
    name="disk",
    path=Path("/etc/ublkd/disk.toml"),
    config=replace(build("null", {}, name="disk"), origin="/etc/ublkd/disk.toml"),
)
STATE = DeviceState(id=3, cookie=COOKIE, pid=1, name="disk", target="null",
                    options=dict(FILE.config.options), lease="copy", started=True,
                    origin="/etc/ublkd/disk.toml")  # fmt: skip


class Driver(FakeControl):
    """With answers that a test gives beforehand, by the step's name."""

    def __init__(self) -> None:
        super().__init__(Log())
        self.refusals: dict[str, list[int]] = {}
        self.offered = Feature.UPDATE_SIZE
        self.adopted: dict[str, OptionValue] = {}

    def get_features(self) -> Feature:
        return self.offered

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def _answer(self, step: str) -> None:
        if waiting := self.refusals.get(step):
            raise CommandError(Cmd.STOP_DEV, waiting.pop(0))

    def try_stop_dev(self, dev_id: int) -> None:
        super().try_stop_dev(dev_id)
        self._answer("try stop")

    def quiesce_dev(self, dev_id: int, seconds: float) -> None:
        super().quiesce_dev(dev_id, seconds)
        self._answer("quiesce")


class Disk:
    """A device that is served."""

    id = 3

    def __init__(self, control: FakeControl, flags: Feature) -> None:
        self.control, self.log, self.info = control, control.log, dev_info(3, flags=flags)

    def leave(self) -> None:
        self.log.step("leave")

    def poke(self) -> list[int]:
        self.log.step("poke")
        return [len(self.log)]


Ending = Callable[..., list[str]]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    made = Driver()
    monkeypatch.setattr(service, "Control", lambda: made)
    monkeypatch.setattr(service, "_vanish", lambda: made.log.step("vanish"))
    monkeypatch.setattr(service, "is_going_down", lambda: False)
    monkeypatch.setattr("ublkd.ending.claimed", lambda _: False)
    monkeypatch.setattr("ublkd.ending.PASSING_SECONDS", 0)
    return made


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def ending(driver: Driver, said: list[str]) -> Ending:
    """What SIGTERM does to a device of those flags."""

    def end(flags: Feature = QUIESCABLE, *, keep: bool = True) -> list[str]:
        manner = Supervised(Notifier({}), lambda line, _: said.append(line), keep=keep)
        manner.end(cast("Any", Disk(driver, flags)), said.append)
        return list(driver.log)

    return end


def test_a_disk_that_nobody_uses_is_stopped_and_then_goes(ending: Ending, said: list[str]) -> None:
    assert ending() == ["try stop"]
    assert not said


@pytest.mark.parametrize(
    ("flags", "done"),
    [(KEPT, ["leave", "vanish"]), (KEPT | Feature.QUIESCE, ["leave", "quiesce"])],
)
def test_where_the_driver_cannot_tell_of_one_that_is_only_open_we_look(
    ending: Ending, monkeypatch: pytest.MonkeyPatch, said: list[str], flags: Feature,
    done: list[str],
) -> None:  # fmt: skip
    openers: list[Process] = []
    monkeypatch.setattr("ublkd.holders.of", lambda *_, **__: Holders(open_by=tuple(openers)))
    assert ending(flags) == []
    openers.append(Process(pid=8, command="(udev-worker)"))  # only looks
    assert ending(flags) == []
    openers.append(Process(pid=7, command="dd"))
    assert ending(flags) == done
    assert said[0].startswith("/dev/ublkb3 is in use: open by ")


def test_a_disk_that_is_open_is_left_to_the_driver(
    ending: Ending, driver: Driver, said: list[str]
) -> None:
    driver.refusals = {"try stop": [errno.EBUSY], "quiesce": [errno.EBUSY, errno.EBUSY]}
    assert ending() == ["try stop", "leave", "quiesce", "quiesce", "quiesce"]
    assert said == ["/dev/ublkb3 is in use: open: it is left to the driver, and what is asked of "
                    "it waits for the next start"]  # fmt: skip


def test_a_disk_that_is_mounted_is_not_even_tried(
    ending: Ending, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ublkd.ending.claimed", lambda _: True)
    assert ending() == ["leave", "quiesce"]


def test_where_it_cannot_be_quiesced_the_daemon_ends_as_if_killed(
    ending: Ending, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ublkd.ending.claimed", lambda _: True)
    assert ending(KEPT) == ["leave", "vanish"]
    driver.log.clear()
    driver.refusals = {"quiesce": [errno.EIO]}
    assert ending() == ["leave", "quiesce", "vanish"]


SHORT = UblkdError("cannot allocate memory")


@pytest.mark.parametrize(
    "asked", ["ublkd.service.Control", "ublkd.ending.claims", "ublkd.ending.try_stop"]
)
@pytest.mark.parametrize("error", [SHORT, OSError(errno.EMFILE, "too many"), MemoryError()])
def test_a_disk_of_which_nobody_can_tell_whether_it_is_used_is_left_to_the_driver(
    ending: Ending, monkeypatch: pytest.MonkeyPatch, said: list[str], asked: str,
    error: Exception,
) -> None:  # fmt: skip
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(asked, fails)
    if asked.endswith("Control"):  # the disk has one
        assert ending() == ["try stop"]
        return
    assert ending() == ["leave", "quiesce"]
    assert said[0].startswith("/dev/ublkb3 is perhaps in use (")
    assert is_one_line(said[0])


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EINTR, errno.EPERM, errno.EIO])
def test_a_driver_that_does_not_answer_the_question_keeps_the_disk(
    ending: Ending, driver: Driver, number: int
) -> None:
    driver.refusals = {"try stop": [number]}
    assert ending() == ["try stop", "leave", "quiesce"]


def test_a_disk_that_somebody_else_has_stopped_meanwhile_is_not_left(
    ending: Ending, driver: Driver
) -> None:
    driver.refusals = {"try stop": [errno.ENODEV]}
    assert ending() == ["try stop"]


def test_one_of_which_nobody_can_tell_is_kept_by_an_end_as_if_killed_where_all_else_fails(
    ending: Ending, driver: Driver
) -> None:
    driver.refusals = {"try stop": [errno.ENOMEM], "quiesce": [errno.ENOMEM]}
    assert ending() == ["try stop", "leave", "quiesce", "vanish"]


def test_a_request_that_does_not_end_is_not_waited_for_for_ever(
    ending: Ending, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ublkd.ending.claimed", lambda _: True)
    monkeypatch.setattr(service, "QUIESCE_SECONDS", 0.01)
    driver.refusals = {"quiesce": [errno.EBUSY] * 1_000_000}
    assert ending()[-1] == "vanish"


def test_without_recovery_it_ends_in_order_with_a_warning(
    ending: Ending, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setattr("ublkd.ending.claimed", lambda _: True)
    assert ending(Feature(0)) == []
    assert "its recovery is none" in said[0]


def test_when_the_system_goes_down_it_ends_in_order_with_a_warning(
    ending: Ending, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setattr("ublkd.ending.claimed", lambda _: True)
    monkeypatch.setattr(service, "is_going_down", lambda: True)
    assert ending() == []
    assert "the system goes down" in said[0]


def test_without_keep_it_ends_whoever_uses_it(
    ending: Ending, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ublkd.ending.claimed", lambda _: True)
    assert ending(keep=False) == []


def test_the_watchdog_is_fed_only_if_there_is_one(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = cast("Any", Disk(driver, KEPT))
    manner = Supervised(Notifier({}), lambda *_: None, keep=True)
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    assert manner.pause(disk) == daemon.POLL_SECONDS
    assert not driver.log
    monkeypatch.setenv("WATCHDOG_USEC", "20000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    assert 0 < manner.pause(disk) <= 10
    assert list(driver.log) == ["poke"]


# --- the start ------------------------------------------------------------------------------


@pytest.fixture
def started(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> Callable[..., list[str]]:
    """Run the file's device: what is done in the driver, and how it is served."""
    monkeypatch.setattr(service, "LAST_SECONDS", 50)
    monkeypatch.setattr(service, "StateDir", lambda: StateDir(tmp_path / "run"))
    monkeypatch.setattr(manage, "CHAR_CLASS", tmp_path / "class")
    monkeypatch.setattr(
        daemon, "serve", lambda config, *_: driver.log.append(f"serve {config.origin}")
    )

    def again(dev_id: int, *_: object, live: dict[str, OptionValue]) -> None:
        driver.log.append(f"serve {dev_id} again")
        driver.adopted = live

    monkeypatch.setattr(daemon, "serve_again", again)

    def start(file: DeviceFile = FILE) -> list[str]:
        service.run(file, lambda line, _: said.append(line), Notifier({}), keep=True)
        return list(driver.log)

    return start


def test_a_device_that_is_not_there_is_made(started: Callable[[], list[str]]) -> None:
    assert started() == ["serve /etc/ublkd/disk.toml"]


def test_a_device_that_is_being_made_is_nobodys_to_delete(
    driver: Driver, tmp_path: Path, started: Callable[[], list[str]]
) -> None:
    remembering(tmp_path, replace(STATE, started=False, pid=os.getpid()))
    driver.known[3] = dev_info(3, state=DevState.DEAD, flags=KEPT, cookie=COOKIE)
    with pytest.raises(UblkdError, match=f"is being made by process {os.getpid()}"):
        started()
    assert not driver.log


@pytest.mark.parametrize("state", [DevState.QUIESCED, DevState.FAIL_IO, DevState.LIVE])
def test_a_device_that_the_driver_has_kept_is_taken_over(
    driver: Driver, tmp_path: Path, started: Callable[[], list[str]], state: DevState
) -> None:
    remembering(tmp_path, STATE)
    driver.known[3] = dev_info(3, state=state, flags=KEPT, cookie=COOKIE)
    assert started() == ["serve 3 again"]


@pytest.mark.parametrize("state", [DevState.QUIESCED, DevState.DEAD, DevState.LIVE])
@pytest.mark.parametrize(
    ("origin", "made"), [(None, "by hand"), ("/else/disk.toml", "from /else/disk.toml")]
)
def test_a_device_that_only_has_the_name_is_neither_taken_over_nor_deleted(
    driver: Driver, tmp_path: Path, started: Callable[[], list[str]], state: DevState,
    origin: str | None, made: str,
) -> None:  # fmt: skip
    states = remembering(tmp_path, replace(STATE, origin=origin))
    driver.known[3] = dev_info(3, state=state, flags=KEPT, cookie=COOKIE)
    with pytest.raises(UblkdError, match=f"was made {made}, and not from /etc/ublkd/disk.toml"):
        started()
    assert not driver.log
    assert states.read(3) == replace(STATE, origin=origin)


def test_what_the_file_says_now_is_told_and_waits(
    driver: Driver, tmp_path: Path, started: Callable[[], list[str]], said: list[str]
) -> None:
    remembering(tmp_path, replace(STATE, asked={"queues": 4}))
    driver.known[3] = dev_info(3, state=DevState.QUIESCED, flags=KEPT, cookie=COOKIE)
    started()
    assert said == ["/etc/ublkd/disk.toml says queues 1, and /dev/ublkb3 (disk) was made with 4: "
                    "that waits until it is made anew"]  # fmt: skip


def test_what_can_change_while_the_disk_is_there_does_so_at_once(
    driver: Driver, tmp_path: Path, started: Callable[..., list[str]], said: list[str]
) -> None:
    old = build("loop", {"file": "/a"}).options
    new = build("loop", {"file": "/b", "follow-size": True}, name="disk")
    remembering(tmp_path, replace(STATE, target="loop", options=dict(old)))
    driver.known[3] = dev_info(3, state=DevState.QUIESCED, flags=KEPT, cookie=COOKIE)
    started(replace(FILE, config=new))
    assert driver.adopted == {"follow_size": True}
    assert len(said) == 1
    assert "file /b" in said[0]
    driver.offered = Feature(0)
    started(replace(FILE, config=new))
    assert driver.adopted == {}
    assert said[2].startswith("/dev/ublkb3 (disk) goes on as it was made: disks cannot be resized")


def test_a_dead_device_is_deleted_and_made_anew(
    driver: Driver, tmp_path: Path, started: Callable[[], list[str]]
) -> None:
    remembering(tmp_path, STATE)
    driver.known[3] = dev_info(3, state=DevState.DEAD, flags=KEPT, cookie=COOKIE)
    assert started() == ["stop", "del", "serve /etc/ublkd/disk.toml"]


def test_a_device_without_recovery_whose_daemon_has_just_died_is_waited_for(
    driver: Driver,
    tmp_path: Path,
    started: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    remembering(tmp_path, STATE)
    driver.known[3] = dev_info(3, state=DevState.LIVE, cookie=COOKIE)

    def notices(_: float) -> None:
        driver.known[3] = dev_info(3, state=DevState.DEAD, cookie=COOKIE)

    monkeypatch.setattr(time, "sleep", notices)
    assert started()[-1] == "serve /etc/ublkd/disk.toml"


def test_two_daemons_for_one_device_are_one_too_many(
    driver: Driver,
    tmp_path: Path,
    started: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    remembering(tmp_path, STATE)
    driver.known[3] = dev_info(3, flags=KEPT, cookie=COOKIE, pid=7)
    monkeypatch.setattr(manage.Found, "served", True)
    with pytest.raises(UblkdError, match="is served by process 7 already"):
        started()
