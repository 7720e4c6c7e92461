from __future__ import annotations

import sys
import types
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest

from tests.unit.helpers import is_one_line
from ublkd import registry
from ublkd.errors import UblkdError, UsageError
from ublkd.target import API_VERSION
from ublkd.targets.null import NullTarget


class Complete:
    """Everything that a target must have, and nothing that works."""

    api_version = API_VERSION
    options = ()
    params = None

    def __init__(self) -> None: ...
    @classmethod
    def from_options(cls, options: Any) -> None: ...
    def files(self) -> None: ...
    def native(self) -> None: ...
    def describe(self) -> None: ...
    def close(self) -> None: ...


@pytest.fixture
def plug_in(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module ``plug_in`` that registers the target ``odd``: its attribute ``Odd``."""
    module = types.ModuleType("plug_in")
    monkeypatch.setitem(sys.modules, "plug_in", module)
    points = EntryPoints([EntryPoint("odd", "plug_in:Odd", registry.GROUP)])
    monkeypatch.setattr(registry, "points", lambda group: points.select(group=group))
    return module


def refusal() -> str:
    with pytest.raises(UblkdError, match="'odd'") as caught:
        registry.load("odd")
    assert is_one_line(caught.value.message)
    assert caught.value.hint
    assert caught.value.exit_code == 1
    return caught.value.message


def test_our_own_targets_come_through_the_entry_points() -> None:
    assert {"loop", "null"} <= set(registry.names())
    assert registry.load("null") is NullTarget
    assert registry.names() == sorted(registry.names())


@pytest.mark.parametrize("name", ["loup", "", "Loop", "ublkd.targets.loop", "a\nb", "\udc80"])
def test_an_unknown_target_is_refused_and_the_known_are_listed(name: str) -> None:
    with pytest.raises(UsageError, match="unknown target") as caught:
        registry.load(name)
    assert "loop" in caught.value.hint
    assert "null" in caught.value.hint
    assert is_one_line(caught.value.message)


def test_where_no_target_is_registered_the_installation_is_doubted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not who names one: importlib takes a folder that it cannot list for an empty one."""
    monkeypatch.setattr(registry, "points", lambda _: EntryPoints([]))
    with pytest.raises(UblkdError) as caught:
        registry.load("loop")
    assert caught.value.exit_code == 1
    assert "installed" in caught.value.hint


def test_the_packages_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    registry.names()

    def again(**_: str) -> None:
        raise AssertionError("a file of each package is read once more")

    monkeypatch.setattr(registry, "entry_points", again)
    registry.opened("null", {"size": 4096, "block_size": None}).close()


def test_a_complete_plug_in_is_taken(plug_in: Any) -> None:
    plug_in.Odd = Complete
    assert registry.load("odd") is Complete  # type: ignore[comparison-overlap]


def test_a_plug_in_without_its_class_is_refused(plug_in: Any) -> None:
    assert "does not load" in refusal()


@pytest.mark.parametrize(
    "raised",
    [ImportError("no libfoo"), RuntimeError("two\nlines \udc80"), SystemExit(0), OSError()],
)
def test_whatever_a_plug_in_raises_at_import_is_its_own_fault(
    plug_in: Any, monkeypatch: pytest.MonkeyPatch, raised: BaseException
) -> None:
    def load(_: EntryPoint) -> None:
        raise raised

    monkeypatch.setattr(EntryPoint, "load", load)
    assert f"does not load: {type(raised).__name__}" in refusal()


@pytest.mark.parametrize("version", [API_VERSION + 1, 0, None, "1"])
def test_another_version_of_the_protocol_is_refused_with_both_numbers(
    plug_in: Any, version: Any
) -> None:
    plug_in.Odd = type("Odd", (Complete,), {"api_version": version})
    message = refusal()
    assert f"version {version}" in message
    assert f"this ublkd {API_VERSION}" in message


def test_what_is_no_class_at_all_is_refused(plug_in: Any) -> None:
    for odd in (None, 7, lambda: None, plug_in):
        plug_in.Odd = odd
        refusal()


@pytest.mark.parametrize("member", ["options", "from_options", "files", "describe", "close"])
def test_a_plug_in_that_lacks_a_member_is_refused_with_its_name(plug_in: Any, member: str) -> None:
    members = {name: item for name, item in vars(Complete).items() if name != member}
    plug_in.Odd = type("Odd", (), members)
    assert f"it has no {member}" in refusal()
