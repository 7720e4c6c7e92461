"""What test_nbd_model.py does, for much longer: hypothesis looks at many short lives."""

from __future__ import annotations

import random

import pytest

from .core import Core
from .driver import DISCARD, FLUSH, READ, WRITE, WRITE_ZEROES
from .nbd_disk import DEPTH, PAGES
from .test_nbd_model import Machine

LIFE = 600
"""Steps."""


@pytest.mark.parametrize("pages", PAGES)
@pytest.mark.parametrize("seed", range(3))
def test_long_lives(core: Core, pages: str, seed: int) -> None:
    rng = random.Random(f"{pages} {seed}")
    Machine.core = core
    machine = Machine()
    machine.begin_disk(pages=pages)
    try:
        for _ in range(LIFE):
            _one_step(machine, rng)
            machine.nothing_is_committed_twice()
            if machine.settled:
                machine.the_counters_are_right()
    finally:
        machine.teardown()
    assert machine.ended > LIFE / 20


def _one_step(machine: Machine, rng: random.Random) -> None:
    settles = rng.random() < 0.7
    kind = rng.choices(
        ["begin", "answer", "attach", "wish", "lie", "cut", "hear_on", "turn", "settle"],
        [20, 30, 12, 6, 2, 4, 6, 3, 6],
    )[0]
    if kind == "begin":
        ops = [READ, READ, WRITE, WRITE, FLUSH, DISCARD, WRITE_ZEROES]
        machine.begin(
            asked=[
                (rng.choice(ops), rng.randrange(8), rng.choice([1, 2, 8, 120]),
                 rng.random() < 0.2, rng.randrange(1 << 16))
                for _ in range(rng.randint(1, DEPTH))
            ],
            settles=settles,
        )  # fmt: skip
    elif kind in ("answer", "lie") and not machine._current():
        machine.settle()
    elif kind == "answer":
        machine.answer(
            which=[rng.randrange(DEPTH) for _ in range(rng.randint(1, DEPTH))],
            error=rng.choice([0, 0, 0, 0, 28, 95]),
            piece=rng.choice([None, None, 1, 7, 600]),
            share=rng.choice([1] * 10 + [0.999, 0.5, 0.01]),
            settles=settles,
        )
    elif kind == "attach":
        if machine.disk.status.state != machine.disk.lib.NBD_CONNECTED or rng.random() < 0.1:
            machine.attach(room=rng.choice([None, None, 1]),
                           hears=rng.choice([None, None, 30, 5000]), settles=settles)  # fmt: skip
    elif kind == "wish":
        machine.wish(wish=rng.choice(["break_off", "fail", "fail_flush"]),
                     sure=rng.randrange(2), settles=settles)  # fmt: skip
    elif kind == "lie":
        lies = ["magic", "cookie", "the end", "noise"]
        machine.lie(lie=rng.choice(lies), seed=rng.randrange(99), settles=settles)
    elif kind == "cut":
        machine.cut(which=rng.randrange(4), close=rng.random() < 0.5, settles=settles)
    elif kind == "hear_on":
        machine.hear_on(more=rng.choice([1, 28, 30000, None, None]))
    elif kind == "turn":
        machine.turn(turns=rng.randint(1, 3))
    else:
        machine.settle()
