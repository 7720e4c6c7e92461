"""When systemd is told that a daemon lives, and when not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ublkd.watchdog import AGAIN_SECONDS, Watchdog

PERIOD = 30.0


class Queues:
    """Queues that turn when they are poked, unless they are stuck; and a clock."""

    def __init__(self, count: int) -> None:
        self.turns, self.stuck, self.poked = [0] * count, set[int](), False
        self.now, self.fed = 100.0, 0

    def poke(self) -> list[int]:
        self.poked = True
        return list(self.turns)

    def feed(self) -> None:
        self.fed += 1

    def go_on(self, seconds: float) -> None:
        self.now += seconds
        for qid in range(len(self.turns)):
            self.turns[qid] += self.poked and qid not in self.stuck
        self.poked = False


def made(count: int) -> tuple[Queues, Watchdog]:
    queues = Queues(count)
    return queues, Watchdog(PERIOD, queues.poke, queues.feed, lambda: queues.now)


def test_idle_queues_are_alive() -> None:
    queues, watchdog = made(4)
    for _ in range(10):
        queues.go_on(watchdog.look())
    watchdog.look()
    assert queues.fed == 10


def test_one_queue_that_is_stuck_is_enough() -> None:
    queues, watchdog = made(4)
    queues.go_on(watchdog.look())
    watchdog.look()
    assert queues.fed == 1
    queues.stuck.add(2)
    queues.go_on(PERIOD / 2)  # it may have turned before it got stuck
    watchdog.look()
    fed = queues.fed
    for _ in range(5):
        queues.go_on(PERIOD / 2)
        watchdog.look()
    assert queues.fed == fed
    queues.stuck.clear()
    for _ in range(2):
        queues.go_on(AGAIN_SECONDS)
        watchdog.look()
    assert queues.fed == fed + 1


@pytest.mark.parametrize("seconds", [0.5, 8.0, PERIOD])
def test_queues_that_do_not_turn_are_looked_at_more_often(seconds: float) -> None:
    queues = Queues(1)
    watchdog = Watchdog(seconds, queues.poke, queues.feed, lambda: queues.now)
    queues.stuck.add(0)
    queues.go_on(watchdog.look())
    assert watchdog.look() == min(AGAIN_SECONDS, seconds / 2)


behind_a_look = st.builds(lambda n, more: n * PERIOD / 2 + more, st.integers(0, 4), st.floats(0, 1))


@given(behind_a_look, st.floats(0, PERIOD - AGAIN_SECONDS), st.sampled_from([0.001, 0.2]))
def test_a_stall_that_is_shorter_than_the_period_is_nobodys_end(
    start: float, length: float, late: float
) -> None:
    """The longest time between two feeds, wherever a stall of all queues begins. A queue turns a
    moment after it was poked, and the loop comes a moment late.
    """
    queues, watchdog = made(2)
    begin, last, longest = queues.now + start, queues.now, 0.0
    end = begin + length - 3 * late
    while queues.now < begin + 3 * PERIOD:
        for pause in (late, watchdog.look()):
            # whoever was poked in a stall turns once it is over
            if begin <= queues.now + pause < end:
                queues.now += pause
            else:
                queues.go_on(pause)
        fed = queues.fed
        watchdog.look()
        if queues.fed > fed:
            longest, last = max(longest, queues.now - last), queues.now
    assert longest <= PERIOD
    assert queues.now - last <= PERIOD


def test_nobody_is_asked_before_it_is_due() -> None:
    queues, watchdog = made(1)
    queues.go_on(PERIOD / 4)
    assert watchdog.look() == PERIOD / 4
    assert (queues.fed, queues.poked) == (0, False)


@given(st.lists(st.floats(0, PERIOD), max_size=50))
def test_whoever_looks_when_told_to_is_fed_within_the_period(pauses: list[float]) -> None:
    queues, watchdog = made(2)
    last = queues.now
    for pause in pauses:
        fed = queues.fed
        queues.go_on(min(pause, watchdog.look()))
        watchdog.look()
        if queues.fed > fed:
            assert queues.now - last <= PERIOD
            last = queues.now
    assert queues.now - last <= PERIOD
