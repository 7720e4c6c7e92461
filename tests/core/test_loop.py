"""The loop target's operations on a file."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .core import Core
from .driver import (
    DISCARD,
    FLUSH,
    FUA,
    NOUNMAP,
    READ,
    WRITE,
    WRITE_ZEROES,
    DriverMaker,
    Request,
    cut,
    instead,
)
from .files import content, noise
from .loop_disk import DATASYNC, FALLOCATE, FSYNC, PUNCH, READ_, RWF_DSYNC, WRITE_, ZERO, LoopDisk

SIZE = 256 << 10
AT, LEN = 64 << 10, 128 << 10
REFUSED = instead(-errno.EOPNOTSUPP)

DiskMaker = Callable[..., LoopDisk]


@pytest.fixture
def backing(core: Core, tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "disk", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, noise(SIZE), 0)
    yield fd
    os.close(fd)


@pytest.fixture
def new_disk(core: Core, new_driver: DriverMaker, backing: int) -> DiskMaker:
    def make(**loop: Any) -> LoopDisk:
        return LoopDisk(core, new_driver, backing, **loop)

    return make


@pytest.fixture
def punches(core: Core, backing: int) -> None:
    if ret := core.lib.backing_probe_punch_hole(backing, SIZE):
        pytest.skip(f"no holes in files here: {os.strerror(-ret)}")


def zeroed() -> bytes:
    return noise(SIZE)[:AT] + bytes(LEN) + noise(SIZE)[AT + LEN :]


def test_a_read_is_one_member(new_disk: DiskMaker) -> None:
    disk = new_disk()
    assert disk.serve(Request(READ, LEN, offset=AT)) == LEN
    assert disk.driver.pages()[:LEN] == noise(SIZE)[AT : AT + LEN]
    assert disk.steps() == [(READ_, 0)]


@pytest.mark.parametrize(("flags", "rwf"), [(0, 0), (FUA, RWF_DSYNC)])
def test_a_write_is_one_member_and_durable_if_asked(
    new_disk: DiskMaker, backing: int, flags: int, rwf: int
) -> None:
    disk = new_disk()
    disk.driver.pages()[:LEN] = noise(LEN, 1)
    # the rest of a short write must be as durable as its start
    r = Request(WRITE, LEN, offset=AT, flags=flags, outcomes={0: cut(1000)})
    assert disk.serve(r) == LEN
    assert content(backing) == noise(SIZE)[:AT] + noise(LEN, 1) + noise(SIZE)[AT + LEN :]
    assert disk.steps() == [(WRITE_, rwf)] * 2


def test_a_flush_is_an_fdatasync(new_disk: DiskMaker) -> None:
    disk = new_disk()
    assert disk.serve(Request(FLUSH)) == 0
    assert disk.steps() == [(FSYNC, DATASYNC)]
    assert disk.serve(Request(FLUSH, outcomes={0: instead(-errno.EIO)})) == -errno.EIO


def test_the_disk_starts_where_the_backing_says(new_disk: DiskMaker, backing: int) -> None:
    disk = new_disk(offset=AT)
    assert disk.serve(Request(READ, 512, offset=512)) == 512
    assert disk.driver.pages()[:512] == noise(SIZE)[AT + 512 : AT + 1024]
    disk.driver.pages()[:512] = noise(512, 1)
    assert disk.serve(Request(WRITE, 512)) == 512
    assert os.pread(backing, 512, AT) == noise(512, 1)
    r = Request(WRITE_ZEROES, 512, offset=1024, outcomes={0: REFUSED, 1: REFUSED})
    assert disk.serve(r) == 0
    assert os.pread(backing, 512, AT + 1024) == bytes(512)
    assert {e.off for e in disk.driver.issued()} == {AT + 1024}


@pytest.mark.usefixtures("punches")
@pytest.mark.parametrize("op", [DISCARD, WRITE_ZEROES])
def test_discard_and_write_zeroes_free_the_range(
    new_disk: DiskMaker, backing: int, op: int
) -> None:
    disk = new_disk()
    assert disk.serve(Request(op, LEN, offset=AT)) == 0
    assert content(backing) == zeroed()
    assert disk.steps() == [(FALLOCATE, PUNCH)]
    assert os.lseek(backing, 0, os.SEEK_HOLE) == AT


@pytest.mark.parametrize("flags", [0, NOUNMAP, FUA, FUA | NOUNMAP])
def test_write_zeroes_leaves_zeroes_on_any_file_system(
    new_disk: DiskMaker, backing: int, flags: int
) -> None:
    disk = new_disk()
    assert disk.serve(Request(WRITE_ZEROES, LEN, offset=AT, flags=flags)) == 0
    assert content(backing) == zeroed()
    assert disk.steps()[0] == (FALLOCATE, ZERO if flags & NOUNMAP else PUNCH)
    ends_durable = disk.steps()[-1] in ((FSYNC, DATASYNC), (WRITE_, RWF_DSYNC))
    assert ends_durable == bool(flags & FUA)


@pytest.mark.parametrize("flags", [0, NOUNMAP, FUA, FUA | NOUNMAP])
@pytest.mark.parametrize("refusals", [1, 2])
def test_what_the_file_refuses_is_replaced_and_not_tried_again(
    new_disk: DiskMaker, backing: int, flags: int, refusals: int
) -> None:
    disk = new_disk()
    ways = [(FALLOCATE, ZERO)] if flags & NOUNMAP else [(FALLOCATE, PUNCH), (FALLOCATE, ZERO)]
    refusals = min(refusals, len(ways))
    r = Request(WRITE_ZEROES, LEN, offset=AT, flags=flags)
    refused = dict.fromkeys(range(refusals), REFUSED)
    if refusals < len(ways):
        refused[refusals] = instead(0)  # the way that this file has
    tried = ways[: refusals + 1]
    if refusals == len(ways):
        tried.append((WRITE_, RWF_DSYNC if flags & FUA else 0))
    elif flags & FUA:
        tried.append((FSYNC, DATASYNC))

    assert disk.serve(r.but(outcomes=refused)) == 0
    assert disk.steps() == tried
    assert disk.loop.backing.no_punch_hole == (not flags & NOUNMAP)
    assert disk.loop.backing.no_zero_range == (refusals == len(ways))

    assert disk.serve(r.but(outcomes={0: instead(0)} if refusals < len(ways) else {})) == 0
    assert disk.steps() == tried[refusals:]
    if refusals == len(ways):
        assert content(backing) == zeroed()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EINVAL])
def test_only_a_refusal_has_a_way_round(new_disk: DiskMaker, error: int) -> None:
    disk = new_disk()
    r = Request(WRITE_ZEROES, LEN, offset=AT, outcomes={0: instead(-error)})
    assert disk.serve(r) == (-errno.ENOSPC if error == errno.ENOSPC else -errno.EIO)
    assert len(disk.steps()) == 1
    assert not disk.loop.backing.no_punch_hole


def test_durable_zeroes_fail_with_their_fsync(new_disk: DiskMaker) -> None:
    disk = new_disk()
    outcomes = {0: instead(0), 1: instead(-errno.ENOSPC)}
    r = Request(WRITE_ZEROES, LEN, offset=AT, flags=FUA, outcomes=outcomes)
    assert disk.serve(r) == -errno.ENOSPC


def test_a_discard_that_is_refused_stays_refused(new_disk: DiskMaker, backing: int) -> None:
    disk = new_disk()
    r = Request(DISCARD, LEN, offset=AT, outcomes={0: REFUSED})
    assert disk.serve(r) == -errno.EOPNOTSUPP
    assert len(disk.steps()) == 1
    assert content(backing) == noise(SIZE)
    assert not disk.loop.backing.no_punch_hole


def test_a_read_only_disk_reads_and_flushes_and_refuses_the_rest(
    new_disk: DiskMaker, backing: int
) -> None:
    disk = new_disk(read_only=True)
    assert disk.serve(Request(READ, LEN)) == LEN
    assert disk.serve(Request(FLUSH)) == 0
    assert disk.steps() == []
    for op in (WRITE, DISCARD, WRITE_ZEROES):
        assert disk.serve(Request(op, LEN)) == -errno.EIO  # EROFS
        assert disk.steps() == []
    assert content(backing) == noise(SIZE)


@pytest.mark.parametrize("op", [4, 6, 15, 255])
def test_what_it_does_not_know_is_not_supported(new_disk: DiskMaker, op: int) -> None:
    assert new_disk().serve(Request(op, LEN)) == -errno.EOPNOTSUPP


def test_a_block_device_is_discarded_by_its_own_command(new_disk: DiskMaker) -> None:
    disk = new_disk(backing={"block_device": True}, offset=4096)
    r = Request(DISCARD, LEN, offset=AT, outcomes={0: instead(0)})
    assert disk.serve(r) == 0
    (issued,) = disk.driver.issued()
    assert (issued.off, issued.addr, issued.addr3) == (0x12 << 8, AT + 4096, LEN)
