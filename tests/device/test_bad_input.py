"""What cannot be done says so in one line and a hint, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from steps import DAEMON, killed
from tools import (
    daemons,
    device,
    leases,
    mounted,
    nothing_left,
    refused,
    run,
    sparse,
    ublkd,
    ublkd_json,
)

MIB = 1 << 20


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["add", "--target", "nosuch"], "unknown target 'nosuch'"),
        (["add", "--target", "loop", "--file", "x", "trailing"], "unexpected extra argument"),
        (["add", "--target", "null", "--queues", "4097"], "from 1 to 4096"),
    ],
)
def test_a_wrong_command_line_is_exit_2(words: list[str], says: str) -> None:
    """All the others are in tests/unit: no device is needed to refuse them."""
    assert says in refused(*words, code=2)
    nothing_left()


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(path))


def _immutable(path: Path) -> None:
    sparse(path, MIB)
    path.chmod(0o400)


MAKERS: list[tuple[str, Callable[[Path], object], str]] = [
    ("missing", lambda p: None, "does not exist"),
    ("directory", lambda p: p.mkdir(), "is a directory"),
    ("fifo", os.mkfifo, "is a fifo"),
    ("character", lambda p: os.mknod(p, stat.S_IFCHR | 0o600, os.makedev(1, 3)), "is a character"),
    ("dangling", lambda p: p.symlink_to("nowhere"), "is a link to a file that does not exist"),
    ("socket", _socket, "is a socket"),
    ("empty", lambda p: p.touch(), "has 0 bytes"),
    ("tiny", lambda p: p.write_bytes(b"x" * 511), "less than one block of 512"),
]


@pytest.mark.parametrize(("kind", "make", "says"), MAKERS, ids=[m[0] for m in MAKERS])
def test_a_file_that_cannot_be_a_disk_is_named(
    scratch: Path, kind: str, make: Callable[[Path], object], says: str
) -> None:
    path = scratch / kind
    make(path)
    assert says in refused("add", "--target", "loop", "--file", path)
    nothing_left()


def test_a_file_on_a_read_only_filesystem_needs_read_only(scratch: Path) -> None:
    folder = scratch / "ro"
    folder.mkdir()
    run("mount", "-t", "tmpfs", "none", folder)
    disk = sparse(folder / "disk.img", MIB)
    run("mount", "-o", "remount,ro", folder)
    assert "cannot be opened for writing" in refused("add", "--target", "loop", "--file", disk)
    with device("loop", "--file", disk, "--read-only"):
        pass
    nothing_left()


def test_without_root_it_says_sudo(scratch: Path) -> None:
    for words in (["add", "--target", "null"], ["list"], ["features"], ["del", "0"]):
        done = run("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "ublkd", *words,
                   check=False)  # fmt: skip
        assert done.returncode == 3, done
        assert "need root" in done.stderr
        assert "sudo" in done.stderr
        assert len(done.stderr.splitlines()) == 2


@pytest.mark.usefixtures("lab_only")
def test_without_the_module_it_says_which_to_load() -> None:
    run("rmmod", "ublk_drv")
    try:
        for words in (["add", "--target", "null"], ["list"], ["features"]):
            assert "modprobe ublk_drv" in refused(*words, code=3)
        assert not daemons()
    finally:
        run("modprobe", "ublk_drv")
    nothing_left()


@pytest.mark.usefixtures("lab_only")
@pytest.mark.parametrize("setting", ["2"])
def test_with_io_uring_disabled_it_names_the_setting(setting: str) -> None:
    knob = Path("/proc/sys/kernel/io_uring_disabled")
    before = knob.read_text()
    knob.write_text(setting)
    try:
        said = refused("add", "--target", "null", code=3)
        assert "io_uring is disabled" in said
        assert "kernel.io_uring_disabled" in said
    finally:
        knob.write_text(before)
    nothing_left()


def test_a_number_and_a_name_that_are_taken_are_refused() -> None:
    with device("null", "--size", "1M", "--id", "5", "--name", "five"):
        said = refused("add", "--target", "null", "--id", "5")
        assert "device number 5 is taken by another ublkd device" in said
        said = refused("add", "--target", "null", "--name", "five")
        assert "the name 'five' is taken by /dev/ublkb5" in said
        assert len(ublkd_json("list")) == 1
    nothing_left()


def test_a_lease_that_the_kernel_lacks_is_refused_before_the_device_exists() -> None:
    if "auto" in leases():
        return
    assert "AUTO_BUF_REG" in refused("add", "--target", "null", "--lease", "auto", code=3)
    nothing_left()


def test_direct_io_is_refused_where_the_filesystem_cannot(scratch: Path) -> None:
    """A filesystem made by the kernel's own fuse-free means: ext4 with data journalling."""
    backing = sparse(scratch / "fs.img", 64 * MIB)
    run("mkfs.ext4", "-q", backing)
    with mounted(str(backing), scratch / "fs", "-o", "loop,data=journal") as folder:
        disk = sparse(folder / "disk.img", 8 * MIB)
        said = refused("add", "--target", "loop", "--file", disk, "--direct-io", "on")
        assert "direct I/O is not possible" in said
        with device("loop", "--file", disk) as node:
            told = ublkd_json("show", node)["describe"]
            assert told["direct_io"] is False
            assert "filesystem" in told["direct_io_reason"]
    nothing_left()


