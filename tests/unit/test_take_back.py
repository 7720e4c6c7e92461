"""What the command does behind a daemon that could not clean up."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import cast

import pytest

from tests.unit.fakes import FakeControl, Log, dev_info, remembering
from ublkd import daemon, manage
from ublkd.control import Control
from ublkd.state import DeviceState, new_cookie

NOBODY = 1 << 22  # no process has such a number


def test_nothing_is_left_of_a_daemon_that_was_killed_while_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cookie = new_cookie()
    state = DeviceState(
        id=3, cookie=cookie, pid=NOBODY, name="db", target="null", options={}, lease="copy"
    )
    states, driver = remembering(tmp_path, state), FakeControl(Log())
    driver.known[3] = dev_info(3, cookie=cookie)
    for pid in (NOBODY, os.getpid()):
        (states.path / f".3.json.{pid}").touch()
    monkeypatch.setattr(daemon, "StateDir", lambda: states)
    monkeypatch.setattr(daemon, "Control", lambda: contextlib.nullcontext(driver))
    monkeypatch.setattr(
        manage, "devices", lambda *_: [manage.find(cast("Control", driver), states, "3")]
    )
    daemon.take_back(cookie)
    assert list(driver.log) == ["stop", "del"]
    left = {path.name for path in states.path.iterdir()}
    assert left - {".lock"} == {f".3.json.{os.getpid()}"}
