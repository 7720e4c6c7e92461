"""One device on fakes, and the order in which it is made and unmade."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from tests.unit.fakes import FakeControl, FakeQueue, FakeTarget, Log, LoggedStates, dev_info
from ublkd import device
from ublkd.config import DeviceConfig
from ublkd.device import Device, Taken
from ublkd.features import Features, Lease
from ublkd.state import DeviceState, StateDir, new_cookie
from ublkd.uapi import DevState, Feature

ASKED = Features(Lease.COPY, Feature.CMD_IOCTL_ENCODE, {Lease.AUTO: "too old"})
KEPT = Feature.USER_RECOVERY | Feature.USER_RECOVERY_REISSUE
UP = ["add", "write state", "params", "make 0", "make 1", "run 0", "run 1", "ready 0", "ready 1",
      "start", "write state"]  # fmt: skip
DOWN = ["stop", "join 0", "join 1", "free 0", "free 1", "del", "forget state",
        "close target"]  # fmt: skip


class Bench:
    """One device on fakes."""

    def __init__(self, folder: Path) -> None:
        self.log = Log()
        self.control = FakeControl(self.log)
        self.states = LoggedStates(folder / "run")
        self.states.log = self.log
        self.target = FakeTarget(self.log)

    def device(self, **config: Any) -> Device:
        wanted = DeviceConfig(target="null", options={"size": 1}, **({"queues": 2} | config))
        return Device(
            cast("Any", self.control), wanted, cast("Any", self.target), ASKED, self.states,
            cookie=new_cookie(),
        )  # fmt: skip

    def taken(self, *, queues: int = 2) -> Device:
        """One that the driver has kept."""
        self.states.prepare()
        info = dev_info(3, queues=queues, flags=KEPT, state=DevState.QUIESCED)
        self.control.known[3] = info
        state = DeviceState(id=3, cookie=info.cookie, pid=1, name=None, target="null",
                            options={}, lease="copy", started=True)  # fmt: skip
        StateDir(self.states.path).write(state)
        return Device(
            cast("Any", self.control), DeviceConfig(target="null", options={}, queues=2),
            cast("Any", self.target), replace(ASKED, flags=KEPT), self.states, cookie=info.cookie,
            taken=Taken(info=info, state=state, dev_fd=os.open(os.devnull, os.O_RDWR)),
        )  # fmt: skip

    def left(self) -> list[str]:
        """What is still in the state folder and in the driver."""
        return [*os.listdir(self.states.path), *map(str, self.control.known)]


def on_a_bench(folder: Path, patch: pytest.MonkeyPatch) -> Bench:
    """One, with fakes for what a device makes."""
    made = Bench(folder)
    patch.setattr(FakeQueue, "log", made.log, raising=False)
    patch.setattr(FakeQueue, "made", [], raising=False)
    patch.setattr(device, "Queue", FakeQueue)
    patch.setattr(device, "write_back", lambda _: made.log.step("write back"))
    patch.setattr(
        Device, "_open_char_device", lambda _: os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    )
    return made
