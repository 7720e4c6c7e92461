"""What a shell offers behind TAB, and that nothing else comes to the terminal."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from tests.unit.fakes import remembering
from tests.unit.helpers import ublkd
from tests.unit.test_devicefiles import put
from ublkd import state
from ublkd.cli.common import cli
from ublkd.state import DeviceState, StateDir

STATE = DeviceState(id=3, cookie=1, pid=1, name="data", target="null", options={}, lease="copy",
                    started=True)  # fmt: skip


def offered(*words: str) -> list[tuple[str, str]]:
    """Kind and word of what could be the last one."""
    *args, incomplete = words
    shell = ShellComplete(cli, {}, "ublkd", "_UBLKD_COMPLETE")
    return [(item.type, item.value) for item in shell.get_completions(args, incomplete)]


def plain(*words: str) -> list[str]:
    found = offered(*words)
    assert {kind for kind, _ in found} <= {"plain"}
    return [word for _, word in found]


@pytest.mark.parametrize(
    ("words", "kind"),
    [(["add", "-t", "loop", "--file"], "file"), (["add", "-t", "mirror", "--file"], "file"),
     (["add", "--file=x", "--target=loop", "--file"], "file"),
     (["add", "-t", "nbd", "--tls-certificates"], "file"), (["run", "--config"], "dir"),
     (["nbd", "info", "--tls-certificates"], "file"), (["config", "check", "--config"], "dir"),
     (["apply", "--config"], "dir")],
)  # fmt: skip
def test_a_path_is_left_to_the_shell(words: list[str], kind: str) -> None:
    assert offered(*words, "/tm") == [(kind, "/tm")]
    assert offered(*words, "") == [(kind, "")]


def test_targets_leases_and_recoveries_are_known() -> None:
    for option in ("-t", "--target"):
        assert plain("add", option, "") == ["concat", "faulty", "loop", "mirror", "nbd", "null",
                                            "stripe"]  # fmt: skip
    assert plain("add", "-t", "n") == ["nbd", "null"]
    assert plain("add", "-t", "faulty", "--over", "lo") == ["loop"]
    assert plain("add", "--lease", "") == ["auto", "register", "group", "copy", "user-copy"]
    assert plain("add", "-t", "null", "--recovery", "re") == ["reissue"]
    assert plain("add", "-t", "loop", "--direct-io", "o") == ["on", "off"]
    assert "--direct-io" in plain("add", "-t", "loop", "--")


def test_what_nobody_can_know_is_not_offered() -> None:
    for words in (["add", "--name"], ["add", "--id"], ["nbd", "info"], ["stats", "--watch"]):
        assert offered(*words, "") == []


def test_targets_with_verbs_stand_among_the_verbs() -> None:
    assert "nbd" in plain("")
    assert plain("n") == ["nbd"]
    assert plain("nbd", "") == ["info", "list"]
    assert plain("config", "") == ["check"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    remembering(tmp_path, STATE)
    monkeypatch.setattr(state, "StateDir", lambda: StateDir(tmp_path / "run"))
    return tmp_path / "run"


@pytest.mark.parametrize(
    "verb", ["show", "stop", "del", "resize", "set", "recover", "quiesce", "upgrade", "stats",
             "dump"],
)  # fmt: skip
def test_a_device_has_a_number_and_a_name_or_is_a_path(run: Path, verb: str) -> None:
    assert plain(verb, "") == ["3", "data"]
    assert plain(verb, "d") == ["data"]
    assert offered(verb, "/dev/ub") == [("file", "/dev/ub")]


def test_a_folder_of_state_that_cannot_be_read_offers_nothing(run: Path) -> None:
    (run / "3.json").write_text("?")
    assert plain("show", "") in ([], ["3"])
    (run / "3.json").unlink()
    run.rmdir()
    assert plain("show", "") == []


def test_devices_with_files_are_offered_where_a_file_is_named(tmp_path: Path) -> None:
    for name in ("data", "db", "0bad"):
        put(tmp_path, "", name)
    etc = str(tmp_path)
    for words in (["run"], ["release"], ["config", "check"]):
        if words != ["release"]:
            assert plain(*words, "--config", etc, "") == ["data", "db"]
        assert isinstance(plain(*words, ""), list)
    assert plain("config", "check", "--config", etc, "data", "d") == ["data", "db"]
    assert plain("run", "--config", f"{etc}/none", "") == []


def asked(line: str, *, shell: str = "bash") -> tuple[list[str], str]:
    """What the installed script would get for such a line, and what would spoil the terminal."""
    words = "\n".join(line.split(" "))
    env = {"_UBLKD_COMPLETE": f"{shell}_complete", "COMP_WORDS": words,
           "COMP_CWORD": str(line.count(" "))}  # fmt: skip
    ran = ublkd(env=os.environ | env)
    return ran.stdout.split(), ran.stderr


def test_nothing_spoils_the_line_that_is_typed() -> None:
    for line in ("ublkd set x --", "ublkd set x --n", "ublkd nope --"):
        assert asked(line)[1] == ""
    assert asked("ublkd set x --n") == (["plain,--name"], "")
    found, said = asked("ublkd add -t nope --")
    assert "plain,--lease" in found
    assert said == ""


def test_bash_makes_three_words_of_an_option_with_its_value() -> None:
    assert asked("ublkd add -t loop --file = /tm")[0] == ["file,/tm"]
    assert asked("ublkd add -t loop --file =")[0] == ["file,"]
    assert asked("ublkd add --lease = us")[0] == ["plain,user-copy"]
