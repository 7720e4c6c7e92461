"""What happens to disks that nobody serves when the system goes down."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.unit.fakes import FakeControl, Log, dev_info, remembering
from ublkd import manage, service
from ublkd.state import DeviceState, StateDir
from ublkd.uapi import DevState, Feature

KEPT = Feature.USER_RECOVERY | Feature.USER_RECOVERY_REISSUE
COOKIE = (0x75626B64 << 32) + 1
STATE = DeviceState(id=3, cookie=COOKIE, pid=1, name="disk", target="null", options={},
                    lease="copy", started=True)  # fmt: skip


class Driver(FakeControl):
    """A context manager as well, as the real one is."""

    def __enter__(self) -> FakeControl:
        return self

    def __exit__(self, *_: object) -> None: ...


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeControl:
    made = Driver(Log())
    monkeypatch.setattr(service, "Control", lambda: made)
    monkeypatch.setattr(service, "StateDir", lambda: StateDir(tmp_path / "run"))
    return made


@pytest.mark.parametrize(
    ("down", "served", "done"),
    [(True, False, ["stop", "del"]), (True, True, []), (False, False, [])],
)
def test_only_what_nobody_serves_is_released_and_only_at_the_end(
    driver: FakeControl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    down: bool, served: bool, done: list[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(service, "is_going_down", lambda: down)
    monkeypatch.setattr(manage.Found, "served", served)
    monkeypatch.setattr("ublkd.ending.claimed", lambda _: True)
    remembering(tmp_path, STATE)
    driver.known[3] = dev_info(3, state=DevState.QUIESCED, flags=KEPT, cookie=COOKIE)
    assert service.release("disk") == (["/dev/ublkb3 (disk)"] if done else [])
    assert list(driver.log) == done
    assert service.release("other") == []


@pytest.mark.parametrize("down", [True, False])
def test_when_the_system_goes_down_all_that_nobody_serves_is_released(
    driver: FakeControl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, down: bool
) -> None:
    monkeypatch.setattr(service, "is_going_down", lambda: down)
    monkeypatch.setattr(manage, "ids", lambda: [2, 3, 4, 5])
    monkeypatch.setattr("ublkd.ending.claimed", lambda _: True)
    remembering(tmp_path, STATE)
    driver.known[2] = dev_info(
        2, state=DevState.LIVE, flags=KEPT, cookie=COOKIE + 1, pid=os.getpid()
    )
    driver.known[3] = dev_info(3, state=DevState.QUIESCED, flags=KEPT, cookie=COOKIE)
    driver.known[4] = dev_info(4, state=DevState.QUIESCED, flags=KEPT, cookie=7)  # not ours
    driver.known[5] = dev_info(5, state=DevState.DEAD, flags=KEPT, cookie=COOKIE + 2)
    monkeypatch.setattr(manage.Found, "served", property(lambda found: found.info.id == 2))
    assert service.release(None) == (["/dev/ublkb3 (disk)"] if down else [])
    assert set(driver.known) == ({2, 4, 5} if down else {2, 3, 4, 5})


@pytest.mark.parametrize(("down", "looks"), [(True, 3), (False, 0)])
def test_when_the_system_goes_down_what_is_mounted_is_waited_for(
    driver: FakeControl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, down: bool, looks: int
) -> None:
    monkeypatch.setattr(service, "is_going_down", lambda: down)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    mounted = ["", "mounted", "mounted"]
    monkeypatch.setattr("ublkd.ending.claims", lambda _: mounted.pop())
    remembering(tmp_path, STATE)
    driver.known[3] = dev_info(3, state=DevState.LIVE, flags=KEPT, cookie=COOKIE)
    service.await_unused("disk", 60)
    assert len(mounted) == 3 - looks
    service.await_unused("other", 60)
    assert list(driver.log) == []


def test_it_is_not_waited_for_for_ever(
    driver: FakeControl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "is_going_down", lambda: True)
    monkeypatch.setattr("ublkd.ending.claims", lambda _: True)
    remembering(tmp_path, STATE)
    driver.known[3] = dev_info(3, state=DevState.LIVE, flags=KEPT, cookie=COOKIE)
    service.await_unused("disk", 0)
