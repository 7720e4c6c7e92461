"""The options of a target: text on the command line, values in the config."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given

from tests.unit.helpers import is_one_line, option, path_texts
from ublkd.config import build, parse_options
from ublkd.errors import UsageError

KNOWN = {
    o.name: o
    for o in (
        option("file", "path"),
        option("direct-io", "choice", choices=("auto", "on", "off"), default="auto"),
        option("size", "size", minimum=4096, maximum=1 << 40, multiple_of=512),
        option("block-size", "size", minimum=512, maximum=4096, power_of_two=True),
        option("read-only", "flag", default=False),
        option("label"),
    )
}


def test_an_unknown_option_is_refused_and_the_known_are_named() -> None:
    with pytest.raises(UsageError, match="target x has no option --colour") as caught:
        parse_options("x", KNOWN, {"colour": "red"})
    assert all(f"--{name}" in caught.value.hint for name in KNOWN)


def test_where_there_are_no_options_the_hint_says_none() -> None:
    with pytest.raises(UsageError) as caught:
        parse_options("x", {}, {"colour\n": "red"})
    assert "none" in caught.value.hint
    assert is_one_line(caught.value.message)


@pytest.mark.parametrize("given_options", [{}, {"file": None}])
def test_a_missing_option_is_named_with_its_help(given_options: dict[str, str | None]) -> None:
    known = {"file": option("file", "path", required=True)}
    with pytest.raises(UsageError, match="target x needs --file") as caught:
        parse_options("x", known, given_options)
    assert caught.value.hint == "the help of file"


def test_options_left_out_get_their_defaults_by_key() -> None:
    assert parse_options("x", KNOWN, {}) == {
        "file": None,
        "direct_io": "auto",
        "size": None,
        "block_size": None,
        "read_only": False,
        "label": None,
    }


@pytest.mark.parametrize("text", ["", "AUTO", "yes", "on\n", "\udcff"])
def test_a_wrong_choice_is_refused_and_the_choices_named(text: str) -> None:
    with pytest.raises(UsageError, match="--direct-io") as caught:
        parse_options("x", KNOWN, {"direct-io": text})
    assert "auto, on, off" in caught.value.hint
    assert is_one_line(caught.value.message)


def test_flags_texts_and_choices_are_taken_as_they_are() -> None:
    parsed = parse_options("x", KNOWN, {"read-only": True, "label": "a b\nc", "direct-io": "off"})
    assert (parsed["read_only"], parsed["label"], parsed["direct_io"]) == (True, "a b\nc", "off")


@pytest.mark.parametrize(
    ("text", "word"),
    [("256", "from 512 to 4K"), ("8K", "from 512 to 4K"), ("1000", "power of two"), ("x", "512")],
)
def test_a_block_size_is_a_power_of_two_in_its_range(text: str, word: str) -> None:
    with pytest.raises(UsageError, match="--block-size") as caught:
        parse_options("x", KNOWN, {"block-size": text})
    assert word in caught.value.hint


@pytest.mark.parametrize("text", ["512", "1K", "2048", "4KiB"])
def test_every_power_of_two_of_the_range_is_a_block_size(text: str) -> None:
    size = parse_options("x", KNOWN, {"block-size": text})["block_size"]
    assert size in (512, 1024, 2048, 4096)


@pytest.mark.parametrize("text", ["0", "4095", "5000", "2T", "-1", ""])
def test_a_size_out_of_range_or_between_its_multiples_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--size") as caught:
        parse_options("x", KNOWN, {"size": text})
    assert "from 4K to 1T, a multiple of 512" in caught.value.hint


def test_an_empty_path_is_refused() -> None:
    with pytest.raises(UsageError, match="--file is empty"):
        parse_options("x", KNOWN, {"file": ""})


def test_a_relative_path_becomes_absolute_and_keeps_its_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    monkeypatch.chdir(tmp_path)
    assert build("loop", {"file": "link/disk"}).options["file"] == f"{tmp_path}/link/disk"
    # what link/.. means is the kernel's business: it is not tmp_path wherever link leads
    assert build("loop", {"file": "link/../d"}).options["file"] == f"{tmp_path}/link/../d"


def test_an_absolute_path_needs_no_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert build("loop", {"file": "/disk.img"}).options["file"] == "/disk.img"


def test_a_relative_path_without_a_working_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(UsageError, match="--file"):
        build("loop", {"file": "disk.img"})


@pytest.mark.parametrize("name", [b"disk\xff.img", b"a\nb", b" ", b"\xed\xa0\x80", b"-"])
def test_a_path_of_any_bytes_keeps_them(name: bytes) -> None:
    path = build("loop", {"file": os.fsdecode(b"/srv/" + name)}).options["file"]
    assert isinstance(path, str)
    assert os.fsencode(path) == b"/srv/" + name


@given(path_texts.filter(lambda text: text and "\0" not in text))
def test_every_path_becomes_absolute(text: str) -> None:
    path = parse_options("x", KNOWN, {"file": text})["file"]
    assert isinstance(path, str)
    assert Path(path).is_absolute()
