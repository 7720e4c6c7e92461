"""A plug-in that misbehaves is named, with its package, in one line and a hint."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.helpers import assert_one_line_and_hint, is_one_line, option, ublkd
from ublkd import registry
from ublkd._core import ffi
from ublkd.errors import DefectError, UblkdError, UsageError
from ublkd.plugin import Maker, guarded, wrong_options
from ublkd.target import Native, Option, Params

MAKER = Maker("odd", "odd-package")
MEMBERS: dict[str, Callable[[Any], Any]] = {
    "params": lambda target: target.params,
    "files()": lambda target: target.files(),
    "native()": lambda target: target.native(),
    "describe()": lambda target: target.describe(),
    "close()": lambda target: target.close(),
}


class Good:
    """Everything as it should be; a test spoils one of these."""

    params: Any = Params(size=4096)
    told: Any = Native(ffi.NULL, ffi.NULL)
    fds: Any = (3, 4)
    words: Any = {"backing": ("/a", "/b"), "many": 3, "none": None}  # noqa: RUF012
    submit = "whatever else it has"

    def files(self) -> Any:
        return self.fds

    def native(self) -> Any:
        return self.told

    def describe(self) -> Any:
        return self.words

    def close(self) -> None: ...


class Wordless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def refusal(ask: Callable[[], Any]) -> str:
    with pytest.raises(DefectError) as caught:
        ask()
    assert is_one_line(caught.value.message)
    assert caught.value.message.startswith("target 'odd' (from odd-package) ")
    assert "odd-package" in caught.value.hint
    assert "ublkd" not in caught.value.message + caught.value.hint
    assert caught.value.exit_code == 1
    return caught.value.message


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize(
    "raised",
    [ZeroDivisionError("x"), AttributeError("params"), OSError(5, "I/O"), SystemExit(0),
     RuntimeError("two\nlines \udc80"), Wordless()],
    ids=lambda raised: type(raised).__name__,
)  # fmt: skip
def test_whatever_a_member_raises_is_the_plug_ins_fault(member: str, raised: BaseException) -> None:
    def fail(_: object) -> None:
        raise raised

    spoilt = property(fail) if member == "params" else fail
    target = guarded(type("Bad", (Good,), {member.removesuffix("()"): spoilt})(), MAKER)
    said = refusal(lambda: MEMBERS[member](target))
    assert f"failed in {member}: {type(raised).__name__}: " in said


def test_its_own_words_are_left_as_they_are() -> None:
    def fail(_: object) -> None:
        raise UsageError("my own words")

    target = guarded(type("Bad", (Good,), {"files": fail})(), MAKER)
    with pytest.raises(UsageError, match=r"^my own words$"):
        target.files()


@pytest.mark.parametrize(
    ("spoilt", "member", "says"),
    [
        ({"params": None}, "params", "has NoneType in params, where Params is needed"),
        ({"params": {"size": 1}}, "params", "has dict in params"),
        ({"fds": None}, "files()", "failed in files(): TypeError"),
        ({"fds": ("3",)}, "files()", "has str in files(), where int is needed"),
        ({"fds": (True,)}, "files()", "has bool in files(), where int is needed"),
        ({"told": None}, "native()", "has NoneType in native(), where Native is needed"),
        ({"words": None}, "describe()", "failed in describe(): TypeError"),
        ({"words": {"backing": Path("/a")}}, "describe()", "failed in describe(): TypeError"),
        ({"words": {"at": {}.keys()}}, "describe()", "failed in describe(): TypeError"),
    ],
)
def test_what_is_of_the_wrong_type_is_the_plug_ins_fault(
    spoilt: dict[str, Any], member: str, says: str
) -> None:
    target = guarded(type("Bad", (Good,), spoilt)(), MAKER)
    assert says in refusal(lambda: MEMBERS[member](target))


def test_what_is_good_passes_as_it_is() -> None:
    target = guarded(Good(), MAKER)
    assert target.params is Good.params
    assert list(target.files()) == [3, 4]
    assert target.native() is Good.told
    assert target.describe() == Good.words
    target.close()
    assert target.submit == Good.submit  # type: ignore[attr-defined]
    assert not hasattr(target, "nothing")


# --- options --------------------------------------------------------------------------------


def odd_option(**fields: Any) -> Option:
    return Option(**({"name": "fine", "help": "a help"} | fields))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (None, "options is NoneType"),
        (7, "options is int"),
        ("file", "options is str"),
        (iter([option("a")]), "options is list_iterator"),
        (("file",), "options has str where an Option is needed"),
        ((Option,), "options has type where an Option is needed"),
        ((option("a"), option("a")), "'a' is there twice"),
        ((option("a-b"), option("a-b", kind="flag")), "'a-b' is there twice"),
        ((odd_option(name=""),), "has a name that is not"),
        ((odd_option(name="Two Words"),), "has a name that is not"),
        ((odd_option(name="--file"),), "has a name that is not"),
        ((odd_option(name="a\n"),), "has a name that is not"),
        ((odd_option(name=None),), "has a name that is not"),
        ((odd_option(name="help"),), "every command has already"),
        ((odd_option(help=None),), "has no text for its help"),
        ((odd_option(kind="colour"),), "is of the unknown kind 'colour'"),
        ((odd_option(kind=None),), "is of the unknown kind 'None'"),
        ((odd_option(kind=[]),), "is of the unknown kind"),
        ((odd_option(kind="flag", multiple=True),), "cannot be given many times"),
        ((odd_option(kind="choice"),), "has no choices"),
        ((odd_option(kind="choice", choices=(1, 2)),), "has no choices"),
        ((odd_option(kind="size", minimum="1K"),), "has a bound that is not a number"),
        ((odd_option(kind="size", multiple_of=0),), "has a bound that is not a number"),
        ((odd_option(kind="size", default="1K"),), "has a default that is not int"),
        ((odd_option(kind="flag", default="no"),), "has a default that is not bool"),
        ((odd_option(kind="path", multiple=True, default="/a"),), "a default that is not tuple"),
        ((odd_option(default=7),), "has a default that is not str"),
        ((odd_option(kind="number", is_size=True),), "cannot be the size of the disk"),
    ],
)
def test_options_that_cannot_be_are_told_of(options: Any, says: str) -> None:
    said = wrong_options(options)
    assert says in said
    assert is_one_line(said)


@pytest.mark.parametrize("name", ["concat", "faulty", "loop", "mirror", "nbd", "null", "stripe"])
def test_our_own_options_are_as_they_must_be(name: str) -> None:
    assert wrong_options(registry.load(name).options) == ""


# --- an installed one -----------------------------------------------------------------------


class Installed:
    """Packages in a folder of their own, as pip would leave them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {"PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}".rstrip(":")}

    def package(self, name: str, target: str, body: str = "") -> None:
        """A package whose target is complete but for what the body says."""
        module = name.replace("-", "_")
        info = self.folder / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[ublkd.targets]\n{target} = {module}:Target\n")
        lines = "".join(f"    {line}\n" for line in body.splitlines())
        (self.folder / f"{module}.py").write_text(
            "from ublkd.target import *\nfrom ublkd.targets.null import NullTarget\n"
            f"class Target(NullTarget):\n    pass\n{lines}"
        )

    def add(self, target: str, *words: str) -> str:
        """What `add` of it says, which fails in one line."""
        ran = ublkd("add", "--target", target, *words, env=self.env)
        assert ran.returncode == 1, ran
        assert_one_line_and_hint(ran.stderr)
        return ran.stderr


