"""Which sizes a disk can have, and what is done in which order."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.fakes import FakeControl, Log, dev_info, remembering
from ublkd import changes, ending, manage, recovery, resize
from ublkd.control import CommandError
from ublkd.errors import UblkdError, UsageError
from ublkd.manage import Found
from ublkd.state import DeviceState, StateDir
from ublkd.target import Params
from ublkd.targets.loop import LoopTarget
from ublkd.uapi import Cmd, DevState, Feature

KIB, MIB = 1 << 10, 1 << 20
INFO = dev_info(3, pid=os.getpid())


class Driver(FakeControl):
    """A disk that is resized."""

    offered = Feature.UPDATE_SIZE
    params = Params(size=MIB)
    error: UblkdError | None = None
    looks: Callable[[], object] = staticmethod(lambda: None)

    def get_features(self) -> Feature:
        return self.offered

    def get_params(self, dev_id: int) -> Params:
        return self.params

    def update_size(self, dev_id: int, size: int) -> None:
        self.log.step(f"size {size}")
        self.looks()
        if self.error:
            raise self.error
        self.params = replace(self.params, size=size)


class World:
    """A loop device over a file, and what happened."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.log = Log()
        self.control = Driver(self.log)
        self.control.known[3] = INFO
        self.backing = folder / "disk.img"
        self.backing.write_bytes(bytes(2 * MIB))
        options: dict[str, Any] = {
            "file": str(self.backing), "direct_io": "off", "offset": 0, "sizelimit": None,
            "read_only": False, "share": False, "follow_size": False, "block_size": None,
        }  # fmt: skip
        target = LoopTarget.from_options(options)
        self.state = DeviceState(
            id=3, cookie=INFO.cookie, pid=1, name=None, target="loop", options=options,
            lease="copy", started=True, describe=dict(target.describe()),
        )  # fmt: skip
        self.control.params = replace(target.params, size=MIB)
        target.close()
        self.states = remembering(folder, self.state)
        self.states.counters(3).touch()
        self.claimed = False
        self.daemon_fails: BaseException | None = None
        self.taken_back: DeviceState | None = None
        patch.setattr(ending, "reserved", self._reserved)
        patch.setattr(changes, "change", self._change)
        patch.setattr(changes, "take_back", self._take_back)

    @contextlib.contextmanager
    def _reserved(self, dev_id: int) -> Iterator[str]:
        self.is_reserved = True
        yield "mounted" if self.claimed else ""
        self.is_reserved = False

    def _take_back(self, states: StateDir, found: Found, before: DeviceState) -> None:
        self.log.step("take back")
        self.taken_back = before

    def _change(self, states: StateDir, found: Found, edit: Any) -> None:
        self.log.step("tell")
        if self.daemon_fails:
            raise self.daemon_fails
        states.update(3, INFO.cookie, edit)

    def with_options(self, **options: Any) -> None:
        self.state = replace(self.state, options={**self.state.options, **options})
        self.states.write(self.state)

    def resize(self, size: int | None = None, *, force: bool = False) -> tuple[int, int]:
        control: Any = self.control
        device = manage.look(control, self.states, 3)
        assert device
        return resize.resize(control, self.states, device, size, force=force)

    def remembered(self, key: str) -> object:
        state = self.states.read(3)
        assert state
        return state.options[key]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def test_without_a_size_it_is_as_large_as_what_stands_behind_it(world: World) -> None:
    assert world.resize() == (MIB, 2 * MIB)
    assert world.log == ["tell", f"size {2 * MIB}"]
    state = world.states.read(3)
    assert state
    assert state.size == 2 * MIB
    world.log.clear()
    assert world.resize() == (2 * MIB, 2 * MIB)
    assert world.log == ["tell"]


def test_a_disk_grows_last_in_the_kernel_and_is_cut_there_first(world: World) -> None:
    world.resize(2 * MIB)
    world.resize(MIB)
    assert world.log == ["tell", f"size {2 * MIB}", f"size {MIB}", "tell"]


def test_the_limit_that_it_was_added_with_holds_until_there_is_another(world: World) -> None:
    world.with_options(sizelimit=MIB + 512 * KIB)
    assert world.resize() == (MIB, MIB + 512 * KIB)
    assert world.resize(MIB + 640 * KIB)[1] == MIB + 640 * KIB
    assert world.remembered("sizelimit") == MIB + 640 * KIB
    assert world.resize()[1] == MIB + 640 * KIB


