"""A disk that grows with what stands behind it, and never shrinks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from ublkd import follow
from ublkd.errors import NotPossibleError, UblkdError
from ublkd.follow import Follower, refuse_impossible
from ublkd.target import Params
from ublkd.uapi import Feature

DISK = 1 << 20


class Driver:
    """A disk of so many bytes."""

    def __init__(self) -> None:
        self.size = DISK
        self.asked = 0
        self.error: UblkdError | None = None

    def get_params(self, dev_id: int) -> Params:
        self.asked += 1
        return Params(size=self.size)

    def update_size(self, dev_id: int, size: int) -> None:
        if self.error:
            raise self.error
        assert dev_id == 3
        self.size = size


class Target:
    def __init__(self, *sizes: int | BaseException | None) -> None:
        self.sizes = list(sizes)

    def size_now(self) -> int | None:
        size = self.sizes.pop(0)
        if isinstance(size, BaseException):
            raise size
        return size


def following(*sizes: int | BaseException | None, driver: Driver | None = None) -> list[str]:
    """What the log has after as many looks."""
    lines: list[str] = []
    made: Any = driver or Driver()
    follower = Follower(made, 3, Target(*sizes), lines.append)  # type: ignore[arg-type]
    for _ in sizes:
        follower.look()
    follower.close()
    return lines


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who answers at once is heard at once, however slow the machine is."""
    monkeypatch.setattr(follow, "PATIENCE_SECONDS", 30)


def test_it_grows_whenever_more_stands_behind_it() -> None:
    driver = Driver()
    lines = following(DISK, 2 * DISK, 2 * DISK, 4 * DISK, driver=driver)
    assert driver.size == 4 * DISK
    assert [line.split(", ")[1] for line in lines] == [
        f"from {DISK} to {2 * DISK} bytes", f"from {2 * DISK} to {4 * DISK} bytes"
    ]  # fmt: skip


def test_what_is_as_it_was_costs_the_driver_nothing() -> None:
    driver = Driver()
    assert following(*[DISK] * 5, driver=driver) == []
    assert driver.asked == 1


def test_it_is_never_cut_and_that_is_said_once() -> None:
    driver = Driver()
    lines = following(DISK, 512, 512, DISK, driver=driver)
    assert driver.size == DISK
    assert len(lines) == 1
    assert "it is not cut" in lines[0]


def test_a_disk_that_was_cut_while_nobody_followed_grows_again() -> None:
    driver: Any = Driver()
    driver.size = 2 * DISK
    follower = Follower(driver, 3, Target(*[2 * DISK] * 3), print)  # type: ignore[arg-type]
    follower.look()
    follower.forget()
    driver.size = DISK
    follower.look()
    follower.close()
    assert driver.size == 2 * DISK


def test_to_what_is_no_whole_block_it_does_not_grow() -> None:
    driver = Driver()
    lines = following(2 * DISK + 1, 2 * DISK + 1, driver=driver)
    assert driver.size == DISK
    assert len(lines) == 1
    assert "whole blocks" in lines[0]


def test_what_grew_before_it_was_looked_at_is_made_up_for() -> None:
    driver = Driver()
    following(2 * DISK, driver=driver)
    assert driver.size == 2 * DISK


def test_a_failure_is_said_once_and_tried_again() -> None:
    driver = Driver()
    driver.error = UblkdError("not now")
    lines = following(2 * DISK, 2 * DISK, driver=driver)
    assert len(lines) == 1
    assert lines[0].endswith("not now")
    gone: list[int | BaseException | None] = [OSError(5, "")] * 3
    lines = following(*gone, 2 * DISK, driver=(healed := Driver()))
    assert healed.size == 2 * DISK
    assert "input/output error" in lines[0]
    assert len(lines) == 2


def test_a_target_that_does_not_know_is_left_alone() -> None:
    assert following(None, None) == []
    driver: Any = Driver()
    Follower(driver, 3, object(), print).look()  # type: ignore[arg-type]
    assert driver.asked == 0


def test_it_is_only_wanted_where_the_driver_can() -> None:
    refuse_impossible({"follow_size": False}, Feature(0))
    refuse_impossible({}, Feature(0))
    refuse_impossible({"follow_size": True}, Feature.UPDATE_SIZE)
    with pytest.raises(NotPossibleError, match="UPDATE_SIZE"):
        refuse_impossible({"follow_size": True}, Feature.QUIESCE)


# --- what stands behind it does not answer ----------------------------------------------------


class Stuck:
    """A target whose file is on a server that is gone, until somebody brings it back."""

    def __init__(self) -> None:
        self.back = threading.Event()
        self.calls = 0
        self.threads = set[int]()

    def size_now(self) -> int:
        self.calls += 1
        self.threads.add(threading.get_ident())
        self.back.wait()
        return 2 * DISK


@pytest.fixture
def stuck() -> Iterator[Stuck]:
    made = Stuck()
    yield made
    made.back.set()


def test_whoever_feeds_the_watchdog_does_not_wait_for_what_stands_behind_the_disk(
    stuck: Stuck, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, lines = Driver(), list[str]()
    follower = Follower(driver, 3, stuck, lines.append)  # type: ignore[arg-type]
    with monkeypatch.context() as hasty:
        hasty.setattr(follow, "PATIENCE_SECONDS", 0.001)
        for _ in range(3):
            follower.look()
        assert (driver.asked, lines) == (0, [])
        hasty.setattr(follow, "SLOW_SECONDS", -1)
        for _ in range(3):
            follower.look()
    assert lines == ["/dev/ublkb3 waits for what stands behind it to say its size, and does not "
                     "grow"]  # fmt: skip
    assert stuck.calls <= 1
    stuck.back.set()
    follower.look()
    assert driver.size == 2 * DISK
    follower.look()
    follower.close()
    assert (stuck.calls, len(stuck.threads), len(lines)) == (2, 1, 2)
    assert threading.get_ident() not in stuck.threads


def test_what_was_asked_before_nobody_followed_is_no_answer_any_more(
    stuck: Stuck, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver: Any = Driver()
    follower = Follower(driver, 3, stuck, print)  # type: ignore[arg-type]
    with monkeypatch.context() as hasty:
        hasty.setattr(follow, "PATIENCE_SECONDS", 0.001)
        follower.look()
    follower.forget()
    stuck.back.set()
    follower.look()
    follower.close()
    assert stuck.calls == 2


def test_a_daemon_ends_while_its_target_still_looks_for_the_size(
    stuck: Stuck, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "PATIENCE_SECONDS", 0.001)
    follower = Follower(Driver(), 3, stuck, print)  # type: ignore[arg-type]
    follower.look()
    follower.close()
    assert all(t.daemon for t in threading.enumerate() if t.name == "size")


def test_where_no_thread_can_be_had_that_is_said_once_and_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver, lines = Driver(), list[str]()
    follower = Follower(driver, 3, Target(2 * DISK), lines.append)  # type: ignore[arg-type]

    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", refuse)
        follower.look()
        follower.look()
    assert len(lines) == 1
    assert "there is no thread for it" in lines[0]
    follower.look()
    follower.close()
    assert driver.size == 2 * DISK
