"""Options of the kinds ``number``, ``seconds`` and ``wait``, and texts that are kept otherwise."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.helpers import any_texts, is_one_line, option
from ublkd.config import MAX_SECONDS, parse_options
from ublkd.errors import UsageError
from ublkd.plugin import wrong_options
from ublkd.target import Option


def parsed(known: Option, text: str) -> Any:
    return parse_options("x", {known.name: known}, {known.name: text})[known.key]


# --- numbers ----------------------------------------------------------------

CONNECTIONS = option("connections", "number", minimum=1, maximum=64, default=1)


@given(st.integers(1, 64))
def test_a_number_is_an_int(number: int) -> None:
    value = parsed(CONNECTIONS, str(number))
    assert type(value) is int
    assert value == number


@pytest.mark.parametrize("text", ["0", "65", "-1", "9999999999999999999"])
def test_a_number_out_of_range_is_refused_and_the_range_named(text: str) -> None:
    with pytest.raises(UsageError, match=f"--connections {text} is out of range") as caught:
        parsed(CONNECTIONS, text)
    assert caught.value.hint == "from 1 to 64"


@pytest.mark.parametrize("text", ["", "one", "1.5", "4K", "+1", " 1", "1\n", "0x1", "1_0", "\u0663",
                                  "9" * 20, "9" * 5000])  # fmt: skip
def test_what_is_no_whole_number_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a whole number") as caught:
        parsed(CONNECTIONS, text)
    assert is_one_line(caught.value.message)


def test_a_number_below_zero_may_be_in_the_range() -> None:
    assert parsed(option("level", "number", minimum=-5, maximum=5), "-5") == -5


# --- times ------------------------------------------------------------------

WAIT, SECONDS = option("window", "wait", default=30.0), option("timeout", "seconds", default=1.0)


@pytest.mark.parametrize("known", [WAIT, SECONDS])
@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1", 1.0), ("0.5", 0.5), ("30", 30.0), ("0.000000001", 1e-9), ("1000000000", MAX_SECONDS)],
)
def test_a_time_is_a_float_of_seconds(known: Option, text: str, seconds: float) -> None:
    value = parsed(known, text)
    assert type(value) is float
    assert value == seconds


@pytest.mark.parametrize("known", [WAIT, SECONDS])
@pytest.mark.parametrize("text", ["", "-1", "+1", "1s", "1e3", ".5", "5.", "nan", "Inf", "INF",
                                  "infinity", "inf ", "-inf", "1,5", "\u0663", "1\n", "9" * 11,
                                  "0.0000000001", "1000000001", "1000000000.5"])  # fmt: skip
def test_what_is_no_time_is_refused_in_one_line(known: Option, text: str) -> None:
    with pytest.raises(UsageError, match=f"--{known.name}") as caught:
        parsed(known, text)
    assert is_one_line(caught.value.message)
    assert caught.value.hint.startswith("seconds")
    assert ("inf for ever" in caught.value.hint) == (known is WAIT)


def test_a_wait_may_be_none_at_all() -> None:
    value = parsed(WAIT, "0")
    assert type(value) is float
    assert value == 0.0


def test_a_wait_may_be_for_ever_and_is_a_text_then() -> None:
    """JSON knows no infinity."""
    assert parsed(WAIT, "inf") == "inf"


@pytest.mark.parametrize("text", ["0", "0.0", "inf"])
def test_a_time_that_has_to_pass_is_more_than_nothing_and_less_than_ever(text: str) -> None:
    with pytest.raises(UsageError, match="--timeout"):
        parsed(SECONDS, text)


@given(any_texts)
def test_any_text_is_a_wait_or_refused(text: str) -> None:
    try:
        value = parsed(WAIT, text)
    except UsageError as error:
        assert is_one_line(error.message)
    else:
        assert value == "inf" or 0 <= value <= MAX_SECONDS


@pytest.mark.parametrize("known", [CONNECTIONS, WAIT, SECONDS])
def test_left_out_they_have_their_defaults(known: Option) -> None:
    assert parse_options("x", {known.name: known}, {}) == {known.key: known.default}


# --- kept -------------------------------------------------------------------


def test_a_text_is_kept_as_its_option_says() -> None:
    assert parsed(option("label", kept=str.upper), "abc") == "ABC"


def test_what_kept_refuses_is_refused() -> None:
    def refuse(text: str) -> str:
        raise UsageError(f"{text} is no label")

    with pytest.raises(UsageError, match=r"^abc is no label$"):
        parsed(option("label", kept=refuse), "abc")


def test_a_text_that_is_not_given_is_not_kept() -> None:
    known = option("label", kept=str.upper, default="abc")
    assert parse_options("x", {"label": known}, {}) == {"label": "abc"}
    assert parse_options("x", {"label": known}, {"label": None}) == {"label": "abc"}


def test_each_of_several_texts_is_kept() -> None:
    known = option("label", kept=str.upper, multiple=True)
    assert parse_options("x", {"label": known}, {"label": ("a", "b")}) == {"label": ("A", "B")}


def test_how_often_an_option_is_given_has_its_bounds() -> None:
    def given_times(times: int, **bounds: int) -> Any:
        known = option("label", multiple=True, **bounds)
        return parse_options("x", {"label": known}, {"label": ("a",) * times})["label"]

    assert given_times(2, minimum=2, maximum=3) == ("a", "a")
    assert given_times(1000) == ("a",) * 1000
    assert given_times(0, minimum=2) is None  # it is not needed
    with pytest.raises(UsageError, match="target x takes --label 2 to 3 times, not 4"):
        given_times(4, minimum=2, maximum=3)
    with pytest.raises(UsageError, match="target x takes --label at least 2 times, not 1"):
        given_times(1, minimum=2)


# --- as a plug-in may have them ---------------------------------------------


@pytest.mark.parametrize(
    ("known", "says"),
    [
        (option("a", kept=str.upper), ""),
        (option("a", "number", minimum=1, maximum=2, default=1), ""),
        (option("a", "wait", default=0.0), ""),
        (option("a", kept="upper"), "has something in kept that cannot be"),
        (option("a", "path", kept=str.upper), "has something in kept that cannot be"),
        (option("a", "number", default=1.0), "has a default that is not int"),
        (option("a", "number", default=True), "has a default that is not int"),
        (option("a", "number", minimum="1"), "has a bound that is not a number"),
        (option("a", "wait", default=30), "has a default that is not float"),
        (option("a", "wait", default="inf"), "has a default that is not float"),
        (option("a", "wait", multiple=True), "is of kind wait and cannot be given many times"),
        (option("a", "number", multiple=True), "is of kind number and cannot be given many times"),
    ],
)
def test_they_can_be_or_what_is_wrong_is_told(known: Option, says: str) -> None:
    assert says in wrong_options((known,))
    assert bool(says) == bool(wrong_options((known,)))
