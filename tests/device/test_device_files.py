"""Devices from files: one served in the foreground, as systemd would have it, and all applied."""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from load import pid_of, state_of
from tools import mounted, nothing_left, refused, run, sparse, ublkd, ublkd_json, wait_until

from ublkd import device
from ublkd.config import build
from ublkd.control import Control
from ublkd.features import negotiate
from ublkd.state import StateDir, new_cookie
from ublkd.target import API_VERSION, Group, Held, IoDesc, Op, OptionValue, Params
from ublkd.watchdog import Watchdog

MIB = 1 << 20
SECONDS = 60


class Service:
    """`ublkd run disk` with us in systemd's place."""

    def __init__(self, folder: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(folder / "notify"))
        self._socket.settimeout(SECONDS)
        self._folder, self.said = folder, ""
        self._process: Any = None

    def start(self) -> str:
        """Start it; what it said of itself when it was ready."""
        environ = {"NOTIFY_SOCKET": str(self._folder / "notify"), "WATCHDOG_USEC": "4000000"}
        self._process = subprocess.Popen(
            ["ublkd", "run", "disk", "--config", self._folder / "etc"],
            env=os.environ | environ, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        return self.await_("READY=1").partition("STATUS=")[2]

    def await_(self, word: str) -> str:
        """The next message that has it."""
        while word not in (heard := self._socket.recv(65536).decode()):
            assert self._process.poll() is None, self._process.stderr.read()
        return heard

    def end(self, number: int) -> int:
        """Send it that signal; how it ended."""
        self._process.send_signal(number)
        _, self.said = self._process.communicate(timeout=SECONDS)
        return int(self._process.returncode)

    def close(self) -> None:
        self._socket.close()
        if self._process and self._process.poll() is None:
            self.end(signal.SIGKILL)


@pytest.fixture
def etc(scratch: Path) -> Path:
    """A folder of files that is to be trusted."""
    made = scratch / "etc"
    made.mkdir()
    made.chmod(0o755)
    return made


def put(etc: Path, name: str, *lines: str) -> Path:
    path = etc / f"{name}.toml"
    path.write_text("".join(f"{line}\n" for line in lines))
    path.chmod(0o644)
    return path


def loop(etc: Path, name: str) -> Path:
    """The file of a device over a file of 32 MiB."""
    image = sparse(etc.parent / f"{name}.img", 32 * MIB)
    return put(etc, name, 'target = "loop"', f'file = "{image}"')


@contextlib.contextmanager
def service(folder: Path) -> Iterator[Service]:
    made = Service(folder)
    try:
        yield made
    finally:
        made.close()


def opened(node: str) -> None:
    os.close(os.open(node, os.O_RDONLY))


@pytest.mark.deadline(240)
def test_a_file_is_served_and_its_disk_outlives_whoever_serves_it(scratch: Path, etc: Path) -> None:
    path, mnt = loop(etc, "disk"), scratch / "mnt"
    with service(scratch) as served:
        status = served.start()
        node = "/dev/ublkb0"
        opened(node)  # nobody is ready before that is so
        assert status == f"serves {node}, target loop"
        assert ublkd_json("show", "disk")["origin"] == str(path)
        served.await_("WATCHDOG=1")
        assert "is served by process" in refused("run", "disk", "--config", etc)
        run("mkfs.ext4", "-q", node)
        with mounted(node, mnt):
            (mnt / "kept").write_text("before")
            # killed: the next one takes it over, with what it was made with
            assert served.end(signal.SIGKILL) == -signal.SIGKILL
            other = 'target = "loop"', f'file = "{scratch}/disk.img"', "queues = 2"
            put(etc, "disk", *other, "follow-size = true")
            assert served.start() == f"serves {node} again, target loop"
            assert (mnt / "kept").read_text() == "before"
            # told to end, and in use: the driver keeps it
            assert served.end(signal.SIGTERM) == 0
            assert "queues 2" in served.said  # waits, and what is live does not
            follows = "follow-size False -> True" if can_resize() else "disks cannot be resized"
            assert follows in served.said
            put(etc, "disk", *other)  # where that cannot be, it could not be made anew
            assert "left to the driver" in served.said
            wait_until(lambda: state_of(node) == "quiesced", 30, "the driver's notice")
            assert served.start() == f"serves {node} again, target loop"
            (mnt / "more").write_text("after")
            run("sync", "-f", mnt)
        # told to end, and not in use: it goes
        assert served.end(signal.SIGTERM) == 0
        nothing_left()
        assert served.start() == f"serves {node}, target loop"
        with mounted(node, mnt):
            assert [(mnt / n).read_text() for n in ("kept", "more")] == ["before", "after"]
        assert served.end(signal.SIGTERM) == 0
    nothing_left()


@pytest.mark.one_kernel
def test_a_disk_that_cannot_be_served_is_not_ready(scratch: Path, etc: Path) -> None:
    put(etc, "disk", 'target = "loop"', f'file = "{scratch}/none.img"')
    assert "does not exist" in refused("run", "disk", "--config", etc)
    put(etc, "bad", 'target = "null"', "sizes = 1")
    assert "unknown key" in refused("run", "bad", "--config", etc, code=2)
    assert "no such file" in refused("run", "none", "--config", etc, code=2)
    assert "cannot be a name" in refused("run", "../disk", "--config", etc, code=2)
    assert not ublkd("release", "disk").stderr  # the system does not go down
    nothing_left()


def can_resize() -> bool:
    return "UPDATE_SIZE" in ublkd_json("features")["features"]


def applied(etc: Path, *more: str, code: int = 0) -> list[str]:
    """What `ublkd apply` says that it does."""
    done = ublkd("apply", "--config", etc, *more, check=False)
    assert done.returncode == code, done
    return done.stdout.splitlines()


def test_devices_are_made_to_be_what_the_files_say(scratch: Path, etc: Path) -> None:
    ublkd("add", "-t", "null", "--name", "mine")
    loop(etc, "data")
    put(etc, "zero", 'target = "null"', "size = 1048576")
    assert applied(etc, "--dry-run") == ["add data", "add zero"]
    assert len(ublkd_json("list")) == 1
    assert applied(etc) == ["add data", "add zero"]
    assert applied(etc) == ["same data", "same zero"]
    put(etc, "zero", 'target = "null"', 'size = "2M"')
    os.kill(pid_of("data"), signal.SIGKILL)
    wait_until(lambda: state_of("data") == "quiesced", 30, "the driver's notice")
    assert applied(etc) == ["recover data", "change zero: size 1M -> 2M (anew)"]
    assert (state_of("data"), ublkd_json("show", "zero")["size"]) == ("live", 2 * MIB)
    node = ublkd_json("show", "data")["node"]
    run("mkfs.ext4", "-q", node)
    with mounted(node, scratch / "mnt") as mnt:
        daemon = pid_of("data")
        with (etc / "data.toml").open("a") as f:
            f.write("follow-size = true\n")
        live = ["set data: follow-size false -> true", "same zero"]
        assert applied(etc, "--dry-run") == live
        assert applied(etc, code=0 if can_resize() else 1) == live
        told = ublkd_json("show", "data")["options"]["follow_size"]
        assert (told, pid_of("data")) == (can_resize(), daemon)
        (etc / "data.toml").unlink()
        (etc / "zero.toml").unlink()
        put(etc, "mine", 'target = "null"')
        said = ["keep data: in use (its file is gone)",
                f"keep mine: {ublkd_json('show', 'mine')['node']} was made by hand",
                "del zero: its file is gone"]  # fmt: skip
        assert applied(etc, code=1) == said
        (mnt / "more").write_text("still there")
    (etc / "mine.toml").unlink()
    assert applied(etc) == ["del data: its file is gone"]
    assert [told["name"] for told in ublkd_json("list")] == ["mine"]
    ublkd("del", "mine")
    nothing_left()


class Blocking:
    """Reads zeroes; but the read of megabyte 1 waits for an answer, and that of megabyte 2 keeps
    the queue's own thread.
    """

    api_version = API_VERSION
    options = ()
    params = Params(size=8 * MIB, in_memory=True)

    def __init__(self) -> None:
        self.held: list[Held] = []
        self.asked, self.go_on = threading.Event(), threading.Event()

    def files(self) -> tuple[int, ...]:
        return ()

    def submit(self, io: IoDesc, group: Group) -> None:
        if io.op is Op.READ:
            group.memory[:] = bytes(io.length)
        if io.op is Op.READ and io.offset == MIB:
            self.held.append(group.hold())
            self.asked.set()
            return
        if io.op is Op.READ and io.offset == 2 * MIB:
            self.asked.set()
            self.go_on.wait(SECONDS)
        group.complete()

    def describe(self) -> dict[str, OptionValue]:
        return {}

    def close(self) -> None: ...


def read_at(node: str, offset: int) -> None:
    fd = os.open(node, os.O_RDONLY | os.O_DIRECT)
    with mmap.mmap(-1, 4096) as area:
        os.preadv(fd, [area], offset)
    os.close(fd)


@pytest.mark.one_kernel
def test_the_watchdog_hears_of_a_queue_that_is_stuck_and_of_no_other() -> None:
    target, states, fed = Blocking(), StateDir(), os.eventfd(0, os.EFD_NONBLOCK)

    def is_fed(seconds: float) -> bool:
        """Whether it is within so many looks, which are a tenth of a second each."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(fed)
        for _ in range(int(seconds * 10)):
            watchdog.look()
            if select.select([fed], [], [], 0.1)[0]:
                return True
        return False

    states.prepare()
    with Control() as control:
        config = build("null", {}, depth="4", lease="copy")
        features = negotiate(control.get_features(), config.lease, in_memory=True)
        made = device.Device(
            control, config, cast("Any", target), features, states, cookie=new_cookie()
        )
        with made as disk:
            node = f"/dev/ublkb{disk.id}"
            watchdog = Watchdog(0.4, disk.poke, lambda: os.eventfd_write(fed, 1))
            assert is_fed(SECONDS)  # idle
            waits = threading.Thread(target=read_at, args=(node, MIB))
            waits.start()
            assert target.asked.wait(SECONDS)
            assert is_fed(SECONDS)  # what stands behind it does not answer
            target.held[0].complete()
            waits.join(SECONDS)
            target.asked.clear()
            stuck = threading.Thread(target=read_at, args=(node, 2 * MIB))
            stuck.start()
            assert target.asked.wait(SECONDS)
            is_fed(0.5)  # it may have turned just before
            assert not is_fed(2)
            target.go_on.set()
            stuck.join(SECONDS)
            assert is_fed(SECONDS)
    nothing_left()
