"""Any plan of members, any sequence of results: every byte once, and the rule at the end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given

from .core import Core
from .profile import searching
from .strategies import Round, rounds
from .world import WAYS, World


@pytest.fixture(params=WAYS)
def world(core: Core, request: pytest.FixtureRequest) -> Iterator[World]:
    made = World(core, WAYS[request.param])
    yield made
    made.close()


@searching
@given(r=rounds())
def test_every_byte_moves_once_and_the_result_obeys_the_rule(world: World, r: Round) -> None:
    world.check(r)
