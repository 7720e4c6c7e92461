"""How long systemd is told that a start and an end may take: each step has a deadline of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from tests.unit.test_service import KEPT, QUIESCABLE, Disk, Driver
from ublkd import control, device, service, writeback
from ublkd.errors import UblkdError
from ublkd.notify import Notifier
from ublkd.service import Supervised
from ublkd.uapi import Feature


class Heard(Notifier):
    """What systemd is told."""

    def __init__(self) -> None:
        super().__init__({})
        self.messages: list[str] = []

    def _send(self, message: str) -> None:
        self.messages.append(message)

    @property
    def last_extension(self) -> float:
        """In seconds, if nothing was said after it."""
        key, _, value = self.messages[-1].partition("=")
        assert key == "EXTEND_TIMEOUT_USEC"
        return int(value) / 1_000_000


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    made = Driver()
    monkeypatch.setattr(service, "Control", lambda: made)
    monkeypatch.setattr(service, "_vanish", lambda: None)
    monkeypatch.setattr(service, "is_going_down", lambda: False)
    return made


@pytest.fixture
def end(driver: Driver, heard: Heard) -> Callable[..., None]:
    """SIGTERM, for a device of those flags."""

    def end(flags: Feature = QUIESCABLE, *, keep: bool = True) -> None:
        manner = Supervised(heard, lambda *_: None, keep=keep)
        manner.end(cast("Any", Disk(driver.log, flags)), lambda _: None)

    return end


@pytest.mark.parametrize("flags", [QUIESCABLE, KEPT | Feature.QUIESCE, Feature(0)])
@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("keep", [False, True])
def test_whatever_becomes_of_a_disk_its_daemon_has_the_time_that_the_end_may_take(
    end: Callable[..., None], heard: Heard, monkeypatch: pytest.MonkeyPatch,
    flags: Feature, used: bool, down: bool, keep: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr("ublkd.ending.claimed", lambda _: used)
    monkeypatch.setattr(service, "is_going_down", lambda: down)
    end(flags, keep=keep)
    assert heard.messages[0].startswith("STOPPING=1")
    written = writeback.SECONDS
    assert heard.last_extension >= (
        written + control.SLOW_SECONDS + device.END_SECONDS + control.DEL_SECONDS
    )


def test_it_has_that_time_even_if_something_fails_on_the_way(
    end: Callable[..., None], heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> str:
        raise UblkdError("made to fail")

    monkeypatch.setattr("ublkd.ending.claims", fail)
    with pytest.raises(UblkdError):
        end()
    assert heard.last_extension == device.EXIT_SECONDS
