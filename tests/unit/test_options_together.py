"""What a target says of its options before it is opened: ``config check`` and ``add`` alike."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

from tests.unit.helpers import assert_one_line_and_hint, is_one_line, ublkd
from tests.unit.test_devicefiles import put
from ublkd import registry
from ublkd.config import build
from ublkd.devicefiles import FileError, read
from ublkd.errors import DefectError, UsageError

WRONG: list[tuple[str, Mapping[str, str], str]] = [
    ("faulty", {"over": "null", "error": "X:1"}, "--error 'X:1' names no errno"),
    ("faulty", {"over": "null", "delay": "1h"}, "--delay '1h' is not a time"),
    ("faulty", {"over": "null", "short": "2"}, "--short '2' is not a probability"),
    ("faulty", {"over": "null", "seed": "x"}, "--seed 'x' is not a number"),
    ("faulty", {"over": "faulty"}, "faulty over faulty makes no sense"),
    ("faulty", {"over": "nbd", "uri": "nbd://h/x"}, "faulty cannot stand before nbd"),
    (
        "faulty",
        {"over": "loop", "file": "/a", "offset": "512", "block-size": "4096"},
        "--offset 512 is not a multiple",
    ),
    ("nbd", {"uri": "nbd://h/x", "tls-certificates": "/c"}, "--tls-certificates has no use for"),
    (
        "nbd",
        {"uri": "nbds://h/x?tls-certificates=/d", "tls-certificates": "/c"},
        "--tls-certificates is not the tls-certificates of the URI",
    ),
    ("nbd", {"uri": "nbd://h/x", "request-timeout": "0"}, "--request-timeout 0 leaves no time"),
    ("loop", {"file": "/a", "offset": "512", "block-size": "4096"}, "--offset 512 is not a"),
]
IDS = [said for _, _, said in WRONG]


@pytest.mark.parametrize(("target", "options", "said"), WRONG, ids=IDS)
def test_a_file_is_refused_for_what_add_would_refuse(
    tmp_path: Path, target: str, options: Mapping[str, str], said: str
) -> None:
    put(tmp_path, "".join(f'{key} = "{v}"\n' for key, v in {"target": target, **options}.items()))
    with pytest.raises(FileError) as caught:
        read(tmp_path, "disk")
    assert said.removeprefix("--") in caught.value.message
    assert caught.value.exit_code == 2
    assert is_one_line(caught.value.message)
    with pytest.raises(UsageError) as usage:
        build(target, options)
    assert said in usage.value.message
    assert usage.value.hint


def test_a_chunk_below_the_block_that_was_asked_for_is_refused() -> None:
    with pytest.raises(UsageError, match="--chunk 512 is less than one block of 4096 bytes"):
        build("stripe", {"file": ("/a", "/b"), "chunk": "512", "block-size": "4K"})


def test_on_the_command_line_it_is_wrong_usage_whatever_the_machine() -> None:
    ran = ublkd("add", "-t", "faulty", "--over", "null", "--error", "X:1")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert_one_line_and_hint(ran.stderr)


@pytest.mark.parametrize(
    "line",
    ['target = "loop"\nfile = "/z\\u0000z"', 'target = "stripe"\nfile = ["/a", "/z\\u0000z"]',
     'target = "null"\nowner = "ro\\u0000ot"', 'target = "null"\nsize = "1\\u0000M"'],
)  # fmt: skip
def test_a_nul_is_refused_in_every_word(tmp_path: Path, line: str) -> None:
    put(tmp_path, line)
    with pytest.raises(FileError, match="has a NUL") as caught:
        read(tmp_path, "disk")
    assert is_one_line(caught.value.message)
    assert caught.value.exit_code == 2


class Odd:
    """As much of a plug-in as is asked."""

    api_version = 1
    options = ()
    files = submit = describe = close = from_options = None

    @classmethod
    def check_options(cls, options: Any) -> None:
        raise ZeroDivisionError("x")


def test_a_plug_in_that_fails_at_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("odd", "odd_package:Odd", registry.GROUP)
    monkeypatch.setattr(EntryPoint, "load", lambda _: Odd)
    monkeypatch.setattr(registry, "points", lambda _: EntryPoints([point]))
    with pytest.raises(DefectError, match=r"target 'odd' .* failed in check_options\(\): Zero"):
        build("odd", {})
