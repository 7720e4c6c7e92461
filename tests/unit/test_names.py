from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from tests.unit.fakes import FakeControl, Log, dev_info, remembering
from tests.unit.helpers import is_one_line
from ublkd import access, names, udev
from ublkd.config import NAME
from ublkd.control import CommandError, Control, DevInfo
from ublkd.errors import UblkdError
from ublkd.state import DeviceState, StateDir, new_cookie
from ublkd.uapi import Cmd

COOKIE = new_cookie()
STATE = DeviceState(
    id=3, cookie=COOKIE, pid=1, name="db", target="null", options={}, lease="copy", started=True
)


class World:
    """A machine with udev, or not; ``does`` is what it does once it is waited for."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.dev = folder / "dev"
        (self.dev / "disk/by-id").mkdir(parents=True)
        (self.dev / "ublk").mkdir()
        self.node = self.dev / "ublkb3"
        self.node.touch(mode=0o600)
        self.does: Callable[[], None] = lambda: None
        self.is_done = True
        self.has_udev = self.has_rules = True
        self.has_seen = False
        self.disk = "3.7.udev"
        self.announced: list[int] = []
        monkeypatch.setattr(names, "DEV", str(self.dev))
        monkeypatch.setattr(names, "wait_until", self.wait_until)
        monkeypatch.setattr(udev, "runs", lambda: self.has_udev)
        monkeypatch.setattr(udev, "rules", lambda: "/rules" if self.has_rules else "")
        monkeypatch.setattr(udev, "has_seen", lambda _: self.has_seen)
        monkeypatch.setattr(udev, "announce", self.announced.append)
        monkeypatch.setattr(udev, "of_disk", lambda _: self.disk if self.node.exists() else None)

    def wait_until(self, is_true: Callable[[], bool], seconds: float) -> bool:
        if not is_true():
            self.does()
        return is_true()

    def link(self, name: str, to: str = "ublkb3") -> None:
        for link in (f"ublk/{name}", f"disk/by-id/ublk-{name}"):
            (self.dev / link).unlink(missing_ok=True)
            (self.dev / link).symlink_to(self.dev / to)

    def settled(self, name: str | None, **access: str) -> str:
        said = names.settled(3, name, access)
        assert is_one_line(said)
        return said


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def test_links_are_waited_for_and_told(world: World) -> None:
    assert names.links(3, "db") == []
    world.does = lambda: world.link("db")
    assert world.settled("db") == ""
    assert names.links(3, "db") == [f"{world.dev}/ublk/db", f"{world.dev}/disk/by-id/ublk-db"]
    assert names.links(4, "db") == []
    assert names.links(3, None) == []


def test_a_disk_that_is_taken_away_meanwhile_is_waited_for_no_more(world: World) -> None:
    world.does = world.node.unlink
    assert world.settled("db", mode="0640") == ""


def test_another_disk_that_got_its_number_is_not_given_away(world: World) -> None:
    def reuse() -> None:
        world.disk = "3.8.udev"

    world.does = reuse
    assert world.settled("db", mode="0640") == ""
    assert world.node.stat().st_mode & 0o777 == 0o600


def test_links_that_lead_elsewhere_do_not_count(world: World) -> None:
    world.link("db", "ublkb4")
    world.does = lambda: world.link("db")
    assert world.settled("db") == ""


def test_a_slow_udev_is_a_warning(world: World) -> None:
    assert "has not made" in world.settled("db")


def test_a_node_is_waited_for_until_it_is_whose_it_shall_be(world: World) -> None:
    world.does = lambda: world.node.chmod(0o640)
    assert world.settled(None, mode="0640") == ""
    assert world.node.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("has_udev", [False, True])
def test_without_rules_nothing_is_waited_for_but_the_end_of_what_udev_does_with_any_disk(
    world: World, has_udev: bool
) -> None:
    world.has_udev, world.has_rules = has_udev, False

    def see() -> None:
        world.has_seen = True
        world.node.chmod(0o660)

    world.does = see
    said = world.settled("db", mode="0640")
    assert f"there is no {world.dev}/ublk/db" in said
    assert ("does not run" in said) is not has_udev
    assert world.has_seen is has_udev
    assert world.node.stat().st_mode & 0o777 == 0o640


def test_a_node_that_cannot_be_given_away_is_a_warning(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "no")

    world.has_udev = False
    monkeypatch.setattr(access, "give", refuse)
    assert "keeps its owner" in world.settled(None, owner="0")


def test_who_asked_for_nothing_waits_for_nothing(world: World) -> None:
    assert world.settled(None) == ""


def renamed(world: World, states: StateDir, name: str | None) -> str:
    fake = FakeControl(Log())
    fake.known[3] = dev_info(3, cookie=COOKIE)
    fake.known[4] = dev_info(4, cookie=COOKIE + 1)
    return names.rename(cast("Control", fake), states, 3, COOKIE, name)


@pytest.mark.parametrize("name", ["new", None, "db"])
def test_links_follow_a_new_name(world: World, tmp_path: Path, name: str | None) -> None:
    states = remembering(tmp_path, STATE)
    world.link("db")

    def follow() -> None:
        assert world.announced == [3]
        for link in names.links(3, "db"):
            os.unlink(link)
        if name:
            world.link(name)

    world.does = follow
    assert renamed(world, states, name) == ""
    state = states.read(3)
    assert state
    assert state.name == name


def test_a_name_belongs_to_one_device(world: World, tmp_path: Path) -> None:
    states = remembering(tmp_path, STATE)
    states.write(DeviceState(**{**vars(STATE), "id": 4, "cookie": COOKIE + 1, "name": "other"}))
    states.write(DeviceState(**{**vars(STATE), "id": 5, "cookie": COOKIE + 2, "name": "gone"}))
    with pytest.raises(UblkdError, match="the name 'other' is taken by /dev/ublkb4"):
        renamed(world, states, "other")
    state = states.read(3)
    assert state
    assert state.name == "db"
    world.does = lambda: world.link("gone")
    renamed(world, states, "gone")
    assert states.read(5) is None


def test_a_device_that_the_driver_says_nothing_of_keeps_its_name(tmp_path: Path) -> None:
    class Silent(FakeControl):
        def get_dev_info(self, dev_id: int) -> DevInfo:
            raise CommandError(Cmd.GET_DEV_INFO, errno.EPERM)

    states = remembering(tmp_path, STATE)
    with states.lock(), pytest.raises(CommandError):
        names.refuse_taken(cast("Control", Silent(Log())), states, "db")
    assert states.read(3) == STATE


def test_of_another_device_nothing_is_changed(world: World, tmp_path: Path) -> None:
    states = remembering(tmp_path, STATE)
    with pytest.raises(UblkdError, match="is gone"):
        names.rename(cast("Control", FakeControl(Log())), states, 3, COOKIE + 1, "new")


def test_links_that_are_missing_are_asked_for(world: World) -> None:
    names.mend(3, None)
    assert world.announced == []
    names.mend(3, "db")
    assert world.announced == [3]
    world.link("db")
    names.mend(3, "db")
    assert world.announced == [3]


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("db", "db"),
        ("/dev/ublk/db", "db"),
        ("/dev/disk/by-id/ublk-db", "db"),
        ("/dev/db", "/dev/db"),
    ],
)
def test_a_link_means_its_name(word: str, name: str) -> None:
    assert names.named(word) == name


@pytest.mark.parametrize("name", ["db-part1", "a.-part07"])
def test_a_name_is_not_that_of_another_one_s_partition(name: str) -> None:
    assert not NAME.fullmatch(name)
    assert NAME.fullmatch(name + "x")
    assert NAME.fullmatch("part1")
