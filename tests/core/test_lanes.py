"""Order on stream sockets: what was added goes over them whole, once, and nothing in between."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from .core import Core
from .driver import READ, Op
from .model import Played
from .peer import Peer
from .profile import searching
from .streams import Round, Traffic, traffic
from .world import WAYS, Way

BOTH = (Op.SEND, Op.RECV)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Way:
    return WAYS[request.param]


def check_the_streams(r: Round, peer: Peer) -> dict[tuple[int, int], Played]:
    """Both directions against the model; what became of every member."""
    everyone: dict[tuple[int, int], Played] = {}
    received: dict[tuple[int, int], bytes] = {}
    for lane, line in enumerate(r.lines([Op.SEND])):
        played = r.played(line)
        sent = b"".join(r.texts[who][: p.done] for who, p in played.items())
        assert peer.got[lane] == sent, f"socket {lane + 1}"
        everyone |= played
    for lane, line in enumerate(r.lines([Op.RECV])):
        played, at = r.played(line), 0
        for who, p in played.items():
            received[who] = r.says[lane][at : at + p.done]
            at += p.done
        everyone |= played
    for who, memory in r.memory.items():
        m = r.member(who)
        if m.op == Op.RECV:
            held = bytes(r.driver.ffi.buffer(memory, m.len))
            assert held == received[who].ljust(m.len, b"\0"), who
    for tag, pages in enumerate(r.pages):
        assert len(pages) == len(r.found(tag))
        assert r.found(tag) == r.seen(tag, received), f"the pages of tag {tag}"
    return everyone


@searching
@given(t=traffic(BOTH))
def test_messages_arrive_whole_once_and_in_the_order_in_which_they_were_added(
    core: Core, way: Way, t: Traffic
) -> None:
    r = Round(core, way, t)
    try:
        peer = r.play()
        played = check_the_streams(r, peer)
        r.check_issues()
        for tag in t.requests:
            assert r.driver.result(tag) == r.result(tag, played), f"tag {tag}"
        assert r.driver.stats.in_flight == 0
    finally:
        r.close()


# --- streams that break -----------------------------------------------------

AT_ONCE = ("copy", "auto", "group", "user-copy")
"""All requests are in line before the first member can fail."""

one_direction = st.sampled_from(BOTH).flatmap(lambda op: traffic((op,), failing=True))


@pytest.mark.parametrize("name", AT_ONCE)
@searching
@given(t=one_direction)
def test_behind_a_failure_not_a_byte_goes_over_the_stream_and_everybody_is_told(
    core: Core, name: str, t: Traffic
) -> None:
    r = Round(core, WAYS[name], t)
    try:
        peer = r.play()  # which sees the end of a broken stream without our help
        played = check_the_streams(r, peer)
        for tag in t.requests:
            assert r.driver.result(tag) == r.result(tag, played), f"tag {tag}"
        for lane in range(t.lanes):
            failed = any(p.error and r.member(w).file == lane + 1 for w, p in played.items())
            assert bool(r.driver.env.lanes[lane + 1].error) == failed
    finally:
        r.close()


@pytest.mark.parametrize("name", ["copy", "auto", "register"])
@searching
@given(t=traffic(BOTH, failing=True))
def test_a_stream_that_breaks_in_both_directions_shows_a_part_of_the_truth_and_nothing_else(
    core: Core, name: str, t: Traffic
) -> None:
    """How far the other direction got is the kernel's to say."""
    r = Round(core, WAYS[name], t)
    try:
        peer = r.play()
        for lane, line in enumerate(r.lines([Op.SEND])):
            whole = b"".join(r.texts[who] for who in line)
            assert whole.startswith(peer.got[lane])
            if not r.driver.env.lanes[lane + 1].error:
                assert whole == peer.got[lane]
        received: dict[tuple[int, int], bytes] = {}
        for lane, line in enumerate(r.lines([Op.RECV])):
            at = 0
            for who in line:
                received[who] = r.says[lane][at : at + r.member(who).len]
                at += r.member(who).len
        for tag, request in t.requests.items():
            moved = r.driver.result(tag)  # committed once
            assert moved <= request.size
            assert moved % t.block == 0 or moved < 0
            if request.op == READ and moved > 0:
                assert r.found(tag)[:moved] == r.seen(tag, received)[:moved]
        assert r.driver.stats.in_flight == 0
    finally:
        r.close()
