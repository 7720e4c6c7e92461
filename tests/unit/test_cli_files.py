"""``ublkd apply`` as it is told: the steps, and the files that are wrong."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.fakes import FakeControl, Log
from tests.unit.test_devicefiles import put
from ublkd import apply
from ublkd.cli import files
from ublkd.state import StateDir


@pytest.fixture
def no_devices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A driver without devices."""
    driver = FakeControl(Log()), StateDir(tmp_path / "run")
    monkeypatch.setattr(files, "driver", lambda: contextlib.nullcontext(driver))
    monkeypatch.setattr(apply, "look", lambda *_: [])
    monkeypatch.chdir(tmp_path)  # the verb leaves it


def told(capsys: pytest.CaptureFixture[str], folder: Path) -> Any:
    assert files.apply.callback
    assert files.apply.callback(folder=str(folder), dry_run=True, as_json=True) == 1
    return json.loads(capsys.readouterr().out)


def test_apply_tells_as_json_of_the_files_that_are_wrong(
    no_devices: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    etc = tmp_path / "etc"
    etc.mkdir()
    put(etc, 'target = "null"', "good")
    bad = put(etc, 'target = "null"\nsizes = 1', "bad")
    found = told(capsys, etc)
    assert [(step["name"], step["action"]) for step in found["steps"]] == [("good", "add")]
    assert found["problems"] == [
        {"name": "bad", "file": str(bad), "problem": f"{bad}: unknown key 'sizes'",
         "hint": "did you mean 'size'?"}
    ]  # fmt: skip
