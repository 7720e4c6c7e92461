"""How long systemd is told that a start and an end may take: each step has its own deadline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from tests.unit.fakes import dev_info, remembering
from tests.unit.test_service import COOKIE, FILE, KEPT, QUIESCABLE, STATE, Disk, Driver
from ublkd import control, daemon, device, manage, recovery, service, writeback
from ublkd.config import build
from ublkd.devicefiles import DeviceFile
from ublkd.errors import UblkdError
from ublkd.notify import Notifier
from ublkd.service import Supervised
from ublkd.state import StateDir
from ublkd.uapi import DevState, Feature


class Heard(Notifier):
    """What systemd is told."""

    def __init__(self) -> None:
        super().__init__({})
        self.messages: list[str] = []

    def _send(self, message: str) -> None:
        self.messages.append(message)

    @property
    def last_extension(self) -> float:
        """In seconds, if nothing was said after it."""
        key, _, value = self.messages[-1].partition("=")
        assert key == "EXTEND_TIMEOUT_USEC"
        return int(value) / 1_000_000


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    made = Driver()
    monkeypatch.setattr(service, "Control", lambda: made)
    monkeypatch.setattr(service, "_vanish", lambda: None)
    monkeypatch.setattr(service, "is_going_down", lambda: False)
    return made


@pytest.fixture
def end(driver: Driver, heard: Heard) -> Callable[..., None]:
    """SIGTERM, for a device of those flags."""

    def end(flags: Feature = QUIESCABLE, *, keep: bool = True) -> None:
        manner = Supervised(heard, lambda *_: None, keep=keep)
        manner.end(cast("Any", Disk(driver, flags)), lambda _: None)

    return end


@pytest.mark.parametrize("flags", [QUIESCABLE, KEPT | Feature.QUIESCE, Feature(0)])
@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("keep", [False, True])
def test_whatever_becomes_of_a_disk_its_daemon_has_the_time_that_the_end_may_take(
    end: Callable[..., None], heard: Heard, monkeypatch: pytest.MonkeyPatch,
    flags: Feature, used: bool, down: bool, keep: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr("ublkd.ending.claimed", lambda _: used)
    monkeypatch.setattr(service, "is_going_down", lambda: down)
    end(flags, keep=keep)
    assert heard.messages[0].startswith("STOPPING=1")
    written = writeback.SECONDS
    assert heard.last_extension >= (
        written + control.SLOW_SECONDS + device.END_SECONDS + control.DEL_SECONDS
    )


def test_it_has_that_time_even_if_something_fails_on_the_way(
    end: Callable[..., None], heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> bool:
        raise UblkdError("made to fail")

    monkeypatch.setattr("ublkd.ending.claimed", lambda _: True)
    monkeypatch.setattr(service, "is_going_down", fail)
    with pytest.raises(UblkdError):
        end()
    assert heard.last_extension == device.EXIT_SECONDS


# --- the start ------------------------------------------------------------------------------


@pytest.fixture
def start(
    driver: Driver, heard: Heard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[DeviceFile], float]:
    """Run the device of a file: how much time it has asked for when its target is opened."""
    asked: list[float] = []
    monkeypatch.setattr(service, "StateDir", lambda: StateDir(tmp_path / "run"))
    monkeypatch.setattr(manage, "CHAR_CLASS", tmp_path / "class")
    for name in ("serve", "serve_again"):
        monkeypatch.setattr(daemon, name, lambda *_, **__: asked.append(heard.last_extension))

    def start(file: DeviceFile) -> float:
        service.run(file, lambda *_: None, heard, keep=True)
        return asked.pop()

    return start


def nbd(seconds: str) -> DeviceFile:
    config = build("nbd", {"uri": "nbd://h/x", "open-timeout": seconds}, name="disk")
    return replace(FILE, config=replace(config, origin=str(FILE.path)))


def test_a_first_start_has_the_time_that_its_target_may_take_to_open(
    start: Callable[[DeviceFile], float],
) -> None:
    assert start(FILE) == service.START_SECONDS
    assert start(nbd("120")) == service.START_SECONDS + 120


@pytest.mark.parametrize("says", ["120", "2"])
def test_a_take_over_has_it_by_what_the_disk_goes_by_and_that_of_a_dead_daemon_to_let_go(
    start: Callable[[DeviceFile], float], driver: Driver, tmp_path: Path, says: str
) -> None:
    options = dict(nbd("120").config.options)
    remembering(tmp_path, replace(STATE, target="nbd", options=options, origin=str(FILE.path)))
    driver.known[3] = dev_info(3, state=DevState.QUIESCED, flags=KEPT, cookie=COOKIE)
    assert start(nbd(says)) == service.START_SECONDS + recovery.TAKE_SECONDS + 120
