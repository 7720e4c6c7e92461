"""Who may take a device over, and what must be the same as before."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from tests.unit.fakes import FakeControl, FakeTarget, Log, dev_info, remembering
from tests.unit.helpers import is_one_line, open_fds
from ublkd import manage, recovery, registry
from ublkd.control import CommandError, Control, DevInfo
from ublkd.device import Taken
from ublkd.errors import UblkdError
from ublkd.features import Lease, Recovery
from ublkd.manage import Found
from ublkd.state import DeviceState, StateDir, new_cookie
from ublkd.target import Params
from ublkd.uapi import Cmd, DevState, Feature

KEPT = Feature.USER_RECOVERY | Feature.USER_RECOVERY_REISSUE
COOKIE = new_cookie()
DISK = Params(
    size=1 << 20, logical_block=512, dma_align=512, volatile_cache=True, fua=True,
    discard_granularity=4096, max_discard=1 << 20, max_write_zeroes=1 << 20,
)  # fmt: skip
INFO = dev_info(3, state=DevState.QUIESCED, flags=KEPT, cookie=COOKIE, queues=2, max_io=65536)
STATE = DeviceState(
    id=3, cookie=COOKIE, pid=1, name="db", target="null", lease="copy", started=True,
    options={"size": 4096, "block_size": None}, refused={"auto": "too old", "odd": "?"},
)  # fmt: skip


ENDED = "was stopped or deleted while it was recovered"


# --- what must fit --------------------------------------------------------------------------


def test_what_is_as_before_or_can_do_more_fits() -> None:
    more = replace(DISK, size=1 << 21, dma_align=4, max_discard=1 << 30, queues=2, max_io=65536)
    assert recovery.unfit(DISK, DISK, INFO, Lease.AUTO) == ""
    assert recovery.unfit(more, DISK, INFO, Lease.AUTO) == ""
    reader = replace(DISK, read_only=True)
    assert recovery.unfit(reader, reader, INFO, Lease.AUTO) == ""
    assert recovery.unfit(replace(DISK, in_memory=True), DISK, INFO, Lease.COPY) == ""
    assert recovery.unfit(DISK, replace(DISK, dma_align=4), INFO, Lease.COPY) == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": 1 << 19}, "has 524288 bytes, and the disk 1048576"),
        ({"logical_block": 4096}, "blocks have 4096 bytes, and the disk's 512"),
        ({"dma_align": 4096}, "aligned to 4096 bytes, and the disk to 512"),
        ({"max_io": 4096}, "takes 4096 bytes at once, and the disk 65536"),
        ({"queues": 1}, "needs 1 queues, and the disk has 2"),
        ({"max_queues": 1}, "needs 1 queues, and the disk has 2"),
        ({"in_memory": True}, "works on bytes in memory"),
        ({"read_only": True}, "can only be read"),
        ({"volatile_cache": False, "fua": False}, "cannot flush any more"),
        ({"fua": False}, "cannot write durably any more"),
        ({"max_discard": 0}, "can discard less"),
        ({"max_write_zeroes": 512}, "can write zeroes less"),
        ({"discard_granularity": 8192}, "discards in larger pieces"),
    ],
)
def test_what_the_disk_promises_and_the_target_cannot_do_is_named(
    change: dict[str, Any], words: str
) -> None:
    why = recovery.unfit(replace(DISK, **change), DISK, INFO, Lease.AUTO)
    assert words in why
    assert is_one_line(why)


def test_a_cache_that_nobody_would_flush_does_not_fit() -> None:
    disk = replace(DISK, volatile_cache=False, fua=False)
    assert "must be flushed" in recovery.unfit(DISK, disk, INFO, Lease.AUTO)


# --- who may --------------------------------------------------------------------------------


def found(state: DeviceState | None = STATE, **more: Any) -> Found:
    return Found(info=replace(INFO, **more), size=4096, state=state)


@pytest.mark.parametrize(
    ("device", "words"),
    [
        (found(cookie=7), "was not made by ublkd"),
        (found(None), "what was remembered of"),
        (
            Found(
                info=replace(INFO, state=DevState.DEAD),
                size=4096,
                state=replace(STATE, started=False, pid=os.getpid()),
            ),
            "is still being made",
        ),
        (found(state=STATE), ""),
        (Found(info=replace(INFO, state=DevState.FAIL_IO), size=1, state=STATE), ""),
        (Found(info=replace(INFO, state=DevState.DEAD), size=1, state=STATE), "is dead"),
        (Found(info=replace(INFO, flags=Feature(0)), size=1, state=STATE), "with recovery none"),
    ],
)
def test_only_what_the_driver_keeps_and_ublkd_remembers_is_taken(device: Found, words: str) -> None:
    if not words:
        assert recovery.refuse_unrecoverable(device) is STATE
        return
    with pytest.raises(UblkdError, match=words) as caught:
        recovery.refuse_unrecoverable(device)
    assert is_one_line(caught.value.message)
    assert caught.value.hint


def test_a_device_that_is_served_is_left_to_its_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    live = Found(info=replace(INFO, state=DevState.LIVE, pid=42), size=1, state=STATE)
    monkeypatch.setattr(manage, "serves", lambda pid: pid == 42)
    assert not live.is_orphan
    with pytest.raises(UblkdError, match="is served by process 42"):
        recovery.refuse_unrecoverable(live)
    monkeypatch.setattr(manage, "serves", lambda _: False)  # it is dying
    assert live.is_orphan
    assert recovery.refuse_unrecoverable(live) is STATE


class Driver(FakeControl):
    """One whose device is held for a while, and what comes to pass then."""

    def __init__(self) -> None:
        super().__init__(Log())
        self.known[3] = INFO
        self.held = 0
        self.then: DevInfo | None = INFO

    def start_recovery(self, dev_id: int) -> None:
        super().start_recovery(dev_id)
        if not self.held:
            return
        self.held -= 1
        if not self.held:
            if self.then:
                self.known[3] = self.then
            else:
                del self.known[3]
        raise CommandError(Cmd.START_USER_RECOVERY, errno.EBUSY)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    monkeypatch.setattr(recovery, "FIRST_PAUSE", 0.0001)
    monkeypatch.setattr(recovery, "LONGEST_PAUSE", 0.001)
    opened = os.open

    def there(path: Any, *rest: Any, **more: Any) -> int:
        return opened("/dev/null" if path == "/dev/ublkc3" else path, *rest, **more)

    monkeypatch.setattr(os, "open", there)
    return Driver()


@pytest.fixture
def states(tmp_path: Path) -> StateDir:
    return remembering(tmp_path, STATE)


def take(driver: Driver, states: StateDir) -> Taken:
    return recovery.take(cast("Control", driver), states, 3, COOKIE)


@pytest.mark.parametrize("held", [0, 1, 5])
def test_a_dead_daemon_that_still_holds_the_device_is_waited_for(
    driver: Driver, states: StateDir, held: int
) -> None:
    driver.held = held
    taken = take(driver, states)
    assert (taken.info, taken.state) == (INFO, STATE)
    assert len(driver.log) == held + 1
    os.close(taken.dev_fd)


@pytest.mark.parametrize(
    ("then", "words"),
    [
        (None, "/dev/ublkb3 is gone"),
        (replace(INFO, cookie=new_cookie()), "/dev/ublkb3 is gone"),
        (replace(INFO, state=DevState.LIVE, pid=42), "is served by process 42"),
        (replace(INFO, state=DevState.DEAD), "is dead"),
    ],
)
def test_what_becomes_of_the_device_meanwhile_is_told(
    driver: Driver, states: StateDir, monkeypatch: pytest.MonkeyPatch,
    then: DevInfo | None, words: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(manage, "serves", lambda pid: pid == 42)
    driver.held, driver.then = 3, then
    before = open_fds()
    with pytest.raises(UblkdError, match=words):
        take(driver, states)
    assert open_fds() == before


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EACCES])
def test_who_was_let_in_and_finds_the_device_open_waits_like_the_others(
    driver: Driver, states: StateDir, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    opened, tries = os.open, 0

    def taken(path: Any, *rest: Any, **more: Any) -> int:
        nonlocal tries
        if path == "/dev/ublkc3":
            tries += 1
            if tries < 3:
                raise OSError(number, "in use")
        return opened(path, *rest, **more)

    monkeypatch.setattr(os, "open", taken)
    if number == errno.EBUSY:
        os.close(take(driver, states).dev_fd)
        assert tries == 3
        return
    with pytest.raises(UblkdError, match="cannot open /dev/ublkc3"):
        take(driver, states)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_who_was_let_in_before_and_never_served_need_not_ask_again(
    driver: Driver, states: StateDir, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Linux 6.12 says so by EINVAL."""

    def refused(_: int) -> None:
        raise CommandError(Cmd.START_USER_RECOVERY, number)

    monkeypatch.setattr(driver, "start_recovery", refused)
    if number == errno.EINVAL:
        os.close(take(driver, states).dev_fd)
        return
    with pytest.raises(CommandError):
        take(driver, states)


