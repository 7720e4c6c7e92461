"""What a keeper does with an export that has grown, and with a disk that shall."""

from __future__ import annotations

import dataclasses
import math
import threading

import pytest

from tests.unit.nbd import keeping
from tests.unit.nbd.keeping import PARAMS, URI, World
from tests.unit.nbd.links import EXPORT, refused
from ublkd.errors import UblkdError, UsageError
from ublkd.target import OptionValue
from ublkd.targets.nbd import keeper as module
from ublkd.targets.nbd.export import worse
from ublkd.targets.nbd.keeper import Keeper
from ublkd.targets.nbd.settings import Settings
from ublkd.targets.nbd.target import NbdTarget

SIZE = EXPORT.size
LARGER = dataclasses.replace(EXPORT, size=SIZE * 2)
LARGEST = dataclasses.replace(EXPORT, size=SIZE * 4)
SMALLER = dataclasses.replace(EXPORT, size=SIZE // 2)


def keeper_of(world: World) -> Keeper:
    assert world.keeper
    return world.keeper


@pytest.mark.parametrize(
    ("new", "least", "why"),
    [
        (EXPORT, None, ""),
        (LARGER, None, f"it has {SIZE * 2} bytes and had {SIZE}"),
        (LARGER, SIZE, ""),
        (LARGER, SIZE * 2, ""),
        (LARGER, SIZE * 4, f"it has {SIZE * 2} bytes, and the disk shall have {SIZE * 4}"),
        (EXPORT, SIZE * 2, f"it has {SIZE} bytes, and the disk shall have {SIZE * 2}"),
        (SMALLER, SIZE // 4, f"it has {SIZE // 2} bytes and had {SIZE}"),
        (SMALLER, None, f"it has {SIZE // 2} bytes and had {SIZE}"),
    ],
)
def test_an_export_may_be_larger_where_that_is_wanted_and_never_smaller(
    new: object, least: int | None, why: str
) -> None:
    assert worse(new, EXPORT, PARAMS, 1, least=least) == why  # type: ignore[arg-type]


def test_one_that_follows_goes_on_with_a_larger_export_and_not_with_a_smaller(
    world: World,
) -> None:
    links = world.keep(SMALLER, LARGER, follow=True)
    links.lose(0)
    world.until_attached(2)
    links.until(lambda: keeper_of(world).export == LARGER)
    assert world.servers.closed() == [True, True, False]
    world.servers.script = [EXPORT, LARGEST]
    links.lose(0)
    world.until_attached(3)
    links.until(lambda: keeper_of(world).export == LARGEST)


def test_of_several_connections_the_one_that_knows_of_the_least_counts(world: World) -> None:
    links = world.keep(LARGER, LARGEST, follow=True, connections=2)
    links.lose(1)
    world.until_attached(2, link=1)
    links.until(lambda: keeper_of(world).export == LARGER)


def test_before_a_disk_grows_no_connection_is_used_that_knows_of_less(world: World) -> None:
    links = world.keep(EXPORT, refused(), LARGER)
    broken: list[int] = []
    world.after_a_while(lambda: broken.append(links.did.count("attach 0")))
    keeper_of(world).resizing(SIZE * 2)
    assert links.did[:2] == ["attach 0", "break 0"]
    world.until_attached(2)
    assert broken == [1]  # the first that was had does not do
    links.until(lambda: keeper_of(world).export == LARGER)
    assert world.servers.closed() == [True, True, False]


def test_a_disk_that_the_connections_know_of_disturbs_none(world: World) -> None:
    links = world.keep()
    for size in (SIZE, SIZE // 2, 512):
        keeper_of(world).resizing(size)
    assert links.did == ["attach 0"]


def test_while_the_server_is_away_the_next_connection_has_to_be_large_enough(
    world: World,
) -> None:
    kept, told = threading.Event(), threading.Event()

    def grow() -> None:
        kept.set()
        assert told.wait(30)

    links = world.keep(refused(), grow, EXPORT, LARGER)
    links.lose(0)
    assert kept.wait(30)
    asking = threading.Thread(target=keeper_of(world).resizing, args=(SIZE * 2,))
    asking.start()
    links.until(lambda: keeper_of(world)._least == SIZE * 2)
    told.set()
    asking.join(30)
    assert not asking.is_alive()
    world.until_attached(2)
    links.until(lambda: keeper_of(world).export == LARGER)


def test_a_queue_that_does_not_let_go_is_an_error_and_nothing_grows(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = world.keep()
    monkeypatch.setattr(module, "APART_SECONDS", 0.05)
    links.slow = True
    with pytest.raises(UblkdError, match=f"that know of {SIZE} bytes") as caught:
        keeper_of(world).resizing(SIZE * 2)
    assert caught.value.hint
    assert keeper_of(world)._least == 0
    links.slow = False


def test_times_change_while_it_is_kept(world: World) -> None:
    links = world.keep(*[refused()] * 3, EXPORT, timeout=60.0)
    after = Settings(uri=URI, open_timeout=5.0, timeout=2.0, window=math.inf)
    keeper_of(world).changed(dataclasses.replace(after, after_reconnect="trust"))
    assert (links.timeout_ns, links.window_ns) == (2_000_000_000, 0)
    links.lose(0)
    world.until_attached(2)
    assert set(world.servers.patience) == {5.0}


def test_a_target_passes_them_on_or_says_what_cannot_be(world: World) -> None:
    links = world.keep(timeout=60.0)
    made = NbdTarget.__new__(NbdTarget)
    made._settings, made._keeper = Settings(uri=keeping.URI), keeper_of(world)
    options: dict[str, OptionValue] = {
        "open_timeout": 7.0, "request_timeout": 3.0, "reconnect_window": "inf", "follow_size": True
    }  # fmt: skip
    made.changed(options)
    assert made._settings.follow
    assert (links.timeout_ns, links.window_ns) == (3_000_000_000, 0)
    with pytest.raises(UsageError, match="no time for an answer"):
        made.changed(options | {"request_timeout": 0.0})
    assert made._settings.timeout == 3.0
    made.params = dataclasses.replace(PARAMS, logical_block=4096)
    assert made.size_now() == SIZE
    keeper_of(world).export = dataclasses.replace(EXPORT, size=SIZE + 512)
    assert made.size_now() == SIZE  # the blocks of the disk stay what they are
