"""In the lab a test that begins is named in the kernel's log, among what the kernel says of it."""

from __future__ import annotations

import os
from pathlib import Path


def pytest_runtest_logstart(nodeid: str) -> None:
    if "UBLKD_LAB" in os.environ:
        Path("/dev/kmsg").write_text(f"lab: test {nodeid}\n")
