"""A device outlives its daemon: another one takes it over, and its users only wait.

THOROUGH=1 kills a hundred times where this does it a few; then only one lease of each kind.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from load import await_state, files, flushed, kill, load, pid_of, state_of
from mortals import MortalQemuNbd
from tools import (
    await_end,
    device,
    figures,
    fio,
    kernel_loop,
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
THOROUGH = "THOROUGH" in os.environ
KILLS = 100 if THOROUGH else 3

pytestmark = pytest.mark.deadline(3600 if THOROUGH else 240)


def test_a_killed_daemon_is_followed_by_another_and_nobody_notices(scratch: Path) -> None:
    for lease in lent_and_copied() if THOROUGH else leases():
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
        figures(f"loop, lease {lease}: {KILLS} kills, {traffic}")
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
        figures(f"{target}, lease {lease}: {KILLS} kills, {traffic}")
    nothing_left()


def test_what_waits_for_a_daemon_goes_on_with_the_next(scratch: Path) -> None:
    with device("loop", *files(scratch)) as node:
        kill(node)
        await_state(node, "quiesced")
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
            await_state(node, "quiesced")
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
        await_state(node, "dead")
        assert "is dead" in refused("recover", node)
    offered = ublkd_json("features")["features"]
    if "USER_RECOVERY_FAIL_IO" not in offered:
        said = refused("add", "-t", "loop", *files(scratch), "--recovery", "fail", code=3)
        assert "lacks USER_RECOVERY_FAIL_IO" in said
        nothing_left()
        return
    with device("loop", *files(scratch), "--recovery", "fail") as node:
        kill(node)
        await_state(node, "fail_io")
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


def test_so_is_another_disk_that_has_the_number_of_the_old_one(scratch: Path) -> None:
    one, two = (sparse(scratch / name, 32 * MIB) for name in ("one.img", "two.img"))

    def other(backing: str) -> bool:
        return not run("losetup", backing, two, check=False).returncode

    with kernel_loop(one) as backing, device("loop", "--file", backing) as node:
        kill(node)
        ublkd("recover", node)  # it is the same disk
        kill(node)
        run("losetup", "--detach", backing)
        wait_until(lambda: other(backing), 60, "the end of the dead daemon's ring")
        said = refused("recover", node)
        assert f"{backing} is not what it was (another disk with the number of the old one" in said
    nothing_left()


def test_so_is_a_new_file_that_has_the_inode_of_the_old_one(scratch: Path) -> None:
    image = sparse(scratch / "ext4.img", 96 * MIB)
    run("mkfs.ext4", "-q", image)
    with (
        mounted(str(image), scratch / "mnt", "-o", "loop") as mnt,
        device("loop", *files(mnt)) as node,
    ):
        backing, moved = mnt / "0.img", mnt / "moved.img"
        kill(node)
        backing.rename(moved)
        os.truncate(moved, 40 * MIB)
        moved.chmod(0o600)
        moved.rename(backing)
        ublkd("recover", node)  # it is the same file
        kill(node)
        wait_until(lambda: let_go(backing), 60, "the end of the dead daemon's ring")
        number = backing.stat().st_ino
        backing.unlink()
        sparse(backing, 40 * MIB)
        assert backing.stat().st_ino == number
        said = refused("recover", node)
        assert "0.img is not what it was (a new file with the inode of the old one" in said
        assert state_of(node) == "quiesced"
    nothing_left()


def let_go(backing: Path) -> bool:
    """Whether no daemon has it open any more: then its lock is gone as well."""
    with backing.open("rb") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


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


@pytest.mark.one_kernel
@pytest.mark.parametrize("way", ["del", "stop", "signal"])
def test_what_the_kernel_still_held_for_a_disk_that_ends_is_on_its_backing(
    scratch: Path, way: str
) -> None:
    for kind in ("none", "reissue"):
        words = [*files(scratch), "--recovery", kind]
        with device("loop", *words) as node, open(node, "r+b", buffering=0) as disk:
            disk.write(b"held" * 4096)  # in the page cache, until somebody writes it back
            if way == "signal":
                os.kill(pid_of(node), signal.SIGTERM)
                await_end()
            else:
                ublkd(way, node, "--force")
        assert (scratch / "0.img").read_bytes()[:16384] == b"held" * 4096, kind
    nothing_left()


# --- nbd ------------------------------------------------------------------------------------


@pytest.mark.one_kernel
def test_an_nbd_disk_is_taken_over_and_its_next_flush_tells_what_nobody_knows(
    scratch: Path,
) -> None:
    # not nbdkit: 1.32 aborts when a client goes while it answers (connections.c, raw_send_socket)
    with MortalQemuNbd(scratch, sparse(scratch / "disk.img", 32 * MIB)) as server:
        with device("nbd", "--uri", server.uri(), "--recovery", "reissue") as node:
            with load(node) as traffic:
                for _ in range(KILLS):
                    traffic.wait()
                    kill(node)
                    ublkd("recover", node)
            figures(f"nbd, lease {leases()[0]}: {KILLS} kills, {traffic}")
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
