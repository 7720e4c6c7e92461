"""How the loop target chooses between direct and buffered I/O, and what it knows of a device."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.helpers import is_one_line, open_fds
from ublkd._core import lib
from ublkd.errors import UblkdError, UsageError
from ublkd.targets import backing
from ublkd.targets.backing import Access, Backing
from ublkd.targets.loop import LoopTarget

Alignment = tuple[int, int] | str


@pytest.fixture(autouse=True)
def _nothing_stays_open() -> Iterator[None]:
    before = open_fds()
    yield
    assert open_fds() == before


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return path


def opened(path: Path, wish: str = "auto", block: int | None = None) -> dict[str, Any]:
    """What a target says of itself: its words, its block, and whether O_DIRECT is really on."""
    made = LoopTarget(Backing(str(path), direct_io=wish, share=True, block=block))
    flags = fcntl.fcntl(made.files()[0], fcntl.F_GETFL)
    told = dict(made.describe()) | {
        "block": made.params.logical_block,
        "flag": bool(flags & os.O_DIRECT),
        "align": made.params.dma_align,
    }
    made.close()
    return told


def align(monkeypatch: pytest.MonkeyPatch, found: Alignment) -> None:
    """A backing that can do direct I/O like this, or cannot."""
    monkeypatch.setattr(backing, "_alignment", lambda *_: found)
    monkeypatch.setattr(backing, "_try_read", lambda *_: None)


@pytest.fixture
def direct(disk: Path) -> Path:
    """A file whose filesystem takes the flag O_DIRECT."""
    try:
        os.close(os.open(disk, os.O_RDONLY | os.O_DIRECT))
    except OSError as error:
        pytest.skip(f"no O_DIRECT on the filesystem of {disk.parent}: {error}")
    return disk


def test_direct_io_is_chosen_where_it_is_possible(
    direct: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    align(monkeypatch, (512, 512))
    for wish in ("auto", "on"):
        told = opened(direct, wish)
        assert (told["direct_io"], told["flag"], told["block"]) == (True, True, 512)


def test_off_is_off_and_the_reason_is_kept(disk: Path) -> None:
    told = opened(disk, "off")
    assert (told["direct_io"], told["flag"], told["block"]) == (False, False, 512)
    assert told["direct_io_reason"] == "--direct-io off was asked for"


def test_the_block_grows_to_what_direct_io_needs(
    direct: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    align(monkeypatch, (512, 4096))
    told = opened(direct)
    assert (told["direct_io"], told["block"], told["align"]) == (True, 4096, 512)


def test_the_memory_is_aligned_as_direct_io_needs_and_never_less_than_a_word(
    direct: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    align(monkeypatch, (1, 512))
    assert opened(direct)["align"] == 4


REFUSED: list[tuple[Alignment, int | None, str]] = [
    ("the filesystem does not do it for this file", None, "the filesystem does not do it"),
    ((512, 4096), 512, "it needs blocks of 4096 bytes, and --block-size is 512"),
    ((512, 8192), None, "it needs blocks of 8192 bytes, and 4096 is the most"),
    ((65536, 512), 4096, "it needs blocks of 65536 bytes, and 4096 is the most"),
]


@pytest.mark.parametrize(("found", "block", "why"), REFUSED)
def test_where_direct_io_cannot_be_the_page_cache_is_used_and_the_reason_kept(
    disk: Path, monkeypatch: pytest.MonkeyPatch, found: Alignment, block: int | None, why: str
) -> None:
    align(monkeypatch, found)
    told = opened(disk, "auto", block)
    assert (told["direct_io"], told["flag"]) == (False, False)
    assert told["block"] == (block or 512)
    assert why in told["direct_io_reason"]


@pytest.mark.parametrize(("found", "block", "why"), REFUSED)
def test_insisting_on_direct_io_where_it_cannot_be_fails(
    disk: Path, monkeypatch: pytest.MonkeyPatch, found: Alignment, block: int | None, why: str
) -> None:
    align(monkeypatch, found)
    with pytest.raises(UblkdError, match="direct I/O is not possible") as caught:
        opened(disk, "on", block)
    assert why in caught.value.message
    assert is_one_line(caught.value.message)
    assert "--direct-io" in caught.value.hint


def test_a_trial_that_fails_turns_the_flag_off_again(
    direct: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    align(monkeypatch, (512, 512))
    monkeypatch.setattr(backing, "_try_read", refuse)
    told = opened(direct)
    assert (told["direct_io"], told["flag"]) == (False, False)
    assert "refuses it (invalid argument)" in told["direct_io_reason"]


def test_the_trial_reads_for_real(direct: Path) -> None:
    fd = os.open(direct, os.O_RDONLY)
    try:
        for size in (512, 4096):
            backing._try_read(fd, size, 0)
    finally:
        os.close(fd)
    fd = os.open(direct.parent, os.O_RDONLY)
    try:
        with pytest.raises(IsADirectoryError):
            backing._try_read(fd, 4096, 0)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("answer", "found"),
    [(0, (4, 512)), (-errno.EOPNOTSUPP, (2048, 2048)), (-errno.ENOSYS, (2048, 2048))],
)
def test_a_kernel_that_does_not_tell_gets_the_size_of_a_sector(
    monkeypatch: pytest.MonkeyPatch, answer: int, found: tuple[int, int]
) -> None:
    class Lib:
        @staticmethod
        def backing_dio_align(fd: int, mem: Any, offset: Any) -> int:
            if answer == 0:
                mem[0], offset[0] = 4, 512
            return answer

    monkeypatch.setattr(backing, "lib", Lib)
    assert backing._alignment(0, 2048) == found


def test_a_file_that_cannot_do_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lib:
        @staticmethod
        def backing_dio_align(*_: object) -> int:
            return -errno.EINVAL

    monkeypatch.setattr(backing, "lib", Lib)
    assert isinstance(backing._alignment(0, 512), str)


@pytest.fixture
def big_sectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is a block device with sectors of 4096 bytes."""
    monkeypatch.setattr(backing, "_is_block_device", lambda _: True)
    monkeypatch.setattr(backing, "_ioctl_int", lambda *_: 4096)


