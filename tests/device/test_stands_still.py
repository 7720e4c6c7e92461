"""A daemon that stands still: its users wait, and go on with it. THOROUGH=1: for a minute."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from load import files, load, pid_of, served, state_of
from tools import device, figures, lent_and_copied, nothing_left, ublkd_json

THOROUGH = "THOROUGH" in os.environ
SECONDS = 60 if THOROUGH else 3

pytestmark = [pytest.mark.deadline(600 if THOROUGH else 240), pytest.mark.one_kernel]


def test_a_daemon_that_stands_still_under_load_is_a_pause_and_nothing_else(scratch: Path) -> None:
    for lease in lent_and_copied()[: None if THOROUGH else 1]:
        with device("loop", *files(scratch), "--lease", lease) as node, load(node) as traffic:
            traffic.wait()
            pid = pid_of(node)
            os.kill(pid, signal.SIGSTOP)
            reader = subprocess.Popen(
                ["dd", f"if={node}", "of=/dev/null", "bs=4k", "count=1", "iflag=direct"],
                stderr=subprocess.DEVNULL,
            )
            try:
                with pytest.raises(subprocess.TimeoutExpired):
                    reader.wait(SECONDS)
                assert state_of(node) == "live"
                assert ublkd_json("list")[0]["pid"] == pid
                before = served(node)
            finally:
                os.kill(pid, signal.SIGCONT)
            assert reader.wait(60) == 0
            traffic.wait()
            since = served(node) - before
        figures(f"SIGSTOP, lease {lease}: {SECONDS} s, {since} requests since then, {traffic}")
    nothing_left()
