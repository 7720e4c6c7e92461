"""How a keeper ends, and what does not end it."""

from __future__ import annotations

import socket
import threading
from typing import ClassVar

import pytest

from tests.unit.nbd.keeping import PARAMS, URI, World
from tests.unit.nbd.links import EXPORT, Clock, Servers, refused
from ublkd.targets.nbd.keeper import LONGEST_PAUSE, SLOW_SECONDS, STOP_SECONDS, Keeper
from ublkd.targets.nbd.parting import Parting
from ublkd.targets.nbd.settings import Settings

# --- the end ----------------------------------------------------------------


def dialled_within_stop(world: World) -> int:
    """How often, as long as a disk may take to end: one that lives on is connected again."""
    return sum(when < 1000 + STOP_SECONDS for when in world.servers.when)


def test_the_end_leaves_a_quiet_disk_its_connection(world: World) -> None:
    """Its last requests are still to come: it is the queues that end."""
    links = world.keep()
    world.stop()
    world.stop()
    links.until(lambda: len(world.clock.naps) >= 20)
    assert links.did == ["attach 0"]
    assert world.servers.closed() == [False]


def test_the_end_does_not_wait_for_a_server_that_is_lost(world: World) -> None:
    links = world.keep()
    links.slow = True
    world.after_a_while(lambda: links.lose(0))
    world.stop()
    links.until(lambda: "fail 0" in links.did)


def test_the_end_waits_for_requests_that_are_being_answered(world: World) -> None:
    links = world.keep()
    links.link[0].answers, links.link[0].unanswered = 50, 1
    world.stop()
    links.until(lambda: "fail 0" in links.did)
    assert links.link[0].answers == 0
    assert links.link[0].ended == 50
    assert len(world.clock.naps) > 10


@pytest.mark.parametrize("connections", [1, 3])
def test_the_end_does_not_wait_for_a_silent_server(world: World, connections: int) -> None:
    links = world.keep(connections=connections)
    links.link[-1].unanswered = 1
    world.stop()
    links.until(lambda: f"fail {connections - 1}" in links.did)
    assert world.failed_after() == 1


def test_the_end_while_a_server_is_dialled(world: World) -> None:
    links = world.keep()
    links.lose(0)
    world.until_script_is_over()
    world.stop()
    links.until(lambda: "fail 0" in links.did)


def test_the_end_during_a_pause(world: World) -> None:
    def stop() -> None:
        world.stop()
        raise refused()

    links = world.keep(stop)
    links.lose(0)
    links.until(lambda: "fail 0" in links.did)
    assert dialled_within_stop(world) == 1


def test_the_end_while_queues_give_connections_up(world: World) -> None:
    links = world.keep(connections=2)
    links.slow = True
    links.lose(0)
    links.until(lambda: "break 1" in links.did)
    world.stop()
    links.until(lambda: "fail 1" in links.did)
    assert not dialled_within_stop(world)


def test_the_end_while_requests_fail(world: World) -> None:
    links = world.keep(60.0, refused())
    links.lose(0)
    world.until_script_is_over()
    assert links.did[-1] == "fail 0"
    world.stop()
    links.until(lambda: links.did.count("fail 0") >= 2)


def test_what_is_lost_after_the_end_began_fails_too(world: World) -> None:
    links = world.keep()
    links.link[0].unanswered = 1
    world.stop()
    links.until(lambda: links.did.count("fail 0") >= 1)
    links.wake()
    links.until(lambda: links.did.count("fail 0") >= 2)


@pytest.mark.parametrize(("slow", "seconds"), [(0, 1), (1, SLOW_SECONDS)])
def test_a_flush_may_take_longer_at_the_end_than_what_is_quick(
    world: World, slow: int, seconds: float
) -> None:
    links = world.keep()
    links.link[0].unanswered = 2
    links.link[0].slow = slow
    world.stop()
    links.until(lambda: "fail 0" in links.did)
    assert world.failed_after() == seconds


@pytest.mark.parametrize("unanswered", [0, 1])
def test_what_failed_connections_have_not_sent_does_not_arrive_any_more(
    world: World, monkeypatch: pytest.MonkeyPatch, unanswered: int
) -> None:
    ended: list[Parting] = []

    def end_used(parting: Parting) -> None:
        ended.append(parting)

    monkeypatch.setattr(Parting, "end_used", end_used)
    links = world.keep()
    if unanswered:
        links.link[0].unanswered = 1
        world.stop()
        links.until(lambda: "fail 0" in links.did)
    world.close()
    assert bool(ended) == bool(unanswered)


@pytest.mark.parametrize("lost", [False, True])
def test_it_can_be_closed_without_a_word_before(world: World, lost: bool) -> None:
    links = world.keep()
    if lost:
        links.lose(0)
        world.until_script_is_over()
    world.close()
    assert links.freed


