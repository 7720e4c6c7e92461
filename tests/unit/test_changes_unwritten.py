"""What is changed of a device where its files cannot be written."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.fakes import remembering
from tests.unit.test_changes import STATE, found, to
from ublkd import changes, udev
from ublkd.errors import UblkdError


@pytest.mark.parametrize("fails_at", ["3.json", "3.udev"])
def test_where_there_is_no_space_for_all_of_it_nothing_is_changed_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: str
) -> None:
    states = remembering(tmp_path, replace(STATE, started=False))
    before = {path.name: path.read_bytes() for path in states.path.iterdir()}
    fsync = os.fsync

    def full(fd: int) -> None:
        if fails_at in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UblkdError, match=f"cannot write .*{fails_at}"):
        changes.change(states, found(), lambda state: replace(state, name="b"))
    assert {path.name: path.read_bytes() for path in states.path.iterdir()} == before


def test_what_was_written_is_taken_back_if_the_rest_of_it_could_not_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states, made, moved = remembering(tmp_path, STATE), Path.replace, list[str]()

    def move(self: Path, to: Path) -> Path:
        moved.append(to.name)
        if moved == ["3.json", "3.9.udev"]:
            raise OSError(errno.EIO, "Input/output error")
        return made(self, to)

    monkeypatch.setattr(udev, "of_disk", lambda _: "3.9.udev")
    monkeypatch.setattr(Path, "replace", move)
    with pytest.raises(UblkdError, match=r"cannot write .*3\.9\.udev"):
        changes.change(states, found(), to(one="b"))
    now = states.read(3)
    assert now is not None
    assert (now.options, now.revision) == ({"one": "a"}, 2)
