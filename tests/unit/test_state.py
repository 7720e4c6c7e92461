from __future__ import annotations

import dataclasses
import errno
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.helpers import any_texts, is_one_line, open_fds, python
from ublkd import state
from ublkd.errors import UblkdError
from ublkd.state import DeviceState, StateDir, is_ours, new_cookie

GOOD = DeviceState(
    id=3, cookie=1, pid=42, name="db", target="loop", options={"file": "/d"}, lease="auto"
)

values = st.one_of(st.none(), st.booleans(), st.integers(-(1 << 63), 1 << 63), any_texts)
tables = st.dictionaries(any_texts, values, max_size=4)
texts = st.dictionaries(any_texts, any_texts, max_size=3)
states = st.builds(
    DeviceState,
    id=st.integers(0, (1 << 20) - 1),
    cookie=st.integers(0, (1 << 64) - 1),
    pid=st.integers(1, 1 << 22),
    name=st.none() | any_texts,
    target=any_texts,
    options=tables,
    lease=any_texts,
    refused=texts,
    describe=tables,
)


@pytest.fixture
def folder(tmp_path: Path) -> StateDir:
    made = StateDir(tmp_path / "run")
    made.prepare()
    return made


def entries(folder: StateDir) -> list[str]:
    return sorted(os.listdir(folder.path))


@given(written=states)
def test_what_is_written_is_read_back(folder: StateDir, written: DeviceState) -> None:
    folder.write(written)
    assert folder.read(written.id) == written


def test_files_and_folder_are_for_the_owner_alone(folder: StateDir) -> None:
    folder.write(GOOD)
    assert folder.path.stat().st_mode & 0o777 == 0o700
    assert folder.file(3).stat().st_mode & 0o777 == 0o600


def test_a_second_write_replaces_the_first_whole(folder: StateDir) -> None:
    folder.write(dataclasses.replace(GOOD, options={"file": "x" * 5000}))
    folder.write(GOOD)
    assert folder.read(3) == GOOD
    assert entries(folder) == ["3.json", "3.udev"]


def replaced(**fields: Any) -> bytes:
    return json.dumps(dataclasses.asdict(GOOD) | fields).encode()


BROKEN = {
    "empty": b"",
    "truncated": replaced()[:-7],
    "not text": bytes(range(256)),
    "a list": b"[1, 2]",
    "null": b"null",
    "nested without end": b"[" * 100_000,
    "a huge number": b'{"id": ' + b"9" * 5000 + b"}",
    "of another device": replaced(id=4),
    "of another version": replaced(version=2),
    "with a field too many": replaced(colour="red"),
    "with a field too few": b'{"id": 3}',
    "with text for a number": replaced(cookie="1"),
    "with a number for text": replaced(target=7),
    "with a list for options": replaced(options=[]),
    "with a number for a name": replaced(name=1),
    "with a fraction for a pid": replaced(pid=1.5),
    "followed by more": replaced() + b"{}",
    "larger than any of ours": b" " * (2 << 20) + replaced(),
}


