"""What is changed of a device that is served: written, told, answered, or taken back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.unit.fakes import dev_info, remembering
from tests.unit.helpers import option
from ublkd import changes, registry
from ublkd.changes import Changes
from ublkd.errors import UblkdError
from ublkd.manage import Found
from ublkd.state import DeviceState, StateDir
from ublkd.target import OptionValue
from ublkd.uapi import DevState

INFO = dev_info(3, pid=os.getpid())
STATE = DeviceState(id=3, cookie=INFO.cookie, pid=1, name="data", target="toy", lease="copy",
                    options={"one": "a"}, started=True)  # fmt: skip


class Target:
    """Goes by what it is told, unless ``refuses``."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.refuses = ""
        self.meanwhile: Callable[[], object] = lambda: None

    def changed(self, options: Mapping[str, OptionValue]) -> None:
        if self.refuses:
            raise UblkdError(self.refuses)
        self.meanwhile()
        self.heard.append(dict(options))

    def resizing(self, size: int) -> None:
        if self.refuses:
            raise UblkdError(self.refuses)
        self.heard.append(size)


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"one": option("one", live=True)}
    monkeypatch.setattr(registry, "options_of", lambda *_: known)


def daemon(states: StateDir, target: object, options: Mapping[str, Any] | None = None) -> Changes:
    disk = SimpleNamespace(id=3, info=INFO, target=target,
                           config=SimpleNamespace(options=options or {"one": "a"}))  # fmt: skip
    return Changes(states, cast("Any", disk), print)


def found(**more: Any) -> Found:
    return Found(info=replace(INFO, **more), size=4096, state=STATE)


def to(**options: Any) -> Callable[[DeviceState], DeviceState]:
    return lambda state: replace(state, options={**state.options, **options})


def test_a_daemon_goes_by_what_is_written_once_and_says_so(tmp_path: Path) -> None:
    states, target = remembering(tmp_path, STATE), Target()
    served = daemon(states, target)
    served.look()
    assert states.read(3) == STATE
    changes.ask(states, found(), to(one="b"))
    served.look()
    served.look()
    assert target.heard == [{"one": "b"}]
    assert served.options == {"one": "b"}
    now = states.read(3)
    assert now is not None
    assert (now.revision, now.answered, now.problem) == (1, 1, "")
    changes.ask(states, found(), lambda state: replace(state, size=8192, name="other"))
    served.look()
    assert target.heard == [{"one": "b"}, 8192]


def test_what_its_target_does_not_take_is_answered_with_the_reason(tmp_path: Path) -> None:
    states, target = remembering(tmp_path, STATE), Target()
    target.refuses = "no b here"
    served = daemon(states, target)
    changes.ask(states, found(), to(one="b"))
    served.look()
    now = states.read(3)
    assert now is not None
    assert (now.answered, now.problem) == (1, "no b here")
    assert served.options == {"one": "a"}


def test_what_is_changed_while_the_daemon_looks_is_not_answered_before_it_is_gone_by(
    tmp_path: Path,
) -> None:
    states, target = remembering(tmp_path, STATE), Target()
    served = daemon(states, target)
    changes.ask(states, found(), to(one="b"))
    target.meanwhile = lambda: changes.ask(states, found(), to(one="c"))
    served.look()
    now = states.read(3)
    assert now is not None
    assert (now.options, now.revision, now.answered) == ({"one": "c"}, 2, 0)
    target.meanwhile = lambda: None
    served.look()
    assert target.heard == [{"one": "b"}, {"one": "c"}]


def test_a_file_of_another_device_is_nothing_to_go_by(tmp_path: Path) -> None:
    states, target = remembering(tmp_path, STATE), Target()
    served = daemon(states, target)
    states.write(replace(STATE, cookie=STATE.cookie + 1, options={"one": "b"}, revision=1))
    served.look()
    states.remove(3)
    served.look()
    assert target.heard == []


def test_a_target_without_a_word_for_it_is_changed_all_the_same(tmp_path: Path) -> None:
    states = remembering(tmp_path, STATE)
    served = daemon(states, object())
    changes.ask(states, found(), lambda s: replace(s, size=8192, options={"one": "b"}))
    served.look()
    now = states.read(3)
    assert now is not None
    assert (now.answered, now.problem) == (1, "")


