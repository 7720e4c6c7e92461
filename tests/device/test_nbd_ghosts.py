"""A write that nbdkit does long after its connection was given up, and a newer one to its place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from direct import direct
from nbd import KIB, MIB, SOON, Mortal, certificates, disk, lost
from tools import nothing_left, sparse, wait_until

pytestmark = pytest.mark.one_kernel

SIZE = 1 * MIB
LENGTH = 4 * KIB
OLD, NEW = b"\x01" * LENGTH, b"\x02" * LENGTH

IN_TIME = "sleep 1.5"
"""Longer than the request's second, shorter than the two more that the keeper waits."""


def plugin(folder: Path, delay: str) -> list[str]:
    """What serves a file of the folder, notes each write, and does the first one late."""
    path, log = sparse(folder / "disk.img", SIZE), folder / "writes"
    calls = {
        "thread_model": "echo parallel",
        "get_size": f"echo {SIZE}",
        "pread": f"dd if={path} skip=$4 count=$3 iflag=skip_bytes,count_bytes status=none",
        "can_write": "exit 0",
        "pwrite": f"""
            echo begun >>{log}
            if mkdir {folder}/late 2>/dev/null; then {delay}; fi
            dd of={path} seek=$4 conv=notrunc oflag=seek_bytes status=none
            echo done >>{log}""",
    }
    return ["eval", *(f"{name}={script}" for name, script in calls.items())]


def writes(folder: Path) -> list[str]:
    """What has become of them, in its order."""
    return (folder / "writes").read_text().split()


@pytest.mark.parametrize("way", ["unix", "tcp", "tls"])
def test_a_late_write_is_waited_for_and_newer_data_wins(scratch: Path, way: str) -> None:
    filters, words = [], ["--request-timeout", "1"]
    if way == "tls":
        pki = certificates(scratch, "127.0.0.1")
        filters = [f"--tls-certificates={pki}", "--tls=require"]
        words += ["--tls-certificates", str(pki)]
    assert any(waited_for(scratch / str(n), way, filters, words) for n in range(5))
    nothing_left()


def waited_for(
    scratch: Path, way: str, filters: Sequence[str], words: Sequence[str | Path]
) -> bool:
    """One late write; or it was so late that no daemon would wait for it."""
    scratch.mkdir()
    with (
        Mortal(scratch, *filters, *plugin(scratch, IN_TIME), tcp=way != "unix") as server,
        disk(server.uri(tls=way == "tls"), *words) as node,
        direct(node) as at,
    ):
        assert at.write(0, OLD) == "ok"
        assert lost(node) >= 1, "nothing was late"
        if lost(node) > 1 or writes(scratch) != ["begun", "done"] * 2:
            return False
        assert at.write(0, NEW) == "ok"
        assert at.read(0, LENGTH) == ("ok", NEW)
    return True


def test_a_write_that_is_later_than_that_lands_on_newer_data(scratch: Path) -> None:
    """It is what remains: see docs/targets.md."""
    delay = f"while [ ! -e {scratch}/go ]; do sleep 0.1; done"
    with (
        Mortal(scratch, *plugin(scratch, delay)) as server,
        disk(server.uri(), "--request-timeout", "3") as node,
        direct(node) as at,
    ):
        assert at.write(0, OLD) == "ok"
        assert at.write(0, NEW) == "ok"
        assert at.read(0, LENGTH) == ("ok", NEW)
        before = writes(scratch)
        assert before[:2] == ["begun", "begun"]
        (scratch / "go").touch()
        wait_until(lambda: len(writes(scratch)) > len(before), SOON, "the late write")
        assert at.read(0, LENGTH) == ("ok", OLD)
    nothing_left()
