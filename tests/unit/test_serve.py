"""daemon.serve: one device from its start to its end, on fakes."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pytest

from tests.unit.fakes import FakeControl, FakeQueue, FakeTarget, Log, dev_info
from tests.unit.helpers import open_fds
from ublkd import below, changes, daemon, device, follow, memory, recorder, registry
from ublkd.config import DeviceConfig, build
from ublkd.errors import NotPossibleError, UblkdError
from ublkd.features import REQUIRED
from ublkd.state import StateDir
from ublkd.target import OptionValue, Params
from ublkd.targets import backing
from ublkd.targets.loop import LoopTarget
from ublkd.uapi import Feature

CONFIG = DeviceConfig(target="fake", options={})


class Driver:
    offered = REQUIRED

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def get_features(self) -> Feature:
        return self.offered


class Disk:
    """A device: ``failure`` and the end are for the test to say."""

    log: Log
    made: list[Disk]
    id = 3
    queues = 1
    failure = ""
    info = dev_info(3)

    def __init__(self, control: object, config: DeviceConfig, target: object, *_: object,
                 **__: object) -> None:  # fmt: skip
        self.control, self.config, self.target = control, config, target
        self.made.append(self)

    def __enter__(self) -> Self:
        self.ended_fd = os.eventfd(0)
        try:
            self.log.step("up")
        except BaseException:
            os.close(self.ended_fd)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.ended_fd)
        self.log.step("down")

    def end(self) -> None:
        os.eventfd_write(self.ended_fd, 1)

    def wait(self, seconds: float | None = None) -> bool:
        return bool(select.select([self.ended_fd], [], [], seconds)[0])

    @property
    def stopped_by_others(self) -> bool:
        return self.wait(0) and not self.failure

    def leave(self, *, at_once: bool = False) -> None:
        self.log.step("leave at once" if at_once else "leave")

    def stopping(self) -> None:
        self.log.step("stopping")


class Bench:
    def __init__(self) -> None:
        self.log = Log()
        self.described: Mapping[str, OptionValue] = {}
        self.error: BaseException | None = None
        self.lines: list[str] = []
        self.heard: list[daemon.Ready] = []

    def from_options(self, _: object) -> FakeTarget:
        if self.error:
            raise self.error
        return FakeTarget(self.log, self.described)

    def serve(self, ready: Any = lambda: None, manner: daemon.Manner = daemon.ALONE) -> None:
        def heard(what: daemon.Ready) -> None:
            self.heard.append(what)
            ready()

        daemon.serve(CONFIG, 1, heard, self.lines.append, manner)


class Manner(daemon.Manner):
    """Writes down what it is asked; ``ends``: it stops the disk itself."""

    def __init__(self, log: Log, *, ends: bool = False) -> None:
        self.log, self.ends = log, ends

    def pause(self, disk: Any) -> float:
        self.log.append("pause")
        return 10

    def end(self, disk: Any, log: Any) -> None:
        self.log.append("end")
        if self.ends:
            end_it()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench()
    monkeypatch.setattr(Disk, "log", made.log, raising=False)
    monkeypatch.setattr(Disk, "made", [], raising=False)
    monkeypatch.setattr(memory, "guard", lambda _: None)  # this process is not the daemon
    monkeypatch.setattr("ublkd.log.LAST_SECONDS", 50)  # or its thread may come too late to write
    monkeypatch.setattr(daemon, "Control", Driver)
    monkeypatch.setattr(daemon, "Device", Disk)
    monkeypatch.setattr(registry, "load", lambda _: made)
    return made


def end_it() -> None:
    Disk.made[0].end()


def handlers() -> list[Any]:
    return [signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_device_in_order(bench: Bench, number: signal.Signals) -> None:
    before, fds = handlers(), open_fds()
    bench.serve(lambda: os.kill(os.getpid(), number))
    assert list(bench.log) == ["up", "down"]
    assert handlers() == before
    assert open_fds() == fds
    assert bench.heard == [daemon.Ready(id=3, cookie=1)]
    assert bench.heard[0].node == "/dev/ublkb3"
    assert "/dev/ublkb3 is ready" in bench.lines[0]


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_that_asks_for_something_does_not_end_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    def asked(what: str) -> Any:
        def hear(*_: object) -> None:
            bench.log.append(what)
            os.kill(os.getpid(), signal.SIGTERM)

        return hear

    monkeypatch.setattr(recorder.Dump, "asked", asked("SIGUSR1"))
    monkeypatch.setattr(Disk, "stopping", asked("SIGUSR2"), raising=False)
    bench.serve(lambda: os.kill(os.getpid(), number))
    assert bench.log == ["up", number.name, "down"]


def test_what_was_changed_is_looked_at_once_it_is_served_and_whenever_somebody_says_so(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(_: object) -> None:
        bench.log.append("look")
        number = changes.CHANGED if bench.log.count("look") < 3 else signal.SIGTERM
        os.kill(os.getpid(), number)

    monkeypatch.setattr(changes.Changes, "look", look)
    bench.serve()
    assert bench.log == ["up", "look", "look", "look", "down"]


def test_a_device_that_follows_its_backing_asks_for_its_size_and_only_then(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(_: object) -> None:
        bench.log.append("size")
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(follow.Follower, "look", look)
    monkeypatch.setattr(Driver, "offered", REQUIRED | Feature.UPDATE_SIZE)
    config = DeviceConfig(target="fake", options={"follow_size": True})
    daemon.serve(config, 1, lambda _: None, bench.lines.append)
    assert bench.log == ["up", "size", "down"]
    bench.log.clear()
    monkeypatch.setattr(follow.Follower, "forget", lambda _: bench.log.append("forget"))
    bench.serve(lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert bench.log == ["up", "forget", "down"]  # what it has seen by then is no matter later


def test_a_device_that_cannot_follow_its_backing_is_refused_before_there_is_any(
    bench: Bench,
) -> None:
    config = DeviceConfig(target="fake", options={"follow_size": True})
    with pytest.raises(NotPossibleError, match="UPDATE_SIZE"):
        daemon.serve(config, 1, lambda _: None, bench.lines.append)
    assert bench.log == []


def test_a_device_that_somebody_stopped_is_left_to_them(bench: Bench) -> None:
    bench.serve(end_it)
    assert list(bench.log) == ["up", "leave", "down"]


@pytest.mark.parametrize("ends", [False, True])
def test_whoever_runs_the_daemon_is_asked_before_its_disk_goes(bench: Bench, ends: bool) -> None:
    manner = Manner(bench.log, ends=ends)
    bench.serve(lambda: os.kill(os.getpid(), signal.SIGTERM), manner)
    assert list(bench.log) == ["up", "pause", "end", "down"]  # not left: it shall go


def test_nobody_is_asked_about_a_disk_that_somebody_else_has_stopped(bench: Bench) -> None:
    bench.serve(end_it, Manner(bench.log))
    assert list(bench.log) == ["up", "leave", "down"]

    def at_once() -> None:
        Disk.made[1].end()
        os.kill(os.getpid(), signal.SIGTERM)

    bench.log.clear()
    bench.serve(at_once, Manner(bench.log))
    assert list(bench.log) == ["up", "leave", "down"]


@pytest.mark.parametrize("owing", [False, True])
def test_a_pause_ends_and_the_next_begins(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, owing: bool
) -> None:
    manner = Manner(bench.log)

    def pause(_: Any) -> float:
        bench.log.append("pause")
        if bench.log.count("pause") == 3:
            end_it()
        return 3600 if owing else 0.001

    monkeypatch.setattr(manner, "pause", pause)
    monkeypatch.setattr(changes.Changes, "settle", lambda _: 0.001 if owing else None)
    bench.serve(manner=manner)
    assert list(bench.log) == ["up", "pause", "pause", "pause", "leave", "down"]


def test_a_queue_that_fails_is_an_error_with_its_reason(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder.Dump, "write", lambda _: bench.log.append("dump"))

    def fail() -> None:
        Disk.made[0].failure = "queue 0: input/output error"
        Disk.made[0].end()

    with pytest.raises(UblkdError, match="/dev/ublkb3 failed: queue 0: input/output"):
        bench.serve(fail)
    assert list(bench.log) == ["up", "leave", "dump", "down"]


def test_a_device_that_does_not_come_to_be_is_not_gone_on_with(bench: Bench) -> None:
    bench.log.fail_at = "up"
    before, fds = handlers(), open_fds()
    with pytest.raises(UblkdError, match="made to fail"):
        bench.serve()
    assert list(bench.log) == ["up"]
    assert bench.heard == []
    assert handlers() == before
    assert open_fds() == fds


def test_nobody_to_tell_takes_the_device_away(bench: Bench) -> None:
    def broken() -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        bench.serve(broken)
    assert list(bench.log) == ["up", "down"]


def test_a_warning_of_the_target_is_told(bench: Bench) -> None:
    bench.described = {"warning": "the last 3 bytes are left out"}
    bench.serve(end_it)
    assert bench.heard[0].warnings == ["the last 3 bytes are left out"]


def test_fewer_queues_than_were_asked_for_are_a_warning(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Disk, "queues", 0)
    monkeypatch.setattr(FakeTarget, "params", Params(size=4096, max_queues=2))
    bench.serve(end_it)
    assert bench.heard[0].warnings == ["1 queues were asked for, 0 made: one per CPU"]


def test_a_driver_that_offers_too_little_ends_it_before_there_is_a_device(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Driver, "offered", Feature(0))
    with pytest.raises(NotPossibleError):
        bench.serve()
    assert list(bench.log) == ["close target"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(13, "Permission denied", "/x\n"), r"target fake: /x\\n: permission denied"),
        (OSError(28, "No space left on device"), "target fake: no space left on device"),
        (UblkdError("my own words"), "my own words"),
    ],
)
def test_a_target_that_does_not_open_says_why(
    bench: Bench, error: BaseException, words: str
) -> None:
    bench.error = error
    with pytest.raises(UblkdError, match=words):
        bench.serve()
    assert list(bench.log) == []


def test_a_path_that_stands_on_the_disk_itself_is_not_even_opened(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(_: object) -> None:
        pytest.fail("it was opened")

    monkeypatch.setattr(bench, "from_options", opened)
    monkeypatch.setattr(below, "devices", lambda *_: {"ublkb0": ""})
    config = DeviceConfig(target="fake", options={}, id=0, paths=("/dev/null",))
    with pytest.raises(UblkdError, match="would stand on itself"):
        daemon.serve(config, 1, bench.heard.append, bench.lines.append)
    assert list(bench.log) == []


class LiveDriver(FakeControl):
    """A driver for a real Device."""

    def __init__(self) -> None:
        super().__init__(FakeQueue.log)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def get_features(self) -> Feature:
        return REQUIRED


@pytest.mark.parametrize("stuck", [False, True])
def test_a_stuck_queue_keeps_the_lock_of_the_backing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stuck: bool
) -> None:
    log, kept = Log(), list[ExitStack]()
    for name, value in (("log", log), ("made", []), ("stuck", stuck)):
        monkeypatch.setattr(FakeQueue, name, value, raising=False)
    monkeypatch.setattr(device, "Queue", FakeQueue)
    monkeypatch.setattr(device, "_stuck", kept)
    monkeypatch.setattr(
        device.Device, "_open_char_device", lambda _: os.open(os.devnull, os.O_RDWR)
    )
    monkeypatch.setattr(daemon, "Control", LiveDriver)
    monkeypatch.setattr(daemon, "StateDir", lambda: StateDir(tmp_path / "run"))
    monkeypatch.setattr(backing, "LOCK_SECONDS", 0.05)
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    config = build("loop", {"file": str(image)})
    fds = open_fds()

    def ready(_: daemon.Ready) -> None:
        with pytest.raises(UblkdError, match="in use"):
            LoopTarget.from_options(config.options)
        os.kill(os.getpid(), signal.SIGTERM)

    def serve() -> None:
        daemon.serve(config, 1, ready, lambda _: None)

    if stuck:
        with pytest.raises(UblkdError, match="did not end"):
            serve()
        with pytest.raises(UblkdError, match="in use"):
            LoopTarget.from_options(config.options)
        (undo,) = kept
        undo.close()
    else:
        serve()
        assert kept == []
    LoopTarget.from_options(config.options).close()
    assert open_fds() == fds