def test_a_daemon_adopts_what_its_file_says_and_remembers_it(tmp_path: Path) -> None:
    states, target = remembering(tmp_path, STATE), Target()
    served = daemon(states, target)
    for _ in range(2):
        served.adopt({"one": "b"})
    served.adopt({})
    assert target.heard == [{"one": "b"}]
    assert states.read(3) == replace(STATE, options={"one": "b"})
    served.look()
    assert served.options == {"one": "b"}


def test_what_it_cannot_adopt_leaves_all_as_it_was(tmp_path: Path) -> None:
    states, target = remembering(tmp_path, STATE), Target()
    target.refuses = "no b here"
    served = daemon(states, target)
    served.adopt({"one": "b"})
    assert states.read(3) == STATE
    assert served.options == {"one": "a"}
    target.refuses = ""
    states.write(replace(STATE, cookie=STATE.cookie + 1))
    served.adopt({"one": "b"})
    states.remove(3)
    served.adopt({"one": "b"})
    assert (target.heard, states.read(3)) == ([], None)


def test_what_was_asked_when_it_adopts_is_answered_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {name: option(name, live=True) for name in ("one", "two")}
    monkeypatch.setattr(registry, "options_of", lambda *_: known)
    states, target = remembering(tmp_path, replace(STATE, options={"one": "a", "two": 1})), Target()
    served = daemon(states, target, {"one": "a", "two": 1})
    target.meanwhile = lambda: changes.ask(states, found(), to(two=2))
    served.adopt({"one": "b"})
    target.meanwhile = lambda: None
    served.look()
    now = states.read(3)
    assert now is not None
    assert (now.options, now.answered) == ({"one": "b", "two": 2}, 1)
    assert target.heard[-1] == served.options == now.options


# --- whoever asks ---------------------------------------------------------------------------


def test_what_nobody_serves_is_written_for_the_next_daemon(tmp_path: Path) -> None:
    states = remembering(tmp_path, STATE)
    changes.change(states, found(state=DevState.QUIESCED), to(one="b"))
    now = states.read(3)
    assert now is not None
    assert (now.options, now.revision, now.answered) == ({"one": "b"}, 1, 0)


def test_what_is_as_it_was_asks_nobody(tmp_path: Path) -> None:
    states = remembering(tmp_path, STATE)
    changes.change(states, found(), to(one="a"))
    assert states.read(3) == STATE


