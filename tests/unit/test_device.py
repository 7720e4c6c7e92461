from __future__ import annotations

import errno
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.bench import DOWN, UP, Bench
from tests.unit.fakes import FakeQueue, dev_info
from tests.unit.helpers import is_one_line, open_fds
from ublkd import below, stats
from ublkd._core import ffi
from ublkd.control import CommandError
from ublkd.device import Device
from ublkd.errors import NotPossibleError, UblkdError
from ublkd.features import Lease
from ublkd.state import DeviceState, StateDir
from ublkd.uapi import Cmd, Feature


def test_a_device_is_made_and_unmade_in_order(bench: Bench) -> None:
    before = open_fds()
    with bench.device(name="db") as disk:
        assert list(bench.log) == UP
        assert (disk.id, disk.queues) == (3, 2)
        assert not disk.wait(0)
        assert disk.failure == ""
        state = bench.states.read(3)
        assert state
        assert (state.name, state.target, state.options) == ("db", "null", {"size": 1})
        assert (state.lease, state.refused) == ("copy", {"auto": "too old"})
        assert state.describe == {"backing": "/somewhere"}
        assert state.cookie == bench.control.known[3].cookie
        assert bench.states.counters(3).exists()
    assert list(bench.log) == UP + DOWN
    assert bench.left() == []
    assert open_fds() == before


def test_every_queue_gets_its_own_counters_and_the_granted_sizes(bench: Bench) -> None:
    with bench.device(depth=16, max_io=8192):
        configs = [queue.config for queue in FakeQueue.made]
        assert [c.qid for c in configs] == [0, 1]
        assert {(c.depth, c.max_io, c.lease) for c in configs} == {(16, 8192, Lease.COPY)}
        assert configs[0].stats != configs[1].stats


@pytest.mark.parametrize(("queues", "times", "words"), [(2, 1, "cannot share"), (1, 2, "twice")])
def test_a_stream_belongs_to_one_queue_and_one_lane(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, queues: int, times: int, words: str
) -> None:
    here, there = socket.socketpair()
    with here, there:
        monkeypatch.setattr(bench.target, "files", lambda: [here.fileno()] * times)
        with pytest.raises(UblkdError, match=words), bench.device(queues=queues):
            pass
        assert bench.left() == []
        monkeypatch.setattr(bench.target, "files", lambda: [here.fileno(), there.fileno()])
        with bench.device(queues=1):
            pass


def undoing(failed: str) -> list[str]:
    """What must be undone after the step ``failed``: all that was done, and no more."""
    if failed == "add":
        return ["close target"]
    if failed in ("write state", "params", "make 0"):  # no queue yet, so nothing to stop
        return ["del", "forget state", "close target"]
    if failed == "make 1":
        return ["stop", "join 0", "free 0", "del", "forget state", "close target"]
    return DOWN


@pytest.mark.parametrize("kind", [UblkdError("made to fail"), KeyboardInterrupt(), OSError(5, "x")])
@pytest.mark.parametrize("step", UP)
def test_what_fails_leaves_nothing_behind_and_later_steps_are_not_run(
    bench: Bench, step: str, kind: BaseException
) -> None:
    bench.log.fail_at, bench.log.error = step, kind
    before = open_fds()
    with pytest.raises(type(kind)), bench.device():
        pytest.fail("it must not come to be")
    assert list(bench.log) == UP[: UP.index(step) + 1] + undoing(step)
    assert bench.left() == []
    assert open_fds() == before


def test_an_exception_inside_takes_the_device_away(bench: Bench) -> None:
    with pytest.raises(ZeroDivisionError), bench.device():
        raise ZeroDivisionError
    assert list(bench.log) == UP + DOWN
    assert bench.left() == []


