"""What may take for ever, with a deadline."""

from __future__ import annotations

import threading
import time

import pytest

from ublkd.aside import within


def test_what_is_done_in_time_is_waited_for() -> None:
    done: list[int] = []
    assert within(50, lambda: done.append(1))
    assert done == [1]


def test_what_fails_is_done_as_well() -> None:
    assert within(50, lambda: 1 // 0)


def test_what_takes_too_long_goes_on_alone() -> None:
    go_on, done = threading.Event(), threading.Event()

    def slow() -> None:
        go_on.wait(50)
        done.set()

    before = time.monotonic()
    assert not within(0.1, slow)
    assert time.monotonic() - before < 20
    go_on.set()
    assert done.wait(50)


def test_where_there_is_no_thread_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none)
    assert not within(50, lambda: pytest.fail("there is no thread"))
