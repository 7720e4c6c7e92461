"""What is to be done so that devices are what a folder of files says, and doing it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.fakes import dev_info
from tests.unit.helpers import is_one_line
from ublkd import apply, ending, systemd
from ublkd.apply import Action, Present, Step, carry_out, plan
from ublkd.config import build
from ublkd.devicefiles import DeviceFile
from ublkd.differences import Change
from ublkd.errors import UblkdError
from ublkd.manage import Found
from ublkd.state import DeviceState
from ublkd.uapi import DevState

FOLDER = Path("/etc/ublkd")
QUEUES = Change(key="queues", old="1", new="2")
WINDOW = Change(key="reconnect-window", old="30", new="60", live=True)
FOLLOW = Change(key="follow-size", old="false", new="true", live=True)


def present(name: str = "disk", **more: Any) -> Present:
    origin = str(FOLDER / f"{name}.toml")
    return Present(**({"name": name, "origin": origin, "node": "/dev/ublkb0"} | more))


def said(*devices: Present, wanted: tuple[str, ...] = (), wrong: tuple[str, ...] = ()) -> list[str]:
    return [str(step) for step in plan(FOLDER, wanted, wrong, devices)]


ALL = ("disk",)
CASES: list[tuple[dict[str, Any] | None, str]] = [
    (None, "add disk"),
    ({}, "same disk"),
    ({"claimed": True}, "same disk"),
    ({"changes": [QUEUES]}, "change disk: queues 1 -> 2 (anew)"),
    ({"changes": [QUEUES], "claimed": True}, "keep disk: in use (queues 1 -> 2)"),
    ({"served": False}, "recover disk"),
    ({"served": False, "claimed": True}, "recover disk"),
    ({"served": False, "changes": [QUEUES]}, "change disk: queues 1 -> 2 (anew)"),
    ({"served": False, "changes": [QUEUES], "claimed": True}, "recover disk"),
    ({"served": False, "dead": True}, "change disk: it is dead (anew)"),
    (
        {"changes": [WINDOW, FOLLOW]},
        "set disk: reconnect-window 30 -> 60, follow-size false -> true",
    ),
    ({"changes": [WINDOW], "claimed": True}, "set disk: reconnect-window 30 -> 60"),
    ({"changes": [QUEUES, WINDOW]}, "change disk: queues 1 -> 2, reconnect-window 30 -> 60 (anew)"),
    (
        {"changes": [QUEUES, WINDOW], "claimed": True},
        "keep disk: in use (queues 1 -> 2, reconnect-window 30 -> 60)",
    ),
    ({"served": False, "changes": [WINDOW]}, "recover disk: reconnect-window 30 -> 60"),
    (
        {"served": False, "changes": [QUEUES, WINDOW], "claimed": True},
        "recover disk: reconnect-window 30 -> 60",
    ),
    ({"served": False, "dead": True, "changes": [WINDOW]}, "change disk: it is dead (anew)"),
    ({"origin": None, "changes": [WINDOW]}, "keep disk: /dev/ublkb0 was made by hand"),
    ({"origin": None}, "keep disk: /dev/ublkb0 was made by hand"),
    ({"origin": "/else/disk.toml"}, "keep disk: /dev/ublkb0 was made from /else/disk.toml"),
]


@pytest.mark.parametrize(("device", "step"), CASES, ids=[step for _, step in CASES])
def test_a_device_with_a_file(device: dict[str, Any] | None, step: str) -> None:
    devices = [] if device is None else [present(**device)]
    assert said(*devices, wanted=ALL) == [step]


def test_a_device_whose_file_is_gone_goes_unless_it_is_in_use() -> None:
    assert said(present()) == ["del disk: its file is gone"]
    assert said(present(served=False)) == ["del disk: its file is gone"]
    assert said(present(claimed=True)) == ["keep disk: in use (its file is gone)"]
    assert said(present(dead=True, claimed=True)) == ["del disk: its file is gone"]


def test_a_device_whose_file_is_wrong_is_kept_as_it_is() -> None:
    assert said(present(), wrong=ALL) == ["keep disk: its file is wrong"]
    assert not said(wrong=ALL)


def test_devices_of_no_file_or_of_another_folder_are_left_alone() -> None:
    assert not said(present(origin=None), present("more", origin="/else/more.toml"))
    assert not said(present(origin="/etc/ublkd/deeper/disk.toml"))


names = st.sampled_from("abcdef")
some_present = st.builds(
    Present,
    name=names,
    origin=st.sampled_from([None, "/else/x.toml", *(f"/etc/ublkd/{n}.toml" for n in "abcdef")]),
    served=st.booleans(),
    dead=st.booleans(),
    claimed=st.booleans(),
    changes=st.sampled_from([(), (QUEUES,), (WINDOW,), (QUEUES, WINDOW), (WINDOW, FOLLOW)]),
)
machines = st.lists(some_present, max_size=6, unique_by=lambda device: device.name)
folders = st.sets(names)


def after(steps: list[Step], devices: list[Present]) -> list[Present]:
    """The machine when all went well."""
    made = {device.name: device for device in devices}
    for step in steps:
        if step.action is Action.DEL:
            del made[step.name]
        elif step.action in (Action.ADD, Action.CHANGE):
            made[step.name] = present(step.name)
        elif step.action in (Action.RECOVER, Action.SET):
            left = [c for c in made[step.name].changes if c not in step.changes]
            made[step.name] = replace(made[step.name], served=True, changes=left)
    return list(made.values())


@given(machines, folders, folders)
def test_what_was_applied_has_nothing_to_be_done(
    devices: list[Present], wanted: set[str], wrong: set[str]
) -> None:
    wrong -= wanted
    first = plan(FOLDER, wanted, wrong, devices)
    second = plan(FOLDER, wanted, wrong, after(first, devices))
    assert {step.action for step in second} <= {Action.SAME, Action.KEEP}


@given(machines, folders, folders)
def test_what_was_not_made_from_the_folder_is_never_touched(
    devices: list[Present], wanted: set[str], wrong: set[str]
) -> None:
    steps = plan(FOLDER, wanted, wrong - wanted, devices)
    foreign = {d.name for d in devices if not (d.origin or "").startswith("/etc/ublkd/")}
    assert {s.action for s in steps if s.name in foreign} <= {Action.KEEP}
    assert [s.name for s in steps] == sorted({s.name for s in steps})
    assert wanted <= {s.name for s in steps}
    assert all(is_one_line(str(step)) for step in steps)


@given(machines, folders)
def test_what_is_in_use_is_neither_deleted_nor_changed(
    devices: list[Present], wanted: set[str]
) -> None:
    in_use = {device.name for device in devices if device.claimed and not device.dead}
    for step in plan(FOLDER, wanted, (), devices):
        if step.name in in_use:
            assert step.action in (Action.SAME, Action.KEEP, Action.RECOVER, Action.SET)


@given(machines, folders)
def test_only_what_is_live_is_changed_of_a_disk_that_is_there(
    devices: list[Present], wanted: set[str]
) -> None:
    for step in plan(FOLDER, wanted, (), devices):
        if step.action in (Action.SET, Action.RECOVER):
            assert all(change.live for change in step.changes)
        if step.action is Action.SET:
            assert step.changes


# --- looking --------------------------------------------------------------------------------

FROM_FILE = DeviceState(
    id=3, cookie=0x75626B64 << 32, pid=1, name="disk", target="null", lease="copy", started=True,
    options=dict(build("null", {}).options), origin="/etc/ublkd/disk.toml",
)  # fmt: skip


LIVE = dict(build("loop", {"file": "/a"}).options)


@pytest.mark.parametrize(
    ("info", "state", "seen"),
    [
        ({"state": DevState.DEAD}, {}, {"served": False, "dead": True}),
        ({"state": DevState.QUIESCED}, {}, {"served": False}),
        # it looks dead, and is about to become a disk
        ({"state": DevState.DEAD}, {"started": False, "pid": os.getpid()}, {"served": True}),
        ({"state": DevState.QUIESCED}, {"asked": {"queues": 2}},
         {"served": False, "claimed": True, "changes": ["queues 2 -> 1"]}),
        # who holds it is not asked where that does not matter
        ({"state": DevState.QUIESCED}, {"target": "loop", "options": LIVE},
         {"served": False, "changes": ["follow-size false -> true"]}),
    ],
)  # fmt: skip
def test_what_is_seen_of_a_device(
    monkeypatch: pytest.MonkeyPatch, info: dict[str, Any], state: dict[str, Any],
    seen: dict[str, Any],
) -> None:  # fmt: skip
    monkeypatch.setattr(ending, "claimed", lambda _: True)
    device = Found(info=dev_info(3, **info), size=0, state=replace(FROM_FILE, **state))
    now = {"file": "/a", "follow-size": True} if "target" in state else None
    (found,) = apply._present([device], {"disk": file("disk", now)}, ())
    expected = {"served": True, "dead": False, "claimed": False, "changes": []} | seen
    assert {key: getattr(found, key) for key in ("served", "dead", "claimed")} == {
        key: expected[key] for key in ("served", "dead", "claimed")
    }
    assert list(map(str, found.changes)) == expected["changes"]


def test_a_disk_that_is_only_open_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "claims", lambda _: "")
    device = Found(info=dev_info(3), size=0, state=FROM_FILE)
    for words, claimed in (("open by dd (process 7)", True), ("", False)):
        monkeypatch.setattr(ending, "openers", lambda _, words=words: words)
        (found,) = apply._present([device], {}, ())
        assert found.claimed is claimed


def test_a_step_says_which_device_was_looked_at() -> None:
    for more in ({}, {"dead": True}, {"changes": [QUEUES]}):
        for wanted in ((), ALL):
            (step,) = plan(FOLDER, wanted, (), [present(cookie=7, **more)])
            assert step.cookie == 7


def test_only_devices_with_names_and_files_are_looked_at_closely(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ending, "claimed", lambda _: pytest.fail("it was asked"))
    nameless = Found(info=dev_info(1), size=0, state=replace(FROM_FILE, id=1, name=None))
    foreign = Found(info=dev_info(2, cookie=0), size=0, state=None)
    by_hand = Found(info=dev_info(3), size=0, state=replace(FROM_FILE, origin=None))
    (found,) = apply._present([nameless, foreign, by_hand], {}, ())
    assert (found.name, found.origin) == ("disk", None)


# --- doing it -------------------------------------------------------------------------------


class Hands:
    """Writes down what it is told; ``fails`` when told that."""

    def __init__(self, fails: str = "") -> None:
        self.done, self._fails = list[str](), fails

    def _do(self, what: str) -> None:
        self.done.append(what)
        if what == self._fails:
            raise UblkdError("made to fail")

    def start(self, file: DeviceFile) -> None:
        self._do(f"start {file.name}")

    def end(self, step: Step) -> None:
        self._do(f"end {step.name}")

    def change(self, file: DeviceFile) -> None:
        self._do(f"change {file.name}")


def file(name: str, loop: dict[str, Any] | None = None) -> DeviceFile:
    """One of a device of null, or of loop with those options."""
    config = build("loop", loop, name=name) if loop else build("null", {}, name=name)
    return DeviceFile(name=name, path=FOLDER / f"{name}.toml", config=config)


STEPS = [
    Step(action=action, name=name)
    for name, action in zip("abcdef", ["add", "change", "del", "keep", "recover", "same"],
                            strict=True)
    for action in [Action(action)]
]  # fmt: skip
STEPS += [
    Step(action=Action.SET, name="g", changes=[WINDOW]),
    Step(action=Action.RECOVER, name="h", changes=[WINDOW]),
]
FILES = [file(name) for name in "abdefgh"]
BEGUN = ["start a", "start b", "start e", "change g", "start h", "change h"]


def test_what_ends_ends_before_anything_starts() -> None:
    hands = Hands()
    assert not carry_out(STEPS, FILES, hands)
    assert hands.done == ["end b", "end c", *BEGUN]


def test_one_that_fails_does_not_keep_the_others() -> None:
    hands = Hands(fails="end b")
    assert list(carry_out(STEPS, FILES, hands)) == ["b"]
    assert hands.done == ["end b", "end c", *(step for step in BEGUN if step != "start b")]
    hands = Hands(fails="start a")
    assert list(carry_out(STEPS, FILES, hands)) == ["a"]
    assert hands.done[2:] == BEGUN
    hands = Hands(fails="start h")
    assert list(carry_out(STEPS, FILES, hands)) == ["h"]
    assert hands.done[2:] == BEGUN[:-1]
    hands = Hands(fails="change g")
    assert list(carry_out(STEPS, FILES, hands)) == ["g"]
    assert hands.done[2:] == BEGUN


# --- systemd --------------------------------------------------------------------------------

SYSTEMCTL = """#!/bin/sh
echo "$@" >> "$0.log"
case "$1 $2" in
"start ublkd@broken.service") echo "Job failed." >&2; echo more >&2; exit 1;;
"cat ublkd@.service") test ! -e "$0.none";;
esac
"""


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with systemd, as far as we see it."""
    script = tmp_path / "systemctl"
    script.write_text(SYSTEMCTL)
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(systemd, "SYSTEMD", tmp_path)
    return script