def test_a_device_that_is_never_let_go_is_given_up(
    driver: Driver, states: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "TAKE_SECONDS", 0.05)
    driver.held = 1 << 30
    with pytest.raises(UblkdError, match="still held by another process"):
        take(driver, states)


# --- what is made of it ---------------------------------------------------------------------


def made(driver: Driver, states: StateDir) -> Any:
    return recovery.device(cast("Control", driver), states, take(driver, states))


def test_the_driver_wins_over_what_was_remembered(driver: Driver, states: StateDir) -> None:
    wanted, lease = recovery.described(replace(STATE, lease="auto"), INFO)
    assert lease is Lease.COPY  # by the flags
    assert (wanted.queues, wanted.depth, wanted.max_io) == (2, 8, 65536)
    assert (wanted.name, wanted.id, wanted.recovery) == ("db", 3, Recovery.REISSUE)
    assert wanted.options == {"size": 4096, "block_size": None}


def test_options_are_as_they_were_and_new_ones_have_their_defaults() -> None:
    wanted, _ = recovery.described(replace(STATE, options={"size": 4096}), INFO)
    assert wanted.options == {"size": 4096, "block_size": None}
    files = {"file": ["/a", "/b"], "chunk": 4096}
    wanted, _ = recovery.described(replace(STATE, target="stripe", options=files), INFO)
    assert wanted.options["file"] == ("/a", "/b")
    assert wanted.paths == ("/a", "/b")
    with pytest.raises(UblkdError, match="no option 'colour' any more"):
        recovery.described(replace(STATE, options={"colour": "red"}), INFO)


