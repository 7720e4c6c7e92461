"""The examples of docs/targets.md are code that works."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.disks import Served
from tests.unit.helpers import ROOT
from ublkd.plugin import wrong_options
from ublkd.target import Op


def example(name: str) -> dict[str, Any]:
    """The names that an example's file defines."""
    text = (ROOT / "docs" / "targets.md").read_text()
    found = re.search(rf"^`{re.escape(name)}`:\n\n((?:    .*\n|\n)+)", text, re.MULTILINE)
    assert found, f"docs/targets.md has no example {name}"
    names: dict[str, Any] = {}
    exec(textwrap.dedent(found[1]), names)
    return names


def test_the_disk_in_memory_keeps_what_is_written(serve: Callable[[Any], Served]) -> None:
    cls = example("ublkd_ram.py")["RamTarget"]
    assert wrong_options(cls.options) == ""
    served = serve(cls.from_options({"size": 1 << 20}))
    pages = served.engine.pages
    assert pages is not None
    pages[:4096] = b"x" * 4096
    assert served.turn((Op.WRITE, 8192, 4096)) == [4096]
    pages[:8192] = b"?" * 8192
    assert served.turn((Op.READ, 4096, 8192))[1:] == [8192]
    assert pages[:8192] == bytes(4096) + b"x" * 4096


def test_a_slice_of_a_file_is_served_by_our_own_c(tmp_path: Path) -> None:
    cls = example("ublkd_slice.py")["SliceTarget"]
    assert wrong_options(cls.options) == ""
    path = tmp_path / "whole.img"
    path.write_bytes(bytes(1 << 20))
    target = cls.from_options({"file": str(path), "start": 4096, "length": 8192})
    try:
        assert target.params.size == 8192
        assert target.native().handle.offset == 4096
        assert target.describe() == {"backing": str(path), "start": 4096}
    finally:
        target.close()
    with pytest.raises(Exception, match="ends before the slice does"):
        cls.from_options({"file": str(path), "start": 4096, "length": 1 << 20})