def test_systemd_is_asked_only_where_it_has_our_unit_for_that_folder(
    systemctl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(apply.hands(FOLDER), apply.Systemd)
    assert isinstance(apply.hands(Path("/else")), apply.Ours)
    systemctl.with_name("systemctl.none").touch()
    assert isinstance(apply.hands(FOLDER), apply.Ours)
    monkeypatch.setattr(systemd, "SYSTEMD", systemctl.with_name("nothing"))
    assert isinstance(apply.hands(FOLDER), apply.Ours)


def test_units_are_started_and_stopped(systemctl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(_: object, step: Step) -> None:
        with systemctl.with_name("systemctl.log").open("a") as log:
            log.write(f"end the disk of {step.name}\n")

    monkeypatch.setattr(apply.Ours, "end", end)
    by = apply.Systemd()
    by.start(file("db-1.x"))
    by.end(Step(action=Action.DEL, name="db-1.x"))
    asked = systemctl.with_name("systemctl.log").read_text().splitlines()
    assert asked == ["reset-failed ublkd@db-1.x.service", "start ublkd@db-1.x.service",
                     "end the disk of db-1.x", "stop ublkd@db-1.x.service"]  # fmt: skip


def test_the_unit_of_a_disk_that_is_in_use_is_not_stopped(
    systemctl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise UblkdError("in use")

    monkeypatch.setattr(apply.Ours, "end", refuse)
    with pytest.raises(UblkdError, match="in use"):
        apply.Systemd().end(Step(action=Action.DEL, name="disk"))
    assert not systemctl.with_name("systemctl.log").exists()


@pytest.mark.usefixtures("systemctl")
def test_a_unit_that_fails_is_told_in_one_line() -> None:
    with pytest.raises(UblkdError) as caught:
        apply.Systemd().start(file("broken"))
    assert caught.value.message == "'systemctl start ublkd@broken.service' failed: Job failed."
    assert "journalctl -u ublkd@broken.service" in caught.value.hint
