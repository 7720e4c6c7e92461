"""When systemd is told that a daemon lives, and when not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ublkd.watchdog import Watchdog

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
        queues.go_on(PERIOD / 2)
        watchdog.look()
    assert queues.fed > fed


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
