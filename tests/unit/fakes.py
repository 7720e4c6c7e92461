"""A driver, queues and a target that only write down what is asked of them, and fail on demand."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ublkd._core import ffi
from ublkd.control import CommandError, Control, DevInfo
from ublkd.errors import UblkdError
from ublkd.queue import QueueConfig
from ublkd.state import DeviceState, StateDir
from ublkd.target import Native, OptionValue, Params
from ublkd.uapi import Cmd, DevState, Feature


class Log(list[str]):
    """What was done, in order; ``fail_at`` names the step that raises ``error``."""

    fail_at = ""
    error: BaseException = UblkdError("made to fail")

    def step(self, name: str) -> None:
        self.append(name)
        if name == self.fail_at:
            raise self.error


class FakeControl:
    """The driver."""

    number_is_free = True  # after del

    def __init__(self, log: Log, *, given: Feature | None = None) -> None:
        self.log, self.given = log, given
        self.known: dict[int, DevInfo] = {}

    def add_dev(
        self, *, dev_id: int, queues: int, depth: int, max_io: int, flags: Feature, cookie: int
    ) -> DevInfo:
        self.log.step("add")
        info = dev_info(
            3, queues=queues, depth=depth, max_io=max_io, cookie=cookie,
            flags=flags if self.given is None else self.given,
        )  # fmt: skip
        self.known[info.id] = info
        return info

    def set_params(self, dev_id: int, params: Params, *, max_io: int) -> None:
        self.log.step("params")

    def start_dev(self, dev_id: int, pid: int) -> None:
        self.log.step("start")

    def stop_dev(self, dev_id: int) -> None:
        self.log.step("stop")

    def try_stop_dev(self, dev_id: int) -> None:
        self.log.step("try stop")

    def del_dev(self, dev_id: int) -> bool:
        self.log.step("del")
        self.known.pop(dev_id, None)
        return self.number_is_free

    def start_recovery(self, dev_id: int) -> None:
        self.log.step("start recovery")

    def end_recovery(self, dev_id: int, pid: int) -> None:
        self.log.step("end recovery")

    def quiesce_dev(self, dev_id: int, seconds: float) -> None:
        self.log.step("quiesce")

    def get_params(self, dev_id: int) -> Params:
        return Params(size=4096)

    def get_dev_info(self, dev_id: int) -> DevInfo:
        if dev_id not in self.known:
            raise CommandError(Cmd.GET_DEV_INFO, errno.ENODEV)
        return self.known[dev_id]

    def get_size(self, dev_id: int) -> int:
        return 4096

    def is_listed(self, dev_id: int) -> bool:
        return dev_id in self.known

    refuse_deleted = Control.refuse_deleted
    deleted = staticmethod(Control.deleted)


def dev_info(dev_id: int, **more: Any) -> DevInfo:
    """What the driver says of a device of ours, unless told otherwise."""
    told = {
        "state": DevState.LIVE, "queues": 1, "depth": 8, "max_io": 4096, "pid": -1,
        "flags": Feature(0), "cookie": 0x75626B64 << 32,
    }  # fmt: skip
    return DevInfo(id=dev_id, **(told | more))


class FakeQueue:
    """A queue whose thread never is; ``log`` is set by the test."""

    log: Log
    made: list[FakeQueue]
    stuck = False
    ended = False
    """Whether its thread is over before anybody stops the device."""

    def __init__(self, config: QueueConfig, on_end: Callable[[], None]) -> None:
        self.config, self.on_end, self.qid = config, on_end, config.qid
        self.result: int | None = None
        self.log.step(f"make {self.qid}")
        self.made.append(self)

    @property
    def error(self) -> int:
        return self.result or 0

    def start(self) -> None:
        self.log.step(f"run {self.qid}")

    def poke(self) -> int:
        self.log.step(f"poke {self.qid}")
        return 0

    def wait_ready(self, seconds: float) -> None:
        self.log.step(f"ready {self.qid}")

    def join(self, seconds: float) -> bool:
        self.log.step(f"join {self.qid}")
        return not self.stuck

    def free(self) -> None:
        self.log.step(f"free {self.qid}")


class LoggedStates(StateDir):
    """The real folder, with its changes in the log."""

    log: Log

    def write(self, state: DeviceState) -> None:
        self.log.step("write state")
        super().write(state)

    def remove(self, dev_id: int) -> None:
        self.log.step("forget state")
        super().remove(dev_id)


class FakeTarget:
    """A target with a disk of one page."""

    params = Params(size=4096)

    def __init__(self, log: Log, described: Mapping[str, OptionValue] | None = None) -> None:
        self.log, self.described = log, described or {"backing": "/somewhere"}

    def files(self) -> Sequence[int]:
        return ()

    def native(self) -> Native:
        return Native(ffi.NULL, ffi.NULL)

    def describe(self) -> Mapping[str, OptionValue]:
        return self.described

    def close(self) -> None:
        self.log.step("close target")


def remembering(folder: Path, state: DeviceState) -> StateDir:
    """A folder of state in which there is one device."""
    made = StateDir(folder / "run")
    made.prepare()
    made.write(state)
    return made
