"""What a daemon asks for against want of memory, seen from a process that asks for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.helpers import python
from ublkd._core import lib

NOIO, LOCAL_THROTTLE = 0x00080000, 0x00100000  # linux/sched.h: PF_*

GUARDED = """
import gc, os, resource, sys
from pathlib import Path
from ublkd import memory

memory.OOM_SCORE_ADJ = Path(sys.argv[1])
if sys.argv[2:]:
    if os.geteuid() == 0:
        os.setresuid(65534, 65534, 65534)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (4096, 4096))
lines = []
memory.guard(lines.append)
assert gc.get_freeze_count() > 1000
print(len(lines), Path("/proc/self/stat").read_text().rpartition(")")[2].split()[6])
print(*lines, sep="\\n")
print(Path("/proc/self/status").read_text())
"""


def test_what_may_not_be_is_told_and_gone_on_without(tmp_path: Path) -> None:
    ran = python("-c", GUARDED, str(tmp_path), "unprivileged")
    assert (ran.returncode, ran.stderr) == (0, "")
    first, *rest = ran.stdout.splitlines()
    assert first.split()[0] == "3"
    assert "PR_SET_IO_FLUSHER: operation not permitted" in rest[0]
    assert "memory is not locked" in rest[1]
    assert "may choose this process" in rest[2]


def test_what_may_be_is_done(tmp_path: Path) -> None:
    score = tmp_path / "oom_score_adj"
    ran = python("-c", GUARDED, str(score))
    assert (ran.returncode, ran.stderr) == (0, "")
    assert score.read_text() == "-1000"
    first, *rest = ran.stdout.splitlines()
    told, flags = map(int, first.split())
    asked = NOIO | LOCAL_THROTTLE
    flusher = [line for line in rest if "PR_SET_IO_FLUSHER" in line]
    assert flags & asked == (0 if flusher else asked)
    locked = next(int(line.split()[1]) for line in rest if line.startswith("VmLck:"))
    assert bool(locked) is not any("is not locked" in line for line in rest)
    assert told <= 2
    assert "invalid argument" not in ran.stdout


@pytest.mark.parametrize(("name", "number"), [("PR_SET_IO_FLUSHER", 57), ("MCL_ONFAULT", 4)])
def test_numbers_are_the_kernels(name: str, number: int) -> None:
    assert getattr(lib, name) == number
