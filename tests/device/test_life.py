"""How devices begin and end: rounds that leave nothing, dead daemons, stop, del and signals."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from load import await_state
from tools import (
    await_end,
    counters,
    daemons,
    device,
    figures,
    fio,
    leases,
    nothing_left,
    run,
    sparse,
    ublkd,
    ublkd_json,
    wait_until,
)

MIB = 1 << 20


def resident(pid: int | str) -> int:
    """KiB of memory that a process holds now, counted page by page: proc(5), smaps_rollup."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1])
    return 0


@pytest.mark.one_kernel
@pytest.mark.deadline(600)
def test_a_hundred_rounds_leave_nothing_behind_and_grow_nothing(scratch: Path) -> None:
    disk = sparse(scratch / "disk.img", 4 * MIB)
    script = Path(__file__).with_name("rounds.py")
    done = subprocess.run(
        [sys.executable, script, disk], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    held = json.loads(done.stdout)
    own, served, fds = held["own"], held["served"], held["fds"]
    print(f"own {own[0]} to {own[-1]} KiB, daemons {min(served)} to {max(served)} KiB")
    assert not any(held["left"]), "a process or a node was left"
    assert len(set(fds)) == 1, f"descriptors grew: {fds[0]} to {fds[-1]}"
    assert len(held["threads"]) == 1
    # some time in the first rounds Python takes half a megabyte, once
    assert max(own[10:]) - own[10] < 1024, f"memory grew: {own[10]} to {max(own)} KiB"
    assert max(own[50:]) - own[50] < 256, f"memory grew: {own[50]} to {max(own)} KiB"
    grown = held["blocks"][-1] - held["blocks"][50]
    assert grown < 10 * 50, f"{grown} more objects after 50 rounds"
    assert max(served) - min(served) < 2048, f"daemons grew: {min(served)} to {max(served)} KiB"
    nothing_left()


@pytest.mark.one_kernel
@pytest.mark.usefixtures("commands")
def test_a_daemon_of_one_queue_is_small(scratch: Path) -> None:
    disk = sparse(scratch / "disk.img", 64 * MIB)
    for lease in leases():
        with device("loop", "--file", disk, "--lease", lease) as node:
            fio(node, "--rw=randrw", "--bs=4k", "--iodepth=32", "--size=4m")
            kib = resident(ublkd_json("show", node)["pid"])
            assert kib < 30 << 10, f"{kib} KiB resident with lease {lease}"
            print(f"{kib} KiB resident with lease {lease}")


def test_a_killed_daemon_fails_io_and_del_cleans_up(scratch: Path) -> None:
    disk = sparse(scratch / "disk.img", 64 * MIB)
    words = ["--target", "loop", "--name", "victim", "--recovery", "none"]
    node = ublkd("add", *words, "--file", disk).stdout.strip()
    pid = ublkd_json("show", "victim")["pid"]
    load = subprocess.Popen(
        ["fio", "--name=t", f"--filename={node}", "--rw=randrw", "--bs=4k", "--iodepth=32",
         "--ioengine=io_uring", "--direct=1", "--time_based", "--runtime=120"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    wait_until(lambda: counters("victim")["write"]["requests"] > 100, 60, "load on the disk")
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    said, _ = load.communicate(timeout=60)
    figures(f"I/O failed {time.monotonic() - began:.2f} seconds after the kill")
    assert "Input/output error" in said or "No such device" in said, said
    assert load.returncode != 0
    await_state("victim", "dead")
    ublkd("del", "victim")
    nothing_left()
    wait_until(lambda: not in_d_state(), 30, "the end of tasks that cannot be interrupted")
    # and the file is free again at once
    with device("loop", "--file", disk):
        pass


def in_d_state() -> list[str]:
    """Tasks that wait and cannot be interrupted, but for the kernel's own threads."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
            kernel_thread = not Path(stat.parent, "maps").read_text()
        except OSError:
            continue
        if text.rpartition(")")[2].split()[0] == "D" and not kernel_thread:
            found.append(text)
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_daemon_and_the_device(scratch: Path, number: signal.Signals) -> None:
    disk = sparse(scratch / "disk.img", 4 * MIB)
    ublkd("add", "--target", "loop", "--file", disk)
    os.kill(ublkd_json("show", "0")["pid"], number)
    await_end()
    nothing_left()


def test_in_the_foreground_it_prints_the_node_and_ends_with_the_device(scratch: Path) -> None:
    disk = sparse(scratch / "disk.img", 4 * MIB)
    command = ["ublkd", "add", "--target", "loop", "--file", str(disk), "--foreground"]
    served = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert served.stdout is not None
    node = served.stdout.readline().strip()
    os.close(os.open(node, os.O_RDONLY))
    ublkd("del", node)
    _, said = served.communicate(timeout=60)
    assert served.returncode == 0, said
    assert "Traceback" not in said
    nothing_left()


def test_stop_takes_the_disk_and_leaves_the_number(scratch: Path) -> None:
    disk = sparse(scratch / "disk.img", 4 * MIB)
    node = ublkd("add", "--target", "loop", "--file", disk, "--name", "still").stdout.strip()
    ublkd("stop", "still")
    assert not os.path.exists(node)
    assert not daemons()
    (told,) = ublkd_json("list")
    assert (told["name"], told["state"], told["pid"]) == ("still", "dead", None)
    ublkd("stop", "still")  # it is what was wanted
    ublkd("del", "still")
    nothing_left()


def test_a_disk_in_use_is_neither_stopped_nor_deleted_without_force(scratch: Path) -> None:
    disk = sparse(scratch / "disk.img", 64 * MIB)
    mnt = scratch / "mnt"
    mnt.mkdir()
    with device("loop", "--file", disk) as node:
        run("mkfs.ext4", "-q", node)
        run("mount", node, mnt)
        for verb in ("stop", "del"):
            done = ublkd(verb, node, check=False)
            assert done.returncode == 1
            assert "in use" in done.stderr
        (mnt / "still").write_text("works")
        run("umount", mnt)
        ublkd("del", node)
    nothing_left()


def test_a_disk_that_is_only_open_is_deleted_and_its_number_stays_taken(scratch: Path) -> None:
    disk = sparse(scratch / "disk.img", 4 * MIB)
    node = ublkd("add", "--target", "loop", "--file", disk, "--id", "4").stdout.strip()
    fd = os.open(node, os.O_RDONLY)
    assert f"(process {os.getpid()})" in ublkd("stop", node, check=False).stderr
    done = ublkd("del", node)
    assert "its number stays taken" in done.stderr
    assert not os.path.exists(node)
    assert ublkd_json("list") == []
    assert "is taken" in ublkd("add", "--target", "null", "--id", "4", check=False).stderr
    os.close(fd)
    with device("loop", "--file", disk, "--id", "4"):
        pass
    nothing_left()


def test_del_all_takes_every_device_of_ours(scratch: Path) -> None:
    for number in range(3):
        disk = sparse(scratch / f"{number}.img", 4 * MIB)
        ublkd("add", "--target", "loop", "--file", disk)
    assert len(ublkd_json("list")) == 3
    ublkd("del", "--all")
    nothing_left()
    ublkd("del", "--all")  # nothing to do is done


def test_a_device_is_found_by_number_name_and_path(scratch: Path) -> None:
    disk = sparse(scratch / "disk.img", 4 * MIB)
    with device("loop", "--file", disk, "--id", "7", "--name", "seven") as node:
        assert node == "/dev/ublkb7"
        for word in ("7", "seven", "/dev/ublkb7", "/dev/ublkc7"):
            assert ublkd_json("show", word)["id"] == 7
        listed = ublkd("list").stdout
        assert "seven" in listed
        assert str(disk) in listed


def test_null_forgets_and_reads_as_zeroes(scratch: Path) -> None:
    with device("null", "--size", "64M", "--queues", "2") as node:
        run("dd", "if=/dev/urandom", f"of={node}", "bs=1M", "count=8", "oflag=direct")
        run("cmp", "--bytes", str(8 * MIB), node, "/dev/zero")
        run("blkdiscard", node)
        assert ublkd_json("show", node)["size"] == 64 * MIB
    nothing_left()


@pytest.mark.usefixtures("commands")
def test_add_tells_how_long_it_took(scratch: Path) -> None:
    disk = sparse(scratch / "disk.img", 4 * MIB)
    told = json.loads(ublkd("add", "--target", "loop", "--file", disk, "--json").stdout)
    try:
        assert told["node"] == f"/dev/ublkb{told['id']}"
        assert told["ready_ms"] > 0
        print(f"ready after {told['ready_ms']} ms")
    finally:
        ublkd("del", told["node"])


@pytest.mark.usefixtures("commands")
def test_many_daemons_need_no_more_locked_memory_than_they_may(scratch: Path) -> None:
    """Deep queues under the smallest usual limit: io_uring counts rings against it."""
    disk = sparse(scratch / "disk.img", 4 * MIB)
    limit = 8 << 20
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
    with device("loop", "--file", disk, "--queues", "2", "--depth", "1024") as node:
        run("dd", "if=/dev/zero", f"of={node}", "bs=1M", "count=4", "oflag=direct")
    nothing_left()
