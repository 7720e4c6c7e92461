"""What is printed, and what happens when it cannot be. The driver is replaced by a list."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import pytest

from tests.unit.helpers import assert_one_line_and_hint, python, ublkd

FAKES = r"""
import contextlib, os, sys
from pathlib import Path
from ublkd import cli, ending, manage
from ublkd.cli import add, verbs
from ublkd.control import DevInfo
from ublkd.errors import UblkdError
from ublkd.manage import Found
from ublkd.state import DeviceState, StateDir
from ublkd.uapi import DevState, Feature

def info(dev_id, cookie):
    return DevInfo(id=dev_id, state=DevState.LIVE, queues=2, depth=64, max_io=4096, pid=42,
                   flags=Feature(0x1fe), cookie=cookie)

path = os.fsdecode(b"/srv/\xff\n\xc3\xa4.img")
state = DeviceState(id=7, cookie=0x75626B64 << 32, pid=42, name="db", target="loop", lease="copy",
                    options={"file": path, "odd\udcff": [path]}, refused={"auto": "too old"},
                    describe={"backing": path, "direct_io": True})
found = [Found(info=info(7, 0x75626B64 << 32), size=1 << 30, state=state),
         Found(info=info(8, 1), size=512, state=None)]

@contextlib.contextmanager
def driver():
    yield None, StateDir(Path("/nowhere"))

add.driver = verbs.driver = driver
manage.devices = lambda *_: found
manage.find = lambda control, states, word: found[int(word)]
sys.argv[0] = "ublkd"
"""


def faked(
    *words: str, script: str = "", stdout: int | IO[str] = subprocess.PIPE, **how: Any
) -> subprocess.CompletedProcess[str]:
    """The command line on two devices that are not there."""
    return python("-c", FAKES + script + "\ncli.main()\n", *words, stdout=stdout, **how)


def test_list_is_a_table_of_one_line_per_device() -> None:
    ran = faked("list")
    assert (ran.returncode, ran.stderr) == (0, "")
    heading, first, second = ran.stdout.splitlines()
    assert heading.split()[:4] == ["ID", "NAME", "TARGET", "STATE"]
    assert first.split()[:8] == ["7", "db", "loop", "live", "1G", "2x64", "copy", "42"]
    assert r"/srv/\xff\nä.img" in first
    assert second.split()[0] == "8"
    assert "not ours" in second


def test_list_of_nothing_is_a_heading_or_an_empty_array() -> None:
    nothing = "manage.devices = lambda *_: []"
    assert len(faked("list", script=nothing).stdout.splitlines()) == 1
    assert json.loads(faked("list", "--json", script=nothing).stdout) == []


def test_list_as_json_is_json_whatever_the_bytes_of_a_path() -> None:
    ran = faked("list", "--json")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.isascii()
    first, second = json.loads(ran.stdout)
    assert first["options"]["file"] == "/srv/\\xff\nä.img"
    assert first["describe"]["backing"] == "/srv/\\xff\nä.img"
    assert first["options"]["odd\\xff"] == ["/srv/\\xff\nä.img"]
    assert (first["id"], first["name"], first["size"]) == (7, "db", 1 << 30)
    assert (second["ours"], second["target"]) == (False, None)
    assert json.dumps([first, second]).encode()  # no lone surrogate is left


def test_show_as_json_has_the_counters_too() -> None:
    ran = faked("show", "0", "--json")
    assert (ran.returncode, ran.stderr) == (0, "")
    told = json.loads(ran.stdout)
    assert told["refused"] == {"auto": "too old"}
    assert told["counters"] == []


def test_show_is_one_line_per_fact() -> None:
    ran = faked("show", "0")
    assert (ran.returncode, ran.stderr) == (0, "")
    lines = ran.stdout.splitlines()
    assert "name: db" in lines
    assert r"  file: /srv/\xff\nä.img" in lines
    assert "  auto: too old" in lines
    assert "target: -" in faked("show", "1").stdout.splitlines()


def test_show_of_queues_has_their_counters() -> None:
    script = "manage.counters = lambda *_: [{'read': {'requests': 5}, 'in_flight': 1}] * 2"
    lines = faked("show", "0", script=script).stdout.splitlines()
    assert "counters of queue 1:" in lines
    assert "    requests: 5" in lines


@pytest.mark.parametrize("locale", [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}])
def test_a_terminal_without_utf8_still_gets_its_list(locale: dict[str, str]) -> None:
    ran = faked("list", env=locale)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "/srv/" in ran.stdout


def test_del_all_deletes_ours_and_reports_every_failure() -> None:
    script = """