@pytest.mark.parametrize("place", ["node", "counters"])
def test_a_node_or_counters_that_cannot_be_had_leave_nothing_behind(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise UblkdError("not to be had")

    if place == "node":
        monkeypatch.setattr(Device, "_open_char_device", refuse)
    else:
        monkeypatch.setattr(stats, "create", refuse)
    before = open_fds()
    with pytest.raises(UblkdError, match="not to be had"), bench.device():
        pytest.fail("it must not come to be")
    made = ["add", "write state", *(["params"] if place == "counters" else [])]
    assert list(bench.log) == [*made, "del", "forget state", "close target"]
    assert bench.left() == []
    assert open_fds() == before


@pytest.mark.parametrize("step", UP[2:-1])
def test_a_device_that_others_delete_while_it_is_made_is_said_to_be_gone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    monkeypatch.setattr(bench.control, "is_listed", lambda _: step not in bench.log)
    bench.log.fail_at = step
    with pytest.raises(UblkdError, match="was stopped or deleted before"), bench.device():
        pytest.fail("it must not come to be")
    assert bench.left() == []


@pytest.mark.parametrize("taken", ["queues", "file"])
def test_a_device_that_others_took_something_from_is_never_made_a_disk(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, taken: str
) -> None:
    """STOP_DEV has ended its queues, behind which START_DEV would crash Linux 7.2; or a del that
    is about to do so has taken its file.
    """

    def ready(queue: FakeQueue, _: float) -> None:
        if taken == "queues":
            queue.ended = True
        else:
            StateDir(bench.states.path).remove(3)

    monkeypatch.setattr(FakeQueue, "wait_ready", ready)
    with pytest.raises(UblkdError, match="was stopped or deleted before"), bench.device():
        pytest.fail("it must not come to be")
    assert "start" not in bench.log
    assert bench.left() == []


def test_a_number_that_another_device_has_by_now_is_left_to_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_late(_: Device) -> int:
        bench.control.known[3] = another
        StateDir(bench.states.path).write(replace(state, cookie=another.cookie))
        return os.open(os.devnull, os.O_RDWR)

    another = dev_info(3)
    state = DeviceState(id=3, cookie=0, pid=1, name="two", target="null", options={}, lease="copy")
    monkeypatch.setattr(Device, "_open_char_device", open_late)
    before = open_fds()
    with pytest.raises(UblkdError, match="was stopped or deleted before"), bench.device():
        pytest.fail("it must not come to be")
    assert list(bench.log) == ["add", "write state", "close target"]
    assert bench.control.known[3] == another
    assert bench.states.read(3) == replace(state, cookie=another.cookie)
    assert open_fds() == before


def test_a_driver_that_takes_a_feature_back_is_refused(bench: Bench) -> None:
    bench.control.given = Feature(0)
    with pytest.raises(NotPossibleError, match="CMD_IOCTL_ENCODE"), bench.device():
        pytest.fail("it must not come to be")
    assert list(bench.log) == ["add", "write state", "del", "forget state", "close target"]
    assert bench.left() == []


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EEXIST, "device number 3 is taken by another program"),
        (errno.ENOSPC, "no device number is free"),
        (errno.ENOMEM, "no memory for 2 queues"),
        (errno.EPERM, "refused ADD_DEV: operation not permitted"),
    ],
)
def test_a_refused_add_is_explained(bench: Bench, number: int, words: str) -> None:
    bench.log.fail_at, bench.log.error = "add", CommandError(Cmd.ADD_DEV, number)
    with pytest.raises(UblkdError, match=words) as caught, bench.device(id=3):
        pytest.fail("it must not come to be")
    assert is_one_line(caught.value.message)


def test_a_disk_that_would_stand_on_itself_is_refused_before_the_driver_is_asked(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.target, "files", lambda: (7, 8))
    standing = {7: {"sda": ""}, 8: {"dm-0": "", "ublkb3": "dm-0"}}
    monkeypatch.setattr(below, "devices", lambda fd, _: standing[fd])
    with pytest.raises(UblkdError, match="itself through /dev/dm-0"), bench.device(id=3):
        pytest.fail("it must not come to be")
    assert list(bench.log) == ["close target"]


def test_a_number_that_another_of_ours_has_is_called_so(bench: Bench) -> None:
    bench.control.known[3] = dev_info(3)
    bench.log.fail_at, bench.log.error = "add", CommandError(Cmd.ADD_DEV, errno.EEXIST)
    with pytest.raises(UblkdError, match="another ublkd device") as caught, bench.device(id=3):
        pytest.fail("it must not come to be")
    assert "--id" in caught.value.hint


def test_a_name_is_had_by_one_device_and_free_again_after_it(bench: Bench) -> None:
    with bench.device(name="db"):
        del bench.log[:]
        with pytest.raises(UblkdError, match="'db' is taken by /dev/ublkb3"):
            bench.device(name="db").__enter__()
        assert list(bench.log) == ["close target"]
    with bench.device(name="db"):
        pass


