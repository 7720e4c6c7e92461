"""An upgrade: two daemons and the one who starts the second.

Each test is a process of its own, because they fork.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.helpers import is_one_line, python

PRELUDE = """
import contextlib, json, os, sys, time
from pathlib import Path
from tests.unit.fakes import dev_info
from ublkd import daemon, ending, manage, recovery, upgrade
from ublkd.errors import UblkdError
from ublkd.manage import Found
from ublkd.uapi import DevState, Feature

folder = Path(sys.argv[1])
KEPT = Feature.USER_RECOVERY | Feature.QUIESCE
found = Found(info=dev_info(3, flags=KEPT, pid=1), size=4096, state=None)
manage.serves = lambda _: True
upgrade.Control = contextlib.nullcontext
manage.look = lambda *_: Found(
    info=dev_info(3, flags=KEPT, state=DevState.QUIESCED), size=4096, state=None
)

def did(name):
    with open(folder / "did", "a") as f:
        f.write(name + "\\n")

recovery.look = lambda *_: did("look")
ending.quiesce = lambda *_: did("quiesce")

def serve_again(dev_id, cookie, ready, log):
    did(f"serve {dev_id}")
    ready(daemon.Ready(id=dev_id))
daemon.serve_again = serve_again

def fails(words):
    def fail(*_):
        raise UblkdError(words, hint="the cause")
    return fail
"""

RUN = """
told = {}
fds = len(os.listdir("/proc/self/fd"))
try:
    told["pause"] = upgrade.upgrade(found)
except UblkdError as error:
    told |= {"message": error.message, "hint": error.hint, "code": error.exit_code}
with contextlib.suppress(ChildProcessError):
    os.wait()
told["leaked"] = len(os.listdir("/proc/self/fd")) - fds
told["did"] = (folder / "did").read_text().split("\\n")[:-1] if (folder / "did").exists() else []
print(json.dumps(told))
"""


def upgraded(tmp_path: Path, script: str = "") -> dict[str, Any]:
    root = str(Path(__file__).resolve().parents[2])
    path = f"import sys\nsys.path.append({root!r})\n"
    ran = python("-c", path + PRELUDE + script + RUN, str(tmp_path))
    assert ran.stderr == ""
    told: dict[str, Any] = json.loads(ran.stdout)
    assert told["leaked"] == 0
    if "message" in told:
        assert is_one_line(told["message"])
        assert is_one_line(told["hint"])
    return told


def test_the_next_daemon_looks_first_and_serves_once_the_device_is_quiesced(
    tmp_path: Path,
) -> None:
    told = upgraded(tmp_path)
    assert told["did"] == ["look", "quiesce", "serve 3"]
    assert 0 <= told["pause"] < 20_000


def test_a_daemon_that_could_not_serve_is_a_reason_not_to_quiesce(tmp_path: Path) -> None:
    told = upgraded(tmp_path, "recovery.look = fails('it is another file')\n")
    assert told["message"] == "it is another file"
    assert told["did"] == []


def test_a_daemon_that_dies_while_it_looks_is_a_reason_as_well(tmp_path: Path) -> None:
    told = upgraded(tmp_path, "recovery.look = lambda *_: os._exit(9)\n")
    assert "died before it was ready (exit status 9)" in told["message"]
    assert told["did"] == []


def test_a_device_that_is_not_quiesced_keeps_its_daemon(tmp_path: Path) -> None:
    told = upgraded(tmp_path, "ending.quiesce = fails('a request is still under way')\n")
    assert told["message"] == "a request is still under way"
    assert told["did"] == ["look"]


@pytest.mark.parametrize("end", ["fails('no such file')", "lambda *_: os._exit(9)"])
def test_a_next_daemon_that_fails_leaves_a_device_that_waits_and_says_so(
    tmp_path: Path, end: str
) -> None:
    told = upgraded(tmp_path, f"daemon.serve_again = {end}\n")
    assert "/dev/ublkb3 is quiesced and its requests wait" in told["message"]
    assert "ublkd recover 3" in told["hint"]
    assert told["code"] == 1
    assert told["did"] == ["look", "quiesce"]


def test_a_next_daemon_that_dies_before_its_turn_leaves_a_device_that_waits_and_says_so(
    tmp_path: Path,
) -> None:
    script = """