found[1] = Found(info=info(9, 0x75626B64 << 32), size=512, state=None)
found.append(Found(info=info(8, 1), size=512, state=None))
def delete(control, states, device, force):
    raise UblkdError(f"no {device.info.id}", hint="later")
ending.delete = delete
"""
    ran = faked("del", "--all", script=script)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.splitlines() == ["ublkd: no 7", "hint: later", "ublkd: no 9", "hint: later"]


def test_a_warning_of_del_is_printed_and_no_failure() -> None:
    ran = faked("del", "0", script="ending.delete = lambda *_, force: 'its number stays taken'")
    assert (ran.returncode, ran.stdout) == (0, "")
    assert ran.stderr == "ublkd: warning: its number stays taken\n"


# --- output that nobody gets ----------------------------------------------------------------

PRINTING = [["list"], ["list", "--json"], ["show", "0"], ["show", "0", "--json"]]
HELPING = [["--help"], ["--version"], ["add", "--help"], ["list", "-h"]]


def into_closed(*words: str, script: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-c", FAKES + script + "\ncli.main()\n", *words]
    return subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" >&-', "sh", *command],
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        cwd="/",
        check=False,
    )


def into_broken(*words: str, script: str = "") -> subprocess.CompletedProcess[str]:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as pipe:
        return faked(*words, script=script, stdout=pipe)


def into_full(*words: str, script: str = "") -> subprocess.CompletedProcess[str]:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with open("/dev/full", "w") as full:
        return faked(*words, script=script, stdout=full)


NOWHERE = [into_closed, into_broken, into_full]


@pytest.mark.parametrize("nowhere", NOWHERE)
@pytest.mark.parametrize("words", PRINTING)
def test_output_that_nobody_gets_is_a_failure_of_one_line(words: list[str], nowhere: Any) -> None:
    ran = nowhere(*words)
    assert ran.returncode == 1
    assert_one_line_and_hint(ran.stderr)
    assert "standard output" in ran.stderr


@pytest.mark.parametrize("nowhere", NOWHERE)
@pytest.mark.parametrize("words", HELPING)
def test_help_that_nobody_gets_is_a_failure_of_one_line(words: list[str], nowhere: Any) -> None:
    ran = nowhere(*words)
    assert ran.returncode == 1
    assert_one_line_and_hint(ran.stderr)


@pytest.mark.parametrize("nowhere", NOWHERE)
def test_a_device_nobody_learns_of_is_taken_back(nowhere: Any) -> None:
    script = """
from ublkd import daemon
daemon.start = lambda config: daemon.Ready(id=0, cookie=7)
daemon.take_back = lambda cookie: print("deleted", cookie, file=sys.stderr)
"""
    ran = nowhere("add", "-t", "null", script=script)
    assert ran.returncode == 1
    assert "deleted 7" in ran.stderr
    assert "standard output" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(("words", "code"), [(["nope"], 2), (["add", "-t", "nope"], 2)])
def test_an_error_that_nobody_reads_keeps_its_exit_code(words: list[str], code: int) -> None:
    command = [sys.executable, "-P", "-m", "ublkd", *words]
    for redirect in ("2>/dev/full", "2>&-"):
        shell = ["/bin/sh", "-c", f'exec "$@" {redirect}', "sh", *command]
        assert subprocess.run(shell, cwd="/", timeout=60, check=False).returncode == code


def test_a_message_of_several_lines_is_printed_as_one() -> None:
    script = r"""
def devices(*_):
    raise UblkdError("it\nfailed \udcff \ud800", hint="do\nthis")
manage.devices = devices
"""
    ran = faked("list", script=script)
    assert ran.returncode == 1
    assert_one_line_and_hint(ran.stderr)


def test_an_interrupt_is_one_line() -> None:
    ran = faked("list", script="def devices(*_): raise KeyboardInterrupt\nmanage.devices = devices")
    assert (ran.returncode, ran.stdout) == (130, "")
    assert ran.stderr.split("\n") == ["", "ublkd: interrupted", ""]  # the first ends "^C"


@pytest.mark.parametrize("fds", ["<&-", "<&- >&-", "<&- >&- 2>&-"])
def test_missing_standard_descriptors_are_not_given_to_anything_else(fds: str) -> None:
    script = r"""