def test_any_bytes_in_a_path_keep_the_json_valid(scratch: Path) -> None:
    disk = os.fsencode(scratch) + b"/a\nb\xff\xfe'\"\\ \xc3\xa9.img"
    with open(disk, "wb") as f:
        f.truncate(MIB)
    name = os.fsdecode(disk)
    with device("loop", "--file", name) as node:
        for words in (["list"], ["show", node]):
            raw = subprocess.run(["ublkd", *words, "--json"], capture_output=True, check=True)
            told = json.loads(raw.stdout.decode("ascii"))
            one = told[0] if isinstance(told, list) else told
            assert "a\nb\\xff\\xfe'\"\\ \xe9.img" in one["describe"]["backing"]
        lines = ublkd("list").stdout.splitlines()
        assert len(lines) == 2
        assert "a\\nb\\xff" in lines[1]
    said = refused("add", "--target", "loop", "--file", name + "-missing")
    assert "does not exist" in said


def test_standard_output_that_is_closed_leaves_no_device(scratch: Path) -> None:
    disk = sparse(scratch / "disk.img", MIB)
    for ending in (">&-", "| true", ">/dev/full"):
        command = f"{{ ublkd add --target loop --file {disk}; echo $? >&2; }} {ending}"
        if ending == "| true":
            command = f"exec 3> >(:); wait $!; {command.removesuffix(ending)} >&3"
        done = run("bash", "-c", command)
        assert "Traceback" not in done.stderr
        assert "standard output" in done.stderr, done
        assert done.stderr.splitlines()[-1] == "1", done
        nothing_left()


def test_del_of_what_is_not_there_or_not_ours_is_refused() -> None:
    assert "there is no ublk device '3'" in refused("del", "3")
    assert "there is no ublk device 'nobody'" in refused("show", "nobody")
    foreign = Path(__file__).with_name("foreign.py")
    made = subprocess.Popen(["python3", str(foreign)], stdout=subprocess.PIPE, text=True)
    assert made.stdout is not None
    dev_id = made.stdout.readline().strip()
    try:
        assert "was not made by ublkd" in refused("del", dev_id)
        assert "was not made by ublkd" in refused("stop", dev_id)
        assert "not ours" in ublkd("list").stdout
        ublkd("del", "--all")
        assert [d["ours"] for d in ublkd_json("list")] == [False]
        said = refused("add", "--target", "null", "--id", dev_id)
        assert "taken by another program" in said
    finally:
        made.terminate()
        made.wait(30)
    nothing_left()


def _adds(count: int, *words: str | Path) -> list[subprocess.Popen[str]]:
    command = ["ublkd", "add", *map(str, words)]
    return [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(count)
    ]


def test_of_two_adds_of_one_file_exactly_one_wins_unless_shared(scratch: Path) -> None:
    disk = sparse(scratch / "disk.img", MIB)
    both = _adds(2, "--target", "loop", "--file", disk)
    said = [p.communicate(timeout=120)[1] for p in both]
    assert sorted(p.returncode for p in both) == [0, 1], said
    assert "in use by another program" in "".join(said)
    assert len(ublkd_json("list")) == 1
    ublkd("del", "--all")
    both = _adds(2, "--target", "loop", "--file", disk, "--share")
    said = [p.communicate(timeout=120)[1] for p in both]
    assert [p.returncode for p in both] == [0, 0], said
    ublkd("del", "--all")
    nothing_left()


def test_an_add_whose_daemon_is_killed_says_so_and_leaves_nothing(scratch: Path) -> None:
    """The daemon is killed once its device exists; the command must not hang."""
    # before it tells its parent, and behind ADD_DEV
    death = killed(13, DAEMON, scratch, "add", "--target", "null", "--queues", "2")
    assert death is not None
    assert (death.done.returncode, death.done.stdout) == (1, "")
    assert "died before it was ready (signal SIGKILL)" in death.done.stderr
    nothing_left()
