"""A device that goes by its file while it is there: `ublkd apply` as `ublkd set` does it."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.fakes import dev_info, remembering
from ublkd import apply, recovery
from ublkd.config import build
from ublkd.devicefiles import DeviceFile
from ublkd.errors import UblkdError
from ublkd.state import DeviceState, StateDir
from ublkd.uapi import DevState, Feature

OPTIONS = dict(build("loop", {"file": "/a"}).options)
STATE = DeviceState(id=3, cookie=0x75626B64 << 32, pid=1, name="disk", target="loop",
                    options=OPTIONS, lease="copy", started=True,
                    origin="/etc/ublkd/disk.toml")  # fmt: skip


def file(target: str, options: dict[str, Any]) -> DeviceFile:
    config = build(target, options, name="disk")
    return DeviceFile(name="disk", path=Path("/etc/ublkd/disk.toml"), config=config)


class Driver:
    """Knows one device, and offers that."""

    def __init__(self, offered: Feature) -> None:
        self.offered = offered

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_: object) -> None: ...

    def get_features(self) -> Feature:
        return self.offered

    def get_dev_info(self, dev_id: int) -> Any:
        return dev_info(dev_id, state=DevState.QUIESCED)

    def get_size(self, dev_id: int) -> int:
        return 4096


@pytest.fixture
def loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StateDir:
    """A machine with a device of loop that nobody serves."""
    states = remembering(tmp_path, STATE)
    states.counters(3).touch()
    monkeypatch.setattr(apply, "StateDir", lambda: states)
    monkeypatch.setattr(recovery, "beside", lambda *_, **__: nullcontext())
    monkeypatch.setattr(apply, "Control", lambda: Driver(Feature.UPDATE_SIZE))
    return states


@pytest.mark.parametrize("by", [apply.Ours(), apply.Systemd()])
def test_a_device_is_changed_as_by_set_and_only_what_is_live_of_it(
    loop: StateDir, by: apply.Hands
) -> None:
    said = file("loop", {"file": "/a", "follow-size": True})
    for _ in range(2):
        by.change(said)
        now = loop.read(3)
        assert now
        assert (now.options, now.revision) == (OPTIONS | {"follow_size": True}, 1)
    by.change(file("loop", {"file": "/b"}))  # whatever was planned
    now = loop.read(3)
    assert now
    assert now.options == OPTIONS
    by.change(file("null", {}))
    assert loop.read(3) == now


def test_a_device_that_only_has_the_name_is_not_changed(loop: StateDir) -> None:
    by_hand = replace(STATE, origin=None)
    loop.write(by_hand)
    with pytest.raises(UblkdError, match="is not the device that was looked at"):
        apply.Ours().change(file("loop", {"file": "/a", "follow-size": True}))
    assert loop.read(3) == by_hand


@pytest.mark.usefixtures("loop")
def test_what_cannot_be_changed_is_told_of_that_device(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"file": "/a", "follow-size": True}
    with pytest.raises(UblkdError, match="other is gone"):
        apply.Ours().change(replace(file("loop", said), name="other"))
    monkeypatch.setattr(apply, "Control", lambda: Driver(Feature(0)))
    with pytest.raises(UblkdError, match=r"^/dev/ublkb3 \(disk\): disks cannot be resized"):
        apply.Ours().change(file("loop", said))