def devices(*_):
    opened = os.open("/dev/zero", os.O_RDONLY)
    os._exit(0 if opened > 2 else 9)
manage.devices = devices
"""
    command = [sys.executable, "-P", "-c", FAKES + script + "\ncli.main()\n", "list"]
    shell = ["/bin/sh", "-c", f'exec "$@" {fds}', "sh", *command]
    ran = subprocess.run(shell, cwd="/", timeout=60, stdout=subprocess.DEVNULL, check=False)
    assert ran.returncode == 0


def test_the_real_program_and_the_faked_one_print_the_same_help() -> None:
    assert faked("--help").stdout == ublkd("--help").stdout


DEFECT = """
def broken(*_):
    raise KeyError("two\\nlines")
manage.devices = broken
"""


def test_an_exception_that_nobody_expected_is_one_line_that_asks_for_a_report() -> None:
    for nothing in ({}, {"UBLKD_DEBUG": ""}):
        ran = faked("list", script=DEFECT, env=nothing)
        assert ran.returncode == 1
        assert ran.stdout == ""
        assert_one_line_and_hint(ran.stderr)
        assert ran.stderr.startswith("ublkd: internal error: KeyError: ")
        assert "please report it" in ran.stderr


def test_with_ublkd_debug_its_traceback_comes_first() -> None:
    ran = faked("list", script=DEFECT, env={"UBLKD_DEBUG": "1"})
    assert ran.returncode == 1
    *trace, message, hint = ran.stderr.splitlines()
    assert trace[0] == "Traceback (most recent call last):"
    assert "in broken" in ran.stderr
    assert message.startswith("ublkd: internal error: KeyError")
    assert hint.startswith("hint: ")


def test_an_expected_failure_has_no_traceback_even_then() -> None:
    script = """
def refuse(*_):
    raise UblkdError("no", hint="so")
manage.devices = refuse
"""
    ran = faked("list", script=script, env={"UBLKD_DEBUG": "1"})
    assert ran.stderr == "ublkd: no\nhint: so\n"


@pytest.mark.parametrize(("shell", "word"), [("bash", "1"), ("zsh", "1"), ("fish", "qui")])
def test_a_shell_gets_its_completion_and_no_complaint(shell: str, word: str) -> None:
    ran = faked(env={"_UBLKD_COMPLETE": f"{shell}_source"})
    assert ran.returncode == 0
    assert "_ublkd_completion" in ran.stdout
    words = {"COMP_WORDS": "ublkd qui", "COMP_CWORD": word}
    ran = faked(env={"_UBLKD_COMPLETE": f"{shell}_complete", **words})
    assert "quiesce" in ran.stdout
    assert ran.stderr == ""


STANDS_STILL = """
import fcntl, os, sys
from ublkd.cli.output import served
from ublkd.errors import NotPossibleError
read_end, write_end = os.pipe()
os.set_blocking(write_end, False)
try:
    while True:
        os.write(write_end, b"x" * 4096)
except BlockingIOError:
    pass
os.set_blocking(write_end, True)
os.dup2(write_end, 2)
def serve():
    if len(sys.argv) > 1:
        raise NotPossibleError("it failed")
    import threading, time
    words = {"args": ("a line",), "kwargs": {"file": sys.stderr}}
    threading.Thread(target=print, daemon=True, **words).start()
    time.sleep(0.2)
sys.exit(served(serve))
"""


@pytest.mark.parametrize(("words", "code"), [(["fails"], 3), ([], 0)])
def test_who_serves_ends_though_its_log_stands_still(words: list[str], code: int) -> None:
    ran = python("-c", STANDS_STILL, *words)
    assert (ran.returncode, ran.stdout) == (code, "")


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        ("NotPossibleError('no', hint='none')", 3, "ublkd: no\nhint: none\n"),
        ("OSError(24, 'too many')", 1, "ublkd: the system refused: [Errno 24] too many\n"),
        ("KeyError('x')", 1, "ublkd: internal error: KeyError: 'x'\nhint: this is a defect"),
    ],
)
def test_who_serves_and_fails_says_why(raised: str, code: int, words: str) -> None:
    script = f"""
import sys
from ublkd.cli.output import served
from ublkd.errors import NotPossibleError
def serve():
    raise {raised}
sys.exit(served(serve))
"""
    ran = python("-c", script)
    assert ran.returncode == code
    assert ran.stderr.startswith(words)