@pytest.mark.usefixtures("big_sectors")
@pytest.mark.parametrize("wish", ["auto", "on", "off"])
def test_blocks_under_the_sector_of_a_device_are_refused(disk: Path, wish: str) -> None:
    with pytest.raises(UsageError, match="--block-size 512 is under the 4096") as caught:
        backing._access(-1, str(disk), wish, 512, 0)
    assert "from 4096" in caught.value.hint


@pytest.mark.usefixtures("big_sectors")
def test_the_blocks_of_a_device_are_its_sectors(disk: Path) -> None:
    access = backing._access(-1, str(disk), "off", None, 0)
    assert access == Access(direct=False, reason="--direct-io off was asked for", block=4096)


def test_the_physical_block_is_a_power_of_two_of_at_most_a_page(
    monkeypatch: pytest.MonkeyPatch, disk: Path
) -> None:
    monkeypatch.setattr(backing, "_is_block_device", lambda _: True)
    for told, used in ((512, 512), (4096, 4096), (8192, 4096), (520, 4096), (1 << 20, 4096)):
        monkeypatch.setattr(backing, "_ioctl_int", lambda *_, told=told: told)
        assert backing._physical_block(-1) == used


def test_a_file_on_no_disk_has_no_queue_limits() -> None:
    fd = os.memfd_create("disk")
    assert backing._queue_limit(fd, "rotational") == 0
    os.close(fd)


def test_where_holes_cannot_be_made_no_discard_is_told(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lib:
        BACKING_MAX_MEMBERS = lib.BACKING_MAX_MEMBERS
        backing_dio_align = staticmethod(lib.backing_dio_align)

        @staticmethod
        def backing_probe_punch_hole(fd: int, beyond: int) -> int:
            assert beyond % 4096 == 0
            assert beyond >= os.fstat(fd).st_size
            return -errno.EOPNOTSUPP

    monkeypatch.setattr(backing, "lib", Lib)
    made = LoopTarget(Backing(str(disk), direct_io="off", share=True))
    assert made.params.max_discard == 0
    assert made.params.max_write_zeroes > 0
    made.close()


def test_asking_for_holes_changes_nothing(disk: Path) -> None:
    disk.write_bytes(b"x" * 5000)
    opened(disk)
    assert disk.read_bytes() == b"x" * 5000