def test_a_mistake_of_ours_is_told_and_nothing_waits_for_ever(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    links = world.keep(ZeroDivisionError())
    links.lose(0)
    links.until(lambda: "fail 0" in links.did)
    assert "keeping its connections failed" in caplog.text
    assert "ZeroDivisionError" in caplog.text


# --- a disk that lives on ---------------------------------------------------


def test_a_disk_that_was_told_to_stop_and_lives_on_connects_again(world: World) -> None:
    """Somebody has it open, say, so it could not be stopped."""
    links = world.keep(EXPORT, EXPORT, connections=2)
    world.after_a_while(lambda: links.lose(0))
    world.stop()
    world.until_attached(2, link=1)
    assert world.failed_after() == 1  # nothing waited while it was to end
    assert not links.stopping
    assert world.servers.when == [1000 + STOP_SECONDS] * 2
    assert world.servers.closed() == [True] * 2 + [False] * 2


def test_a_disk_that_lives_on_may_be_told_again(world: World) -> None:
    links = world.keep(EXPORT)
    for _ in range(3):
        world.stop()
    links.lose(0)
    world.until_attached(2)
    failed = links.did.count("fail 0")
    links.link[0].unanswered = 1
    world.stop()
    links.until(lambda: links.did.count("fail 0") > failed)


def test_a_disk_that_lives_on_and_lost_nothing_keeps_its_connection(world: World) -> None:
    links = world.keep(EXPORT)
    world.stop()
    links.until(lambda: len(world.clock.naps) >= STOP_SECONDS)
    links.lose(0)
    world.until_attached(2)
    assert "fail 0" not in links.did


# --- failures ---------------------------------------------------------------

FAILURES = [
    OSError(24, "Too many open files"),
    RuntimeError("can't start new thread"),
    ConnectionResetError(104, "Connection reset by peer"),
]


@pytest.mark.parametrize("error", FAILURES)
@pytest.mark.parametrize("before", [0, 2])
def test_any_failure_to_connect_is_a_failed_try(
    world: World, error: Exception, before: int, caplog: pytest.LogCaptureFixture
) -> None:
    links = world.keep(*[EXPORT] * before, error, *[EXPORT] * 3, connections=3)
    links.lose(0)
    world.until_attached(2, link=2)
    assert world.clock.naps == [0.25]
    assert "not connected: " in caplog.text
    assert "keeping its connections failed" not in caplog.text
    assert world.servers.closed() == [True] * (3 + before) + [False] * 3


class Relay:
    """Stands where a relay does: the engine's socket is the other's itself."""

    failures: ClassVar[list[Exception | None]] = []
    made: ClassVar[list[Relay]] = []

    def __init__(self, sock: socket.socket) -> None:
        if self.failures and (error := self.failures.pop(0)):
            raise error
        self._far = sock
        self.end, self._near = socket.socketpair()
        self.waited = False
        self.closed = False
        self.made.append(self)

    def wait(self) -> None:
        self.waited = True

    def close(self) -> None:
        self._far.close()
        self._near.close()
        self.closed = True


@pytest.fixture
def relays(world: World) -> list[Relay]:
    Relay.failures, Relay.made = [], []
    world.in_tls(Relay)
    return Relay.made


@pytest.mark.parametrize("error", FAILURES)
@pytest.mark.parametrize("before", [0, 2])
def test_so_is_a_failure_to_hand_connections_to_the_queues(
    world: World, relays: list[Relay], error: Exception, before: int
) -> None:
    links = world.keep(*[EXPORT] * 6, connections=3)
    Relay.failures = [*[None] * before, error]
    links.lose(0)
    world.until_attached(2, link=2)
    assert links.did.count("attach 0") == 2
    assert [relay.closed for relay in relays] == [True] * (3 + before) + [False] * 3
    assert world.servers.closed() == [True] * 6 + [False] * 3


@pytest.mark.parametrize("error", FAILURES)
def test_a_disk_that_cannot_begin_leaves_no_thread(
    world: World, relays: list[Relay], error: Exception
) -> None:
    Relay.failures = [None, error]
    with pytest.raises(type(error)):
        world.keep(connections=2)
    assert relays[0].closed
    assert world.links.freed
    assert world.servers.closed() == [True] * 2


def test_nor_does_one_whose_thread_cannot_be_had(world: World) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    world.monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(RuntimeError):
        world.keep(connections=2, after_reconnect="replay")
    assert world.links.freed
    assert world.servers.closed() == [True] * 2


def test_the_end_waits_for_relays_to_tell_what_they_have_heard(
    world: World, relays: list[Relay]
) -> None:
    """A loss does not: there is nobody to tell."""
    links = world.keep(EXPORT)
    links.lose(0)
    world.until_attached(2)
    world.close()
    assert [relay.waited for relay in relays] == [False, True]


def test_after_a_mistake_of_ours_it_goes_on(world: World) -> None:
    links = world.keep(EXPORT, ZeroDivisionError(), EXPORT, EXPORT, connections=2)
    links.lose(0)
    world.until_attached(2, link=1)
    assert "fail 0" in links.did
    assert world.clock.naps == [LONGEST_PAUSE]
    assert world.servers.closed() == [True] * 3 + [False] * 2


# --- with the real links ----------------------------------------------------


@pytest.mark.parametrize("stopping", [False, True])
def test_links_that_no_queue_has_taken_yet_are_not_lost(nothing_left: None, stopping: bool) -> None:
    servers = Servers(Clock())
    keeper = Keeper(Settings(uri=URI, connections=2), [servers.new(), servers.new()],
                    params=PARAMS, dial=servers.dial)  # fmt: skip
    assert servers.closed() == [False, False]
    if stopping:
        keeper.stopping()
    keeper.close()
    assert servers.closed() == [True, True]
    assert servers.patience == []
    servers.close()