@pytest.fixture
def installed(tmp_path: Path) -> Installed:
    return Installed(tmp_path)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("options = None", "options is NoneType"),
        ("options = ('file',)", "options has str"),
        ("options = (Option(name='Two Words', help='x'),)", "has a name that is not"),
        ("options = property(lambda self: ())", "options is property"),
    ],
)
@pytest.mark.parametrize("words", [(), ("--help",), ("--file", "/x")])
def test_a_plug_in_with_broken_options_is_named_by_add(
    installed: Installed, body: str, says: str, words: tuple[str, ...]
) -> None:
    installed.package("odd-package", "odd", body)
    said = installed.add("odd", *words)
    assert said.startswith("ublkd: target 'odd' (from odd-package) is broken: ")
    assert says in said
    assert "hint: this is a defect of odd-package: tell whoever made it" in said


def test_a_name_that_two_packages_register_is_refused_with_both(installed: Installed) -> None:
    installed.package("package-one", "odd")
    installed.package("package-two", "odd")
    said = installed.add("odd")
    assert "target 'odd' is registered more than once: by package-one and by package-two" in said


def test_a_strangers_loop_does_not_take_the_place_of_ours(installed: Installed) -> None:
    installed.package("package-one", "loop")
    said = installed.add("loop", "--file", "/x")
    assert "'loop' is registered more than once: by package-one and by ublkd" in said


def test_the_opened_target_is_guarded_and_so_is_one_that_faulty_stands_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    null = registry.load("null")

    def fail(_: object) -> None:
        raise KeyError("native")

    monkeypatch.setattr(null, "native", fail)
    options = {option.key: option.default for option in registry.load("faulty").options}
    options |= {option.key: option.default for option in null.options}
    for name, target in (("null", "null"), ("faulty", "null")):
        with pytest.raises(UblkdError) as caught:
            registry.opened(name, options | {"over": target}).native()
        assert "target 'null' (from ublkd) failed in native(): KeyError" in caught.value.message


@pytest.mark.parametrize("raised", [ValueError("a\nb"), SystemExit(3)])
def test_what_from_options_raises_is_the_plug_ins_fault(
    monkeypatch: pytest.MonkeyPatch, raised: BaseException
) -> None:
    def fail(_: object) -> None:
        raise raised

    monkeypatch.setattr(registry.load("null"), "from_options", fail)
    with pytest.raises(DefectError) as caught:
        registry.opened("null", {})
    said = f"target 'null' (from ublkd) failed in from_options(): {type(raised).__name__}"
    assert said in caught.value.message
    assert is_one_line(caught.value.message)
