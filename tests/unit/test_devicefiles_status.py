"""With which exit status a device's file is refused: after 2 and 3 systemd does not try again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.helpers import ublkd
from tests.unit.test_devicefiles import put
from ublkd import registry
from ublkd.devicefiles import FileError, read
from ublkd.errors import NotPossibleError, UblkdError, UsageError


def test_what_the_file_says_makes_no_sense_and_what_cannot_be_read_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exit status: systemd tries again after 1 and not after 2 or 3."""
    with pytest.raises(FileError, match="no such file") as caught:
        read(tmp_path, "none")
    assert caught.value.exit_code == 2
    put(tmp_path, 'target = "null"').chmod(0o666)
    with pytest.raises(FileError, match="can be written by others") as caught:
        read(tmp_path, "disk")
    assert caught.value.exit_code == 2
    (tmp_path / "link.toml").symlink_to("/not/mounted/yet")
    with pytest.raises(FileError, match="cannot be opened") as caught:
        read(tmp_path, "link")
    assert caught.value.exit_code == 1
    put(tmp_path, 'target = "null"')

    def unreadable(*_: object) -> None:
        raise OSError(5, "")

    monkeypatch.setattr(Path, "resolve", unreadable)
    with pytest.raises(FileError, match="cannot be read: input/output error") as caught:
        read(tmp_path, "disk")
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("kind", [UblkdError, UsageError, NotPossibleError])
def test_what_a_target_cannot_be_asked_keeps_its_exit_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[UblkdError]
) -> None:
    def refuse(*_: object) -> None:
        raise kind("no")

    monkeypatch.setattr(registry, "options_of", refuse)
    put(tmp_path, 'target = "null"')
    with pytest.raises(FileError, match="no") as caught:
        read(tmp_path, "disk")
    assert caught.value.exit_code == kind.exit_code


def test_run_ends_with_the_status_of_what_is_wrong_with_its_file(tmp_path: Path) -> None:
    put(tmp_path, 'target = "lop"')
    assert ublkd("run", "disk", "--config", str(tmp_path)).returncode == 2
    assert ublkd("run", "other", "--config", str(tmp_path)).returncode == 2


def test_run_is_not_tried_again_where_no_folder_can_be_trusted(tmp_path: Path) -> None:
    """Nor where there is none: systemd tries again after 1."""
    file = put(tmp_path, 'target = "null"')
    assert ublkd("run", "disk", "--config", str(tmp_path / "none")).returncode == 2
    assert ublkd("run", "disk", "--config", str(file)).returncode == 2
    (tmp_path / "link").symlink_to("/not/mounted/yet")
    assert ublkd("run", "disk", "--config", str(tmp_path / "link")).returncode == 1
    tmp_path.chmod(0o777)
    ran = ublkd("run", "disk", "--config", str(tmp_path))
    assert ran.returncode == 2
    assert "nothing in it can be trusted" in ran.stderr
    assert ublkd("config", "check", "--config", str(tmp_path)).returncode == 1