@pytest.mark.parametrize("now", [None, dev_info(3, cookie=1)])
def test_a_name_of_a_device_that_is_gone_is_free(bench: Bench, now: Any) -> None:
    with bench.device(name="db"):
        state = bench.states.read(3)
    assert state
    bench.states.write(state)  # as a killed daemon leaves it
    if now:
        bench.control.known[3] = now  # the number is somebody else's by now
    with bench.device(name="db"):
        pass
    assert os.listdir(bench.states.path) == []


def test_queues_that_end_wake_whoever_waits(bench: Bench) -> None:
    with bench.device() as disk:
        FakeQueue.made[1].on_end()
        assert disk.wait(0)
        assert disk.wait(0)  # and it stays so
        assert disk.stopped_by_others


def test_a_queue_that_failed_is_named_with_its_reason(bench: Bench) -> None:
    with bench.device() as disk:
        FakeQueue.made[1].result = -errno.EIO
        FakeQueue.made[1].on_end()
        assert disk.failure == "queue 1: input/output error"
        assert not disk.stopped_by_others


def test_a_device_that_is_left_stays_in_the_driver(bench: Bench) -> None:
    before = open_fds()
    with bench.device() as disk:
        disk.leave()
        assert list(bench.log) == UP  # leaving only marks it
    assert list(bench.log) == [*UP, *DOWN[:5], "close target"]
    assert list(bench.control.known) == [3]
    assert bench.states.read(3) is not None
    assert open_fds() == before


@pytest.mark.parametrize("ended", [(), (0,), (0, 1)])
def test_nobody_serves_once_every_queue_has_ended_so_that_stop_can_fail_the_rest(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, ended: tuple[int, ...]
) -> None:
    open_at_stop: list[bool] = []
    before = open_fds()
    with bench.device() as disk:
        fd = disk._dev_fd
        assert fd is not None
        for number in ended:
            monkeypatch.setattr(FakeQueue.made[number], "ended", True)
        monkeypatch.setattr(
            bench.control,
            "stop_dev",
            lambda _: open_at_stop.append(os.path.exists(f"/proc/self/fd/{fd}")),
        )
    assert open_at_stop == [len(ended) < 2]
    assert open_fds() == before


def test_a_dying_device_does_not_remove_its_successors_state(bench: Bench) -> None:
    with bench.device():
        state = bench.states.read(3)
        assert state
        later = replace(state, cookie=state.cookie ^ 1)
        bench.states.write(later)
    assert bench.states.read(3) == later
    assert bench.states.counters(3).exists()
    assert "forget state" not in bench.log


def test_a_device_that_somebody_else_deleted_is_forgotten_all_the_same(bench: Bench) -> None:
    with bench.device():
        bench.control.known.clear()
    assert list(bench.log) == UP + [step for step in DOWN if step not in ("stop", "del")]
    assert bench.left() == []


def test_a_device_that_has_got_its_number_is_left_alone(bench: Bench) -> None:
    with bench.device():
        bench.control.known[3] = dev_info(3)
    assert list(bench.log) == UP + [step for step in DOWN if step not in ("stop", "del")]
    assert list(bench.control.known) == [3]


def test_a_disk_that_will_not_stop_is_still_taken_apart(bench: Bench) -> None:
    with bench.device():
        bench.log.fail_at, bench.log.error = "stop", CommandError(Cmd.STOP_DEV, errno.ENODEV)
    assert list(bench.log) == UP + DOWN
    assert bench.left() == []


def test_queues_that_do_not_end_are_named_and_not_freed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeQueue, "stuck", True)
    with pytest.raises(UblkdError, match=r"queues \[0, 1\] of /dev/ublkb3"), bench.device():
        pass
    assert "free 0" not in bench.log


def test_counters_stay_mapped_while_a_stuck_queue_may_write_them(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeQueue, "stuck", True)
    with pytest.raises(UblkdError), bench.device():
        counter = FakeQueue.made[0].config.stats
    maps = Path("/proc/self/maps").read_text().splitlines()
    spans = [line.split()[0].split("-") for line in maps]
    address = int(ffi.cast("uintptr_t", counter))
    assert any(int(low, 16) <= address < int(high, 16) for low, high in spans)


def test_the_number_of_a_device_that_is_not_there_is_not_asked_for(bench: Bench) -> None:
    disk = bench.device()
    with pytest.raises(AssertionError):
        _ = disk.id
    os.close(disk.ended_fd)
