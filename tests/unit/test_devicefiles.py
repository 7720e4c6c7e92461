"""Devices' files: what becomes a device, and what is wrong with the others."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.helpers import is_one_line, ublkd
from ublkd import devicefiles
from ublkd.config import build
from ublkd.devicefiles import FileError, read, read_all
from ublkd.errors import UblkdError
from ublkd.features import Lease, Recovery

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="gives files away: only root can")


def put(folder: Path, text: str, name: str = "disk") -> Path:
    folder.chmod(0o755)
    path = folder / f"{name}.toml"
    path.write_text(text)
    return path


def wrong(folder: Path, text: str, name: str = "disk") -> FileError:
    """What is said of a file with that text."""
    path = put(folder, text, name)
    with pytest.raises(FileError) as caught:
        read(folder, name)
    assert caught.value.message.startswith(str(path))
    assert is_one_line(caught.value.message)
    assert is_one_line(caught.value.hint)
    assert caught.value.name == name
    return caught.value


WHOLE = """
# every general option, and some of the target's
target = "loop"
file = "/srv/disk.img"
id = 7
queues = "2"
depth = 64
max-io = "64K"
lease = "copy"
recovery = "fail"
no-partscan = true
offset = 4096
read-only = true
direct-io = "on"
"""


def test_a_file_says_what_the_command_line_would(tmp_path: Path) -> None:
    path = put(tmp_path, WHOLE, "db-1")
    made = read(tmp_path, "db-1").config
    asked = build(
        "loop",
        {"file": "/srv/disk.img", "offset": "4K", "read-only": True, "direct-io": "on"},
        name="db-1", id="7", queues="2", depth="64", max_io="64K", lease="copy",
        recovery="fail", no_partscan=True,
    )  # fmt: skip
    assert (made.options, made.paths, made.asked) == (asked.options, asked.paths, asked.asked)
    assert (made.name, made.id, made.queues, made.max_io) == ("db-1", 7, 2, 65536)
    assert (made.lease, made.recovery, made.partscan) == (Lease.COPY, Recovery.FAIL, False)
    assert made.origin == str(path)


def test_what_is_asked_for_and_is_the_default_anyway_is_not_remembered_as_asked(
    tmp_path: Path,
) -> None:
    put(tmp_path, 'target = "null"\ndepth = 128\nqueues = 1\nno-partscan = false\n')
    assert read(tmp_path, "disk").config.asked == {}


@pytest.mark.parametrize(
    ("text", "seconds"), [("30", 30.0), ("0.25", 0.25), ('"inf"', "inf"), ("inf", "inf"), ("0", 0)]
)
def test_seconds_may_be_any_number(tmp_path: Path, text: str, seconds: object) -> None:
    put(tmp_path, f'target = "nbd"\nuri = "nbd://h/x"\nreconnect-window = {text}\n')
    assert read(tmp_path, "disk").config.options["reconnect_window"] == seconds


def test_many_files_are_a_list_and_one_that_stands_alone_is_one(tmp_path: Path) -> None:
    put(tmp_path, 'target = "stripe"\nfile = ["/a", "/b"]\nchunk = 65536\n')
    assert read(tmp_path, "disk").config.paths == ("/a", "/b")
    put(tmp_path, 'target = "stripe"\nfile = "/a"\n')
    with pytest.raises(FileError, match="takes file 2 to 64 times, not 1"):
        read(tmp_path, "disk")


def test_a_target_over_another_has_the_options_of_both(tmp_path: Path) -> None:
    put(tmp_path, 'target = "faulty"\nover = "loop"\nfile = "/a"\nshort = "0.5"\n')
    assert read(tmp_path, "disk").config.paths == ("/a",)


WRONG = [
    ("target = ", ":1: is not TOML", ""),
    ('target = "null"\nsize = 1\nsize = 2\n', ":3: is not TOML", ""),
    ('target = "null"\nx = [', ":2: is not TOML", ""),
    ("size = 1 = 2\n", ":1: is not TOML", ""),
    ('target = "null"\nsize = ' + "9" * 5000, ": has a number of more than 64 bits", ""),
    ('target = "null"\nx = ' + "[" * 5000, "too many brackets", ""),
    ("", ": has no target", 'target = "loop"'),
    ("target = 1", ": target is a whole number, not a text", ""),
    ('target = "loup"', ": unknown target 'loup'", "loop"),
    ('target = "null"\nsizes = 1', ": unknown key 'sizes'", "did you mean 'size'?"),
    ('target = "null"\nmax_io = 1', ": unknown key 'max_io'", "did you mean 'max-io'?"),
    ('target = "null"\nzzz = 1', ": unknown key 'zzz'", "the keys are: target, size"),
    ('target = "null"\n"a\\nb" = 1', r": unknown key 'a\nb'", ""),
    ('target = "null"\nname = "x"', ": has a key 'name'", "like its file"),
    ('target = "null"\n[more]\nsize = 1', ": unknown key 'more'", ""),
    ('target = "null"\nsize.more = 1', ": size is a table", ""),
    ('target = "null"\nmode = 0o640', ": mode is a whole number, not a text", 'mode = "0640"'),
    ('target = "null"\nmode = 640', ": mode is a whole number, not a text", 'mode = "0640"'),
    ('target = "null"\nsize = true', ": size is a boolean, not a text or a whole number", ""),
    ('target = "null"\nsize = 1.5', ": size is a number with a fraction", ""),
    ('target = "null"\nsize = 1979-05-27', ": size is a date or time", ""),
    ('target = "null"\nsize = [1]', ": size is a list", ""),
    ('target = "mirror"\nfile = ["/a"]', ": target mirror takes file 2 to 8 times, not 1", "once"),
    ('target = "null"\nqueues = 0', ": queues 0 is out of range", "from 1 to 4096"),
    ('target = "null"\nqueues = -1', ": queues -1 is out of range", "from 1 to 4096"),
    ('target = "null"\nlease = "best"', ": lease 'best' is none of its choices", "one of"),
    ('target = "null"\nno-partscan = "yes"', ": no-partscan is a text, not a boolean", "true"),
    ('target = "null"\nqueues = 0x' + "f" * 4000, ": queues is a number of more than 64", "thread"),
    ('target = "null"\nid = -1' + "0" * 20, ": id is a number of more than 64 bits", ""),
    ('target = "null"\nsize = 0x' + "f" * 16, ": size '18446744073709551615' is not", ""),
    ('target = "stripe"\nfile = [0x' + "f" * 4000 + "]", ": file is a whole number", ""),
    ('target = "loop"\nfile = 1', ": file is a whole number, not a text", ""),
    ('target = "loop"', ": target loop needs file", ""),
    ('target = "loop"\nfile = ""', ": file is empty", ""),
    ('target = "loop"\nfile = "a"', ": file 'a' is not an absolute path", "no folder"),
    ('target = "stripe"\nfile = ["/a", "b"]', ": file 'b' is not an absolute path", ""),
    ('target = "stripe"\nfile = ["/a", 1]', ": file is a whole number, not a text", ""),
    ('target = "nbd"\nuri = "nbd://h"\nopen-timeout = nan', ": open-timeout 'nan' is not", ""),
    ('target = "nbd"\nuri = "nbd://h"\nopen-timeout = -1', ": open-timeout '-1' is not", ""),
]


@pytest.mark.parametrize(("text", "said", "hint"), WRONG, ids=[said for _, said, _ in WRONG])
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, text: str, said: str, hint: str) -> None:
    found = wrong(tmp_path, text)
    assert said in found.message
    assert hint in found.hint
    assert found.exit_code == 2


@pytest.mark.parametrize(
    "text",
    ['target = "loop"\nfile = "nbd://u:SECRET@h/x"', 'target = "null"\n"nbd://u:SECRET@h/x" = 1',
     'target = "nbd://u:SECRET@h/x"', 'target = "nbd"\nuri = "nbd://u:SECRET@h/x"',
     'target = "null"\nlease = "nbd://u:SECRET@h/x"',
     'target = "null"\nx = { "nbd://u:SECRET@h/x" = 1, "nbd://u:SECRET@h/x" = 2 }'],
)  # fmt: skip
def test_a_password_is_not_shown_wherever_it_was_put(tmp_path: Path, text: str) -> None:
    found = wrong(tmp_path, text)
    assert "SECRET" not in found.message + found.hint


def test_the_hint_names_the_page_with_an_example(tmp_path: Path) -> None:
    assert wrong(tmp_path, "target = ").hint == "see ublkd.toml(5) for an example"


@pytest.mark.parametrize("name", ["1disk", "a b", "ublkb0", "ü", "x" * 64])
def test_a_name_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    assert "its name cannot be a device's" in wrong(tmp_path, 'target = "null"', name).message


def test_a_file_with_a_number_that_python_cannot_print_is_no_matter_to_the_others(
    tmp_path: Path,
) -> None:
    put(tmp_path, 'target = "null"', "good")
    put(tmp_path, 'target = "null"\nqueues = 0x' + "f" * 4000, "bad")
    files, bad = read_all(tmp_path)
    assert [file.name for file in files] == ["good"]
    assert [error.name for error in bad] == ["bad"]


def test_other_files_in_the_folder_are_nobodys_business(tmp_path: Path) -> None:
    put(tmp_path, 'target = "null"', "good")
    for name in (".hidden.toml", "good.toml~", "good.toml.dpkg-new", "README", ".toml"):
        (tmp_path / name).write_text("?")
    files, bad = read_all(tmp_path)
    assert [file.name for file in files] == ["good"]
    assert not bad


def test_a_file_that_is_not_text_or_too_long_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path, "")
    path.write_bytes(b'target = "null"\n# \xff\n')
    with pytest.raises(FileError, match=r"disk.toml:2: is not UTF-8"):
        read(tmp_path, "disk")
    path.write_bytes(b"#" * (devicefiles.MAX_BYTES + 1))
    with pytest.raises(FileError, match="has more than 65536 bytes"):
        read(tmp_path, "disk")
    path.write_bytes(b'target = "null"\n' + b"#" * (devicefiles.MAX_BYTES - 16))
    assert read(tmp_path, "disk").config.target == "null"


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    path = put(tmp_path, "")
    path.unlink()
    with pytest.raises(FileError, match="no such file"):
        read(tmp_path, "disk")
    os.mkfifo(path)
    with pytest.raises(FileError, match="is not a regular file"):
        read(tmp_path, "disk")
    path.unlink()
    path.mkdir()
    with pytest.raises(FileError, match="is not a regular file"):
        read(tmp_path, "disk")
    path.rmdir()
    path.symlink_to(path)
    with pytest.raises(FileError, match="too many levels"):
        read(tmp_path, "disk")


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_file_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    put(tmp_path, 'target = "null"').chmod(mode)
    with pytest.raises(FileError, match="can be written by others") as caught:
        read(tmp_path, "disk")
    assert "chmod go-w" in caught.value.hint


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777])
def test_a_folder_that_others_can_write_is_refused_whole(tmp_path: Path, mode: int) -> None:
    put(tmp_path, 'target = "null"')
    tmp_path.chmod(mode)
    for attempt in (lambda: read(tmp_path, "disk"), lambda: read_all(tmp_path)):
        with pytest.raises(UblkdError, match="nothing in it can be trusted"):
            attempt()


@ROOT_ONLY
def test_what_belongs_to_another_user_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path, 'target = "null"')
    os.chown(path, 1234, 0)
    with pytest.raises(FileError, match="belongs to user 1234"):
        read(tmp_path, "disk")
    os.chown(tmp_path, 1234, 0)
    with pytest.raises(UblkdError, match="belongs to user 1234: nothing in it"):
        read(tmp_path, "disk")


def test_a_link_is_judged_by_what_it_leads_to(tmp_path: Path) -> None:
    folder, away = tmp_path / "etc", tmp_path / "away"
    for made in (folder, away):
        made.mkdir(mode=0o755)
    real = put(away, 'target = "null"', "real")
    (folder / "disk.toml").symlink_to(real)
    assert read(folder, "disk").name == "disk"
    assert read(folder, "disk").config.origin == str(folder / "disk.toml")
    away.chmod(0o777)
    with pytest.raises(FileError, match=f"disk.toml: {away} can be written by others"):
        read(folder, "disk")
    away.chmod(0o755)
    real.chmod(0o666)
    with pytest.raises(FileError, match=f"disk.toml: {real} can be written by others"):
        read(folder, "disk")


def test_a_folder_that_is_not_there_or_none_is_said(tmp_path: Path) -> None:
    for path in (tmp_path / "none", put(tmp_path, "")):
        with pytest.raises(UblkdError) as caught:
            read_all(path)
        assert is_one_line(caught.value.message)
        assert "NAME.toml" in caught.value.hint


values = st.recursive(
    st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
some_keys = st.sampled_from(["target", "file", "size", "queues", "id", "share", "uri", "over",
                             "reconnect-window", "direct-io"]) | st.text(max_size=8)  # fmt: skip


@given(st.sampled_from(["loop", "mirror", "nbd", "null", "faulty"]),
       st.dictionaries(some_keys, values, max_size=4))  # fmt: skip
def test_whatever_the_keys_are_it_is_a_device_or_one_line(
    target: str, keys: dict[str, Any]
) -> None:
    path = Path("/etc/ublkd/disk.toml")
    try:
        made = devicefiles._config(path, "disk", {"target": target} | keys)
    except FileError as error:
        assert is_one_line(error.message) or "\\" in error.message
        assert error.message.startswith(f"{path}: ")
    else:
        assert made.name == "disk"
        json.dumps([dict(made.options), dict(made.asked)])


# --- the verb -------------------------------------------------------------------------------


def test_config_check_tells_of_all_or_of_those_that_are_named(tmp_path: Path) -> None:
    put(tmp_path, 'target = "null"', "good")
    put(tmp_path, 'target = "null"\nsizes = 1', "bad")
    ran = ublkd("config", "check", "--config", tmp_path.name, cwd=tmp_path.parent)
    assert (ran.returncode, ran.stderr) == (1, "")
    assert ran.stdout == (
        f"ok       {tmp_path}/good.toml\n"
        f"wrong    {tmp_path}/bad.toml: unknown key 'sizes'\n"
        "         hint: did you mean 'size'?\n"
    )
    ran = ublkd("config", "check", "good", "--config", str(tmp_path))
    assert (ran.returncode, ran.stdout) == (0, f"ok       {tmp_path}/good.toml\n")
    ran = ublkd("config", "check", "--json", "--config", str(tmp_path))
    assert ran.returncode == 1
    told = json.loads(ran.stdout)
    assert told["sound"] == [f"{tmp_path}/good.toml"]
    (problem,) = told["problems"]
    assert (problem["name"], problem["file"]) == ("bad", f"{tmp_path}/bad.toml")


def test_config_check_of_a_name_without_a_file_is_a_failure(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    ran = ublkd("config", "check", "none", "--config", str(tmp_path))
    assert (ran.returncode, ran.stdout) == (1, "")
    assert f"there is no file {tmp_path}/none.toml" in ran.stderr
