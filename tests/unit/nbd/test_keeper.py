"""The keeper of connections: when it makes them anew, how long requests wait, how it ends."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.nbd.links import EXPORT, FLAGS, Clock, Links, Servers, refused
from ublkd._core import lib
from ublkd.targets.nbd import keeper as module
from ublkd.targets.nbd.export import BlockSizes, Export
from ublkd.targets.nbd.keeper import Keeper, Settings, worse
from ublkd.targets.nbd.uri import parse
from ublkd.targets.nbd.wire import ExportFlag

URI = parse("nbd://127.0.0.1/")

Failing = list[Any]


class World:
    """A keeper, its links, its clock and its servers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.clock = Clock()
        self.servers = Servers(self.clock)
        self.links = Links(1)
        self.keeper: Keeper | None = None

    def keep(self, *script: Any, connections: int = 1, **settings: Any) -> Links:
        """With ``script`` for all connections behind the first ones."""
        self.links = Links(connections)
        for name in ("time", "random", "select"):
            self._monkeypatch.setattr(module, name, self.clock)
        self._monkeypatch.setattr(module, "lib", self.links)
        self.clock.napped = self.links.notice
        self.servers.script = list(script)
        max_io = settings.pop("max_io", 0)
        timeout = settings.pop("timeout", math.inf)
        self.keeper = Keeper(
            Settings(uri=URI, connections=connections, **settings),
            [self.servers.new() for _ in range(connections)],
            timeout=timeout,
            max_io=max_io,
            dial=self.servers.dial,
        )
        return self.links

    def until_attached(self, times: int, link: int = 0) -> None:
        self.links.until(lambda: self.links.did.count(f"attach {link}") == times)

    def until_script_is_over(self) -> None:
        assert self.servers.waiting.wait(30)

    def stop(self) -> None:
        assert self.keeper is not None
        self.keeper.stopping()

    def close(self) -> None:
        if self.keeper is not None:
            self.keeper.close()
            assert self.links.freed
            assert all(self.servers.closed())
            self.keeper = None
        self.servers.close()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, nothing_left: None) -> Iterator[World]:
    made = World(monkeypatch)
    yield made
    made.close()


# --- connections ------------------------------------------------------------


def test_every_link_gets_a_connection_at_once_and_the_end_closes_them(world: World) -> None:
    links = world.keep(connections=3)
    assert links.did == ["attach 0", "attach 1", "attach 2"]
    assert world.servers.closed() == [False] * 3
    world.close()
    assert world.servers.patience == []


@pytest.mark.parametrize(("timeout", "told"), [(math.inf, 0), (1.5, 1_500_000_000)])
def test_a_deadline_of_requests_is_told_in_nanoseconds(
    world: World, timeout: float, told: int
) -> None:
    assert world.keep(timeout=timeout).timeout_ns == told


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
        "for 30 seconds",
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
    assert world.servers.patience[:2] == [10.0, 0.1]


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
    assert told[1:-1] == ["a", "b", "a"]


# --- what came back ---------------------------------------------------------

OLD = Export(
    name="",
    size=1 << 20,
    flags=FLAGS | ExportFlag.SEND_FUA | ExportFlag.SEND_TRIM | ExportFlag.SEND_WRITE_ZEROES,
    sizes=BlockSizes(512, 4096, 1 << 20),
)


def without(flag: ExportFlag) -> Export:
    return dataclasses.replace(OLD, flags=OLD.flags & ~flag)