@pytest.mark.parametrize("raw", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_is_as_good_as_none(folder: StateDir, raw: bytes) -> None:
    folder.file(3).write_bytes(raw)
    assert folder.read(3) is None


@given(raw=st.binary(max_size=200))
def test_any_bytes_are_read_without_an_exception(folder: StateDir, raw: bytes) -> None:
    folder.file(3).write_bytes(raw)
    assert folder.read(3) is None


@given(cut=st.integers(0, len(replaced()) - 1))
def test_a_file_cut_anywhere_is_as_good_as_none(folder: StateDir, cut: int) -> None:
    folder.file(3).write_bytes(replaced()[:cut])
    assert folder.read(3) is None


def test_a_missing_file_is_none(folder: StateDir, tmp_path: Path) -> None:
    assert folder.read(3) is None
    assert StateDir(tmp_path / "nowhere").read(3) is None


def test_a_link_is_not_followed(folder: StateDir, tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(replaced())
    folder.file(3).symlink_to(tmp_path / "real")
    assert folder.read(3) is None


def test_what_is_not_a_file_is_none_and_does_not_hang(folder: StateDir) -> None:
    folder.file(3).mkdir()
    os.mkfifo(folder.file(4))
    before = open_fds()
    assert folder.read(3) is None
    assert folder.read(4) is None
    assert open_fds() == before


def test_a_file_of_another_user_is_none(folder: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write(GOOD)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert folder.read(3) is None


def refusal(folder: StateDir) -> UblkdError:
    with pytest.raises(UblkdError) as caught:
        folder.prepare()
    assert is_one_line(caught.value.message)
    assert str(folder.path) in caught.value.message
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
def test_a_folder_that_others_can_write_is_refused(folder: StateDir, mode: int) -> None:
    folder.path.chmod(mode)
    assert "can be written by others" in refusal(folder).message


def test_a_folder_of_another_user_is_refused(
    folder: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert "can be written by others" in refusal(folder).message


@pytest.mark.parametrize("kind", ["file", "link to a folder", "link to nothing"])
def test_what_is_not_a_folder_is_refused(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "run"
    if kind == "file":
        place.write_text("")
    else:
        place.symlink_to(tmp_path if "folder" in kind else tmp_path / "nothing")
    assert "is not a folder" in refusal(StateDir(place)).message


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    assert "cannot make" in refusal(StateDir(tmp_path / "a" / "b")).message


def test_preparing_twice_changes_nothing(folder: StateDir) -> None:
    folder.write(GOOD)
    folder.prepare()
    assert folder.read(3) == GOOD


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    folder: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write(GOOD)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    before = open_fds()
    with pytest.raises(UblkdError, match="no space left on device") as caught:
        folder.write(dataclasses.replace(GOOD, pid=43))
    assert caught.value.hint
    assert folder.read(3) == GOOD
    assert entries(folder) == ["3.json", "3.udev"]
    assert open_fds() == before


def test_what_a_killed_process_of_our_number_has_left_is_no_hindrance(folder: StateDir) -> None:
    (folder.path / f".3.json.{os.getpid()}").write_text("half")
    folder.write(GOOD)
    assert folder.read(3) == GOOD
    assert entries(folder) == ["3.json", "3.udev"]


def test_a_write_that_is_only_tried_changes_nothing_and_fails_like_any_other(
    folder: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write(GOOD)
    folder.try_write(dataclasses.replace(GOOD, pid=43))
    assert folder.read(3) == GOOD
    assert entries(folder) == ["3.json", "3.udev"]
    monkeypatch.setattr(os, "fsync", lambda _: os.open(folder.path / "none", os.O_RDONLY))
    with pytest.raises(UblkdError, match="cannot write"):
        folder.try_write(GOOD)


def test_what_json_cannot_hold_leaves_nothing_behind(folder: StateDir) -> None:
    folder.write(GOOD)
    with pytest.raises((UblkdError, TypeError)):
        folder.write(dataclasses.replace(GOOD, describe={"backing": b"bytes"}))
    assert folder.read(3) == GOOD
    assert entries(folder) == ["3.json", "3.udev"]


def test_a_folder_that_is_gone_is_an_error_with_a_hint(folder: StateDir) -> None:
    folder.path.rmdir()
    with pytest.raises(UblkdError, match="cannot write") as caught:
        folder.write(GOOD)
    assert caught.value.hint


def test_ids_are_those_of_our_files_and_nothing_else(folder: StateDir) -> None:
    for name in ("0.json", "12.json", "12.stats", "7.stats", ".5.99", "x.json", "-1.json",
                 "1e3.json", "\u0663.json", "\u00b2.json", " 4.json", "notes"):  # fmt: skip
        (folder.path / name).write_text("")
    assert folder.ids() == [0, 7, 12]


def test_a_folder_that_is_missing_has_no_ids(tmp_path: Path) -> None:
    assert StateDir(tmp_path / "nowhere").ids() == []


def test_removing_forgets_both_files_and_is_no_error_twice(folder: StateDir) -> None:
    folder.write(GOOD)
    folder.counters(3).write_bytes(b"x")
    folder.write(dataclasses.replace(GOOD, id=4))
    folder.remove(3)
    folder.remove(3)
    assert entries(folder) == ["4.json", "4.udev"]


def test_the_lock_lets_one_thread_in_at_a_time(folder: StateDir) -> None:
    inside, together = [], []

    def visit() -> None:
        with folder.lock():
            inside.append(1)
            time.sleep(0.02)
            together.append(len(inside))
            inside.pop()

    threads = [threading.Thread(target=visit) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == [1] * 5


def test_the_lock_keeps_another_process_out_and_says_so_in_time(folder: StateDir) -> None:
    script = """
import sys
from pathlib import Path
from ublkd import state
from ublkd.errors import UblkdError
state.LOCK_SECONDS = 0.1
try:
    with state.StateDir(Path(sys.argv[1])).lock():
        print("in")
except UblkdError as error:
    print(error.message, "|", error.hint)
"""
    with folder.lock():
        out = python("-c", script, str(folder.path))
        assert "another ublkd has been adding or deleting for 0.1 seconds" in out.stdout
        assert "| look for" in out.stdout
    assert python("-c", script, str(folder.path)).stdout == "in\n"


def test_a_lock_for_which_there_is_no_descriptor_is_an_error_of_ours(
    folder: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UblkdError, match=r"cannot open .*: too many open files"), folder.lock():
        pytest.fail("it has none")


def test_the_lock_is_given_back_after_an_exception(
    folder: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "LOCK_SECONDS", 0.05)
    before = open_fds()
    with pytest.raises(ZeroDivisionError), folder.lock():
        raise ZeroDivisionError
    with folder.lock(), pytest.raises(UblkdError, match="another ublkd"), folder.lock():
        pass
    assert open_fds() == before


def test_who_changes_a_device_keeps_out_the_others_and_not_those_who_add(
    folder: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "CHANGE_SECONDS", 0.05)
    before = open_fds()
    with pytest.raises(UblkdError, match="cannot open") as caught, folder.changing(7):
        pass
    assert caught.value.hint
    folder.counters(7).touch()
    folder.counters(8).touch()
    refused = pytest.raises(UblkdError, match="changing device 7")
    with folder.changing(7), folder.changing(8), folder.lock(), refused, folder.changing(7):
        pass
    with folder.changing(7):
        pass
    assert open_fds() == before


def test_only_that_very_device_is_updated(folder: StateDir) -> None:
    made = DeviceState(id=7, cookie=1, pid=1, name="a", target="t", options={}, lease="copy")
    folder.write(made)
    named = folder.update(7, 1, lambda found: dataclasses.replace(found, name="b"))
    assert named == folder.read(7) == dataclasses.replace(made, name="b")
    for dev_id, cookie in ((7, 2), (8, 1)):
        assert folder.update(dev_id, cookie, lambda _: pytest.fail("it is another one")) is None


def test_a_cookie_is_ours_and_not_the_last_one() -> None:
    cookies = {new_cookie() for _ in range(50)}
    assert len(cookies) > 45
    assert all(is_ours(cookie) and cookie < 1 << 64 for cookie in cookies)


@pytest.mark.parametrize("cookie", [0, 1, 0xFFFFFFFF, (1 << 64) - 1, 0x75626B65 << 32])
def test_a_cookie_of_another_program_is_not_ours(cookie: int) -> None:
    assert not is_ours(cookie)
