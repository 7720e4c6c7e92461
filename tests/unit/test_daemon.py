"""daemon.start: what the parent learns of a child that serves, fails, dies or hangs.

Each test is a process of its own, because they fork.
"""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from tests.unit.helpers import is_one_line, python
from ublkd import daemon

PRELUDE = """
import contextlib, json, os, signal, sys, time
from pathlib import Path
from ublkd import background, daemon, manage
from ublkd.config import DeviceConfig
from ublkd.errors import NotPossibleError, UblkdError, UsageError
from ublkd.state import StateDir

folder = Path(sys.argv[1])
daemon.Control = contextlib.nullcontext
daemon.StateDir = lambda: StateDir(folder / "run")
daemon.wait_for_node = lambda *_: None
manage.devices = lambda *_: []

def seen(name, text):
    (folder / name).write_text(str(text))

def serving(function):
    def serve(config, cookie, ready, log):
        seen("pid", os.getpid())
        function(ready, log)
    daemon.serve = serve

def start():
    fds = len(os.listdir("/proc/self/fd"))
    told = {}
    try:
        ready = daemon.start(DeviceConfig(target="null", options={}))
        told |= {"id": ready.id, "warnings": ready.warnings, "node": ready.node}
    except UblkdError as error:
        told |= {"kind": type(error).__name__, "message": error.message, "hint": error.hint,
                 "code": error.exit_code}
    print(json.dumps(told | {"leaked": len(os.listdir("/proc/self/fd")) - fds}))
"""


def started(tmp_path: Path, script: str) -> dict[str, Any]:
    """What daemon.start did with the fake ``serve`` of the script."""
    ran = python("-c", PRELUDE + script + "\nstart()\n", str(tmp_path))
    assert ran.stderr == ""
    told: dict[str, Any] = json.loads(ran.stdout)
    assert told["leaked"] == 0
    if "message" in told:
        assert is_one_line(told["message"])
        assert is_one_line(told["hint"])
    return told


def is_gone(tmp_path: Path, seconds: float = 20) -> bool:
    """Whether the daemon's process has ended; a zombie that its parent left has."""
    stat = Path("/proc", (tmp_path / "pid").read_text(), "stat")
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if stat.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def test_a_daemon_that_is_ready_is_told_of_with_its_warnings(tmp_path: Path) -> None:
    told = started(
        tmp_path,
        """
def serve(ready, log):
    ready(daemon.Ready(id=7, warnings=["odd \\udcff size"]))
    log("it is ready")
serving(serve)
""",
    )
    assert (told["id"], told["node"]) == (7, "/dev/ublkb7")
    assert told["warnings"] == ["odd \udcff size"]
    assert is_gone(tmp_path)


def test_a_daemon_stands_alone(tmp_path: Path) -> None:
    """Its own session, the root folder, private files, no descriptors but its own."""
    leak = "os.dup2(os.open('/dev/zero', os.O_RDONLY), 200, inheritable=True)\n"
    started(
        tmp_path,
        leak
        + """
def serve(ready, log):
    fds = sorted(map(int, os.listdir("/proc/self/fd")))
    standard = {os.readlink(f"/proc/self/fd/{fd}") for fd in range(3)}
    seen("told", json.dumps({
        "leader": os.getsid(0) == os.getpid(), "cwd": os.getcwd(), "mask": os.umask(0),
        "kept": 200 in fds, "standard": sorted(standard), "many": len(fds),
        "pipe": signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN}))
    ready(daemon.Ready(id=7))
serving(serve)
""",
    )
    assert is_gone(tmp_path)
    told = json.loads((tmp_path / "told").read_text())
    assert told.pop("many") <= 6  # 0, 1, 2, the pipe, the log, and the look at /proc
    assert told == {
        "leader": True,
        "cwd": "/",
        "mask": 0o077,
        "kept": False,
        "standard": ["/dev/null"],
        "pipe": True,
    }


@pytest.mark.parametrize(
    ("kind", "code"), [("UblkdError", 1), ("UsageError", 2), ("NotPossibleError", 3)]
)
def test_an_expected_failure_arrives_whole(tmp_path: Path, kind: str, code: int) -> None:
    told = started(
        tmp_path,
        f"""
def serve(ready, log):
    raise {kind}("it \\udcff failed".replace("\\udcff", "x"), hint="do this")
serving(serve)
""",
    )
    assert (told["kind"], told["code"]) == (kind, code)
    assert (told["message"], told["hint"]) == ("it x failed", "do this")
    assert is_gone(tmp_path)


