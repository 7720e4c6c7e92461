"""What modules say, on its way to the daemon's log."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from ublkd import log
from ublkd.log import BURST, WAITING, logged

SAID = logging.getLogger("a.plug.in")


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who writes at once is waited for, however slow the machine is."""
    monkeypatch.setattr(log, "LAST_SECONDS", 50)
    monkeypatch.setattr(log, "SECONDS", 1000.0)


def test_what_is_said_arrives_in_order_and_other_levels_do_not() -> None:
    lines: list[str] = []
    with logged(lines.append):
        SAID.warning("%d of %d", 1, 2)
        SAID.debug("no")
        SAID.error("then\nthat")
    SAID.error("too late")
    assert lines == ["1 of 2", "then\nthat"]


class Slow:
    """A log that stands still until it may go on."""

    def __init__(self) -> None:
        self.go_on, self.stands = threading.Event(), threading.Event()
        self.lines: list[str] = []

    def __call__(self, line: str) -> None:
        self.stands.set()
        assert self.go_on.wait(50)
        self.lines.append(line)


def test_a_log_that_stands_still_holds_nobody_up_and_what_is_lost_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = Slow()
    with logged(slow):
        SAID.warning("first")
        assert slow.stands.wait(50)
        for number in range(WAITING + 7):
            SAID.warning("%d", number)  # or this would never end
        remove = SAID.root.removeHandler

        def leave(ours: logging.Handler) -> None:
            remove(ours)
            slow.go_on.set()  # the end has begun, and the queue is full up to the last place

        monkeypatch.setattr(SAID.root, "removeHandler", leave)
    assert slow.lines[0] == "first"
    assert slow.lines[1].startswith("7 lines before this one were lost")
    assert slow.lines[2] == "0"
    assert len(slow.lines) == BURST + 2
    assert slow.lines[-1].startswith(f"{WAITING - BURST + 1} lines before")


def test_a_flood_is_cut_and_its_rest_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    lines: list[str] = []
    ours = log.ToOurLog(lines.append, log.NeverWaiting(None))  # type: ignore[arg-type]

    def flood(count: int) -> None:
        for _ in range(count):
            ours.handle(logging.makeLogRecord({"msg": "help", "levelno": logging.ERROR}))

    flood(BURST + 30)
    assert lines == ["help"] * BURST
    now += log.SECONDS
    flood(1)
    assert lines[BURST:] == ["30 lines before this one were lost: there were too many", "help"]


def test_a_log_that_cannot_be_written_ends_nothing() -> None:
    def full(_: str) -> None:
        raise OSError(28, "full")

    with logged(full):
        SAID.error("nobody hears this")


def test_a_log_that_never_goes_on_is_waited_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "LAST_SECONDS", 0.2)
    go_on = threading.Event()

    def waits(_: str) -> None:
        go_on.wait(50)

    before = time.monotonic()
    with logged(waits) as say:
        for _ in range(WAITING + 50):
            say("a line")
    assert 0.2 <= time.monotonic() - before < 20
    go_on.set()


def test_lines_of_the_daemon_itself_are_no_flood() -> None:
    lines: list[str] = []
    with logged(lines.append) as say:
        for number in range(2 * BURST):
            SAID.warning("theirs")
            say(f"ours, {number} %s")
        say("the last word")
    assert lines.count("theirs") == BURST
    assert [line for line in lines if line.startswith("ours")][-1] == f"ours, {2 * BURST - 1} %s"
    assert lines[-1] == "the last word"


def test_lines_of_the_daemon_that_find_no_room_are_counted() -> None:
    slow = Slow()
    with logged(slow) as say:
        say("first")
        assert slow.stands.wait(50)
        for _ in range(WAITING + 7):
            say("more")
        slow.go_on.set()
    assert slow.lines[1] == "7 lines before this one were lost: there were too many"
    assert slow.lines.count("more") == WAITING
