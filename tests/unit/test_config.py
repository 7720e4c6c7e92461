from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.helpers import any_texts, is_one_line
from ublkd import config
from ublkd.config import DeviceConfig, build, format_size, parse_name, parse_size
from ublkd.errors import UsageError
from ublkd.features import Lease
from ublkd.uapi import MAX_DEPTH, MAX_IO_BYTES, MAX_QUEUES

SIZES = [
    ("0", 0),
    ("512", 512),
    ("4k", 4096),
    ("4K", 4096),
    ("4KiB", 4096),
    ("4kb", 4096),
    ("7B", 7),
    (" 1M ", 1 << 20),
    ("250G", 250 << 30),
    ("2T", 2 << 40),
    ("3P", 3 << 50),
    ("0004", 4),
]
NOT_SIZES = ["", "K", "-1", "+1", "1.5G", "0x10", "1 K", "1Z", "4KK", "1_000", "\u0663", "\uff11",
             "1\n2", "9" * 20, "4\u0131B", "4\u212a", "\udc80"]  # fmt: skip


@pytest.mark.parametrize(("text", "size"), SIZES)
def test_a_size_is_a_whole_number_with_a_suffix(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", NOT_SIZES)
def test_what_is_not_a_size_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size") as caught:
        parse_size(text)
    assert is_one_line(str(caught.value))


@given(st.integers(0, (1 << 63) - 1))
def test_a_size_is_read_back_as_it_is_shown(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(any_texts)
def test_parse_size_gives_a_number_or_a_value_error(text: str) -> None:
    try:
        assert parse_size(text) >= 0
    except ValueError as error:
        assert is_one_line(str(error))


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0"), (512, "512"), (1024, "1K"), (1536, "1536"), (1 << 20, "1M"), (1000001, "1000001")],
)
def test_a_size_is_shown_as_short_as_it_can_be_exactly(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize("name", ["a", "_", "db-1", "My_Disk.v2", "x" * 63, "ublk", "ublkd0"])
def test_a_name_may_be_letters_digits_and_three_marks(name: str) -> None:
    assert parse_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "1disk", "-x", ".x", "..", "a/b", "a b", "a\n", "\na", "ü", "x" * 64, "\udc80", "a\0"],
)
def test_any_other_name_is_refused_with_the_rule(name: str) -> None:
    with pytest.raises(UsageError, match="--name") as caught:
        parse_name(name)
    assert is_one_line(caught.value.message)
    assert "63" in caught.value.hint


@pytest.mark.parametrize("name", ["ublkb0", "ublkc0", "ublkb1048575"])
def test_a_name_that_means_another_device_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="--name"):
        parse_name(name)


@given(any_texts)
def test_parse_name_gives_a_safe_name_or_a_usage_error(name: str) -> None:
    try:
        assert parse_name(name).isascii()
        assert "/" not in name
    except UsageError as error:
        assert is_one_line(error.message)


RANGES = [
    ("id", 0, (1 << 20) - 1, ("0", "1048575")),
    ("queues", 1, MAX_QUEUES, ("1", str(MAX_QUEUES))),
    ("depth", 1, MAX_DEPTH, ("1", str(MAX_DEPTH))),
    ("max_io", 4096, MAX_IO_BYTES, ("4K", format_size(MAX_IO_BYTES))),
]


def words(name: str, text: str) -> dict[str, Any]:
    return {name: text}


@pytest.mark.parametrize(("name", "low", "high", "shown"), RANGES)
def test_a_number_is_taken_from_the_whole_of_its_range(
    name: str, low: int, high: int, shown: tuple[str, str]
) -> None:
    for value in (low, high):
        assert getattr(build("null", {}, **words(name, str(value))), name) == value


@pytest.mark.parametrize(("name", "low", "high", "shown"), RANGES)
def test_a_number_out_of_its_range_is_refused_and_the_range_named(
    name: str, low: int, high: int, shown: tuple[str, str]
) -> None:
    wrong = [str(low - 1), str(high + 1), "", "x", "1.5", "\u0663", "9" * 30, "-", "\udc80"]
    for text in wrong:
        with pytest.raises(UsageError) as caught:
            build("null", {}, **words(name, text))
        assert f"--{name.replace('_', '-')}" in caught.value.message
        assert is_one_line(caught.value.message)
        assert all(end in caught.value.hint for end in shown)


def test_the_largest_request_is_whole_pages() -> None:
    assert build("null", {}, max_io="12K").max_io == 12288
    with pytest.raises(UsageError) as caught:
        build("null", {}, max_io="5000")
    assert "multiple of 4096" in caught.value.hint


def test_a_lease_is_chosen_by_its_word() -> None:
    assert build("null", {}).lease is None
    assert build("null", {}, lease="copy").lease is Lease.COPY
    with pytest.raises(UsageError, match="--lease") as caught:
        build("null", {}, lease="AUTO")
    assert "auto" in caught.value.hint
    assert "copy" in caught.value.hint


def test_what_is_left_out_gets_its_default() -> None:
    made = build("null", {"size": None, "block-size": None})
    assert (made.queues, made.depth, made.max_io) == (1, 128, 512 << 10)
    assert (made.name, made.id) == (None, None)
    assert made.options == {"size": 250 << 30, "block_size": None}


def test_the_paths_among_the_options_are_known() -> None:
    assert build("loop", {"file": "/a"}).paths == ("/a",)
    assert build("mirror", {"file": ("/a", "/b")}).paths == ("/a", "/b")
    assert build("faulty", {"over": "loop", "file": "/a"}).paths == ("/a",)
    assert build("null", {}).paths == ()


def test_the_defaults_are_inside_their_own_ranges() -> None:
    default = DeviceConfig(target="null", options={})
    told = {"queues": default.queues, "depth": default.depth, "max_io": default.max_io}
    words = {name: str(value) for name, value in told.items()}
    made = build("null", {}, queues=words["queues"], depth=words["depth"], max_io=words["max_io"])
    assert (made.queues, made.depth, made.max_io) == tuple(told.values())


def test_a_config_does_not_change_once_it_is_made() -> None:
    made = build("null", {})
    for item in dataclasses.fields(DeviceConfig):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(made, item.name, None)


def test_a_good_name_arrives_in_the_config() -> None:
    assert build("null", {}, name="db-1").name == "db-1"
    assert config.MAX_ID == (1 << 20) - 1


def test_a_general_option_is_one_entry_and_a_field_of_the_device() -> None:
    fields = {f.name for f in dataclasses.fields(DeviceConfig)}
    names = [entry.option.name for entry in config.GENERAL]
    assert len(set(names)) == len(names)
    for entry in config.GENERAL:
        assert entry.attribute in fields
        assert entry.option.help.endswith(".")