PROGRAM = """
import signal, sys
{before}
print('ready', flush=True)
for line in sys.stdin: pass
"""


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """One that is taken for a daemon, and does so before it waits."""
    monkeypatch.setattr(Found, "served", property(lambda f: f.info.state is DevState.LIVE))
    made: list[subprocess.Popen[str]] = []

    def start(before: str) -> subprocess.Popen[str]:
        made.append(
            subprocess.Popen([sys.executable, "-c", PROGRAM.format(before=before)],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )  # fmt: skip
        assert made[-1].stdout
        assert made[-1].stdout.readline() == "ready\n"
        return made[-1]

    yield start
    for one in made:
        one.kill()
        one.communicate()


LISTENS = f"signal.signal({int(changes.CHANGED)}, lambda *_: print('told', flush=True))"


def test_the_daemon_is_told_and_its_answer_waited_for(
    tmp_path: Path, process: Callable[[str], subprocess.Popen[str]]
) -> None:
    states, listener = remembering(tmp_path, STATE), process(LISTENS)
    served = daemon(states, Target())

    def answer() -> None:
        assert listener.stdout
        assert listener.stdout.readline() == "told\n"
        served.look()

    thread = threading.Thread(target=answer)
    thread.start()
    changes.change(states, found(pid=listener.pid), to(one="b"))
    thread.join()
    assert served.options == {"one": "b"}


@pytest.mark.parametrize("end", ["refuses", "late", "dies", "older", "gone"])
def test_what_the_daemon_does_not_go_by_is_taken_back(
    tmp_path: Path,
    process: Callable[[str], subprocess.Popen[str]],
    monkeypatch: pytest.MonkeyPatch,
    end: str,
) -> None:
    states, target = remembering(tmp_path, STATE), Target()
    served = daemon(states, target)
    target.refuses = "no b here"
    listener = process("pass" if end == "older" else LISTENS)
    does: dict[str, Callable[[], object]] = {
        "refuses": served.look,
        "dies": listener.kill,
        "gone": lambda: states.remove(3),
    }
    says = {
        "refuses": "goes on as before: no b here",
        "late": "did not answer within",
        "dies": "has ended meanwhile",
        "older": "of an older ublkd",
        "gone": "is gone",
    }
    if end == "late":
        monkeypatch.setattr(changes, "ANSWER_SECONDS", 0.05)
    looked = changes._answered

    def answered(*words: Any) -> bool:
        does.get(end, lambda: None)()
        return looked(*words)

    monkeypatch.setattr(changes, "_answered", answered)
    with pytest.raises(UblkdError, match=says[end]) as caught:
        changes.change(states, found(pid=listener.pid), to(one="b"))
    assert caught.value.hint
    if end == "gone":
        return
    now = states.read(3)
    assert now is not None
    assert (now.options, now.revision, now.problem) == ({"one": "a"}, 2, "")
    assert listener.poll() in (None, -signal.SIGKILL if end == "dies" else None)


# --- all of it in any order -----------------------------------------------------------------


class Anything(RuleBasedStateMachine):
    """One who changes, daemons that follow one another, and all that may come in between."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.states = remembering(Path(self.folder.name), STATE)
        self.target = Target()
        self.daemon: Changes | None = daemon(self.states, self.target)
        self.taken: DeviceState | None = None
        self.before: DeviceState | None = None
        self.asked: DeviceState | None = None
        self.holds = "a"
        """What holds as far as whoever asked has been told."""

    def now(self) -> DeviceState:
        state = self.states.read(3)
        assert state is not None
        return state

    @precondition(lambda self: self.asked is None)
    @rule(value=st.sampled_from("abc"))
    def ask(self, value: str) -> None:
        self.before = self.now()
        self.asked = changes.ask(self.states, found(), to(one=value))

    @precondition(lambda self: self.asked is not None)
    @rule()
    def hear(self) -> None:
        assert self.asked
        try:
            if changes._answered(self.states, found(), self.asked):
                self.holds, self.asked = str(self.asked.options["one"]), None
        except UblkdError:
            self.give_up()

    @precondition(lambda self: self.asked is not None)
    @rule()
    def give_up(self) -> None:
        assert self.before
        changes.take_back(self.states, found(state=DevState.QUIESCED), self.before)
        self.asked = None

    @precondition(lambda self: self.daemon is not None)
    @rule(refuses=st.booleans())
    def look(self, refuses: bool) -> None:
        assert self.daemon
        # the values that hold are always taken
        self.target.refuses = "no" if refuses and self.now().options["one"] != self.holds else ""
        self.daemon.look()

    @precondition(lambda self: self.daemon is not None)
    @rule()
    def die(self) -> None:
        self.daemon = None

    @precondition(lambda self: self.daemon is None and self.taken is None)
    @rule()
    def take(self) -> None:
        self.taken = self.now()

    @precondition(lambda self: self.taken is not None)
    @rule()
    def start(self) -> None:
        """As Device does it: what it has read may have changed since."""
        assert self.taken
        mine = replace(self.taken, answered=self.taken.revision, problem="")
        self.states.write(mine.with_changes_of(self.now()))
        self.daemon, self.taken = daemon(self.states, self.target, self.taken.options), None

    def teardown(self) -> None:
        if not hasattr(self, "folder"):
            return
        if self.asked:
            self.give_up()
        self.target.refuses = ""
        if self.daemon:
            self.daemon.look()
            assert self.daemon.options == self.now().options
            assert self.now().answered == self.now().revision
        assert self.now().options["one"] == self.holds
        self.folder.cleanup()


def test_whatever_comes_in_between_the_daemon_goes_by_what_is_written() -> None:
    run_state_machine_as_test(Anything, settings=settings(max_examples=60, stateful_step_count=30))
