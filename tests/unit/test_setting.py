"""`ublkd set`: what can change while a device is there, and what is said of the rest."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.fakes import FakeControl, Log, dev_info, remembering
from tests.unit.helpers import is_one_line
from ublkd import changes, manage, names, setting
from ublkd.errors import NotPossibleError, UblkdError, UsageError
from ublkd.manage import Found
from ublkd.state import DeviceState, StateDir
from ublkd.uapi import DevState, Feature

INFO = dev_info(3, pid=os.getpid())
OTHER = dev_info(4, cookie=INFO.cookie + 1)
OPTIONS = {
    "uri": "nbd://there/", "connections": 1, "reconnect_window": 30.0, "request_timeout": 60.0,
    "open_timeout": 30.0, "after_reconnect": "replay", "tls_certificates": None,
    "read_only": False, "follow_size": False,
}  # fmt: skip
STATE = DeviceState(id=3, cookie=INFO.cookie, pid=1, name="data", target="nbd", lease="copy",
                    options=OPTIONS, started=True)  # fmt: skip


class Driver(FakeControl):
    offered = Feature.UPDATE_SIZE

    def get_features(self) -> Feature:
        return self.offered


class World:
    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.control: Any = Driver(Log())
        self.control.known.update({3: INFO, 4: OTHER})
        self.states = remembering(folder, STATE)
        self.states.write(replace(STATE, id=4, cookie=OTHER.cookie, name="taken"))
        self.states.counters(3).touch()
        self.told = 0
        self.linked: list[tuple[str | None, str | None]] = []
        self.served = True
        patch.setattr(Found, "served", property(lambda _: self.served))
        patch.setattr(changes, "change", self._change)
        patch.setattr(names, "renamed", self._renamed)

    def _change(self, states: StateDir, found: Found, edit: Any) -> None:
        self.told += 1
        states.update(3, INFO.cookie, edit)

    def _renamed(self, before: DeviceState, name: str | None) -> str:
        self.linked.append((before.name, name))
        return "udev is slow"

    def set(self, name: str | None = None, **given: Any) -> DeviceState:
        device = manage.look(self.control, self.states, 3)
        assert device
        words = {key.replace("_", "-"): value for key, value in given.items()}
        self.warning = setting.set_options(self.control, self.states, device, words, name=name)
        state = self.states.read(3)
        assert state
        return state


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def test_what_is_live_is_parsed_and_told_at_once(world: World) -> None:
    state = world.set(reconnect_window="inf", request_timeout="2.5", follow_size=True)
    changed = {"reconnect_window": "inf", "request_timeout": 2.5, "follow_size": True}
    assert state.options == OPTIONS | changed
    assert world.told == 1
    assert world.set(follow_size=False, open_timeout="5").options == OPTIONS | changed | {
        "follow_size": False, "open_timeout": 5.0
    }  # fmt: skip


def test_another_name_is_had_if_nobody_has_it(world: World) -> None:
    assert world.set(name="other").name == "other"
    assert (world.linked, world.warning) == ([("data", "other")], "udev is slow")
    assert world.set(name="other").name == "other"
    assert (len(world.linked), world.warning) == (1, "")
    with pytest.raises(UblkdError, match=r"taken by /dev/ublkb4"):
        world.set(name="taken")
    del world.control.known[4]  # one that is gone has none any more
    assert world.set(name="taken").name == "taken"
    with pytest.raises(UsageError, match="cannot be a name"):
        world.set(name="0")


def test_a_device_of_a_file_is_called_like_its_file(world: World) -> None:
    of_file = replace(STATE, origin="/etc/ublkd/data.toml")
    world.states.write(of_file)
    with pytest.raises(UblkdError, match=r"called like its file, /etc/ublkd/data\.toml") as caught:
        world.set(name="other", request_timeout="2.5")
    assert is_one_line(caught.value.message)
    assert world.states.read(3) == of_file
    assert world.set(name="data", request_timeout="2.5").options["request_timeout"] == 2.5


def test_with_a_mistake_nothing_changes(world: World) -> None:
    with pytest.raises(UblkdError, match="taken"):
        world.set(name="taken", reconnect_window="5")
    with pytest.raises(UsageError, match="is not a time"):
        world.set(name="other", reconnect_window="soon")
    with pytest.raises(UblkdError, match="--connections cannot be changed") as caught:
        world.set(name="other", connections="2")
    assert "anew" in caught.value.hint
    assert world.states.read(3) == STATE


def test_nothing_to_change_is_a_mistake_that_lists_what_there_is(world: World) -> None:
    with pytest.raises(UsageError) as caught:
        world.set()
    for word in ("--name", "--reconnect-window", "--request-timeout", "--open-timeout",
                 "--follow-size"):  # fmt: skip
        assert word in caught.value.hint
    assert "--uri" not in caught.value.hint


def test_growth_is_not_followed_where_the_driver_cannot(world: World) -> None:
    world.control.offered = Feature(0)
    with pytest.raises(NotPossibleError, match="UPDATE_SIZE"):
        world.set(follow_size=True)
    assert world.set(follow_size=False).options == OPTIONS


def test_a_device_that_is_no_disk_yet_is_not_called_dead(world: World) -> None:
    world.control.known[3] = replace(INFO, state=DevState.DEAD)
    making = replace(STATE, started=False, pid=os.getpid())
    world.states.write(making)
    with pytest.raises(UblkdError, match="is still being made"):
        world.set(name="other")
    assert world.states.read(3) == making


@pytest.mark.parametrize(
    ("info", "says"),
    [
        (replace(INFO, state=DevState.DEAD), "is dead"),
        (replace(INFO, cookie=7), "not made by ublkd"),
        (replace(INFO, cookie=INFO.cookie + 9), "is gone"),
    ],
)
def test_a_device_that_cannot_be_changed_says_why(world: World, info: Any, says: str) -> None:
    world.control.known[3] = info
    with pytest.raises(UblkdError, match=says) as caught:
        world.set(name="other")
    assert caught.value.hint
    assert world.told == 0


@pytest.mark.parametrize("served", [True, False])
def test_what_makes_no_sense_is_refused_before_anybody_is_asked(world: World, served: bool) -> None:
    world.served = served
    with pytest.raises(UsageError, match="--request-timeout 0 leaves no time") as caught:
        world.set(request_timeout="0", name="other")
    assert caught.value.hint
    assert world.told == 0
    assert world.states.read(3) == STATE


def test_what_nobody_serves_is_opened_with_the_new_values_before_they_are_written(
    world: World, tmp_path: Path
) -> None:
    world.served = False
    assert world.set(name="other").name == "other"  # which is no matter of what stands behind it

    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    options = {
        "file": str(image), "direct_io": "off", "offset": 0, "sizelimit": None,
        "read_only": False, "share": False, "follow_size": False, "block_size": None,
    }  # fmt: skip
    world.states.write(replace(STATE, target="loop", options=options))
    assert world.set(follow_size=True).options["follow_size"] is True
    image.unlink()
    with pytest.raises(UblkdError, match=r"could not serve it so: .*disk\.img"):
        world.set(follow_size=False)
