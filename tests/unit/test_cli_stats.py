"""``ublkd stats`` and ``dump``, on counters that a test has written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.helpers import assert_one_line_and_hint
from tests.unit.test_cli_output import faked

COUNTED = """
import time
from ublkd import stats
from ublkd._core import lib
from ublkd.cli import stats as verb
from ublkd.control import CommandError
from ublkd.uapi import Cmd, DevState

folder = Path(sys.argv.pop(1))
made = stats.create(folder / "7.stats", 2)
queues, started = made.__enter__(), time.clock_gettime_ns(1) - 10**10

def count(reads):
    for queue in queues:
        queue.magic, queue.started = lib.STATS_MAGIC, started
        queue.requests[0] += reads
        queue.bytes[0] += reads * 4096
        queue.latency[0][12] += reads
        queue.in_flight, queue.short_members = 3, 5
        entry = queue.recorder.entries[0]
        entry.number, entry.ended, entry.nr_sectors, entry.result = 1, 10**9, 8, -5

class Driver:
    def get_dev_info(self, dev_id):
        return found[0].info

@contextlib.contextmanager
def driver():
    yield Driver(), StateDir(folder)

verb.driver = driver
count(100)
"""


def test_stats_are_rates_over_the_life_of_the_device(tmp_path: Path) -> None:
    ran = faked(str(tmp_path), "stats", "0", script=COUNTED)
    assert (ran.returncode, ran.stderr) == (0, "")
    rows = [line.split() for line in ran.stdout.splitlines()]
    assert rows[0][:2] + rows[0][3:] == ["/dev/ublkb7", "(db):", "seconds"]
    assert 10 <= (seconds := float(rows[0][2])) < 70  # and what it took to get this far
    assert rows[1][:4] == ["QUEUE", "OP", "IOPS", "MIB/S"]
    assert rows[2][:2] == ["all", "read"]
    assert rows[2][4:7] == ["200", "819200", "0"]
    assert float(rows[2][2]) == pytest.approx(200 / seconds, rel=0.05)
    assert [row[:2] for row in rows[3:5]] == [["0", "read"], ["1", "read"]]
    assert rows[6] == ["all", "6", "10", "0", "0", "0", "0"]

    told = json.loads(faked(str(tmp_path), "stats", "0", "--json", script=COUNTED).stdout)
    assert (told["id"], told["name"], told["node"]) == (7, "db", "/dev/ublkb7")
    assert told["total"]["read"]["requests"] == 200
    assert [queue["in_flight"] for queue in told["queues"]] == [3, 3]
    several = json.loads(faked(str(tmp_path), "stats", "--json", script=COUNTED).stdout)
    assert [device["id"] for device in several] == [7]  # the other one is not ours


def test_a_foreign_device_has_no_counters(tmp_path: Path) -> None:
    ran = faked(str(tmp_path), "stats", "1", script=COUNTED)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert_one_line_and_hint(ran.stderr)


WATCHED = (
    COUNTED
    + """
import dataclasses
turns = iter(range(3))

def sleep(seconds):
    assert seconds == 2.5
    turn = next(turns)
    count(10 * turn)
    if turn == 2:
        END

time.sleep = sleep
"""
)
GONE = """
        def none(self, dev_id):
            raise CommandError(Cmd.GET_DEV_INFO, 19)
        Driver.get_dev_info = none
"""
OTHER = """
        other = dataclasses.replace(found[0].info, cookie=1)
        Driver.get_dev_info = lambda self, dev_id: other
"""
DEAD = """
        dead = dataclasses.replace(found[0].info, state=DevState.DEAD)
        Driver.get_dev_info = lambda self, dev_id: dead
"""


@pytest.mark.parametrize("end", [GONE, OTHER, DEAD, "raise KeyboardInterrupt"])
def test_watch_tells_differences_until_the_device_is_gone_or_it_is_interrupted(
    tmp_path: Path, end: str
) -> None:
    script = WATCHED.replace("        END", end if end.startswith("\n") else f"        {end}")
    ran = faked(str(tmp_path), "stats", "0", "--json", "--watch", "2.5", script=script)
    said = "" if "Interrupt" in end else "ublkd: warning: /dev/ublkb7 (db) is gone\n"
    assert (ran.returncode, ran.stderr) == (0, said)
    blocks = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [block[0]["total"]["read"]["requests"] for block in blocks] == [0, 20]


def test_dump_tells_the_last_requests(tmp_path: Path) -> None:
    ran = faked(str(tmp_path), "dump", "0", script=COUNTED)
    assert (ran.returncode, ran.stderr) == (0, "")
    heading, *rows = ran.stdout.splitlines()
    assert heading.split()[:3] == ["QUEUE", "NUMBER", "ENDED"]
    assert [row.split() for row in rows] == [
        [qid, "1", "1.000000", "read", "0", "4096", "auto", "0", "0", "0.0", "-EIO"]
        for qid in ("0", "1")
    ]
    told = json.loads(faked(str(tmp_path), "dump", "0", "--json", script=COUNTED).stdout)
    assert [entry["result"] for entry in told] == [-5, -5]
    assert json.loads(faked(str(tmp_path), "dump", "1", "--json", script=COUNTED).stdout) == []
