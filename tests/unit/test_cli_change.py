"""`ublkd resize` and `ublkd set` as they are typed."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from tests.unit.helpers import assert_one_line_and_hint
from tests.unit.test_cli_output import faked

SCRIPT = """
import json
from ublkd import resize, setting
from ublkd.cli import change
from ublkd.control import Control
change.driver = driver

def resized(control, states, device, size, *, force):
    print(device.info.id, size, force, file=sys.stderr)
    return 1 << 30, size or 1 << 31

def set_options(control, states, device, given, *, name):
    print(json.dumps([device.info.id, given, name]))

resize.resize = resized
setting.set_options = set_options
"""


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return faked(*words, script=SCRIPT)


def test_a_size_is_read_as_all_sizes_are_and_told_as_text_or_json() -> None:
    ran = run("resize", "0", "512M", "--force")
    assert ran.stdout == "/dev/ublkb7: 1G -> 512M\n"
    assert ran.stderr == f"7 {512 << 20} True\n"
    ran = run("resize", "0", "--json")
    assert ran.stderr == "7 None False\n"
    assert json.loads(ran.stdout) == {
        "id": 7, "node": "/dev/ublkb7", "old_size": 1 << 30, "size": 1 << 31
    }  # fmt: skip


@pytest.mark.parametrize("size", ["", "-1", "x", "1.5G", "+1G"])
def test_what_is_no_size_is_a_usage_error(size: str) -> None:
    ran = run("resize", "0", "--", size)
    assert ran.returncode == 2
    assert_one_line_and_hint(ran.stderr)


def heard(*words: str) -> Any:
    ran = run("set", *words)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_set_has_the_options_of_the_devices_target() -> None:
    assert heard("0", "--follow-size", "--name", "other") == [7, {"follow-size": True}, "other"]
    assert heard("0", "--no-follow-size") == [7, {"follow-size": False}, None]
    assert heard("0") == [7, {}, None]
    assert heard("0", "--offset", "4K") == [7, {"offset": "4K"}, None]  # refused where it is known


@pytest.mark.parametrize("words", [("--queues", "2"), ("--no-partscan",), ("--lease=copy",),
                                   ("-t", "null")])  # fmt: skip
def test_what_belongs_to_add_is_known_and_cannot_change(words: tuple[str, ...]) -> None:
    ran = run("set", "0", *words)
    assert ran.returncode == 1
    assert_one_line_and_hint(ran.stderr)
    assert "cannot be changed while /dev/ublkb7 (db) is there" in ran.stderr


def test_an_unknown_option_is_answered_with_the_nearest() -> None:
    ran = run("set", "0", "--follow-sice")
    assert ran.returncode == 2
    assert "--follow-size" in ran.stderr
    assert_one_line_and_hint(ran.stderr)


def test_help_lists_what_can_change_and_needs_no_device() -> None:
    ran = run("set", "0", "--help")
    assert "--follow-size / --no-follow-size" in ran.stdout
    assert "--direct-io" not in ran.stdout
    assert "--queues" not in ran.stdout
    assert "Usage: ublkd set DEV --OPTION VALUE ..." in ran.stdout
    for words in (["1", "--help"], ["--help"]):  # somebody else's device, and none
        ran = run("set", *words)
        assert (ran.returncode, ran.stderr) == (0, "")
        assert "--follow-size" not in ran.stdout
    ran = run("set", "1", "--name", "other")
    assert "was not made by ublkd" in ran.stderr
    assert run("set").returncode == 2
