"""Devices that outlive their daemon: taken over by the next, and left to it."""

from __future__ import annotations

import errno
import os
from dataclasses import replace

import pytest

from tests.unit.bench import DOWN, Bench
from tests.unit.fakes import FakeQueue
from tests.unit.helpers import open_fds
from ublkd import device, stats
from ublkd._core import lib
from ublkd.errors import UblkdError
from ublkd.state import StateDir

AGAIN = ["make 0", "make 1", "run 0", "run 1", "ready 0", "ready 1", "write state", "end recovery"]


def test_a_device_that_is_taken_over_is_served_and_ends_like_any_other(bench: Bench) -> None:
    before = open_fds()
    with bench.taken() as disk:
        assert list(bench.log) == AGAIN
        state = bench.states.read(disk.id)
        assert state
        assert (state.pid, state.started, state.describe) == (
            os.getpid(), True, {"backing": "/somewhere"},
        )  # fmt: skip
    assert list(bench.log) == [*AGAIN, "write back", *DOWN]
    assert bench.left() == []
    assert open_fds() == before


def test_what_is_changed_while_it_is_taken_over_stays_and_is_not_answered(bench: Bench) -> None:
    taken = bench.taken()
    before = bench.states.read(3)
    assert before
    changed = replace(before, name="other", options={"size": 1}, size=4096, revision=2)
    StateDir(bench.states.path).write(changed)
    with taken as disk:
        state = bench.states.read(disk.id)
        assert state
        assert state == replace(changed, pid=os.getpid(), describe={"backing": "/somewhere"},
                                refused=state.refused)  # fmt: skip
        assert (state.revision, state.answered) == (2, 0)


def test_counters_go_on_where_the_daemon_before_left_them(bench: Bench) -> None:
    device_ = bench.taken()
    with stats.create(bench.states.counters(3), 2) as counters:
        for counter in counters:
            counter.magic = lib.STATS_MAGIC
            counter.requests[1], counter.in_flight, counter.failed_files = 7, 5, 2
    with device_:
        told = stats.read(bench.states.counters(3))
    assert [queue["write"]["requests"] for queue in told] == [7, 7]
    assert [queue["in_flight"] for queue in told] == [0, 0]
    assert [queue["failed_files"] for queue in told] == [2, 2]


@pytest.mark.parametrize("kind", [UblkdError("made to fail"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", AGAIN)
def test_what_fails_while_it_is_taken_over_leaves_it_to_the_next(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, step: str, kind: BaseException
) -> None:
    monkeypatch.setattr(device, "_stuck", [])
    bench.log.fail_at, bench.log.error = step, kind
    with pytest.raises(type(kind)), bench.taken():
        pytest.fail("it must not come to be")
    done = AGAIN[: AGAIN.index(step) + 1]
    # a queue that waits for requests ends with the process, and not before
    assert list(bench.log) == done + ([] if step != "make 0" else ["close target"])
    assert bool(device._stuck) == (step != "make 0")
    assert list(bench.control.known) == [3]
    assert bench.states.read(3)


@pytest.mark.parametrize("step", AGAIN)
def test_what_is_deleted_while_it_is_taken_over_leaves_no_file(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    monkeypatch.setattr(device, "_stuck", [])
    monkeypatch.setattr(bench.control, "is_listed", lambda _: step not in bench.log)
    bench.log.fail_at = step
    with pytest.raises(UblkdError), bench.taken():
        pytest.fail("it must not come to be")
    assert os.listdir(bench.states.path) == []


def test_whoever_deletes_it_is_not_waited_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_stuck", [])
    monkeypatch.setattr(bench.control, "is_listed", lambda _: False)
    disk = bench.taken()
    a_del = StateDir(bench.states.path).lock()  # until the device is let go
    with a_del, pytest.raises(UblkdError, match="was stopped or deleted before"), disk:
        pytest.fail("it must not come to be")
    assert os.listdir(bench.states.path) == []
    assert "end recovery" not in bench.log


def test_what_is_left_at_once_is_left_with_its_queues(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_stuck", [])
    with bench.taken() as disk:
        disk.leave(at_once=True)
    assert list(bench.log) == AGAIN
    assert device._stuck  # until the process ends
    assert list(bench.control.known) == [3]


def test_a_quiesced_device_is_left_as_it_is(bench: Bench) -> None:
    before = open_fds()
    with bench.taken() as disk:
        disk.leave()  # its queues have ended by themselves
    assert list(bench.log) == [*AGAIN, *DOWN[1:5], "close target"]
    assert list(bench.control.known) == [3]
    assert bench.states.read(3)
    assert open_fds() == before


def test_a_queue_that_fails_leaves_a_kept_device_to_the_next(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_stuck", [])
    with bench.taken() as disk:
        FakeQueue.made[1].result = -errno.EIO
        assert disk.failure
        disk.leave()
    assert list(bench.log) == AGAIN  # the other queue cannot be ended without the device
    assert len(device._stuck) == 1
    assert list(bench.control.known) == [3]
