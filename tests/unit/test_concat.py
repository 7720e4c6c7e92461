"""The concat target: which byte of the disk is which byte of which file."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.helpers import open_fds
from ublkd._core import lib
from ublkd.config import build
from ublkd.errors import UblkdError
from ublkd.target import IoDesc, Op
from ublkd.targets.backing import Access
from ublkd.targets.concat import PUNCH_HOLE, ConcatTarget
from ublkd.targets.legs import Legs

BUFFERED = Access(direct=False, reason="asked", block=512, io_align=1, mem_align=4)
DIRECT = Access(direct=True, reason="", block=4096, io_align=4096, mem_align=512)
MEMBERS = {"read", "write", "zeroes", "fallocate", "discard"}


@dataclass
class FakeBacking:
    """As much of a Backing as legs see."""

    size: int
    access: Access = BUFFERED
    is_block_device: bool = False
    granularity: int = 4096
    path: str = "/some/file"
    fd: int = -1
    physical_block: int = 512
    rotational: bool = False
    identity: str = "8:1"
    generation: str = ""
    disk_id: str = "wwid 7"
    how_to_grow: str = "make it larger"
    closed: bool = False

    def discard(self) -> tuple[int, int]:
        return self.granularity, 1 << 30 if self.granularity else 0

    def close(self) -> None:
        self.closed = True


class Disk:
    """In the place of a Group: does at once, on bytes, what the members would."""

    def __init__(self, files: list[bytearray], data: bytearray) -> None:
        self.files, self.data = files, data
        self.calls: list[tuple[object, ...]] = []
        self._reached = 0

    def _carry(self, name: str, file: int, offset: int, length: int, at: int) -> bytearray:
        self.calls.append((name, file, offset, length))
        assert at == self._reached, "members leave a gap"
        self._reached += length
        assert 0 <= offset < offset + length <= len(self.files[file])
        return self.files[file]

    def read(self, file: int, offset: int, length: int, at: int = 0) -> None:
        source = self._carry("read", file, offset, length, at)
        self.data[at : at + length] = source[offset : offset + length]

    def write(self, file: int, offset: int, length: int, at: int = 0) -> None:
        sink = self._carry("write", file, offset, length, at)
        sink[offset : offset + length] = self.data[at : at + length]

    def _clear(self, name: str, file: int, offset: int, length: int) -> None:
        sink = self._carry(name, file, offset, length, self._reached)
        sink[offset : offset + length] = bytes(length)

    def zeroes(self, file: int, offset: int, length: int) -> None:
        self._clear("zeroes", file, offset, length)

    def discard(self, file: int, offset: int, length: int) -> None:
        self._clear("discard", file, offset, length)

    def fallocate(self, file: int, mode: int, offset: int, length: int) -> None:
        assert mode == PUNCH_HOLE
        self._clear("fallocate", file, offset, length)

    def fsync(self, file: int) -> None:
        self.calls.append(("fsync", file))


def concat(*backings: FakeBacking) -> ConcatTarget:
    return ConcatTarget(Legs(backings))  # type: ignore[arg-type]


def submit(target: ConcatTarget, io: IoDesc, group: Disk) -> None:
    target.submit(io, group)  # type: ignore[arg-type]


def names(target: ConcatTarget, io: IoDesc) -> list[object]:
    """The members of a request, by name."""
    files = [bytearray(backing.size) for backing in target._legs.backings]
    group = Disk(files, bytearray(io.length))
    submit(target, io, group)
    return [call[0] for call in group.calls]


# --- every byte -------------------------------------------------------------


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[FakeBacking], IoDesc]:
    """Files of all sizes, not all of them whole blocks, and a request somewhere on their disk."""
    some = st.builds(
        FakeBacking,
        size=st.one_of(st.integers(1, 8).map(lambda n: n * 4096), st.integers(4096, 20000)),
        access=st.sampled_from([BUFFERED, DIRECT]),
        is_block_device=st.booleans(),
        granularity=st.sampled_from([0, 512, 4096]),
    )
    backings = draw(st.lists(some, min_size=2, max_size=6))
    params = concat(*backings).params
    blocks = params.size // params.logical_block
    first = draw(st.integers(0, blocks - 1))
    count = draw(st.integers(1, blocks - first))
    op = draw(st.sampled_from([Op.READ, Op.WRITE, Op.DISCARD, Op.WRITE_ZEROES]))
    flags = draw(st.booleans()), draw(st.booleans())
    return backings, IoDesc(op, first * params.logical_block, count * params.logical_block, *flags)


@given(case=cases(), seed=st.integers(0, 1 << 16))
def test_the_files_one_behind_the_other_are_the_disk(
    case: tuple[list[FakeBacking], IoDesc], seed: int
) -> None:
    (backings, io), rng = case, random.Random(seed)
    target = concat(*backings)
    block = target.params.logical_block
    parts = [backing.size // block * block for backing in backings]
    files = [bytearray(rng.randbytes(backing.size)) for backing in backings]
    tails = [bytes(file[part:]) for file, part in zip(files, parts, strict=True)]
    before = b"".join(bytes(file[:part]) for file, part in zip(files, parts, strict=True))
    mine = rng.randbytes(io.length)
    group = Disk(files, bytearray(mine))
    submit(target, io, group)

    end = io.offset + io.length
    want = {Op.READ: before[io.offset : end], Op.WRITE: mine}.get(io.op, bytes(io.length))
    after = b"".join(bytes(file[:part]) for file, part in zip(files, parts, strict=True))
    assert after == before[: io.offset] + want + before[end:]
    assert group.data == (want if io.op is Op.READ else mine)
    assert [bytes(file[part:]) for file, part in zip(files, parts, strict=True)] == tails
    assert len(group.calls) <= target.params.max_members
    for _, file, offset, length in group.calls:
        whole = backings[file].access.block  # type: ignore[call-overload]
        assert offset % whole == length % whole == 0


@given(case=cases())
def test_each_file_is_touched_once_and_in_its_order(
    case: tuple[list[FakeBacking], IoDesc],
) -> None:
    backings, io = case
    group = Disk([bytearray(backing.size) for backing in backings], bytearray(io.length))
    submit(concat(*backings), io, group)
    files = [call[1] for call in group.calls]
    assert files == sorted(set(files))  # type: ignore[type-var]
    assert {call[0] for call in group.calls} <= MEMBERS


def test_a_border_is_the_next_files_first_byte() -> None:
    target = concat(FakeBacking(4096), FakeBacking(8192), FakeBacking(4096))
    for io, want in (
        (IoDesc(Op.READ, 0, 4096), [("read", 0, 0, 4096)]),
        (IoDesc(Op.READ, 4096, 512), [("read", 1, 0, 512)]),
        (IoDesc(Op.READ, 3584, 1024), [("read", 0, 3584, 512), ("read", 1, 0, 512)]),
        (IoDesc(Op.READ, 12288 - 512, 512), [("read", 1, 7680, 512)]),
        (IoDesc(Op.READ, 15872, 512), [("read", 2, 3584, 512)]),
        (
            IoDesc(Op.WRITE, 0, 16384),
            [("write", 0, 0, 4096), ("write", 1, 0, 8192), ("write", 2, 0, 4096)],
        ),
    ):
        group = Disk([bytearray(size) for size in (4096, 8192, 4096)], bytearray(io.length))
        submit(target, io, group)
        assert group.calls == want


def test_a_flush_reaches_every_file() -> None:
    group = Disk([], bytearray())
    submit(concat(*[FakeBacking(4096)] * 5), IoDesc(Op.FLUSH, 0, 0), group)
    assert group.calls == [("fsync", file) for file in range(5)]


# --- zeroes and holes -------------------------------------------------------

ZEROES = IoDesc(Op.WRITE_ZEROES, 0, 8192)


@pytest.mark.parametrize(
    ("io", "second", "want"),
    [
        (ZEROES, FakeBacking(4096), "fallocate"),
        (ZEROES._replace(keep_space=True), FakeBacking(4096), "zeroes"),
        (ZEROES._replace(fua=True), FakeBacking(4096), "zeroes"),  # a hole may not be durable
        (ZEROES, FakeBacking(4096, is_block_device=True), "zeroes"),
        (ZEROES, FakeBacking(4096, granularity=0), "zeroes"),
    ],
    ids=["holes", "the space stays", "durable", "a block device", "no holes there"],
)
def test_zeroes_are_holes_where_all_files_can_and_nobody_minds(
    io: IoDesc, second: FakeBacking, want: str
) -> None:
    assert names(concat(FakeBacking(4096), second), io) == [want, want]


def test_a_discard_is_a_hole_in_a_file_and_a_discard_on_a_device() -> None:
    target = concat(FakeBacking(4096), FakeBacking(4096, is_block_device=True))
    assert names(target, IoDesc(Op.DISCARD, 0, 8192)) == ["fallocate", "discard"]


@pytest.mark.parametrize("number", [0, 1])
def test_where_one_cannot_discard_none_is_offered(number: int) -> None:
    backings = [FakeBacking(4096), FakeBacking(4096)]
    assert concat(*backings).params.max_discard > 0
    backings[number].granularity = 0
    assert concat(*backings).params.max_discard == 0


# --- the disk that they make ------------------------------------------------


def test_the_disk_keeps_to_what_its_pickiest_file_needs() -> None:
    params = concat(FakeBacking(8192), FakeBacking(8192, DIRECT)).params
    assert (params.logical_block, params.io_align, params.dma_align) == (4096, 4096, 512)
    assert params.volatile_cache
    assert params.fua
    assert params.max_members >= 2 * lib.BACKING_MAX_MEMBERS
    assert concat(*[FakeBacking(8192)] * 64).params.max_members >= 64


def test_what_is_behind_the_last_whole_blocks_is_left_out_and_said() -> None:
    target = concat(FakeBacking(4096 + 100), FakeBacking(4096, DIRECT), FakeBacking(8191))
    assert target.params.size == 3 * 4096
    assert str(100 + 4095) in str(target.describe()["warning"])
    assert "warning" not in concat(FakeBacking(4096), FakeBacking(4096)).describe()


def test_a_file_without_a_whole_block_is_refused_by_name_and_all_are_closed() -> None:
    backings = [FakeBacking(8192, DIRECT), FakeBacking(4095, path="/poor")]
    with pytest.raises(UblkdError, match="/poor has less than one block of 4096") as caught:
        concat(*backings)
    assert caught.value.hint == "make it larger"
    assert all(backing.closed for backing in backings)


# --- real files -------------------------------------------------------------


def files(folder: Path, *sizes: int) -> tuple[str, ...]:
    paths = [folder / f"{number}.img" for number in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        path.write_bytes(os.urandom(size))
    return tuple(map(str, paths))


@pytest.mark.parametrize("direct", ["auto", "off"])
def test_its_files_come_in_the_order_in_which_they_were_named(tmp_path: Path, direct: str) -> None:
    before = open_fds()
    paths = files(tmp_path, 8192, 4096, 16384)
    options = build("concat", {"file": paths[::-1], "direct-io": direct}).options
    target = ConcatTarget.from_options(options)
    assert target.params.size == 28672
    assert [os.fstat(fd).st_size for fd in target.files()] == [16384, 4096, 8192]
    assert target.describe()["backing"] == paths[::-1]
    target.close()
    assert open_fds() == before


def test_where_each_file_begins_is_a_part_of_what_it_is() -> None:
    told = [concat(FakeBacking(size), FakeBacking(4096)).describe() for size in (4096, 8192)]
    assert told[0]["identity"] == ("8:1 from byte 0", "8:1 from byte 4096")
    assert told[0]["identity"] != told[1]["identity"]
