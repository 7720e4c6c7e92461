"""What is asked of systemd, and what its answers mean."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from ublkd import systemd
from ublkd.errors import UblkdError


@pytest.mark.parametrize(("said", "down"), [("stopping", True), ("running", False), ("", False)])
def test_systemd_says_whether_the_system_goes_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, down: bool
) -> None:
    script = tmp_path / "systemctl"
    script.write_text(f'#!/bin/sh\ntest "$1" = is-system-running && echo {said}; exit 1\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(systemd, "SYSTEMD", tmp_path)
    monkeypatch.setattr(systemd, "ASK_SECONDS", 50)
    assert systemd.is_going_down() == down
    monkeypatch.setattr(systemd, "SYSTEMD", tmp_path / "nothing")
    assert not systemd.is_going_down()


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("0::/system.slice/system-ublkd.slice/ublkd@data.service", "ublkd@data.service"),
        ("1:name=systemd:/system.slice/ublkd@a-b.c.service", "ublkd@a-b.c.service"),
        ("0::/system.slice/ublkd@data.service/child", None),
        ("0::/user.slice/user-0.slice/session-1.scope", None),
        ("0::/system.slice/other@data.service", None),
    ],
)
def test_a_process_belongs_to_the_unit_of_its_control_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, found: str | None
) -> None:
    monkeypatch.setattr(systemd, "PROC", tmp_path)
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cgroup").write_text(f"{line}\n")
    assert systemd.unit_of(7) == found
    assert systemd.unit_of(8) is None


def test_a_systemd_that_does_not_answer_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def hangs(command: list[str], **how: Any) -> None:
        raise subprocess.TimeoutExpired(command, how["timeout"])

    monkeypatch.setattr(subprocess, "run", hangs)
    with pytest.raises(UblkdError, match="did not end within 600 seconds"):
        systemd.systemctl("start", "ublkd@disk.service")