def test_without_a_limit_none_is_remembered(world: World) -> None:
    world.resize(MIB + 512)
    assert world.remembered("sizelimit") is None


@pytest.mark.parametrize("size", [0, 511, MIB + 1])
def test_what_is_no_size_is_a_mistake(world: World, size: int) -> None:
    with pytest.raises(UsageError):
        world.resize(size)
    assert world.log == []


def test_a_size_is_whole_blocks_of_the_disk(world: World) -> None:
    world.control.params = replace(world.control.params, logical_block=4096)
    with pytest.raises(UsageError, match="not whole blocks"):
        world.resize(MIB + 512)
    world.control.params = replace(world.control.params, logical_block=512)
    assert world.resize(MIB + 512)[1] == MIB + 512


def test_more_than_stands_behind_it_cannot_be(world: World) -> None:
    for limit in (None, MIB):
        world.with_options(sizelimit=limit)
        with pytest.raises(UblkdError, match=f"behind it has {2 * MIB}") as caught:
            world.resize(2 * MIB + 512)
        assert "truncate" in caught.value.hint
        assert world.remembered("sizelimit") == limit
    assert world.log == []


def test_a_disk_in_use_grows_and_is_not_cut_unless_forced(world: World) -> None:
    world.claimed = True
    with pytest.raises(UblkdError, match=rf"cut from {MIB} to 4096 bytes"):
        world.resize(4096)
    assert world.log == []
    assert world.resize(2 * MIB)[1] == 2 * MIB
    assert world.resize(4096, force=True)[1] == 4096


def test_a_backing_that_was_cut_is_a_cut_as_well(world: World) -> None:
    os.truncate(world.backing, 4096)
    world.claimed = True
    with pytest.raises(UblkdError, match="in use"):
        world.resize()
    world.claimed = False
    assert world.resize() == (MIB, 4096)


def test_another_backing_is_not_asked(world: World) -> None:
    world.backing.rename(world.backing.with_name("kept"))
    world.backing.write_bytes(bytes(2 * MIB))
    with pytest.raises(UblkdError, match="is not what it was"):
        world.resize()
    assert world.log == []


def test_a_disk_that_follows_has_no_size_of_its_own(world: World) -> None:
    world.with_options(follow_size=True)
    with pytest.raises(UblkdError, match="follows the size") as caught:
        world.resize(MIB + 4096)
    assert "--no-follow-size" in caught.value.hint
    assert world.resize()[1] == 2 * MIB
    world.with_options(follow_size=True, sizelimit=MIB)  # but one with a limit has
    assert world.resize(MIB + 4096)[1] == MIB + 4096


def test_a_driver_that_refuses_leaves_all_as_it_was(world: World) -> None:
    world.control.error = CommandError(Cmd.UPDATE_SIZE, 19)
    with pytest.raises(CommandError):
        world.resize()
    assert world.log == ["tell", f"size {2 * MIB}", "take back"]
    assert world.taken_back
    assert world.taken_back.size == MIB


@pytest.mark.parametrize("error", [UblkdError("it did not answer"), KeyboardInterrupt()])
def test_a_cut_that_fails_leaves_the_disk_as_large_as_it_was(
    world: World, error: BaseException
) -> None:
    world.daemon_fails = error
    with pytest.raises(type(error)):
        world.resize(4096)
    assert world.log == ["size 4096", "tell", "take back", f"size {MIB}"]
    assert world.control.params.size == MIB
    assert world.taken_back
    assert world.taken_back.size == MIB  # the daemon may have heard of the other one


def test_a_cut_that_the_driver_refuses_asks_nobody(world: World) -> None:
    world.control.error = CommandError(Cmd.UPDATE_SIZE, 19)
    with pytest.raises(CommandError):
        world.resize(4096)
    assert "tell" not in world.log
    assert world.log.count("size 4096") == len([w for w in world.log if w.startswith("size")])


