from __future__ import annotations

import ast
import errno
from pathlib import Path

import pytest
from hypothesis import example, given

from tests.unit.helpers import ROOT, any_texts, is_one_line, path_texts
from ublkd.errors import (
    BY_EXIT_CODE,
    NotPossibleError,
    UblkdError,
    UsageError,
    printable,
    quoted,
    reason,
    redacted,
    valid_text,
)


@given(path_texts)
def test_any_path_is_printed_as_one_line(text: str) -> None:
    assert is_one_line(printable(text))


@given(any_texts)
@example("\ud800")
@example("\udc80\udbff")
@example("a\u2028b\x85c\x1b[2J")
def test_any_text_is_printed_as_one_line(text: str) -> None:
    assert is_one_line(printable(text))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb", r"'a\nb'"),
        ("\udcff", r"'\xff'"),
        ("it's", '"it\'s"'),
        ("", "''"),
        ("a\\b", r"'a\b'"),
    ],
)
def test_what_is_quoted_is_escaped_once(text: str, shown: str) -> None:
    assert quoted(text) == shown


@given(any_texts)
@example("\ud800")
def test_any_text_is_made_valid(text: str) -> None:
    assert valid_text(text).encode().decode() == valid_text(text)


@given(path_texts)
def test_valid_text_keeps_what_was_valid(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        assert "\\x" in valid_text(text)
    else:
        assert valid_text(text) == text


def test_printable_escapes_what_a_terminal_would_obey() -> None:
    assert printable("disk image.img") == "disk image.img"
    assert printable("grün") == "grün"
    assert printable("a\nb\tc\x1b[1m") == r"a\nb\tc\x1b[1m"
    assert printable("\udcff.img") == r"\xff.img"


def test_a_reason_is_words_without_a_number() -> None:
    assert reason(errno.ENOSPC) == "no space left on device"
    assert reason(-errno.ENOSPC) == "no space left on device"
    assert reason(OSError(errno.EACCES, "whatever", "file")) == "permission denied"


def test_an_error_without_a_number_keeps_its_own_words() -> None:
    assert reason(OSError("Nothing there")) == "nothing there"
    assert reason(OSError()) == ""


@pytest.mark.parametrize(("cls", "code"), [(UblkdError, 1), (UsageError, 2), (NotPossibleError, 3)])
def test_every_kind_of_failure_has_its_exit_code(cls: type[UblkdError], code: int) -> None:
    error = cls("it failed", hint="try again")
    assert error.exit_code == code
    assert BY_EXIT_CODE[code] is cls
    assert (error.message, error.hint, str(error)) == ("it failed", "try again", "it failed")


@given(any_texts, any_texts)
def test_nothing_before_the_at_of_a_uri_is_shown(user: str, password: str) -> None:
    assert redacted(f"no nbd://{user}:{password}@host/x here") == "no nbd://***@host/x here"


def test_a_text_without_a_uri_is_kept() -> None:
    assert redacted("user@host: no such option") == "user@host: no such option"


SHOWN = {
    "UblkdError",
    "UsageError",
    "NotPossibleError",
    "TimedOutError",
    "FileError",
    "FolderError",
}
WITHOUT = {"interrupted"}
SOURCES = [*sorted((ROOT / "ublkd").rglob("*.py")), *sorted((ROOT / "targets").rglob("*.py"))]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_failure_has_a_hint(path: Path) -> None:
    for call in ast.walk(ast.parse(path.read_text())):
        if not isinstance(call, ast.Call) or ast.unparse(call.func) not in SHOWN:
            continue
        said = ast.literal_eval(call.args[0]) if isinstance(call.args[0], ast.Constant) else ""
        hints = [word.value for word in call.keywords if word.arg == "hint"]
        assert hints or said in WITHOUT, ast.unparse(call)
        assert not any("''" in ast.unparse(hint) for hint in hints), ast.unparse(call)
