"""What starting, stopping, restarting and dying of a unit mean for those who use its disk."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from pathlib import Path

from load import load
from tools import digest, mounted, run, wait_until

from tests.systemd import units
from tests.systemd.units import Describe, systemctl

SMALL_WATCH = "[Service]\nWatchdogSec=8\n"


def test_ready_means_that_the_disk_can_be_opened(described: Describe) -> None:
    described("soon", units.loop("soon"))
    systemctl("start", "soon")
    os.close(os.open(units.node("soon"), os.O_RDWR))
    systemctl("stop", "soon")
    assert not units.device("soon")
    assert units.shown("soon", "Result", "ActiveState") == {
        "Result": "success", "ActiveState": "inactive",
    }  # fmt: skip


def test_what_is_not_possible_is_not_tried_again_and_again(described: Describe) -> None:
    described("typo", 'target = "lop"\n')
    assert systemctl("start", "typo", check=False)
    # between two tries it is "auto-restart"
    wait_until(
        lambda: units.shown("typo", "SubState")["SubState"] == "failed",
        units.SOON,
        "ublkd@typo to be given up",
    )
    assert units.shown("typo", "NRestarts", "Result", "ExecMainStatus") == {
        "NRestarts": "0", "Result": "exit-code", "ExecMainStatus": "2",
    }  # fmt: skip
    assert "typo.toml" in units.said("typo")


def test_a_disk_that_is_in_use_waits_for_the_next_start(described: Describe) -> None:
    described("used", units.loop("used"))
    systemctl("start", "used")
    node = units.node("used")
    run("mkfs.ext4", "-q", node)
    with mounted(node, Path("/mnt/used")) as at:
        systemctl("stop", "used")
        wait_until(lambda: units.device("used")["state"] == "quiesced", units.SOON, "quiesced")
        assert "is left to the driver" in units.said("used")
        writer = subprocess.Popen(
            ["dd", "if=/dev/urandom", f"of={at}/file", "bs=64k", "count=32", "conv=fsync"],
            stderr=subprocess.DEVNULL,
        )
        ended = os.pidfd_open(writer.pid)
        assert not select.select([ended], [], [], 1)[0]
        systemctl("start", "used")
        assert writer.wait(60) == 0
        written = digest(at / "file", 2 * units.MIB)
        systemctl("restart", "used")
        assert digest(at / "file", 2 * units.MIB) == written
        os.close(ended)
    assert run("e2fsck", "-fn", node, check=False).returncode == 0
    systemctl("stop", "used")
    assert not units.device("used")


def test_a_daemon_that_does_not_go_on_is_replaced(described: Describe) -> None:
    described("stuck", units.loop("stuck"), drop_in=SMALL_WATCH)
    systemctl("start", "stuck")
    pid = units.pid_of("stuck")
    with load(units.node("stuck")) as running:
        running.wait()
        os.kill(pid, signal.SIGSTOP)
        units.served_by_another_than(pid, "stuck")
        running.wait()
    run("journalctl", "--sync")
    assert "Watchdog timeout" in run("journalctl", "--no-pager", "--output=cat").stdout
