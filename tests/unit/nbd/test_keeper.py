"""The keeper of connections: when it makes them anew, and how long requests wait."""

from __future__ import annotations

import logging
import math
from socket import SHUT_RDWR, socket
from typing import Any

import pytest

from tests.unit.nbd.keeping import World
from tests.unit.nbd.links import EXPORT, PATIENCE, Links, refused
from ublkd._core import lib
from ublkd.targets.nbd import parting
from ublkd.targets.nbd.keeper import MOMENT

Failing = list[Any]


# --- connections ------------------------------------------------------------


def test_every_link_gets_a_connection_at_once_and_the_end_closes_them(world: World) -> None:
    links = world.keep(connections=3)
    assert links.did == ["attach 0", "attach 1", "attach 2"]
    assert world.servers.closed() == [False] * 3
    world.close()
    assert world.servers.patience == []


@pytest.mark.parametrize(("timeout", "told"), [(math.inf, 0), (1.5, 1_500_000_000), (1e-10, 1)])
def test_a_deadline_of_requests_is_told_in_nanoseconds(
    world: World, timeout: float, told: int
) -> None:
    assert world.keep(timeout=timeout).timeout_ns == told


@pytest.mark.parametrize(("window", "told"), [(math.inf, 0), (30.0, 30_000_000_000), (0.0, 1)])
def test_the_window_of_one_request_is_told_as_well(world: World, window: float, told: int) -> None:
    """None at all is the least there is: 0 means for ever."""
    assert world.keep(window=window).window_ns == told


def test_a_lost_connection_is_made_anew(world: World, caplog: pytest.LogCaptureFixture) -> None:
    links = world.keep(EXPORT)
    links.lose(0)
    world.until_attached(2)
    assert world.servers.closed() == [True, False]
    assert "fail 0" not in links.did
    world.close()
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        "nbd://127.0.0.1: connection lost: the server has closed the connection; requests wait "
        "30 seconds",
        "nbd://127.0.0.1: connected again after 0.0 seconds",
    ]


def test_where_one_is_lost_all_are_given_up_before_any_is_made_anew(world: World) -> None:
    closed: list[list[bool]] = []
    links = world.keep(lambda: closed.append(world.servers.closed()), EXPORT, EXPORT, EXPORT,
                       connections=3)  # fmt: skip
    links.lose(1)
    world.until_attached(2, link=2)
    assert links.did[3:] == [
        "break 0", "break 1", "break 2", "attach 0", "attach 1", "attach 2",
    ]  # fmt: skip
    assert closed == [[True] * 3]
    assert world.servers.closed() == [True] * 3 + [False] * 3


def test_a_loss_right_after_is_heard_of_as_well(world: World) -> None:
    links = world.keep(EXPORT, EXPORT, EXPORT)
    for times in (2, 3, 4):
        links.lose(0)
        world.until_attached(times)


def test_a_loss_that_was_heard_of_late_is_no_second_one(world: World) -> None:
    links = world.keep(EXPORT)
    links.lose(0)
    world.until_attached(2)
    links.wake()
    world.stop()
    world.close()
    assert links.did.count("break 0") == 1


@pytest.mark.parametrize(
    ("loss", "err", "words"),
    [
        ("SOCKET", -104, "the server has closed the connection"),
        ("SOCKET", -32, "the server has closed the connection"),
        ("SOCKET", -103, "the server has closed the connection"),
        ("SOCKET", -110, "connection timed out"),
        ("TIMEOUT", -110, "a request was not answered within --request-timeout"),
        ("MAGIC", 0, "what the server sent is no reply"),
        ("COOKIE", 0, "the server answered what it was not asked"),
        ("SHUTDOWN", 0, "the server says that it is shutting down"),
        ("TOLD", 0, "it was given up"),
    ],
)
def test_the_log_says_why(
    world: World, caplog: pytest.LogCaptureFixture, loss: str, err: int, words: str
) -> None:
    links = world.keep(EXPORT)
    links.lose(0, getattr(lib, f"NBD_LOST_{loss}"), err)
    world.until_attached(2)
    assert f"connection lost: {words}; requests wait" in caplog.text


# --- what a server may still write -------------------------------------------


def lose_with_writes(world: World, monkeypatch: pytest.MonkeyPatch, link: int = 0) -> socket:
    """Nobody waits for so long in a test. Returns the server's end, which has heard ours."""
    monkeypatch.setattr(parting, "BOUND", PATIENCE)
    world.links.link[link].may_still_write = True
    world.links.lose(link)
    end = world.servers.ends[link]
    end.settimeout(PATIENCE)
    assert end.recv(1) == b""
    return end


