"""A disk that nobody may come to use while something is done with it."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest

from tests.unit.fakes import FakeControl, Log, dev_info, remembering
from tests.unit.test_ending_kept import NOBODY
from ublkd import ending, holders, manage, writeback
from ublkd.control import CommandError, Control
from ublkd.errors import UblkdError
from ublkd.state import DeviceState, new_cookie
from ublkd.uapi import Cmd, Feature

FAR = 990000  # a number that no device of this machine has


@pytest.mark.parametrize("is_taken", [False, True])
def test_a_disk_is_reserved_for_as_long_as_it_is_said(
    monkeypatch: pytest.MonkeyPatch, is_taken: bool
) -> None:
    opened, closed, flags = os.open, os.close, []

    def take(path: str, how: int) -> int:
        flags.append((path, bool(how & os.O_EXCL)))
        if is_taken:
            raise OSError(errno.EBUSY, "")
        return opened(os.devnull, os.O_RDONLY)

    log: list[str] = []

    def let_go(fd: int) -> None:
        log.append("let go")
        closed(fd)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", take)
        patched.setattr(os, "close", let_go)
        with ending.reserved(FAR) as words:
            log.append(words)
    assert flags == [(f"/dev/ublkb{FAR}", True)]
    assert log == ([ending.CLAIMED] if is_taken else ["", "let go"])


def test_a_disk_that_is_held_is_reserved_by_those_who_hold_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = holders.Holders(mounted_on=("/mnt",))
    monkeypatch.setattr(holders, "of", lambda *_, **__: held)
    with ending.reserved(FAR) as words:
        assert words == "mounted on /mnt"


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM, errno.ENXIO])
def test_a_shortage_does_not_make_a_disk_free(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def short(*_: object) -> int:
        raise OSError(number, "")

    monkeypatch.setattr(os, "open", short)
    if number == errno.ENXIO:  # there is no disk
        assert not ending.claimed("/dev/ublkb3")
        return
    with pytest.raises(UblkdError, match="cannot see whether /dev/ublkb3 is in use"):
        ending.claimed("/dev/ublkb3")


def test_a_last_close_that_waits_for_the_disk_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go_on, opened, closed = threading.Event(), os.open, os.close

    def waits(fd: int) -> None:
        go_on.wait(50)
        closed(fd)

    with monkeypatch.context() as patched:
        patched.setattr(writeback, "SECONDS", 0.1)
        patched.setattr(os, "open", lambda *_: opened(os.devnull, os.O_RDONLY))
        patched.setattr(os, "close", waits)
        assert not ending.claimed("/dev/ublkb3")
    go_on.set()


# --- the way to a stop ----------------------------------------------------------------------

COOKIE = new_cookie()
KEPT = Feature.USER_RECOVERY
SAFE = KEPT | Feature.SAFE_STOP_DEV
Verb = Callable[..., object]


class Driver(FakeControl):
    """One whose TRY_STOP says so."""

    answer = 0

    def try_stop_dev(self, dev_id: int) -> None:
        super().try_stop_dev(dev_id)
        if self.answer:
            raise CommandError(Cmd.TRY_STOP_DEV, self.answer)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    """A disk that is served; what is done with it, and who holds it, is in the log."""
    made = Driver(Log())

    @contextlib.contextmanager
    def reserved(_: int) -> Iterator[str]:
        made.log.step("hold")
        yield ""
        made.log.step("let go")

    monkeypatch.setattr(ending, "reserved", reserved)
    monkeypatch.setattr(ending, "write_back", lambda _: made.log.step("write"))
    monkeypatch.setattr(ending, "claimed", lambda _: False)
    monkeypatch.setattr(manage, "serves", lambda _: True)
    return made


@pytest.fixture
def end(driver: Driver, tmp_path: Path) -> Callable[..., list[str]]:
    """What a verb does to the disk."""
    state = DeviceState(id=3, cookie=COOKIE, pid=NOBODY, name="db", target="null", options={},
                        lease="copy", started=True)  # fmt: skip
    states = remembering(tmp_path, state)
    control = cast("Control", driver)

    def ended(verb: Verb, flags: Feature, *, force: bool = False) -> list[str]:
        driver.known[3] = dev_info(3, flags=flags, cookie=COOKIE, pid=NOBODY)
        verb(control, states, manage.find(control, states, "3"), force=force)
        return list(driver.log)

    return ended


HELD = ["hold", "write", "let go"]


@pytest.mark.parametrize(
    ("verb", "flags", "force", "done"),
    [
        (ending.delete, KEPT, False, [*HELD, "stop", "del"]),
        (ending.delete, KEPT, True, ["write", "stop", "del"]),
        (ending.delete, SAFE, False, [*HELD, "try stop", "del"]),
        (ending.delete, SAFE, True, ["write", "stop", "del"]),
        (ending.stop, KEPT, False, [*HELD, "stop"]),
        (ending.stop, KEPT, True, ["write", "stop"]),
        (ending.stop, SAFE, False, ["try stop"]),
    ],
)
def test_nobody_comes_to_mount_a_disk_while_it_is_written_back_and_we_do_not_hold_it_ourselves_then(
    end: Callable[..., list[str]], verb: Verb, flags: Feature, force: bool, done: list[str]
) -> None:
    assert end(verb, flags, force=force) == done


@pytest.mark.parametrize("verb", [ending.delete, ending.stop])
def test_a_mount_that_was_faster_keeps_its_disk(
    end: Callable[..., list[str]], driver: Driver, monkeypatch: pytest.MonkeyPatch, verb: Verb
) -> None:
    monkeypatch.setattr(ending, "reserved", lambda _: contextlib.nullcontext("mounted on /mnt"))
    with pytest.raises(UblkdError, match="is in use: mounted on /mnt"):
        end(verb, KEPT)
    assert not driver.log


@pytest.mark.parametrize("number", [errno.EBUSY, errno.ENODEV])
def test_a_disk_that_is_only_open_is_deleted_and_one_that_is_no_disk_any_more(
    end: Callable[..., list[str]], driver: Driver, number: int
) -> None:
    driver.answer = number
    assert end(ending.delete, SAFE) == [*HELD, "try stop", "stop", "del"]


def test_a_mount_in_the_last_moment_keeps_its_disk_where_the_kernel_sees_it(
    end: Callable[..., list[str]], driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.answer = errno.EBUSY
    monkeypatch.setattr(ending, "claimed", lambda _: "try stop" in driver.log)
    with pytest.raises(UblkdError, match="is in use: mounted, or part of another block device"):
        end(ending.delete, SAFE)
    assert list(driver.log) == [*HELD, "try stop"]


@pytest.mark.parametrize("served", [True, False])
def test_a_disk_that_nobody_serves_is_not_held_because_letting_go_may_wait_for_it(
    end: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, served: bool
) -> None:
    monkeypatch.setattr(manage, "serves", lambda _: served)
    assert ("hold" in end(ending.delete, SAFE)) == served
