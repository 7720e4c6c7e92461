from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.helpers import open_fds
from ublkd.config import build
from ublkd.errors import UblkdError, UsageError
from ublkd.targets.null import UNBOUNDED, NullTarget


@given(st.integers(4096, 1 << 60), st.sampled_from([512, 1024, 2048, 4096]))
def test_the_disk_is_whole_blocks_and_as_large_as_they_allow(size: int, block: int) -> None:
    target = NullTarget(size, block)
    try:
        assert target.params.size % block == 0
        assert 0 <= size - target.params.size < block
        assert target.params.logical_block == target.params.physical_block == block
    finally:
        target.close()


def test_its_options_become_its_params() -> None:
    config = build("null", {"size": "1M", "block-size": "4K"})
    target = NullTarget.from_options(config.options)
    assert (target.params.size, target.params.logical_block) == (1 << 20, 4096)
    target.close()
    target = NullTarget.from_options(build("null", {}).options)
    assert (target.params.size, target.params.logical_block) == (250 << 30, 512)
    target.close()


@pytest.mark.parametrize("size", ["4095", "2048P", "-1", "much"])
def test_a_size_out_of_range_is_refused(size: str) -> None:
    with pytest.raises(UsageError) as caught:
        build("null", {"size": size})
    assert "from 4K to 1E" in caught.value.hint


def test_it_takes_every_kind_of_request() -> None:
    target = NullTarget(1 << 20, 512)
    params = target.params
    assert params.volatile_cache
    assert params.fua
    assert params.max_discard == params.max_write_zeroes == UNBOUNDED
    assert UNBOUNDED % 4096 in (0, 3584)
    assert UNBOUNDED < 1 << 32
    target.close()


def test_it_holds_one_descriptor_until_it_is_closed() -> None:
    before = open_fds()
    target = NullTarget(1 << 20, 512)
    (fd,) = target.files()
    assert os.read(fd, 8) == bytes(8)
    assert not os.get_inheritable(fd)
    assert target.native().ops
    assert target.describe() == {}
    target.close()
    assert open_fds() == before


def test_without_its_source_of_zeroes_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(2, "No such file or directory")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UblkdError, match="cannot open /dev/zero: no such file"):
        NullTarget(1 << 20, 512)
