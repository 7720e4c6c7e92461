"""The picture of docs/architecture.md, held against the sources: who may import whom."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.helpers import ROOT

# A module may import what stands in a line above its own, so no arrow can turn back. A new module
# needs a place here, and that is a decision.
LAYERS = [
    {"_core", "errors"},
    {"uapi", "process", "udev", "access", "holders", "aside"},
    {"target"},
    {"plugin"},
    {
        "registry",
        "features",
        "state",
        "stats",
        "uevent",
        "below",
        "log",
        "memory",
        "writeback",
        "notify",
        "watchdog",
        "systemd",
    },
    {"background", "config", "control", "queue", "recorder", "rates"},
    {"names"},
    {"device", "manage", "machine", "devicefiles", "differences"},
    {"recovery", "ending", "follow"},
    {"changes"},
    {"daemon", "doctor", "resize", "setting"},
    {"units", "service"},
    {"upgrade"},
    {"apply"},
    {"cli"},
    {"__main__"},
]
CORE_IS_SEEN_BY = {
    "uapi", "target", "features", "stats", "memory", "recorder", "control", "queue",
}  # fmt: skip
CLI_IS_SEEN_BY = {"__main__"}
TARGETS_SEE = {"target", "errors", "_core", "registry"}  # the last: to stand before another

C_LAYERS = [
    {"uapi", "recorder"},
    {"stats", "ring", "target", "own", "control"},
    {"lease", "lane"},
    {"member"},
    {"group"},
    {"queue"},
]
C_TARGETS_SEE = {"target", "group", "own", "stats", "backing"}
C_BOUNDARY = "core.include.h"  # what Python sees: everything

PYTHON = sorted(p for p in (ROOT / "ublkd").rglob("*.py") if p.name != "__init__.py")
TARGETS = sorted((ROOT / "targets").rglob("*.py"))
C_CORE = sorted(p for p in (ROOT / "ublkd" / "core").glob("*.[ch]") if p.name != C_BOUNDARY)
C_TARGETS = sorted((ROOT / "targets").rglob("*.[ch]"))
PYTHON = [p for p in PYTHON if "targets" not in p.relative_to(ROOT).parts]


def rank(layers: list[set[str]], name: str) -> int:
    places = [number for number, layer in enumerate(layers) if name in layer]
    assert places, f"{name} has no place in the layers of {Path(__file__).name}"
    return places[0]


def module(path: Path) -> str:
    """ublkd/cli.py and ublkd/cli/table.py are both ``cli``."""
    return path.relative_to(ROOT / "ublkd").parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """The modules of ublkd that a file imports, at its top or later, or for types only."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide their layer"
            below = node.module == "ublkd"
            names = [f"ublkd.{a.name}" for a in node.names] if below else [node.module or ""]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("ublkd."))


def included(path: Path) -> set[str]:
    """The stems of our own headers that a file includes, itself left out."""
    found = re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(), re.MULTILINE)
    return {room(Path(name)) for name in found} - {room(path)}


def room(path: Path) -> str:
    """queue.c, queue_new.c and queue_impl.h are one room, and so are group.c and its like."""
    return path.stem.split("_")[0]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PYTHON, ids=name)
def test_no_arrow_of_python_turns_back(path: Path) -> None:
    own = module(path)
    for other in set(imported(path)) - {own}:
        assert rank(LAYERS, other) < rank(LAYERS, own), f"{own} imports {other}"
        assert other != "_core" or own in CORE_IS_SEEN_BY, f"{own} reaches through to C"
        assert other != "cli" or own in CLI_IS_SEEN_BY, f"{own} imports the command line"
        assert other != "targets", f"{own} knows a target by name: that is the registry's door"


@pytest.mark.parametrize("path", TARGETS, ids=name)
def test_a_target_sees_what_a_stranger_would(path: Path) -> None:
    assert set(imported(path)) - {"targets"} <= TARGETS_SEE


@pytest.mark.parametrize("path", C_CORE, ids=name)
def test_no_arrow_of_c_turns_back(path: Path) -> None:
    for other in included(path):
        assert rank(C_LAYERS, other) < rank(C_LAYERS, room(path)), f"{path.stem} includes {other}"


@pytest.mark.parametrize("path", C_TARGETS, ids=name)
def test_a_target_in_c_sees_the_group_and_nothing_behind_it(path: Path) -> None:
    beside = {room(p) for p in path.parent.glob("*.h")} if path.parent.name != "targets" else set()
    assert included(path) <= C_TARGETS_SEE | beside


@pytest.mark.parametrize("path", [*C_CORE, *C_TARGETS], ids=name)
def test_c_knows_no_python_and_prints_nothing(path: Path) -> None:
    text = path.read_text()
    assert "Python.h" not in text
    assert not re.search(r"\b(printf|fprintf|perror|puts|syslog)\s*\(", text)


def sources(*endings: str) -> list[Path]:
    folders = (ROOT / "ublkd", ROOT / "targets", ROOT / "tests")
    files = [p for folder in folders for p in folder.rglob("*") if p.suffix in endings]
    return sorted(p for p in files if "__pycache__" not in p.parts)


def test_everything_that_is_needed_is_installed() -> None:
    built = (ROOT / "meson.build").read_text()
    package = [p for p in sources(".py", ".pyi", ".c", ".typed") if "tests" not in name(p)]
    missing = [name(p) for p in package if f"'{name(p)}'" not in built]
    assert not [path for path in missing if not path.startswith("ublkd/targets/")]


def test_every_target_has_its_entry_point() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    shared = ("__init__.py", "backing.py", "legs.py")
    ours = [p.relative_to(ROOT / "targets") for p in TARGETS if p.name not in shared]
    for path in (p for p in ours if p.parent == Path()):
        assert f'= "ublkd.targets.{path.stem}:' in project
    for package in {path.parts[0] for path in ours if path.parent != Path()}:
        assert f'= "ublkd.targets.{package}.' in project


@pytest.mark.parametrize("path", sources(".py", ".c", ".h"), ids=name)
def test_no_source_is_longer_than_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400