def test_it_has_to_end_the_old_connection_before_a_new_one_is_made(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = world.keep(EXPORT, EXPORT, connections=2)
    end = lose_with_writes(world, monkeypatch, link=1)
    assert world.servers.patience == []
    end.shutdown(SHUT_RDWR)
    world.until_attached(2, link=1)
    assert "fail 0" not in links.did


def test_the_window_closes_meanwhile(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    links = world.keep(EXPORT, window=0.05)
    end = lose_with_writes(world, monkeypatch)
    links.until(lambda: "fail 0" in links.did)
    assert world.servers.patience == []
    end.shutdown(SHUT_RDWR)
    world.until_attached(2)
    assert "not connected: the server has not ended the old connection" in caplog.text


def test_without_a_window_requests_fail_first(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = world.keep(EXPORT, window=0.0)
    end = lose_with_writes(world, monkeypatch)
    assert links.did == ["attach 0", "break 0", "fail 0"]
    end.shutdown(SHUT_RDWR)
    world.until_attached(2)


def test_the_end_does_not_wait_for_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    links = world.keep()
    lose_with_writes(world, monkeypatch)
    world.stop()
    links.until(lambda: "fail 0" in links.did)
    # a disk that has not ended by then is connected again, but that is later
    assert not [at for at in world.servers.when if at <= 1000 + world.failed_after()]


# --- pauses and the window --------------------------------------------------


def test_pauses_double_up_to_a_limit_and_requests_fail_when_the_window_closes(
    world: World,
) -> None:
    links = world.keep(*[refused()] * 12)
    links.lose(0)
    world.until_script_is_over()
    # the seventh waits for no longer than the window
    assert world.clock.naps == [0.25, 0.5, 1, 2, 4, 8, 14.25, 16, 16, 16, 16, 16]
    assert links.did.count("fail 0") == 1
    assert links.did[-1] == "fail 0"


@pytest.mark.parametrize("jitter", [0.8, 1.2])
def test_pauses_differ_from_disk_to_disk(world: World, jitter: float) -> None:
    world.clock.jitter = jitter
    links = world.keep(*[refused()] * 3)
    links.lose(0)
    world.until_script_is_over()
    assert world.clock.naps == pytest.approx([0.25 * jitter, 0.5 * jitter, jitter])


def test_requests_fail_only_once_the_window_is_over(world: World) -> None:
    seen: list[tuple[float, bool]] = []

    def look() -> None:
        seen.append((world.clock.now - 1000, "fail 0" in world.links.did))

    script: Failing = []
    for _ in range(10):
        script += [look, refused()]
    links = world.keep(*script, window=5.0)
    links.lose(0)
    world.until_script_is_over()
    assert all(failed == (after >= 5.0) for after, failed in seen)
    assert 5.0 in [after for after, _ in seen]


def test_a_window_of_nothing_fails_requests_before_anything_is_tried(world: World) -> None:
    before: list[list[str]] = []
    links = world.keep(lambda: before.append(list(world.links.did)), EXPORT, window=0.0)
    links.lose(0)
    world.until_attached(2)
    assert before[0] == ["attach 0", "break 0", "fail 0"]
    assert world.servers.patience == [30.0]


def test_an_infinite_window_never_closes(world: World, caplog: pytest.LogCaptureFixture) -> None:
    links = world.keep(1e6, refused(), 1e9, refused(), EXPORT, window=math.inf)
    links.lose(0)
    world.until_attached(2)
    assert "fail 0" not in links.did
    assert "requests wait for ever" in caplog.text


def test_a_try_takes_no_longer_than_the_window_until_requests_fail(world: World) -> None:
    links = world.keep(4.0, refused(), 4.0, refused(), 1.0, refused(), refused(),
                       window=10.0, open_timeout=5.0)  # fmt: skip
    links.lose(0)
    world.until_script_is_over()
    # 4 seconds and a pause of 0.25 on, 5 are left; then 1.25
    assert world.servers.patience[:3] == [5.0, 5.0, pytest.approx(1.25)]
    assert world.servers.patience[3] == 5.0
    assert links.did[-1] == "fail 0"


def test_a_try_at_the_very_end_of_the_window_has_a_moment(world: World) -> None:
    links = world.keep(9.99 - 0.25, refused(), refused(), window=10.0)
    links.lose(0)
    world.until_script_is_over()
    assert world.servers.patience[:2] == pytest.approx([10.0, 0.1])


def test_several_connections_have_one_deadline_in_common(world: World) -> None:
    links = world.keep(4.0, EXPORT, 3.0, EXPORT, 5.0, EXPORT, EXPORT,
                       connections=4, open_timeout=10.0)  # fmt: skip
    links.lose(0)
    world.until_attached(2, link=3)
    assert world.servers.patience == [10.0, 6.0, 3.0, 0.0]


def test_what_is_written_again_shares_the_deadline_of_the_connections(world: World) -> None:
    links = world.keep(4.0, EXPORT, 2.0, EXPORT, connections=2, open_timeout=10.0,
                       after_reconnect="replay")  # fmt: skip
    links.unflushed = True
    links.lose(0)
    world.until_attached(2, link=1)
    assert [left for _, left in world.replayed] == [4.0]


@pytest.mark.parametrize("dialling", [0.0, 6.0, 10.0])
def test_requests_fail_at_the_end_of_the_window_whatever_a_try_is_at(
    world: World, dialling: float
) -> None:
    """Its first part takes so long, and the other would take for ever."""
    links = world.keep(dialling, EXPORT, window=10.0, open_timeout=30.0, after_reconnect="replay")
    links.unflushed = True
    world.replays = [1e6]
    links.lose(0)
    links.until(lambda: "fail 0" in links.did)
    assert world.failed_after() == pytest.approx(10.0, abs=MOMENT)


def test_a_disk_that_failed_heals(world: World, caplog: pytest.LogCaptureFixture) -> None:
    links = world.keep(60.0, refused(), EXPORT)
    links.lose(0)
    world.until_attached(2)
    assert links.did == ["attach 0", "break 0", "fail 0", "attach 0"]
    links.lose(0)  # and has its window again
    world.until_script_is_over()
    assert links.did == ["attach 0", "break 0", "fail 0", "attach 0", "break 0"]
    assert "not connected within 30 seconds; requests fail now, and it is tried on" in caplog.text


def test_the_same_reason_is_told_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    links = world.keep(refused("a"), refused("a"), refused("b"), refused("b"), refused("a"), EXPORT)
    links.lose(0)
    world.until_attached(2)
    world.close()
    told = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert told[1:-1] == [f"nbd://127.0.0.1: not connected: {words}" for words in ("a", "b", "a")]


def pauses_after_losses(world: World, links: Links, number: int, *, answered: bool) -> list[float]:
    """One connection after the other, lost at once: what was waited before each of the next."""
    pauses = []
    for times in range(2, number + 2):
        if answered:
            links.link[0].ended += 1
        before = len(world.clock.naps)
        links.lose(0)
        world.until_attached(times)
        pauses.append(sum(world.clock.naps[before:]))
    return pauses


def test_connections_that_are_good_for_nothing_are_not_made_without_pauses(world: World) -> None:
    """Each is lost before anything was answered: a request at which the server ends."""
    links = world.keep(*[EXPORT] * 9, window=math.inf)
    pauses = pauses_after_losses(world, links, 9, answered=False)
    assert pauses == [0, 0.25, 0.5, 1, 2, 4, 8, 16, 16]


def test_a_connection_that_answered_is_made_anew_at_once(world: World) -> None:
    links = world.keep(*[EXPORT] * 6)
    assert pauses_after_losses(world, links, 3, answered=True) == [0] * 3


def test_pauses_go_on_from_loss_to_loss_until_something_is_answered(world: World) -> None:
    links = world.keep(refused(), refused(), EXPORT, EXPORT, refused(), EXPORT, EXPORT)
    links.lose(0)
    world.until_attached(2)
    links.lose(0)
    world.until_attached(3)
    assert world.clock.naps == [0.25, 0.5, 1]
    links.link[0].ended += 1
    links.lose(0)
    world.until_attached(4)
    assert world.clock.naps[3:] == [0.25]
    links.lose(0)
    world.until_attached(5)
    assert world.clock.naps[4:] == [0.5]


def test_the_pause_before_the_first_try_is_a_part_of_the_window(world: World) -> None:
    """And no longer than it: what waits fails in time."""
    links = world.keep(*[EXPORT] * 6, refused(), window=3.0)
    pauses = pauses_after_losses(world, links, 6, answered=False)
    assert pauses == [0, 0.25, 0.5, 1, 2, 3.0]
    assert links.did.count("fail 0") == 1  # the last one's window was over with its pause
