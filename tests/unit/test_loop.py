"""What the loop target refuses, and who may have a backing at a time."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.helpers import is_one_line, open_fds
from ublkd.config import build
from ublkd.errors import UblkdError
from ublkd.targets import backing
from ublkd.targets.loop import LoopTarget

ROOT_USER = os.geteuid() == 0


def target(path: Path | str, **options: str | bool) -> LoopTarget:
    """A loop target as the command line would make it."""
    raw: dict[str, str | bool | None] = {"file": str(path)}
    raw |= {name.replace("_", "-"): value for name, value in options.items()}
    return LoopTarget.from_options(build("loop", raw).options)


def refusal(path: Path | str, **options: str | bool) -> UblkdError:
    """The error, after a look at its form."""
    with pytest.raises(UblkdError) as caught:
        target(path, **options)
    assert is_one_line(caught.value.message)
    assert is_one_line(caught.value.hint)
    return caught.value


@pytest.fixture(autouse=True)
def _nothing_stays_open(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(backing, "LOCK_SECONDS", 0.05)
    before = open_fds()
    yield
    assert open_fds() == before


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return path


def test_a_file_becomes_a_disk_of_its_size(disk: Path) -> None:
    made = target(disk)
    params, told = made.params, made.describe()
    assert params.size == 1 << 20
    assert params.physical_block >= params.logical_block >= 512
    assert params.volatile_cache
    assert params.fua
    assert not params.read_only
    assert told["backing"] == str(disk)
    assert told["direct_io_reason"]
    assert "warning" not in told
    (fd,) = made.files()
    assert not os.get_inheritable(fd)
    assert os.fstat(fd).st_ino == disk.stat().st_ino
    made.close()


def test_a_read_only_disk_never_writes(disk: Path) -> None:
    made = target(disk, read_only=True)
    params = made.params
    assert params.read_only
    assert (params.max_discard, params.max_write_zeroes) == (0, 0)
    assert not params.volatile_cache
    assert not params.fua
    assert fcntl.fcntl(made.files()[0], fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    made.close()


def test_a_missing_file_is_named_with_the_way_to_make_one(tmp_path: Path) -> None:
    error = refusal(tmp_path / "nowhere\n.img")
    assert r"nowhere\n.img does not exist" in error.message
    assert "truncate" in error.hint
    assert "does not exist" in refusal(tmp_path / "no" / "folder.img").message


def test_a_link_to_nothing_is_called_that(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("nothing")
    assert "is a link to a file that does not exist" in refusal(link).message


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert "cannot look at" in refusal(tmp_path / "a").message


def test_a_path_through_a_file_or_too_long_is_refused(disk: Path) -> None:
    assert "not a directory" in refusal(disk / "x").message
    assert "file name too long" in refusal("/" + "x" * 300).message
    assert "has a NUL" in refusal("/a\0b").message


def test_a_link_to_a_file_is_followed(disk: Path) -> None:
    link = disk.with_name("link")
    link.symlink_to(disk.name)
    made = target(link)
    assert made.describe()["backing"] == str(link)
    made.close()


def test_a_directory_is_refused(tmp_path: Path) -> None:
    error = refusal(tmp_path)
    assert "is a directory" in error.message
    assert "regular file or a block device" in error.hint


def test_a_fifo_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert "is a fifo" in refusal(fifo).message


@pytest.mark.parametrize("read_only", [False, True])
def test_a_fifo_that_takes_the_files_place_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_only: bool
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    monkeypatch.setattr(stat, "S_IFMT", lambda _: stat.S_IFREG)
    assert "is no longer a file or block device" in refusal(fifo, read_only=read_only).message


@pytest.mark.parametrize("node", ["/dev/zero", "/dev/null", "/dev/tty"])
def test_a_character_device_is_refused(node: str) -> None:
    if not Path(node).exists():
        pytest.skip(f"no {node} here")
    assert "is a character device" in refusal(node).message


def test_a_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        assert "is a socket" in refusal(tmp_path / "socket").message


@pytest.mark.parametrize("size", [0, 1, 511])
def test_a_file_under_one_block_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "small"
    path.write_bytes(bytes(size))
    error = refusal(path)
    assert f"has {size} bytes, less than one block" in error.message
    assert "truncate -s +10G" in error.hint  # which cannot cut it


def test_an_offset_that_leaves_no_block_should_be_smaller(disk: Path) -> None:
    assert "smaller --offset" in refusal(disk, offset="1M").hint


@pytest.mark.parametrize(
    ("whole", "block", "rest"), [(5000, "512", 392), (8191, "4096", 4095), (1025, "1K", 1)]
)
def test_the_last_part_of_a_block_is_left_out_with_a_warning(
    tmp_path: Path, whole: int, block: str, rest: int
) -> None:
    path = tmp_path / "odd"
    path.write_bytes(bytes(whole))
    made = target(path, block_size=block, direct_io="off")
    assert made.params.size == whole - rest
    assert f"the last {rest} bytes" in str(made.describe()["warning"])
    made.close()


@pytest.mark.skipif(ROOT_USER, reason="root may write every file")
def test_a_file_that_may_not_be_written_is_refused_with_the_way_out(disk: Path) -> None:
    disk.chmod(0o400)
    error = refusal(disk)
    assert "cannot be opened for writing: permission denied" in error.message
    assert "--read-only" in error.hint
    target(disk, read_only=True).close()


def test_a_file_that_may_not_be_read_is_refused(disk: Path) -> None:
    disk.chmod(0)
    if os.access(disk, os.R_OK):
        pytest.skip("this user may read every file")
    assert "permission denied" in refusal(disk, read_only=True).message
    disk.parent.chmod(0)
    try:
        assert "cannot look at" in refusal(disk).message
    finally:
        disk.parent.chmod(0o700)


@pytest.mark.skipif(not ROOT_USER, reason="only root can make a file immutable")
def test_an_immutable_file_is_refused_with_the_way_out(disk: Path) -> None:
    chattr = shutil.which("chattr")
    if not chattr or subprocess.call([chattr, "+i", disk], stderr=subprocess.DEVNULL):
        pytest.skip("chattr +i does not work here")
    try:
        error = refusal(disk)
        assert "cannot be opened for writing" in error.message
        assert "lsattr" in error.hint
        target(disk, read_only=True).close()
    finally:
        subprocess.run([chattr, "-i", disk], check=True)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_backing_is_had_by_one_at_a_time(disk: Path, read_only: bool) -> None:
    first = target(disk)
    error = refusal(disk, read_only=read_only)
    assert "is in use by another program" in error.message
    assert "--share" in error.hint
    first.close()
    target(disk, read_only=read_only).close()


def test_another_name_of_a_backing_is_the_same_backing(disk: Path) -> None:
    link, hard = disk.with_name("link"), disk.with_name("hard")
    link.symlink_to(disk)
    hard.hardlink_to(disk)
    first = target(disk)
    assert "in use" in refusal(link).message
    assert "in use" in refusal(hard).message
    first.close()


def test_a_shared_backing_asks_nobody(disk: Path) -> None:
    first = target(disk)
    second = target(disk, share=True)
    third = target(disk, share=True)
    for made in (third, second, first):
        made.close()


def test_a_shared_backing_that_is_closed_takes_nobodys_lock_away(disk: Path) -> None:
    first = target(disk)
    target(disk, share=True).close()
    assert "in use" in refusal(disk).message
    first.close()


def test_closing_gives_the_lock_back_while_the_file_is_still_held(disk: Path) -> None:
    first = target(disk)
    held = os.dup(first.files()[0])  # as a ring holds it that is still being torn down
    first.close()
    target(disk).close()
    os.close(held)


def test_a_lock_that_is_let_go_of_in_time_is_waited_for(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backing, "LOCK_SECONDS", 5)
    first = target(disk)
    monkeypatch.setattr(time, "sleep", lambda _: fcntl.flock(first.files()[0], fcntl.LOCK_UN))
    target(disk).close()
    first.close()


def test_a_filesystem_without_locks_is_served_all_the_same(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    target(disk).close()
