"""Ten thousand servers that mean no good: a result or one line of each, in bounded memory."""

from __future__ import annotations

import random
import re
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.helpers import is_one_line
from tests.unit.nbd.streams import (
    CORPUS,
    LIST,
    SERVER,
    Played,
    greeting,
    offer,
    pieces,
    reply,
    text_info,
)
from ublkd.targets.nbd.handshake import MAX_REPLY, MAX_TOTAL, Goal

STREAMS = 10_000
MAGICS = (b"NBDMAGIC", b"IHAVEOPT", b"\x00\x03\xe8\x89\x04Ue\xa9")
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def spoilt(stream: bytes, dice: random.Random) -> bytes:
    """The stream with some of it changed, lost, doubled or made up."""
    data = bytearray(stream)
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        at = dice.randrange(min(dice.choice((0, 18)), len(data)), len(data) + 1)
        kind = dice.randrange(6)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << dice.randrange(8)
        elif kind == 1:
            del data[at : at + dice.randint(1, 30)]
        elif kind == 2:
            data[at:at] = data[max(0, at - dice.randint(1, 40)) : at]
        elif kind == 3:
            data[at:at] = dice.randbytes(dice.randint(1, 30))
        elif kind == 4:
            data[at : at + 4] = dice.choice(NUMBERS).to_bytes(4)
        else:
            data[at:at] = dice.choice(MAGICS)
    return bytes(data)


def streams(dice: random.Random) -> Iterator[tuple[Goal, bool, bytes]]:
    for number in range(STREAMS):
        goal, tls, stream = CORPUS[number % len(CORPUS)]
        if number % 10 == 9:
            stream = greeting() + dice.randbytes(dice.randrange(200))
        yield goal, tls, spoilt(stream, dice)


def assert_ended_well(ran: Played) -> None:
    """With a result or a refusal in words; or it waits, and hanging up has words as well."""
    refusal = ran.refusal
    if refusal is None and ran.result is None:
        refusal = ran.handshake.end_of_stream()
    if refusal is not None:
        assert is_one_line(refusal.message)
        assert is_one_line(refusal.hint)
        assert refusal.message
        assert refusal.hint
        assert len(refusal.message) < 2000


def test_ten_thousand_spoilt_streams_end_in_a_result_or_in_words() -> None:
    dice = random.Random(7)
    results = 0
    complaints = set()
    for goal, tls, stream in streams(dice):
        cuts = [dice.randrange(len(stream) + 1) for _ in range(dice.randrange(4))]
        ran = Played(goal, list(pieces(stream, cuts)), tls=tls)
        assert_ended_well(ran)
        results += ran.result is not None
        if ran.refusal is not None:
            complaints.add(re.sub(r"0x[0-9a-f]+|[0-9]+|:.*", "", ran.refusal.message))
    # else the streams would test nothing behind their first bytes
    assert results > 200
    assert len(complaints) > 35


@given(
    st.sampled_from(CORPUS),
    st.lists(st.tuples(st.integers(0, 300), st.binary(max_size=12)), min_size=1, max_size=4),
    st.lists(st.integers(0, 300), max_size=5),
)
def test_any_change_of_a_stream_ends_in_a_result_or_in_words(
    known: tuple[Goal, bool, bytes], changes: list[tuple[int, bytes]], cuts: list[int]
) -> None:
    goal, tls, stream = known
    for at, data in changes:
        stream = stream[:at] + data + stream[at + len(data) :]
    whole = Played(goal, [stream], tls=tls)
    assert_ended_well(whole)
    assert Played(goal, list(pieces(stream, cuts)), tls=tls).outcome == whole.outcome


@given(st.binary(max_size=400))
def test_random_bytes_end_in_words(stream: bytes) -> None:
    for begin in (b"", greeting()):
        ran = Played(Goal.SERVE, [begin + stream])
        assert_ended_well(ran)
        assert ran.result is None


ENDLESS = [
    pytest.param(Goal.LIST, offer(b"x" * 4000, b"\xff" * 400), id="list"),
    pytest.param(Goal.LIST, offer(b""), id="names"),
    pytest.param(Goal.SERVE, text_info(77, b"\xff" * (MAX_REPLY - 2)), id="infos"),
    pytest.param(Goal.SERVE, b"\0" * 4096, id="zeroes"),
]


@pytest.mark.parametrize(("goal", "part"), ENDLESS)
def test_a_server_without_end_is_ended_and_fills_no_memory(goal: Goal, part: bytes) -> None:
    """What is kept of a name is its bytes; what is kept of a description is up to 4 times them."""
    tracemalloc.start()
    try:
        ran = Played(goal, [greeting(), *([part] * (2 * MAX_TOTAL // len(part) + 10_002))])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert ran.refusal is not None
    assert peak < 8 * MAX_TOTAL


def test_a_length_is_refused_before_its_bytes_come() -> None:
    claimed = reply(LIST, SERVER)[:-4] + (MAX_REPLY + 1).to_bytes(4)
    tracemalloc.start()
    try:
        ran = Played(Goal.LIST, [greeting() + claimed])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert ran.refusal is not None
    assert peak < 64 << 10