@pytest.mark.parametrize(
    "raised", ["ZeroDivisionError('x')", "OSError(5, 'Input/output error')", "AssertionError()"]
)
def test_a_defect_is_one_line_that_asks_for_a_report(tmp_path: Path, raised: str) -> None:
    told = started(tmp_path, f"\ndef serve(ready, log):\n    raise {raised}\nserving(serve)\n")
    assert told["message"].startswith("internal error: " + raised.partition("(")[0])
    assert "report" in told["hint"]
    assert told["code"] == 1
    assert is_gone(tmp_path)


def test_a_defect_of_a_plug_in_is_told_as_its_own(tmp_path: Path) -> None:
    told = started(
        tmp_path,
        """
from ublkd.plugin import Maker, guarded
serving(lambda *_: guarded(None, Maker("odd", "odd-package")).params)
""",
    )
    said = "target 'odd' (from odd-package) failed in params: AttributeError: "
    assert told["message"].startswith(said)
    assert told["hint"] == "this is a defect of odd-package: tell whoever made it"
    assert told["code"] == 1


def test_with_ublkd_debug_the_log_has_the_traceback_of_a_defect(tmp_path: Path) -> None:
    script = """
import syslog
os.environ["UBLKD_DEBUG"] = "1"
lines = []
def log(level, line):
    lines.append(line)
    seen("log", "\\n".join(lines))
syslog.syslog = log
serving(lambda *_: {}["no such key"])
"""
    told = started(tmp_path, script)
    assert told["message"] == "internal error: KeyError: 'no such key'"
    logged = (tmp_path / "log").read_text().splitlines()
    assert logged[0] == "Traceback (most recent call last):"
    assert logged[-1] == told["message"]


@pytest.mark.parametrize("text", ["two\\nlines", "a\\udcffb", "a\\0b", "\\ud800"])
def test_a_defect_with_strange_words_is_still_told(tmp_path: Path, text: str) -> None:
    told = started(
        tmp_path, f"\ndef serve(ready, log):\n    raise ValueError('{text}')\nserving(serve)\n"
    )
    assert told["message"].startswith("internal error: ValueError: ")


def test_a_log_line_with_strange_words_does_not_end_the_daemon(tmp_path: Path) -> None:
    told = started(
        tmp_path,
        "\ndef serve(ready, log):\n"
        "    log('a\\udcffb\\0c\\nd')\n    ready(daemon.Ready(id=7))\nserving(serve)\n",
    )
    assert told.get("id") == 7


def test_a_killed_daemon_is_named_with_its_signal(tmp_path: Path) -> None:
    told = started(
        tmp_path,
        """
serving(lambda *_: os.kill(os.getpid(), signal.SIGKILL))
""",
    )
    assert "died before it was ready (signal SIGKILL)" in told["message"]
    assert told["hint"]
    assert is_gone(tmp_path)


def test_a_daemon_that_ends_without_a_word_is_named_with_its_status(tmp_path: Path) -> None:
    told = started(tmp_path, "\nserving(lambda *_: os._exit(9))\n")
    assert "died before it was ready (exit status 9)" in told["message"]


def test_a_daemon_that_returns_without_being_ready_is_an_error(tmp_path: Path) -> None:
    told = started(tmp_path, "\nserving(lambda *_: None)\n")
    assert "died before it was ready (exit status 0)" in told["message"]


def test_a_daemon_that_hangs_is_ended_in_time(tmp_path: Path) -> None:
    before = time.monotonic()
    told = started(
        tmp_path, "\nbackground.HEAR_SECONDS = 0.3\nserving(lambda *_: time.sleep(100))\n"
    )
    assert "was not ready within 0.3 seconds" in told["message"]
    said = re.search(r"process (\d+)", told["message"])
    assert said
    (tmp_path / "pid").write_text(said[1])  # it may not have come to write it
    assert is_gone(tmp_path)
    assert time.monotonic() - before < 20


def test_a_target_that_may_open_for_long_is_waited_for_so_much_longer(tmp_path: Path) -> None:
    told = started(
        tmp_path,
        """
background.HEAR_SECONDS = 0.1
daemon.opening_seconds = lambda options: 0.2
serving(lambda *_: time.sleep(100))
""",
    )
    assert "was not ready within 0.3 seconds" in told["message"]


def test_how_long_opening_may_take_is_said_by_the_option_of_that_name() -> None:
    assert daemon.opening_seconds({"open_timeout": 300.0}) == 300
    assert daemon.opening_seconds({"size": "1G"}) == 0


