"""What loop.py asks about a backing before the device exists."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .core import Core
from .files import content, noise, open_fds

SIZE = 10_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "disk").write_bytes(noise(SIZE))
    return tmp_path / "disk"


@pytest.fixture
def backing(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


@pytest.fixture
def pipe() -> Iterator[int]:
    reading, writing = os.pipe()
    yield writing
    os.close(reading)
    os.close(writing)


def dio_align(core: Core, fd: int) -> tuple[int, int, int]:
    mem, offset = core.ffi.new("uint32_t *"), core.ffi.new("uint32_t *")
    return core.lib.backing_dio_align(fd, mem, offset), mem[0], offset[0]


def test_direct_io_needs_a_power_of_two_or_is_not_known(core: Core, backing: int) -> None:
    ret, mem, offset = dio_align(core, backing)
    assert ret in (0, -errno.EOPNOTSUPP, -errno.EINVAL)
    for align in (mem, offset):
        assert align & (align - 1) == 0
        assert (align > 0) == (ret == 0)


def test_a_pipe_says_nothing_of_direct_io(core: Core, pipe: int) -> None:
    assert dio_align(core, pipe)[0] == -errno.EOPNOTSUPP


def test_what_is_said_of_direct_io_is_true(core: Core, path: Path, backing: int) -> None:
    ret, mem, offset = dio_align(core, backing)
    if ret:
        pytest.skip(f"nothing is said here: {os.strerror(-ret)}")
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    try:
        raw: Any = core.ffi.new("char[]", mem + offset)
        address = int(core.ffi.cast("uintptr_t", raw))
        start = -address % mem
        assert os.preadv(fd, [core.ffi.buffer(raw + start, offset)], 0) == offset
    finally:
        os.close(fd)


def test_a_regular_file_takes_no_block_layer_discard(core: Core, backing: int) -> None:
    before = open_fds()
    assert core.lib.backing_probe_discard(backing) < 0
    assert open_fds() == before
    assert content(backing) == noise(SIZE)


@pytest.mark.parametrize("probe", ["dio", "discard", "punch"])
def test_a_file_that_is_not_open_is_an_error(core: Core, probe: str) -> None:
    asked: dict[str, Callable[[], int]] = {
        "dio": lambda: dio_align(core, 9999)[0],
        "discard": lambda: int(core.lib.backing_probe_discard(9999)),
        "punch": lambda: int(core.lib.backing_probe_punch_hole(9999, 0)),
    }
    ret = asked[probe]()
    assert ret in (-errno.EBADF, -errno.EOPNOTSUPP)


def test_asking_for_a_hole_changes_nothing(core: Core, backing: int) -> None:
    before = os.fstat(backing)
    assert core.lib.backing_probe_punch_hole(backing, SIZE) in (0, -errno.EOPNOTSUPP)
    after = os.fstat(backing)
    assert (after.st_size, after.st_blocks) == (before.st_size, before.st_blocks)
    assert content(backing) == noise(SIZE)


def test_a_file_that_is_only_read_has_no_holes_to_give(core: Core, path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        assert core.lib.backing_probe_punch_hole(fd, SIZE) == -errno.EBADF
    finally:
        os.close(fd)


def test_a_pipe_has_no_holes(core: Core, pipe: int) -> None:
    assert core.lib.backing_probe_punch_hole(pipe, 0) == -errno.ESPIPE