@pytest.mark.parametrize("size", [4096, 2 * MIB])
@pytest.mark.parametrize("force", [False, True])
def test_another_disk_that_got_its_number_keeps_its_size(
    world: World, monkeypatch: pytest.MonkeyPatch, size: int, force: bool
) -> None:
    def others(_: LoopTarget) -> int:
        world.control.known[3] = replace(INFO, cookie=INFO.cookie + 1)
        return 2 * MIB

    monkeypatch.setattr(LoopTarget, "size_now", others)
    with pytest.raises(UblkdError, match="/dev/ublkb3 is gone"):
        world.resize(size, force=force)
    assert not [word for word in world.log if word.startswith("size")]


def test_a_cut_that_fails_as_the_disk_goes_puts_nothing_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        world.control.known[3] = replace(INFO, cookie=INFO.cookie + 1)
        raise UblkdError("it has ended")

    monkeypatch.setattr(changes, "change", fail)
    with pytest.raises(UblkdError, match="it has ended"):
        world.resize(4096)
    assert [word for word in world.log if word.startswith("size")] == ["size 4096"]


def test_a_disk_that_stays_cut_is_told_of(world: World) -> None:
    def refuse() -> None:
        world.control.error = CommandError(Cmd.UPDATE_SIZE, 5) if "tell" in world.log else None

    world.control.looks = refuse
    world.daemon_fails = UblkdError("it did not answer")
    with pytest.raises(UblkdError, match=f"cannot have its {MIB} bytes back") as caught:
        world.resize(4096)
    assert caught.value.hint


def test_nobody_comes_to_use_a_disk_while_it_is_cut(world: World) -> None:
    seen: list[bool] = []
    world.control.looks = lambda: seen.append(world.is_reserved)
    world.is_reserved = False
    world.resize(4096)
    world.resize(2048, force=True)
    world.resize(2 * MIB)
    assert seen == [True, False, False]


@pytest.mark.parametrize("says", [0, -4096, MIB + 512, 4096 - 512])
def test_a_target_that_says_what_no_disk_can_have_is_refused(
    world: World, monkeypatch: pytest.MonkeyPatch, says: int
) -> None:
    world.control.params = replace(world.control.params, logical_block=4096)
    monkeypatch.setattr(recovery, "refuse_unfit", lambda *_, **__: None)
    monkeypatch.setattr(LoopTarget, "size_now", lambda _: says)
    with pytest.raises(UblkdError, match=f"there are {says} bytes") as caught:
        world.resize()
    assert caught.value.hint
    assert world.log == []


def _dead(world: World) -> None:
    world.control.known[3] = replace(INFO, state=DevState.DEAD)


def _half_made(world: World) -> None:
    _dead(world)
    state = world.states.read(3)
    assert state
    world.states.write(replace(state, started=False, pid=os.getpid()))


def _foreign(world: World) -> None:
    world.control.known[3] = replace(INFO, cookie=7)


def _forgotten(world: World) -> None:
    world.states.file(3).unlink()


def _old(world: World) -> None:
    world.control.offered = Feature.QUIESCE


@pytest.mark.parametrize(
    ("make", "says", "code"),
    [
        (_dead, "is dead", 1),
        (_half_made, "is still being made", 1),
        (_foreign, "not made by ublkd", 1),
        (_forgotten, "remembered of /dev/ublkb3 is gone", 1),
        (_old, "lacks UPDATE_SIZE", 3),
    ],
)
def test_a_device_that_cannot_be_resized_says_why(
    world: World, make: Callable[[World], None], says: str, code: int
) -> None:
    make(world)
    with pytest.raises(UblkdError, match=says) as caught:
        world.resize()
    assert caught.value.exit_code == code
    assert caught.value.hint
    assert world.log == []


def test_a_target_whose_disks_have_one_size_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(LoopTarget, "size_now")
    with pytest.raises(UblkdError, match="does not say that its disks can be resized"):
        world.resize()


def test_a_size_option_has_its_own_bounds(world: World) -> None:
    world.state = replace(world.state, target="null", options={"size": MIB, "block_size": None},
                          describe={})  # fmt: skip
    world.states.write(world.state)
    params = Params(size=MIB, volatile_cache=True, fua=True)
    world.control.params = params
    with pytest.raises(UsageError, match="--size of target null cannot be 512"):
        world.resize(512)
    assert world.resize(64 * MIB) == (MIB, 64 * MIB)
    assert world.remembered("size") == 64 * MIB
    assert world.resize()[1] == 64 * MIB
