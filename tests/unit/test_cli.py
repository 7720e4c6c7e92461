"""What is taken on the command line, and how what is not is refused. Nothing here needs a driver:
either the words are wrong, or ``daemon.start`` is replaced.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.helpers import DRIVER_THERE, assert_one_line_and_hint, python, ublkd

COMMANDS = ["add", "list", "show", "stop", "del", "features", "recover", "quiesce", "upgrade",
            "doctor", "stats", "dump"]  # fmt: skip

STARTING = """
import dataclasses, json, sys
from ublkd import cli, daemon

def start(config):
    told = dataclasses.asdict(config)
    told["lease"] = config.lease.value if config.lease else None
    told["recovery"] = config.recovery.value if config.recovery else None
    print(json.dumps(told))
    return daemon.Ready(id=7)

daemon.start = start
sys.argv[0] = "ublkd"
cli.main()
"""


def asked(*words: str | bytes, **how: Any) -> dict[str, Any]:
    """The config that ``ublkd add`` with these words starts a daemon with."""
    ran = python("-c", STARTING, "add", *words, **how)
    assert (ran.returncode, ran.stderr) == (0, "")
    first, node = ran.stdout.splitlines()
    assert node == "/dev/ublkb7"
    config: dict[str, Any] = json.loads(first)
    return config


@pytest.mark.parametrize("word", ["-h", "--help"])
@pytest.mark.parametrize(
    "words", [[], *([c] for c in COMMANDS), ["add", "-t", "loop"], ["add", "--target=null"]]
)
def test_every_command_explains_itself(words: list[str], word: str) -> None:
    ran = ublkd(*words, word)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("Usage: ublkd")
    assert all(len(line) <= 100 for line in ran.stdout.splitlines())


def test_the_help_of_all_names_every_command() -> None:
    told = ublkd("--help").stdout
    assert all(f"\n  {command} " in told for command in COMMANDS)


@pytest.mark.parametrize(
    ("words", "command"),
    [(["add", "-t"], "ublkd add"), (["add", "-t", "null", "--size"], "ublkd add"),
     (["release", "--wait"], "ublkd release"),
     (["config", "check", "--config"], "ublkd config check"),
     (["nbd", "list", "--open-timeout"], "ublkd nbd list")],
)  # fmt: skip
def test_an_option_without_its_value_has_the_help_of_its_verb_as_a_hint(
    words: list[str], command: str
) -> None:
    assert ublkd(*words).stderr.splitlines()[1] == f"hint: see '{command} --help'"


def test_the_help_of_release_says_in_what_its_wait_is() -> None:
    assert "--wait SECONDS" in ublkd("release", "--help").stdout


def test_the_help_of_add_names_the_targets_and_with_one_its_options() -> None:
    assert "Targets: concat, faulty, loop, mirror, nbd, null, stripe" in ublkd("add", "-h").stdout
    told = ublkd("add", "-t", "loop", "-h").stdout
    assert "--file PATH" in told
    assert "--direct-io auto|on|off" in told
    assert "--size " not in told


def test_ublkd_alone_shows_its_help_and_is_a_usage_error() -> None:
    ran = ublkd()
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "Usage: ublkd" in ran.stderr


def test_the_version_is_told() -> None:
    ran = ublkd("--version")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("ublkd, version ")


def test_the_installed_script_is_the_same_program(tmp_path: Path) -> None:
    script = shutil.which("ublkd", path=str(Path(sys.executable).parent))
    if not script:
        pytest.skip("no script 'ublkd' beside this Python")
    assert python(script, "--version").stdout == ublkd("--version").stdout


WRONG: list[tuple[list[str | bytes], str]] = [
    (["lst"], "lst"),
    (["--colour"], "--colour"),
    (["a\nb"], r"a\nb"),
    ([b"\xff"], "udcff"),
    (["list", "--colour"], "--colour"),
    (["list", "more"], "more"),
    (["show"], "DEV"),
    (["show", "1", "2"], "2"),
    (["stop"], "DEV"),
    (["stop", "--all"], "--all"),
    (["del"], "DEV"),
    (["del", "1", "--all"], "DEV"),
    (["features", "x"], "x"),
    (["recover"], "DEV"),
    (["recover", "1", "--all"], "DEV"),
    (["quiesce"], "DEV"),
    (["quiesce", "--all"], "--all"),
    (["upgrade"], "DEV"),
    (["upgrade", "1", "--all"], "DEV"),
    (["doctor", "x"], "x"),
    (["stats", "0", "--watch", "0"], "--watch"),
    (["stats", "--watch", "nan"], "--watch"),
    (["stats", "--watch", "inf"], "--watch"),
    (["stats", "--watch", "1e300"], "--watch"),
    (["stats", "--watch", "9999999999"], "--watch"),
    (["release", "x", "--wait", "nan"], "--wait"),
    (["release", "x", "--wait", "1e3"], "--wait"),
    (["release", "x", "--wait", "3601"], "--wait"),
    (["run", "x", "--config", ""], "--config"),
    (["apply", "--config", ""], "--config"),
    (["config", "check", "--config", ""], "--config"),
    (["stats", "--watch", "disk"], "--watch"),
    (["dump"], "DEV"),
    (["add"], "--target"),
    (["add", "--target"], "--target"),
    (["add", "-t", "loup"], "loup"),
    (["add", "-t", "a\nb"], "unknown target"),
    (["add", "-t", b"\xff"], r"'\xff'"),
    (["add", "-t", ""], "unknown target"),
    (["add", "-t", "loup", "--help"], "loup"),
    (["add", "-t", "null", "--file", "x"], "--file"),
    (["add", "--file", "x"], "--file"),
    (["add", "-t", "loop"], "--file"),
    (["add", "-t", "loop", "--file", ""], "--file"),
    (["add", "-t", "loop", "--file", "/x", "--direct-io", "yes"], "--direct-io"),
    (["add", "-t", "loop", "--file", "/x", "--read-only=1"], "--read-only"),
    (["add", "-t", "null", "more"], "more"),
    (["add", "-t", "null", "--size"], "--size"),
    (["add", "-t", "null", "--size", "much"], "--size"),
    (["add", "-t", "null", "--queues", "0"], "--queues"),
    (["add", "-t", "null", "--depth", "x"], "--depth"),
    (["add", "-t", "null", "--id", "-1"], "--id"),
    (["add", "-t", "null", "--max-io", "1"], "--max-io"),
    (["add", "-t", "null", "--lease", "best"], "--lease"),
    (["add", "-t", "null", "--recovery", "always"], "--recovery"),
    (["add", "-t", "null", "--name", "a/b"], "--name"),
    (["add", "-t", "null", "--name", b"\xff"], "--name"),
]


@pytest.mark.parametrize(("words", "named"), WRONG, ids=[str(words) for words, _ in WRONG])
def test_wrong_words_are_refused_in_one_line_that_names_them(
    words: list[str | bytes], named: str
) -> None:
    ran = ublkd(*words)
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert_one_line_and_hint(ran.stderr)
    assert named in ran.stderr.splitlines()[0]


def test_all_words_of_add_reach_the_config() -> None:
    config = asked(
        "-t", "null", "--name", "db", "--id", "5", "--queues", "3", "--depth", "64", "--max-io",
        "64K", "--lease", "copy", "--size", "1M", "--block-size", "4K", "--no-partscan",
        "--recovery", "queue", "--owner", "root", "--group", "06", "--mode", "640",
    )  # fmt: skip
    assert config == {
        "target": "null",
        "options": {"size": 1 << 20, "block_size": 4096},
        "name": "db",
        "id": 5,
        "queues": 3,
        "depth": 64,
        "max_io": 65536,
        "lease": "copy",
        "partscan": False,
        "recovery": "queue",
        "owner": "0",
        "group": "6",
        "mode": "0640",
        "paths": [],
        "asked": {
            "id": 5,
            "queues": 3,
            "depth": 64,
            "max-io": 65536,
            "lease": "copy",
            "no-partscan": True,
            "owner": "0",
            "group": "6",
            "mode": "0640",
            "recovery": "queue",
        },
        "origin": None,
    }


@pytest.mark.parametrize(
    "words", [["-t", "null"], ["--target", "null"], ["--target=null"], ["-tnull"]]
)
def test_a_target_can_be_named_in_every_usual_way(words: list[str]) -> None:
    assert asked(*words, "--size", "1M")["options"]["size"] == 1 << 20
    assert asked("--size", "1M", *words)["options"]["size"] == 1 << 20


@pytest.mark.parametrize("name", ["-test.img", "-tnull"])
def test_what_an_option_is_given_is_not_taken_for_a_target(tmp_path: Path, name: str) -> None:
    for words in (["--target", "loop", "--file", name], ["--file", name, "--target", "loop"]):
        config = asked(*words, cwd=tmp_path)
        assert config["target"] == "loop"
        assert config["options"]["file"] == f"{tmp_path}/{name}"


def test_of_two_targets_the_last_counts() -> None:
    assert asked("-t", "loop", "-t", "null", "--size", "1M")["target"] == "null"


def test_flags_and_paths_of_a_target_reach_the_config(tmp_path: Path) -> None:
    config = asked("-t", "loop", "--file", b"\xff.img", "--read-only", "--share", cwd=tmp_path)
    assert config["options"] == {
        "file": f"{tmp_path}/\udcff.img",
        "direct_io": "auto",
        "read_only": True,
        "offset": 0,
        "sizelimit": None,
        "share": True,
        "follow_size": False,
        "block_size": None,
    }


@pytest.mark.skipif(DRIVER_THERE, reason="this machine has a ublk driver")
@pytest.mark.parametrize(
    "words",
    [["add", "-t", "null"], ["add", "-t", "null", "--foreground"], ["list"], ["list", "--json"],
     ["show", "0"], ["stop", "0"], ["del", "--all"], ["features"]],
)  # fmt: skip
def test_without_a_driver_it_is_not_possible_and_the_way_out_is_named(words: list[str]) -> None:
    ran = ublkd(*words)
    assert (ran.returncode, ran.stdout) == (3, "")
    assert_one_line_and_hint(ran.stderr)
    assert "modprobe ublk_drv" in ran.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="this is root")
@pytest.mark.parametrize("words", [["add", "-t", "null"], ["list"], ["features"]])
def test_without_root_it_is_not_possible(words: list[str]) -> None:
    ran = ublkd(*words)
    assert (ran.returncode, ran.stdout) == (3, "")
    assert_one_line_and_hint(ran.stderr)


HEAVY = ["pyroute2", "cffi", "_cffi_backend", "ublkd._core", "importlib.metadata", "email",
         "asyncio", "socket", "ublkd.config", "ublkd.control", "ublkd.registry"]  # fmt: skip


def test_help_is_answered_without_loading_anything_heavy() -> None:
    script = f"""
import sys
from ublkd import cli
sys.argv = ["ublkd", "--help"]
try:
    cli.main()
finally:
    loaded = [name for name in {HEAVY!r} if name in sys.modules]
    print("loaded:", *loaded, file=sys.stderr)
"""
    ran = python("-c", script)
    assert ran.returncode == 0
    assert ran.stderr.strip() == "loaded:"