WORSE: dict[str, tuple[Export, str]] = {
    "larger": (dataclasses.replace(OLD, size=2 << 20), "it has 2097152 bytes and had 1048576"),
    "smaller": (dataclasses.replace(OLD, size=1 << 19), "it has 524288 bytes and had 1048576"),
    "read-only": (
        dataclasses.replace(OLD, flags=OLD.flags | ExportFlag.READ_ONLY), "it is read-only now",
    ),
    "larger blocks": (
        dataclasses.replace(OLD, sizes=BlockSizes(4096, 4096, 1 << 20)),
        "it wants blocks of 4096 bytes now and had 512",
    ),
    "shorter requests": (
        dataclasses.replace(OLD, sizes=BlockSizes(512, 4096, 1 << 15)),
        "it takes 32768 bytes at once now, and the disk's requests have 65536",
    ),
    "no flush": (without(ExportFlag.SEND_FLUSH), "it cannot flush any more"),
    "no FUA": (without(ExportFlag.SEND_FUA), "it cannot fua any more"),
    "no trim": (without(ExportFlag.SEND_TRIM), "it cannot trim any more"),
    "no zeroes": (without(ExportFlag.SEND_WRITE_ZEROES), "it cannot write zeroes any more"),
    "one connection": (
        without(ExportFlag.CAN_MULTI_CONN),
        "it cannot be reached over several connections any more",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WORSE)
def test_what_is_worse_cannot_stand_for_what_was(name: str) -> None:
    new, words = WORSE[name]
    assert worse(new, OLD, 2, 1 << 16) == words


@pytest.mark.parametrize(
    "new",
    [
        OLD,
        dataclasses.replace(OLD, flags=OLD.flags | ExportFlag.ROTATIONAL),
        dataclasses.replace(OLD, size=(1 << 20) + 511),
        dataclasses.replace(OLD, sizes=None),
        dataclasses.replace(OLD, sizes=BlockSizes(1, 512, 1 << 16)),
        dataclasses.replace(OLD, description="another day"),
    ],
)
def test_what_is_no_worse_can(new: Export) -> None:
    assert worse(new, OLD, 2, 1 << 16) == ""


def test_what_a_single_connection_does_not_need_may_be_gone() -> None:
    assert worse(without(ExportFlag.CAN_MULTI_CONN), OLD, 1, 0) == ""


def test_what_was_read_only_may_be_writable() -> None:
    read_only = dataclasses.replace(OLD, flags=OLD.flags | ExportFlag.READ_ONLY)
    assert worse(OLD, read_only, 2, 0) == ""


def test_an_export_that_has_changed_is_left_until_it_is_what_it_was(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    other = dataclasses.replace(EXPORT, size=EXPORT.size * 2)
    links = world.keep(other, other, 60.0, other, EXPORT)
    links.lose(0)
    world.until_attached(2)
    assert world.servers.closed() == [True, True, True, True, False]
    assert links.did == ["attach 0", "break 0", "fail 0", "attach 0"]
    assert caplog.text.count("the export is not what it was: it has 2097152 bytes") == 1


def test_all_connections_must_be_had_or_none_is_used(world: World) -> None:
    links = world.keep(EXPORT, EXPORT, refused(), EXPORT, EXPORT, EXPORT, connections=3)
    links.lose(2)
    world.until_attached(2, link=2)
    assert world.servers.closed() == [True] * 5 + [False] * 3
    assert links.did.count("attach 0") == 2


# --- writes that may be lost ------------------------------------------------


@pytest.mark.parametrize(
    ("unflushed", "after", "fails"),
    [(True, "strict", 1), (True, "trust", 0), (False, "strict", 0), (False, "trust", 0)],
)
def test_the_next_flush_fails_where_writes_may_be_lost(
    world: World, unflushed: bool, after: str, fails: int, caplog: pytest.LogCaptureFixture
) -> None:
    links = world.keep(refused(), EXPORT, after_reconnect=after)
    links.unflushed = unflushed
    links.lose(0)
    world.until_attached(2)
    assert links.did == ["attach 0", "break 0", *["fail flush"] * fails, "attach 0"]
    assert ("the next flush fails" in caplog.text) == bool(fails)


# --- the end ----------------------------------------------------------------


def test_the_end_leaves_a_quiet_disk_its_connection(world: World) -> None:
    """Its last requests are still to come: it is the queues that end."""
    links = world.keep()
    world.stop()
    world.stop()
    links.until(lambda: len(world.clock.naps) > 20)
    assert links.did == ["attach 0"]
    assert world.servers.closed() == [False]


def test_the_end_does_not_wait_for_a_server_that_is_lost(world: World) -> None:
    links = world.keep()
    links.slow = True
    world.stop()
    links.lose(0)
    links.until(lambda: "fail 0" in links.did)


def test_the_end_waits_for_requests_that_are_being_answered(world: World) -> None:
    links = world.keep()
    links.link[0].answers, links.link[0].unanswered = 50, 1
    world.stop()
    links.until(lambda: "fail 0" in links.did)
    assert links.link[0].answers == 0
    assert links.link[0].ended == 50
    assert len(world.clock.naps) > 20


@pytest.mark.parametrize("connections", [1, 3])
def test_the_end_does_not_wait_for_a_silent_server(world: World, connections: int) -> None:
    links = world.keep(connections=connections)
    links.link[-1].unanswered = 1
    world.stop()
    links.until(lambda: f"fail {connections - 1}" in links.did)
    assert world.clock.naps == [1.0]


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
    assert len(world.servers.patience) == 1


def test_the_end_while_queues_give_connections_up(world: World) -> None:
    links = world.keep(connections=2)
    links.slow = True
    links.lose(0)
    links.until(lambda: "break 1" in links.did)
    world.stop()
    links.until(lambda: "fail 1" in links.did)
    assert world.servers.patience == []


def test_the_end_while_requests_fail(world: World) -> None:
    links = world.keep(60.0, refused())
    links.lose(0)
    world.until_script_is_over()
    assert links.did[-1] == "fail 0"
    world.stop()
    links.until(lambda: links.did.count("fail 0") == 2)


def test_what_is_lost_after_the_end_began_fails_too(world: World) -> None:
    links = world.keep()
    links.link[0].unanswered = 1
    world.stop()
    links.until(lambda: links.did.count("fail 0") == 1)
    links.wake()
    links.until(lambda: links.did.count("fail 0") == 2)


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
    assert "the keeper of its connections has failed" in caplog.text
    assert "ZeroDivisionError" in caplog.text


# --- with the real links ----------------------------------------------------


@pytest.mark.parametrize("stopping", [False, True])
def test_links_that_no_queue_has_taken_yet_are_not_lost(nothing_left: None, stopping: bool) -> None:
    servers = Servers(Clock())
    keeper = Keeper(Settings(uri=URI, connections=2), [servers.new(), servers.new()],
                    dial=servers.dial)  # fmt: skip
    assert servers.closed() == [False, False]
    if stopping:
        keeper.stopping()
    keeper.close()
    assert servers.closed() == [True, True]
    assert servers.patience == []
    servers.close()
