"""A daemon that goes by a change and cannot write that down yet: somebody else has the lock."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.unit.fakes import remembering
from tests.unit.helpers import option
from tests.unit.test_changes import INFO, STATE, Target, found, to
from ublkd import changes, registry
from ublkd.changes import Changes
from ublkd.state import DeviceState, StateDir


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {name: option(name, live=True) for name in ("one", "two")}
    monkeypatch.setattr(registry, "options_of", lambda *_: known)
    monkeypatch.setattr(changes, "LOCK_SECONDS", 0)


class World:
    """A device and its daemon."""

    def __init__(self, folder: Path) -> None:
        self.states: StateDir = remembering(folder, replace(STATE, options={"one": "a", "two": 1}))
        self.target, self.lines = Target(), list[str]()
        config = SimpleNamespace(options={"one": "a", "two": 1})
        disk: Any = SimpleNamespace(id=3, info=INFO, target=self.target, config=config)
        self.served = Changes(self.states, cast("Any", disk), self.lines.append)

    def ask(self, **options: Any) -> None:
        changes.ask(self.states, found(), to(**options))

    @property
    def now(self) -> DeviceState:
        state = self.states.read(3)
        assert state is not None
        return state


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_the_answer_is_written_once_the_lock_is_free_and_nobody_waits_for_it(world: World) -> None:
    world.ask(one="b")
    assert world.served.settle() is None
    with world.states.lock():
        world.served.look()
        for _ in range(3):
            world.served.look()
            assert world.served.settle() == changes.AGAIN_SECONDS
        assert (world.now.answered, world.served.options["one"]) == (0, "b")
    assert world.served.settle() is None
    assert (world.now.answered, world.now.problem) == (1, "")
    assert world.target.heard == [{"one": "b", "two": 1}]
    assert len(world.lines) == 2  # what has changed, and that it is not written down: once
    assert "is not written down yet: another ublkd has been adding or deleting" in world.lines[1]


def test_a_refusal_is_asked_of_the_target_once(world: World) -> None:
    world.target.refuses = "no b here"
    world.ask(one="b")
    with world.states.lock():
        world.served.look()
        world.served.look()
    assert sum("no b here" in line for line in world.lines) == 1
    assert world.served.settle() is None
    assert (world.now.answered, world.now.problem) == (1, "no b here")


def test_what_is_asked_while_an_answer_is_owed_is_gone_by_as_well(world: World) -> None:
    world.ask(one="b")
    with world.states.lock():
        world.served.look()
    world.ask(one="c")  # whoever asked for b has given up
    world.served.look()
    assert (world.now.answered, world.now.options["one"]) == (2, "c")
    assert world.served.options == world.now.options


@pytest.mark.parametrize("asked", [{}, {"one": "c"}, {"two": 2}])
def test_what_was_adopted_is_remembered_later_unless_something_else_is_asked_for(
    world: World, asked: dict[str, Any]
) -> None:
    with world.states.lock():
        world.served.adopt({"one": "b"})
    assert world.now.options == {"one": "a", "two": 1}
    if asked:
        world.ask(**asked)
        world.served.look()
        assert world.now.answered == 1
    assert world.served.settle() is None
    assert world.served.options == world.now.options == {"one": "b", "two": 1} | asked


def test_nothing_is_owed_to_a_device_that_is_gone(world: World) -> None:
    world.ask(one="b")
    with world.states.lock():
        world.served.look()
    world.states.remove(3)
    assert world.served.settle() is None
    assert world.states.read(3) is None