def quiesce(*_):
    did("quiesce")
    for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        os.kill(int(pid), 9)
        os.waitid(os.P_PID, int(pid), os.WEXITED | os.WNOWAIT)
ending.quiesce = quiesce
"""
    told = upgraded(tmp_path, script)
    assert "quiesced and its requests wait" in told["message"]
    assert "died before it was ready (signal SIGKILL)" in told["message"]
    assert "ublkd recover 3" in told["hint"]
    assert told["did"] == ["look", "quiesce"]


def test_a_device_that_others_have_stopped_does_not_wait(tmp_path: Path) -> None:
    told = upgraded(
        tmp_path,
        """
daemon.serve_again = fails("is dead: it was stopped")
manage.look = lambda *_: Found(
    info=dev_info(3, flags=KEPT, state=DevState.DEAD), size=4096, state=None
)
""",
    )
    assert told["message"] == "is dead: it was stopped"


@pytest.mark.parametrize("now", ["None", "found"])
def test_a_device_that_others_have_deleted_or_serve_does_not_wait(tmp_path: Path, now: str) -> None:
    lost = f"daemon.serve_again = fails('is served by process 1')\nmanage.look = lambda *_: {now}\n"
    told = upgraded(tmp_path, lost)
    assert told["message"] == "is served by process 1"
    assert told["did"] == ["look", "quiesce"]


@pytest.mark.parametrize("signal", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_an_interrupt_between_the_two_daemons_does_not_end_the_one_that_serves_by_then(
    tmp_path: Path, signal: str
) -> None:
    script = f"""
import signal
def interrupted(*_):
    raise KeyboardInterrupt
signal.signal(signal.{signal}, interrupted)  # a job in the background may ignore it
ending.quiesce = lambda *_: os.kill(os.getpid(), signal.{signal})

def serve_again(dev_id, cookie, ready, log):
    ready(daemon.Ready(id=dev_id))
    while "interrupted" not in (folder / "did").read_text():
        time.sleep(0.02)  # it serves
    did("still there")
daemon.serve_again = serve_again
try:
    upgrade.upgrade(found)
except KeyboardInterrupt:
    did("interrupted")
os.wait()
upgrade.upgrade = lambda _: 0
"""
    told = upgraded(tmp_path, script)
    assert told["did"] == ["look", "interrupted", "still there"]


OF_UNIT = """
from ublkd import units
upgrade.unit_of = lambda pid: f"ublkd@of-{pid}.service"
units.refuse_wrong_file = lambda _: did("read")
units.serve = lambda found, unit: did(f"start {unit}")
"""


def test_the_next_daemon_of_a_unit_is_systemds_to_start(tmp_path: Path) -> None:
    told = upgraded(tmp_path, OF_UNIT)
    # never stopped by systemd: that deletes a disk that is not in use
    assert told["did"] == ["read", "look", "quiesce", "start ublkd@of-1.service"]
    assert 0 <= told["pause"] < 20_000


def test_a_unit_that_could_not_serve_is_a_reason_not_to_quiesce(tmp_path: Path) -> None:
    told = upgraded(tmp_path, OF_UNIT + "units.refuse_wrong_file = fails('the file is gone')\n")
    assert told["message"] == "the file is gone"
    assert told["did"] == []


def test_a_unit_that_fails_leaves_a_device_that_waits_and_says_so(tmp_path: Path) -> None:
    told = upgraded(tmp_path, OF_UNIT + "units.serve = fails('Job failed')\n")
    assert "/dev/ublkb3 is quiesced and its requests wait" in told["message"]
    assert "'systemctl start ublkd@of-1.service' tries again" in told["hint"]
    assert told["did"] == ["read", "look", "quiesce"]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("manage.serves = lambda _: False\n", "nobody serves"),
        ("found = Found(info=dev_info(3, pid=1), size=1, state=None)\n", "recovery none"),
    ],
)
def test_what_cannot_be_upgraded_is_refused_at_once(
    tmp_path: Path, script: str, words: str
) -> None:
    told = upgraded(tmp_path, script)
    assert words in told["message"]
    assert told["did"] == []
