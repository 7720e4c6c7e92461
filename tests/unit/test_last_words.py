"""The log of a daemon may be on its own disk: nobody waits for it, least of all the disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit import test_serve
from tests.unit.fakes import dev_info, remembering
from tests.unit.test_daemon import is_gone, started
from tests.unit.test_serve import CONFIG, Bench, Disk
from tests.unit.test_service import COOKIE, FILE, KEPT, STATE, Driver
from ublkd import daemon, log, manage, service
from ublkd.errors import UblkdError
from ublkd.notify import Notifier
from ublkd.state import StateDir
from ublkd.uapi import DevState

bench = test_serve.bench


def waits(go_on: threading.Event) -> Callable[..., None]:
    """A log that stands still until then."""

    def wait(*_: object) -> None:
        go_on.wait(50)

    return wait


FAILS = """
import syslog
def log(level, line):
    seen("begun", line)
    time.sleep(SECONDS)
    seen("log", line)
syslog.syslog = log
def serve(ready, log):
    raise UblkdError("it failed")
serving(serve)
"""


def test_the_last_words_of_a_daemon_reach_a_slow_log(tmp_path: Path) -> None:
    told = started(tmp_path, FAILS.replace("SECONDS", "0.2"))
    assert told["message"] == "it failed"
    assert (tmp_path / "log").read_text() == "it failed"


def test_a_log_that_stands_still_keeps_neither_the_starter_nor_the_daemon(tmp_path: Path) -> None:
    """It may be on the daemon's own disk."""
    before = time.monotonic()
    told = started(tmp_path, FAILS.replace("SECONDS", "1000"))
    assert told["message"] == "it failed"
    assert (tmp_path / "begun").exists()
    assert is_gone(tmp_path)
    assert time.monotonic() - before < 30


def test_a_queue_that_fails_below_its_own_log_lets_the_device_go_all_the_same(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log goes on when the disk is served again, which is when this daemon has gone."""
    monkeypatch.setattr(log, "LAST_SECONDS", 0.1)
    go_on = threading.Event()

    def fail(_: object) -> None:
        Disk.made[0].failure = "queue 0: input/output error"
        Disk.made[0].end()

    try:
        with pytest.raises(UblkdError, match="/dev/ublkb3 failed"):
            daemon.serve(CONFIG, 1, fail, waits(go_on))
        assert list(bench.log) == ["up", "leave", "down"]
    finally:
        go_on.set()


def test_what_is_said_before_a_disk_is_taken_over_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, done, driver = threading.Event(), list[str](), Driver()
    monkeypatch.setattr(service, "Control", lambda: driver)
    monkeypatch.setattr(service, "LAST_SECONDS", 0.1)
    monkeypatch.setattr(service, "StateDir", lambda: StateDir(tmp_path / "run"))
    monkeypatch.setattr(manage, "CHAR_CLASS", tmp_path / "class")
    monkeypatch.setattr(daemon, "serve_again", lambda *_, **__: done.append("served"))
    remembering(tmp_path, replace(STATE, asked={"queues": 4}))  # there is something to say of it
    driver.known[3] = dev_info(3, state=DevState.QUIESCED, flags=KEPT, cookie=COOKIE)
    try:
        service.run(FILE, waits(go_on), Notifier({}), keep=True)
        assert done == ["served"]
    finally:
        go_on.set()
