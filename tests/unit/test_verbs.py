"""Verbs that a target brings: how they are found, called and printed."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest

from tests.unit.helpers import assert_one_line_and_hint, is_one_line, option
from ublkd import cli, registry
from ublkd.cli.common import cli as root
from ublkd.errors import UblkdError
from ublkd.target import Option, OptionValue, Verb

PLACE = Option(name="place", help="where it is", required=True)
WAIT = Option(name="wait", help="how long", kind="seconds", default=2.5)
FAST = option("fast", "flag")


def told(values: Mapping[str, OptionValue]) -> Mapping[str, Any]:
    return {"was": dict(values)}


def rows(values: Mapping[str, OptionValue]) -> Sequence[Mapping[str, Any]]:
    return [{"a": "one\ntwo", "b": 2, "c": 3}, {"a": "", "b": "x", "c": 3}]


LOOK = Verb(name="look", help="Look.", argument=PLACE, options=(WAIT, FAST), run=told)
ROWS = Verb(name="rows", help="Rows.", argument=PLACE, run=rows, columns=("a", "b"))

LONG = Verb(
    name="long", help="Long.", argument=PLACE, run=lambda _: [{"a": "x" * 300}], columns=("a",)
)


@pytest.fixture
def plug_in(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module whose attribute ``VERBS`` is what the target ``odd`` brings."""
    module = types.ModuleType("plug_in")
    module.VERBS = (LOOK, ROWS, LONG)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "plug_in", module)
    points = EntryPoints(
        [
            EntryPoint("odd", "plug_in:VERBS", registry.VERBS),
            EntryPoint("list", "plug_in:VERBS", registry.VERBS),
        ]
    )
    monkeypatch.setattr(registry, "points", lambda group: points.select(group=group))
    return module


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["ublkd", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    code = ended.value.code
    assert isinstance(code, int)
    return code


def test_a_verb_gets_its_words_parsed_and_its_answer_is_printed(
    plug_in: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "odd", "look", "here", "--json", "--wait", "0.5", "--fast") == 0
    assert json.loads(capsys.readouterr().out) == {
        "was": {"place": "here", "wait": 0.5, "fast": True}
    }
    assert run(monkeypatch, "odd", "look", "here") == 0
    assert capsys.readouterr().out == "was:\n  place: here\n  wait: 2.5\n  fast: -\n"


def test_rows_become_a_table_of_their_columns_and_json_has_all(
    plug_in: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "odd", "rows", "here") == 0
    assert capsys.readouterr().out == "A         B\none\\ntwo  2\n-         x\n"
    assert run(monkeypatch, "odd", "long", "here") == 0
    assert capsys.readouterr().out == f"A\n{'x' * 253}...\n"
    assert run(monkeypatch, "odd", "rows", "here", "--json") == 0
    assert json.loads(capsys.readouterr().out) == rows({})


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["odd"], ""),
        (["odd", "luck", "x"], "luck"),
        (["odd", "look"], "PLACE"),
        (["odd", "look", "a", "b"], "argument"),
        (["odd", "look", "a", "--wait", "0"], "--wait"),
        (["odd", "look", "a", "--wait", "1e3"], "--wait"),
        (["odd", "look", "a", "--wait", "inf"], "--wait"),
        (["odd", "look", "a", "--colour"], "--colour"),
        (["even", "look", "a"], "even"),
    ],
)
def test_wrong_words_are_usage_errors(
    plug_in: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    words: list[str], named: str,
) -> None:  # fmt: skip
    assert run(monkeypatch, *words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert named in captured.err


def test_help_lists_the_verbs_of_a_target(
    plug_in: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "odd", "--help") == 0
    assert "\n  look  Look." in capsys.readouterr().out
    assert run(monkeypatch, "odd", "look", "--help") == 0
    assert "--wait SECONDS" in capsys.readouterr().out


def test_no_target_takes_a_verb_of_ublkd_over(plug_in: Any) -> None:
    import click

    found = root.get_command(click.Context(root), "list")
    assert found is root.commands["list"]


def test_what_stands_before_the_at_of_a_stray_uri_is_not_repeated(
    plug_in: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (
        ["look", "x", "a://u:secret@h"],
        ["look", "x", "--p://u:se@cret@h"],
        ["b://secret@h"],
    ):
        assert run(monkeypatch, "odd", *words) == 2
        assert "cret" not in capsys.readouterr().err


def test_nobody_s_verbs_are_none(plug_in: Any) -> None:
    assert registry.verbs("even") is None


@pytest.mark.parametrize(
    "brought",
    [None, 7, "text", [LOOK, 7], LOOK, [Verb(name="x", help="", argument=option("X"), run=told)]],
)
def test_what_is_no_sequence_of_verbs_is_refused(plug_in: Any, brought: Any) -> None:
    plug_in.VERBS = brought
    with pytest.raises(UblkdError, match="'odd'") as caught:
        registry.verbs("odd")
    assert is_one_line(caught.value.message)
    assert "defect of" in caught.value.hint


def test_verbs_that_do_not_load_are_their_plug_in_s_fault(plug_in: Any) -> None:
    del plug_in.VERBS
    with pytest.raises(UblkdError, match="does not load: AttributeError") as caught:
        registry.verbs("odd")
    assert "plug-in" in caught.value.hint


@pytest.mark.parametrize("raised", [ValueError("two\nlines"), SystemExit(0), OSError(5, "no")])
def test_what_a_verb_raises_is_its_plug_in_s_fault_in_one_line(
    plug_in: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    raised: BaseException,
) -> None:  # fmt: skip
    def run_it(_: object) -> Mapping[str, Any]:
        raise raised

    plug_in.VERBS = (dataclasses.replace(LOOK, run=run_it),)
    assert run(monkeypatch, "odd", "look", "here") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert_one_line_and_hint(captured.err)
    assert "failed in its verb look" in captured.err
