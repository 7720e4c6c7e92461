"""What can be seen of devices without asking their daemons: doctor, stats, dump, and /proc."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tools import device, fio, leases, run, sparse, ublkd, ublkd_json, wait_until

pytestmark = pytest.mark.one_kernel

MIB = 1 << 20


def checks() -> dict[str, list[dict[str, Any]]]:
    """What `ublkd doctor` says, by check."""
    told = json.loads(ublkd("doctor", "--json", check=False).stdout)
    found: dict[str, list[dict[str, Any]]] = {}
    for line in told["checks"]:
        found.setdefault(line["check"], []).append(line)
    return found


def pid_of(node: str) -> int:
    return int(ublkd_json("show", node)["pid"])


def killed(node: str) -> None:
    """Its daemon, and the driver has noticed."""
    os.kill(pid_of(node), signal.SIGKILL)
    wait_until(lambda: ublkd_json("show", node)["state"] != "live", 30, "the daemon's end")


def test_doctor_is_content_where_devices_work_and_names_what_is_left_over(scratch: Path) -> None:
    done = ublkd("doctor")
    assert "cannot" not in done.stdout
    assert "ok       module: ublk_drv is loaded" in done.stdout
    assert f"loop: lease {leases()[0]}" in done.stdout
    with device("null") as node:
        (none,) = checks()["leftovers"]
        assert (none["verdict"], none["seen"]) == ("ok", "none among 1 devices")
        killed(node)
        (left,) = checks()["leftovers"]
        assert left["verdict"] == "warning"
        assert node in left["seen"]


def test_doctor_works_without_root_and_without_the_module(lab_only: None) -> None:
    nobody = ["setpriv", "--reuid=65534", "--clear-groups", "ublkd", "doctor"]
    told = subprocess.run(nobody, capture_output=True, text=True, check=False)
    assert (told.returncode, told.stderr) == (3, "")
    assert "cannot   privilege: CAP_SYS_ADMIN is missing" in told.stdout
    run("modprobe", "-r", "ublk_drv")
    try:
        done = ublkd("doctor", check=False)
        assert done.returncode == 3
        assert "cannot   module: ublk_drv is not loaded, but this kernel has it" in done.stdout
        assert not Path("/sys/module/ublk_drv").exists()  # it did not load it
    finally:
        run("modprobe", "ublk_drv")


def work(node: str) -> None:
    """64 reads of 4 KiB, then 32 writes of 64 KiB."""
    fio(node, "--rw=read", "--bs=4k", "--size=256k")
    fio(node, "--rw=write", "--bs=64k", "--size=2m")


def test_stats_and_dump_tell_what_was_done_while_the_daemon_stands_still(scratch: Path) -> None:
    backing = sparse(scratch / "disk.img", 4 * MIB)
    with device("loop", "--file", backing, "--name", "data") as node:
        work(node)
        pid = pid_of(node)
        os.kill(pid, signal.SIGSTOP)
        try:
            told = ublkd_json("stats", "data")
            last = ublkd_json("dump", "data")
        finally:
            os.kill(pid, signal.SIGCONT)
        read, write = told["total"]["read"], told["total"]["write"]
        assert read["requests"] >= 64
        assert (write["requests"], write["bytes"], write["errors"]) == (32, 2 * MIB, 0)
        assert 0 < write["p50_us"] <= write["p99_us"] <= write["p99_9_us"]
        assert write["iops"] == pytest.approx(32 / told["seconds"], rel=0.01)
        assert told["total"]["in_flight"] == 0
        writes = [entry for entry in last if entry["op"] == "write"]
        assert [entry["offset"] for entry in writes] == [n << 16 for n in range(32)]
        assert {(e["length"], e["result"], e["lease"]) for e in writes} == {
            (1 << 16, 1 << 16, leases()[0])
        }
        assert all(entry["members"] == 1 and entry["us"] > 0 for entry in writes)
        assert [e["ended"] for e in last] == sorted(e["ended"] for e in last)


def test_dump_tells_what_a_dead_daemon_did_last(scratch: Path) -> None:
    backing = sparse(scratch / "disk.img", 4 * MIB)
    with device("faulty", "--over", "loop", "--file", backing, "--error", "EIO:1") as node:
        run("dd", "if=/dev/zero", f"of={node}", "bs=4k", "count=1", "oflag=direct", check=False)
        killed(node)
        failed = [entry for entry in ublkd_json("dump", node) if entry["result"] < 0]
        assert failed
        rows = ublkd("dump", node).stdout.splitlines()
        assert any(row.endswith(" -EIO") for row in rows)
        assert ublkd_json("stats", node)["total"]["write"]["iops"] is None


@pytest.mark.parametrize("end", ["del", "interrupt"])
def test_watch_ends_with_the_device_or_when_it_is_interrupted(scratch: Path, end: str) -> None:
    with device("null", "--size", "4M") as node:
        words = ["ublkd", "stats", node, "--watch", "0.5", "--json"]
        with subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as watch:
            assert watch.stdout
            assert watch.stderr
            assert json.loads(watch.stdout.readline())[0]["node"] == node
            fio(node, "--rw=write", "--bs=4k", "--size=64k")
            written = 0
            while written < 16:  # each is told once, in whatever block it came
                written += json.loads(watch.stdout.readline())[0]["total"]["write"]["requests"]
            assert written == 16
            if end == "del":
                ublkd("del", node)
            else:
                watch.send_signal(signal.SIGINT)
            assert watch.wait(60) == 0
            assert watch.stderr.read() == (
                f"ublkd: warning: {node} is gone\n" if end == "del" else ""
            )


def test_a_daemon_writes_its_last_requests_to_its_log_when_asked(scratch: Path) -> None:
    said = scratch / "log"
    words = ["ublkd", "add", "-t", "null", "--size", "4M", "--foreground"]
    with (
        said.open("w") as log,
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=log, text=True) as daemon,
    ):
        assert daemon.stdout
        node = daemon.stdout.readline().strip()
        fio(node, "--rw=write", "--bs=4k", "--size=64k")
        for _ in range(3):  # once a minute is enough
            daemon.send_signal(signal.SIGUSR1)
        wait_until(lambda: said.read_text().count("queue 0: write ") == 16, 60, "the dump")
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(60) == 0
    assert said.read_text().count("the last ") == 1
    assert said.read_text().count("queue 0: write ") == 16


# --- memory ---------------------------------------------------------------------------------

NOIO, LOCAL_THROTTLE, IO_WORKER = 0x00080000, 0x00100000, 0x10  # linux/sched.h: PF_*


def flags(task: Path) -> int:
    return int((task / "stat").read_text().rpartition(")")[2].split()[6])


def of_all_tasks(pid: int) -> list[int]:
    """The flags of each thread of a process, its io_uring workers among them."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # workers come and go
            found.append(flags(task))
    return found


def test_no_thread_of_a_daemon_waits_for_its_own_disk_when_memory_is_short(scratch: Path) -> None:
    backing = sparse(scratch / "disk.img", 4 * MIB)
    with device("loop", "--file", backing, "--direct-io", "off") as node:
        pid = pid_of(node)
        fio(node, "--rw=write", "--bs=64k", "--iodepth=8", "--size=4m",
            "--end_fsync=1")  # fmt: skip
        seen, asked = of_all_tasks(pid), NOIO | LOCAL_THROTTLE
        assert len(seen) > 2
        assert any(task & IO_WORKER for task in seen)  # it has synced the file
        assert [task & asked for task in seen] == [asked] * len(seen)
        assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "-1000\n"
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        )
        locked, resident = (int(status[name].split()[0]) for name in ("VmLck", "VmRSS"))
        assert locked > resident > 0  # all of it, and what was never touched costs nothing