def test_a_daemon_that_will_not_be_ended_gently_is_killed(tmp_path: Path) -> None:
    told = started(
        tmp_path,
        """
background.HEAR_SECONDS = 0.3
real = time.monotonic

def serve(ready, log):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(100)

serving(serve)
time.monotonic = lambda: real() * 30  # so that 30 seconds of patience are one
""",
    )
    assert "was not ready" in told["message"]
    said = re.search(r"process (\d+)", told["message"])
    assert said
    (tmp_path / "pid").write_text(said[1])
    assert is_gone(tmp_path)


def test_a_node_that_does_not_come_ends_the_daemon(tmp_path: Path) -> None:
    told = started(
        tmp_path,
        """
def wait(node, *_):
    raise UblkdError(f"{node} could not be opened", hint="udev")
daemon.wait_for_node = wait

def serve(ready, log):
    ready(daemon.Ready(id=7))
    time.sleep(100)
serving(serve)
""",
    )
    assert told["message"] == "/dev/ublkb7 could not be opened"
    assert is_gone(tmp_path)


def test_a_half_message_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    told = started(
        tmp_path,
        """
def report(task, write_end, messages):
    seen("pid", os.getpid())
    os.write(write_end, b'{"id": 7, "warn')
    return 5
background._report = report
""",
    )
    assert "exit status 5" in told["message"]


def test_a_long_message_arrives_whole(tmp_path: Path) -> None:
    told = started(
        tmp_path,
        "\ndef serve(ready, log):\n    raise UblkdError('x' * 300_000)\nserving(serve)\n",
    )
    assert told["message"] == "x" * 300_000


def test_an_interrupted_start_ends_the_daemon(tmp_path: Path) -> None:
    script = """
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
def serve(ready, log):
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(100)
serving(serve)
try:
    start()
except KeyboardInterrupt:
    print("interrupted")
"""
    ran = python("-c", PRELUDE + script, str(tmp_path))
    assert ran.stdout == "interrupted\n"
    assert is_gone(tmp_path)


def test_a_state_folder_of_somebody_else_starts_nothing(tmp_path: Path) -> None:
    os.mkdir(tmp_path / "run")
    (tmp_path / "run").chmod(0o777)
    told = started(tmp_path, "\nserving(lambda *_: None)\n")
    assert "can be written by others" in told["message"]
    assert not (tmp_path / "pid").exists()


AWAITING = """
def await_node(config, ready):
    seen("pid", os.getpid())
    if ready.id == 8:
        raise NotPossibleError("no node", hint="none")
    ready.warnings.append("slow \\udcff")

daemon.await_node = await_node
told = {"own": os.getpid(), "fds": len(os.listdir("/proc/self/fd"))}
config = DeviceConfig(target="null", options={})
with contextlib.suppress(KeyError), daemon.awaiting(config) as awaited:
    try:
        told["warnings"] = awaited(daemon.Ready(id=NUMBER, warnings=["one"])).warnings
    except UblkdError as error:
        told["error"] = [type(error).__name__, error.message, error.hint]
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        told["reaped"] = True
    raise KeyError
told["leaked"] = len(os.listdir("/proc/self/fd")) - told["fds"]
print(json.dumps(told))
"""


@pytest.mark.parametrize("number", [7, 8])
def test_who_serves_itself_has_another_process_wait_for_the_node(
    tmp_path: Path, number: int
) -> None:
    ran = python("-c", PRELUDE + AWAITING.replace("NUMBER", str(number)), str(tmp_path))
    assert ran.stderr == ""
    told = json.loads(ran.stdout)
    assert told["leaked"] == 0
    assert told["own"] != int((tmp_path / "pid").read_text())
    if number == 7:
        assert told["warnings"] == ["one", "slow \udcff"]
        assert told["reaped"]
    else:
        assert told["error"] == ["NotPossibleError", "no node", "none"]
    assert is_gone(tmp_path)


def test_whose_device_never_comes_leaves_nobody_who_waits_for_it(tmp_path: Path) -> None:
    script = """
try:
    with daemon.awaiting(DeviceConfig(target="null", options={})):
        raise KeyError
except KeyError:
    pass
try:
    os.waitpid(-1, 0)
except ChildProcessError:
    print("nobody")
"""
    ran = python("-c", PRELUDE + script, str(tmp_path))
    assert (ran.stdout, ran.stderr) == ("nobody\n", "")
