"""The journal of unflushed writes against a simple model: what is in it, and where."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from .core import Core
from .profile import searching

WRITE, TRIM, ZEROES = 1, 4, 6
MAX_ENTRIES = 16384


@dataclass
class Place:
    command: int
    offset: int
    length: int
    flags: int
    position: int
    order: int = 0
    """0 while it is only taken."""

    @property
    def bytes(self) -> int:
        return self.length if self.command == WRITE else 0


class Journal:
    def __init__(self, core: Core, size: int) -> None:
        self.lib, self.ffi = core.lib, core.ffi
        self.raw: Any = self.lib.journal_new(size)
        assert self.raw

    def free(self) -> None:
        self.lib.journal_free(self.raw)

    def take(self, command: int, length: int, offset: int = 0, flags: int = 0) -> int:
        entry = {"command": command, "length": length, "offset": offset, "flags": flags}
        # what these say is not the caller's
        entry |= {"order": 77, "position": 99}
        return int(self.lib.journal_take(self.raw, self.ffi.new("struct nbd_entry *", entry)))

    def position(self, ticket: int) -> int:
        return int(self.lib.journal_position(self.raw, ticket))

    def keep(self, ticket: int, order: int) -> None:
        self.lib.journal_keep(self.raw, ticket, order)

    def drop(self, ticket: int) -> None:
        self.lib.journal_drop(self.raw, ticket)

    def flushed(self, order: int) -> None:
        self.lib.journal_flushed(self.raw, order)

    @property
    def can_shrink(self) -> bool:
        return bool(self.lib.journal_can_shrink(self.raw))

    def list(self, most: int = MAX_ENTRIES) -> list[Place]:
        out = self.ffi.new("struct nbd_entry[]", most)
        n = min(self.lib.journal_list(self.raw, out, most), most)
        names = Place.__dataclass_fields__
        return [Place(**{k: int(getattr(out[i], k)) for k in names}) for i in range(n)]


class Machine(RuleBasedStateMachine):
    core: Core
    tickets: Bundle[int] = Bundle("tickets")

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, Place] = {}
        self.order = 0

    @initialize(size=st.integers(1, 64))
    def begin(self, size: int) -> None:
        self.size = size
        self.journal = Journal(self.core, size)

    @rule(
        target=tickets,
        command=st.sampled_from([WRITE, WRITE, WRITE, TRIM, ZEROES]),
        share=st.sampled_from([0.05, 0.3, 0.5, 0.7, 1.0, 1.1]),
        offset=st.integers(0, (1 << 64) - 1),
        flags=st.sampled_from([0, 1, 3]),
    )
    def take(self, command: int, share: float, offset: int, flags: int) -> Any:
        length = max(1, int(share * self.size))
        ticket = self.journal.take(command, length, offset, flags)
        if ticket < 0:
            assert ticket == -1
            assert command == WRITE  # others need no room
            assert self.live or length > self.size
            return multiple()
        assert ticket not in self.live
        place = Place(command, offset, length, flags, self.journal.position(ticket))
        for other in self.live.values():
            assert (
                place.position + place.bytes <= other.position
                or other.position + other.bytes <= place.position
                or not place.bytes
                or not other.bytes
            )
        assert place.position + place.bytes <= self.size
        self.live[ticket] = place
        return ticket

    def _taken(self, ticket: int) -> bool:
        return ticket in self.live and not self.live[ticket].order

    @rule(ticket=tickets)
    def keep(self, ticket: int) -> None:
        if self._taken(ticket):
            self.order += 1
            self.journal.keep(ticket, self.order)
            self.live[ticket].order = self.order

    @rule(ticket=tickets)
    def drop(self, ticket: int) -> None:
        if self._taken(ticket):
            self.journal.drop(ticket)
            del self.live[ticket]

    @rule(behind=st.integers(0, 3))
    def flushed(self, behind: int) -> None:
        covered = max(0, self.order - behind)
        self.journal.flushed(covered)
        self.live = {t: p for t, p in self.live.items() if not 0 < p.order <= covered}

    @rule(most=st.integers(0, 3))
    def list_a_few(self, most: int) -> None:
        count = self.journal.lib.journal_list(self.journal.raw, self.journal.ffi.NULL, 0)
        assert count == len(self._kept)
        assert len(self.journal.list(most)) == min(most, count)

    @rule()
    def empty(self) -> None:
        """All of the room comes back."""
        for ticket in list(self.live):
            self.drop(ticket)
        self.flushed(0)
        self.journal.drop(whole := self.journal.take(WRITE, self.size))
        assert whole >= 0

    @property
    def _kept(self) -> list[Place]:
        return sorted((p for p in self.live.values() if p.order), key=lambda p: p.order)

    @invariant()
    def it_lists_what_is_kept_in_the_order_of_acknowledgements(self) -> None:
        if hasattr(self, "journal"):
            assert self.journal.list() == self._kept
            assert self.journal.can_shrink == bool(self._kept)

    def teardown(self) -> None:
        if hasattr(self, "journal"):
            self.journal.free()


def test_it_has_what_was_acknowledged_and_no_place_twice(core: Core) -> None:
    Machine.core = core
    run_state_machine_as_test(Machine, settings=settings(searching, stateful_step_count=50))


@pytest.fixture
def journal(core: Core) -> Iterator[Journal]:
    made = Journal(core, 10)
    yield made
    made.free()


def test_room_comes_back_from_the_oldest_on(journal: Journal) -> None:
    first, second, third = (journal.take(WRITE, length) for length in (4, 4, 2))
    assert journal.take(WRITE, 1) == -1
    journal.drop(second)
    assert journal.take(WRITE, 1) == -1
    journal.drop(first)
    fourth = journal.take(WRITE, 8)
    assert journal.position(fourth) == 0
    assert journal.position(third) == 8


def test_nothing_goes_around_the_end(journal: Journal) -> None:
    first, second = journal.take(WRITE, 4), journal.take(WRITE, 4)
    journal.drop(first)
    third = journal.take(WRITE, 3)  # 2 are left at the end, 4 at the beginning
    assert (journal.position(second), journal.position(third)) == (4, 0)
    assert journal.take(WRITE, 2) == -1


def test_what_is_longer_than_all_of_it_has_no_room(journal: Journal) -> None:
    assert journal.take(WRITE, 11) == -1
    assert journal.take(TRIM, 11) >= 0


def test_there_are_only_so_many_places(journal: Journal) -> None:
    for turn in range(2):
        tickets = [journal.take(TRIM, 1 << 20) for _ in range(MAX_ENTRIES)]
        assert min(tickets) >= 0
        assert journal.take(TRIM, 1) == journal.take(WRITE, 1) == -1
        for number, ticket in enumerate(reversed(tickets)):
            journal.keep(ticket, turn * MAX_ENTRIES + number + 1)
        listed = journal.list()
        assert [place.order for place in listed] == sorted(place.order for place in listed)
        assert len(listed) == MAX_ENTRIES
        journal.flushed((turn + 1) * MAX_ENTRIES - 1)  # all but the oldest
        assert journal.take(TRIM, 1) == -1
        journal.flushed((turn + 1) * MAX_ENTRIES)
        journal.drop(journal.take(TRIM, 1))
        assert not journal.list()
