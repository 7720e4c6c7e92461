"""A device outlives its daemon: another one takes it over, and its users only wait.

THOROUGH=1 kills a hundred times where this does it a few, and upgrades twenty times.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import select
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from nbd import Mortal
from tools import (
    counters,
    device,
    fio,
    leases,
    lent_and_copied,
    mounted,
    nothing_left,
    refused,
    run,
    sparse,
    ublkd,
    ublkd_json,
    wait_until,
)

MIB = 1 << 20
KILLS, UPGRADES = (100, 20) if os.environ.get("THOROUGH") else (3, 3)
BETWEEN = 50
"""Requests that are served before the next kill."""


def files(scratch: Path, count: int = 1) -> list[str | Path]:
    """So many of 32 MiB, as the options of a target."""
    paths = [sparse(scratch / f"{n}.img", 32 * MIB) for n in range(count)]
    return [word for path in paths for word in ("--file", path)]


class Load(threading.Thread):
    """Writes and then reads with checksums, again and again, until it is told to stop."""

    def __init__(self, node: str) -> None:
        super().__init__(daemon=True)
        self._node, self._enough, self._failure = node, threading.Event(), ""

    def run(self) -> None:
        seed = 0
        while not self._enough.is_set() and not self._failure:
            seed += 1
            done = run(
                "fio", "--name=t", f"--filename={self._node}", "--ioengine=io_uring",
                "--direct=1", "--rw=randwrite", "--bsrange=4k-64k", "--iodepth=16", "--size=16m",
                "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0",
                "--serialize_overlap=1", f"--randseed={seed}", check=False,
            )  # fmt: skip
            self._failure = done.stdout + done.stderr if done.returncode else ""

    def wait(self) -> None:
        """Until some more requests have been served."""
        before = served(self._node)
        wait_until(
            lambda: self._failure or served(self._node) > before + BETWEEN, 60, "load on the disk"
        )
        assert not self._failure, self._failure

    def stop(self) -> None:
        """What was written last has been read by then."""
        self._enough.set()
        self.join(200)
        assert not self.is_alive()
        assert not self._failure, self._failure


@contextlib.contextmanager
def load(node: str) -> Iterator[Load]:
    """One, while the block runs."""
    one = Load(node)
    one.start()
    yield one
    one.stop()


def served(node: str) -> int:
    """Requests so far."""
    told = counters(node)
    return sum(int(told[op]["requests"]) for op in ("read", "write"))


def pid_of(node: str) -> int:
    """Of the daemon."""
    return int(ublkd_json("show", node)["pid"])


def kill(node: str) -> None:
    """End the daemon as a mistake would; returns when it is gone."""
    pid = pid_of(node)
    watched = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    assert select.select([watched], [], [], 60)[0]
    os.close(watched)


def state_of(node: str) -> str:
    """What the driver says."""
    return str(ublkd_json("show", node)["state"])


def test_a_killed_daemon_is_followed_by_another_and_nobody_notices(scratch: Path) -> None:
    for lease in leases():
        disk = files(scratch)
        with (
            device("loop", *disk, "--queues", "2", "--lease", lease) as node,
            load(node) as traffic,
        ):
            for _ in range(KILLS):
                traffic.wait()
                os.kill(pid_of(node), signal.SIGKILL)
                # at once: it is waited for until what held the device is gone
                assert ublkd("recover", node).stdout.strip() == node
            told = ublkd_json("show", node)
            assert (told["state"], told["lease"], told["recovery"]) == ("live", lease, "reissue")
    nothing_left()


@pytest.mark.one_kernel
@pytest.mark.parametrize("target", ["stripe", "mirror", "concat"])
def test_so_it_is_over_several_files(scratch: Path, target: str) -> None:
    for lease in lent_and_copied():
        disk = files(scratch, 2)
        with device(target, *disk, "--lease", lease) as node, load(node) as traffic:
            for _ in range(KILLS):
                traffic.wait()
                kill(node)
                ublkd("recover", node)
    nothing_left()


def test_what_waits_for_a_daemon_goes_on_with_the_next(scratch: Path) -> None:
    with device("loop", *files(scratch)) as node:
        kill(node)
        wait_until(lambda: state_of(node) == "quiesced", 30, "the driver's notice")
        reader = subprocess.Popen(["dd", f"if={node}", "of=/dev/null", "bs=64k", "count=1",
                                   "iflag=direct"], stderr=subprocess.DEVNULL)  # fmt: skip
        with pytest.raises(subprocess.TimeoutExpired):
            reader.wait(1)
        told = ublkd_json("list")[0]
        assert (told["state"], told["pid"]) == ("quiesced", None)
        assert json.loads(ublkd("recover", "--all", "--json").stdout) == [{"id": 0, "node": node}]
        assert reader.wait(60) == 0
        assert "is served by process" in refused("recover", node)
        assert not ublkd("recover", "--all").stdout
    nothing_left()


def test_a_device_that_nobody_serves_is_stopped_and_deleted_and_not_while_in_use(
    scratch: Path,
) -> None:
    with device("loop", *files(scratch)) as node:
        run("mkfs.ext4", "-q", node)
        with mounted(node, scratch / "mnt") as mnt:
            (mnt / "kept").write_text("before")
            kill(node)
            for verb in ("del", "stop"):
                said = refused(verb, node)
                assert "in use" in said
                assert "ublkd recover" in said
            ublkd("recover", node)
            assert (mnt / "kept").read_text() == "before"
        kill(node)
        ublkd("stop", node)
        assert state_of(node) == "dead"
        assert "is dead" in refused("recover", node)
        ublkd("del", node)
    nothing_left()


def test_with_none_it_is_dead_and_with_fail_its_io_fails_until_recovered(scratch: Path) -> None:
    with device("loop", *files(scratch), "--recovery", "none") as node:
        kill(node)
        wait_until(lambda: state_of(node) == "dead", 30, "the driver's notice")
        assert "is dead" in refused("recover", node)
    offered = ublkd_json("features")["features"]
    if "USER_RECOVERY_FAIL_IO" not in offered:
        said = refused("add", "-t", "loop", *files(scratch), "--recovery", "fail", code=3)
        assert "lacks USER_RECOVERY_FAIL_IO" in said
        nothing_left()
        return
    with device("loop", *files(scratch), "--recovery", "fail") as node:
        kill(node)
        wait_until(lambda: state_of(node) == "fail_io", 30, "the driver's notice")
        assert run("dd", f"if={node}", "of=/dev/null", "iflag=direct", check=False).returncode == 1
        ublkd("recover", node)
        fio(node, "--rw=randwrite", "--bs=4k", "--size=1m", "--verify=crc32c")
    nothing_left()


def test_another_file_in_the_backings_place_is_refused(scratch: Path) -> None:
    with device("loop", *files(scratch)) as node:
        kill(node)
        backing, kept = scratch / "0.img", scratch / "kept.img"
        backing.rename(kept)
        sparse(backing, 32 * MIB)
        said = refused("recover", node)
        assert "0.img is not what it was" in said
        backing.unlink()
        assert "does not exist" in refused("recover", node)
        kept.rename(backing)
        os.truncate(backing, 16 * MIB)
        assert "16777216 bytes, and the disk 33554432" in refused("recover", node)
        assert state_of(node) == "quiesced"
        os.truncate(backing, 32 * MIB)
        ublkd("recover", node)
        fio(node, "--rw=randwrite", "--bs=4k", "--size=1m", "--verify=crc32c")
    nothing_left()


@pytest.mark.usefixtures("commands")
def test_of_two_that_recover_at_once_one_does_and_the_other_says_so(scratch: Path) -> None:
    with device("loop", *files(scratch)) as node:
        kill(node)
        both = [
            subprocess.Popen(["ublkd", "recover", node], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True)
            for _ in range(2)
        ]  # fmt: skip
        told = sorted((p.communicate(timeout=120), p.returncode) for p in both)
        assert sorted(code for _, code in told) == [0, 1], told
        (lost,) = (said for (_, said), code in told if code)
        assert f"is served by process {pid_of(node)}" in lost
        fio(node, "--rw=randwrite", "--bs=4k", "--size=1m", "--verify=crc32c")
    nothing_left()


def test_a_daemon_killed_while_it_recovers_is_followed_by_another(scratch: Path) -> None:
    with device("loop", *files(scratch), "--queues", "2") as node, load(node) as traffic:
        for number in range(KILLS):
            traffic.wait()
            kill(node)
            early = subprocess.Popen(["ublkd", "recover", node], stderr=subprocess.DEVNULL,
                                     stdout=subprocess.DEVNULL)  # fmt: skip
            # from before it has begun to where it may be done
            with contextlib.suppress(subprocess.TimeoutExpired):
                early.wait(0.5 + number)
            end_all(early, ["recover", node])
            ublkd("recover", "--all")
            assert state_of(node) == "live"
    nothing_left()


def end_all(command: subprocess.Popen[bytes], words: Sequence[str]) -> None:
    """The command, and the daemon that it has begun to make; returns when they are gone."""
    line = [os.fsencode(word) for word in words]
    command.kill()
    command.wait()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "cmdline").read_bytes().split(b"\0")[2:-1] == line:
                watched = os.pidfd_open(int(folder.name))
                signal.pidfd_send_signal(watched, signal.SIGKILL)
                assert select.select([watched], [], [], 60)[0]
                os.close(watched)


def test_an_add_that_was_killed_leaves_its_name_and_its_file_to_the_next(scratch: Path) -> None:
    words = ["add", "-t", "loop", *map(str, files(scratch)), "--name", "again"]
    for seconds in (0.5, 1.0, 1.5, 2.0, 2.5):
        early = subprocess.Popen(["ublkd", *words], stdout=subprocess.DEVNULL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            early.wait(seconds)
        end_all(early, words)
        ublkd("recover", "--all")  # if it was a disk already
        if not ublkd_json("list"):
            ublkd(*words)
        assert state_of("again") == "live"
        ublkd("del", "again")
        nothing_left()


# --- quiesce and upgrade --------------------------------------------------------------------


def can_quiesce() -> bool:
    return "QUIESCE" in ublkd_json("features")["features"]


def test_an_upgrade_is_a_pause_and_nothing_else(scratch: Path) -> None:
    for kind in lent_and_copied():
        disk = files(scratch)
        with device("loop", *disk, "--lease", kind, "--queues", "2", "--recovery", "queue") as node:
            if not can_quiesce():
                assert "lacks QUIESCE" in refused("upgrade", node, code=3)
                assert "lacks QUIESCE" in refused("quiesce", node, code=3)
                continue
            pauses = []
            with load(node) as traffic:
                for _ in range(UPGRADES):
                    traffic.wait()
                    before = pid_of(node)
                    (told,) = json.loads(ublkd("upgrade", node, "--json").stdout)
                    pauses.append(told["pause_ms"])
                    assert pid_of(node) != before
            print(f"lease {kind}: {pauses} ms without an answer, at most {max(pauses)}")
            assert re.fullmatch(
                rf"{node}: requests waited \d+ ms\n", ublkd("upgrade", "--all").stdout
            )
    nothing_left()


@pytest.mark.one_kernel
def test_a_device_that_the_new_code_cannot_serve_is_not_quiesced(scratch: Path) -> None:
    with device("loop", *files(scratch)) as node, load(node):
        before = pid_of(node)
        (scratch / "0.img").rename(scratch / "kept.img")
        assert "does not exist" in refused("upgrade", node)
        sparse(scratch / "0.img", 32 * MIB)
        assert "is not what it was" in refused("upgrade", node)
        (scratch / "kept.img").rename(scratch / "0.img")
        assert pid_of(node) == before
        assert state_of(node) == "live"
    nothing_left()


@pytest.mark.one_kernel
def test_a_quiesced_device_waits_and_is_recovered(scratch: Path) -> None:
    with device("loop", *files(scratch), "--depth", "1") as node, load(node) as traffic:
        traffic.wait()
        ublkd("quiesce", node)
        assert state_of(node) == "quiesced"
        ublkd("quiesce", node)  # it is what was wanted
        assert "nobody serves" in refused("upgrade", node)
        ublkd("recover", node)
        traffic.wait()
    nothing_left()


# --- nbd ------------------------------------------------------------------------------------


@pytest.mark.one_kernel
def test_an_nbd_disk_is_taken_over_and_its_next_flush_tells_what_nobody_knows(
    scratch: Path,
) -> None:
    with Mortal(scratch, "memory", "32M") as server:
        with device("nbd", "--uri", server.uri(), "--recovery", "reissue") as node:
            with load(node) as traffic:
                for _ in range(KILLS):
                    traffic.wait()
                    kill(node)
                    ublkd("recover", node)
            # the last was recovered after writes that no flush had covered
            assert flushed(node) == "EIO"
            assert flushed(node) == "done"
            kill(node)
            ublkd("recover", node)
            assert flushed(node) == "done"
        with device("nbd", "--uri", server.uri(), "--after-reconnect", "trust") as node:
            assert ublkd_json("show", node)["recovery"] == "queue"
            run("dd", "if=/dev/zero", f"of={node}", "bs=64k", "count=1", "oflag=direct")
            kill(node)
            ublkd("recover", node)
            assert flushed(node) == "done"
    nothing_left()


def flushed(node: str) -> str:
    """What a flush of the disk says."""
    fd = os.open(node, os.O_RDWR)
    try:
        os.fsync(fd)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    finally:
        os.close(fd)
    return "done"
