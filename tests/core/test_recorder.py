"""What is kept of the last requests."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from .core import Core
from .driver import (
    FLUSH,
    FUA,
    LEND,
    NEED_REG_BUF,
    READ,
    WRITE,
    DriverMaker,
    Member,
    Op,
    Request,
    cut,
    instead,
)
from .files import FileMaker, noise

SIZE = 4096


def entries(driver: Any) -> list[Any]:
    """What is kept, the oldest first, as long as nothing was overwritten."""
    recorder = driver.stats.recorder
    return [recorder.entries[n] for n in range(recorder.last)]


def test_a_request_is_kept_as_it_came_and_as_it_ended(
    new_driver: DriverMaker, new_file: FileMaker
) -> None:
    driver = new_driver([new_file(noise(4 * SIZE))])
    two = [Member(Op.READ, len=SIZE), Member(Op.READ, offset=SIZE, buf=SIZE, len=SIZE)]
    driver.serve(Request(READ, 2 * SIZE, two, {0: cut(10, 20), 1: instead(-errno.EAGAIN)}))
    driver.serve(Request(WRITE, SIZE, [Member(Op.WRITE, len=SIZE)], flags=FUA))
    driver.serve(Request(FLUSH, answer=-errno.EIO))
    read, write, flush = entries(driver)
    assert [e.number for e in (read, write, flush)] == [1, 2, 3]
    assert (read.op_flags, read.nr_sectors, read.result) == (READ, 16, 2 * SIZE)
    assert (read.members, read.shorts) == (2, 2)
    assert (write.op_flags, write.members, write.shorts) == (WRITE | FUA, 1, 0)
    assert (flush.op_flags, flush.members, flush.result) == (FLUSH, 0, -errno.EIO)
    assert read.ended <= write.ended <= flush.ended
    assert 0 < read.took < read.ended


@pytest.mark.parametrize(
    ("lease", "flags", "refused", "kept"),
    [
        ("AUTO", 0, False, "AUTO"),
        ("AUTO", NEED_REG_BUF, False, "REGISTER"),
        ("AUTO", NEED_REG_BUF, True, "USER_COPY"),
        ("REGISTER", 0, False, "REGISTER"),
        ("REGISTER", 0, True, "USER_COPY"),
        ("GROUP", 0, False, "GROUP"),
        ("COPY", 0, False, "COPY"),
        ("USER_COPY", 0, False, "USER_COPY"),
    ],
)
def test_the_lease_is_the_one_that_the_request_had_in_the_end(
    new_driver: DriverMaker, new_file: FileMaker, core: Core,
    lease: str, flags: int, refused: bool, kept: str,
) -> None:  # fmt: skip
    driver = new_driver([new_file(noise(SIZE))], lease=lease, dev_fd=new_file())
    outcomes = {LEND: instead(-errno.EBUSY)} if refused else {}
    driver.serve(Request(READ, SIZE, [Member(Op.READ, len=SIZE)], outcomes, flags=flags))
    (entry,) = entries(driver)
    assert entry.lease == getattr(core.lib, f"LEASE_{kept}")


def test_more_shorts_than_there_is_room_for_are_as_many_as_there_is(
    new_driver: DriverMaker, new_file: FileMaker
) -> None:
    driver = new_driver([new_file(noise(SIZE))])
    steps = cut(*[1] * 300)
    driver.serve(Request(READ, SIZE, [Member(Op.READ, len=SIZE)], {0: steps}))
    driver.serve(Request(READ, SIZE, [Member(Op.READ, len=SIZE)]))
    assert [entry.shorts for entry in entries(driver)] == [255, 0]
    assert driver.stats.short_members == 300


def test_the_oldest_entries_make_room_and_the_rest_stays_whole(core: Core) -> None:
    recorder = core.ffi.new("struct recorder *")
    most = core.lib.RECORDER_ENTRIES
    assert most > 1000
    for number in range(1, most + 6):
        entry = core.lib.recorder_open(recorder)
        assert entry.number == 0  # nobody believes it yet
        entry.start_sector = number
        core.lib.recorder_close(recorder, entry)
    assert recorder.last == most + 5
    assert sorted(e.number for e in recorder.entries) == list(range(6, most + 6))
    assert all(e.start_sector == e.number for e in recorder.entries)