@pytest.mark.parametrize("fails", ["open", "identity", "size", "hook"])
def test_a_device_that_cannot_be_served_is_let_go_as_it_was(
    driver: Driver, states: StateDir, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    log = Log()
    target: Any = FakeTarget(log, {"backing": "/b", "identity": "now"})

    def opened(*_: object) -> Any:
        if fails == "open":
            raise UblkdError("it does not open")
        return target

    def hook(_: object) -> None:
        raise UblkdError("it lacks what was")

    monkeypatch.setattr(registry, "opened", opened)
    states.write(replace(STATE, describe={"identity": "then" if fails == "identity" else "now"}))
    if fails == "size":
        target.params = Params(size=512)
    if fails == "hook":
        target.recovered = hook
    before = open_fds()
    words = {"open": "does not open", "identity": "/b is not what it was", "size": "512 bytes",
             "hook": "lacks what was"}  # fmt: skip
    with pytest.raises(UblkdError, match=words[fails]):
        made(driver, states)
    assert open_fds() == before
    assert log == ([] if fails == "open" else ["close target"])
    assert driver.known[3] == INFO
    assert states.read(3)


def test_before_an_upgrade_a_target_is_opened_beside_the_one_that_serves(
    driver: Driver, states: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    log = Log()

    def opened(_: str, options: Any) -> Any:
        asked.append(options["share"])
        return FakeTarget(log, {})

    monkeypatch.setattr(registry, "opened", opened)
    states.write(replace(STATE, target="loop", options={"file": "/x", "share": False}))
    recovery.look(cast("Control", driver), states, found())
    assert asked == [True]
    assert log == ["close target"]
    assert not driver.log, "the driver was asked for the device"


@pytest.mark.parametrize(
    ("now", "is_listed", "words"),
    [
        (INFO, True, "refused END_USER_RECOVERY"),
        (INFO, False, ENDED),
        (replace(INFO, state=DevState.DEAD), True, ENDED),
        (replace(INFO, cookie=COOKIE + 1), True, ENDED),
        (None, False, ENDED),
    ],
)
def test_a_device_that_others_end_while_it_is_recovered_says_so(
    driver: Driver,
    monkeypatch: pytest.MonkeyPatch,
    now: DevInfo | None,
    is_listed: bool,
    words: str,
) -> None:
    monkeypatch.setattr(driver, "is_listed", lambda _: is_listed)

    class Disk:
        def __enter__(self) -> None:
            driver.known = {3: now} if now else {}
            raise CommandError(Cmd.END_USER_RECOVERY, errno.EBUSY)

        def __exit__(self, *_: object) -> None:
            pytest.fail("it was never entered")

    taken = Taken(info=INFO, state=STATE, dev_fd=-1)
    entered = recovery.entered(cast("Control", driver), cast("Any", Disk()), taken)
    with pytest.raises(UblkdError, match=words), entered:
        pytest.fail("it is not served")


@pytest.mark.parametrize("now", [None, replace(INFO, cookie=COOKIE + 1)])
def test_before_an_upgrade_a_device_that_has_gone_is_not_looked_for(
    driver: Driver, states: StateDir, now: DevInfo | None
) -> None:
    driver.known = {3: now} if now else {}
    with pytest.raises(UblkdError, match="is gone") as caught:
        recovery.look(cast("Control", driver), states, found())
    assert "del" not in caught.value.hint  # the number may be another disk's


def test_what_a_device_is_made_of_is_not_what_a_recover_is_asked(
    driver: Driver, states: StateDir
) -> None:
    states.write(replace(STATE, target="nosuch", options={}))
    with pytest.raises(UblkdError, match="unknown target 'nosuch'") as caught:
        recovery.look(cast("Control", driver), states, found())
    assert caught.value.exit_code == 1
