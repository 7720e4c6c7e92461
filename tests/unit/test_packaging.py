"""What `make install` puts where, with something small in the place of what was built."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.helpers import ROOT

PACKAGING = ROOT / "packaging"


def install(root: Path, *words: str, prefix: str) -> None:
    subprocess.run(
        ["sh", "packaging/install.sh", *words], cwd=ROOT, check=True, stderr=subprocess.PIPE,
        text=True,
        env={"PATH": os.environ["PATH"], "DESTDIR": str(root), "PREFIX": prefix},
    )  # fmt: skip


@pytest.fixture
def built(tmp_path: Path) -> Path:
    folder = tmp_path / "built"
    for part in ("lib/ublkd", "man", "completion"):
        (folder / part).mkdir(parents=True)
    (folder / "lib/ublkd/__init__.py").touch()
    (folder / "lib/ublkd/__main__.py").write_text("def main():\n    print('served')\n")
    for line in (PACKAGING / "man.list").read_text().splitlines():
        (folder / "man" / line.split()[0]).touch()
    for shell in ("bash", "zsh", "fish"):
        (folder / "completion" / shell).touch()
    return folder


def files(root: Path) -> set[str]:
    return {str(p.relative_to(root)) for p in root.rglob("*") if not p.is_dir() or p.is_symlink()}


@pytest.mark.parametrize("prefix", ["/usr", "/usr/local", "/opt/a_b-1.0"])
def test_what_is_installed_is_taken_away_again(built: Path, tmp_path: Path, prefix: str) -> None:
    root = tmp_path / "root"
    install(root, str(built), sys.executable, prefix=prefix)
    (root / "etc/ublkd/data.toml").touch()
    names = files(root)
    assert f"{prefix[1:]}/lib/systemd/system/ublkd@.service" in names
    assert f"{prefix[1:]}/share/man/man8/ublkd.8" in names
    assert (root / "etc/ublkd").stat().st_mode & 0o777 == 0o700
    install(root, "--remove", prefix=prefix)
    assert files(root) == {"etc/ublkd/data.toml"}


@pytest.mark.parametrize("prefix", ["/opt/a b", "/opt/100%", "/opt/$x", "/o'p", "/o|p", "opt"])
def test_a_prefix_that_a_unit_would_have_to_quote_is_refused(
    built: Path, tmp_path: Path, prefix: str
) -> None:
    root = tmp_path / "a root"
    for words in ([str(built), sys.executable], ["--remove"]):
        with pytest.raises(subprocess.CalledProcessError) as caught:
            install(root, *words, prefix=prefix)
        assert caught.value.returncode == 2
        assert len(caught.value.stderr.splitlines()) == 1
        assert "PREFIX" in caught.value.stderr
    assert not root.exists()


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
def test_make_hands_its_variables_on_as_they_are(built: Path, tmp_path: Path) -> None:
    root = tmp_path / "a root"
    install(root, str(built), sys.executable, prefix="/usr/local")
    for prefix, status in (("/opt/a b", 2), ("/usr/local", 0)):
        ran = subprocess.run(
            ["make", "-s", "uninstall", f"DESTDIR={root}", f"PREFIX={prefix}"], cwd=ROOT,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ran.returncode == status, ran.stderr
    assert files(root) == set()


def test_the_unit_runs_the_command_that_was_installed(built: Path, tmp_path: Path) -> None:
    install(tmp_path, str(built), sys.executable, prefix="/opt")
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(tmp_path / "opt/lib/systemd/system/ublkd@.service")
    assert unit["Service"]["ExecStart"] == "/opt/sbin/ublkd run %i"
    assert (tmp_path / "opt/sbin/ublkd").stat().st_mode & 0o111
    assert "@" not in unit["Service"]["ExecStopPost"]


def test_the_command_takes_nothing_of_the_callers_python(built: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    install(root, str(built), sys.executable, prefix="/opt")
    command = (root / "opt/sbin/ublkd").read_text()
    assert command.splitlines()[0].endswith(" -I")
    here = command.replace('"/opt/lib', f'"{root}/opt/lib')
    other = tmp_path / "ublkd"
    other.mkdir()
    (other / "__init__.py").write_text("raise SystemExit('the wrong one')")
    ran = subprocess.run(
        [sys.executable, "-I", "-c", here], cwd=tmp_path, capture_output=True, text=True,
        env={"PYTHONPATH": str(tmp_path)}, check=True,
    )  # fmt: skip
    assert ran.stdout == "served\n"


def test_every_manual_page_has_its_document() -> None:
    for line in (PACKAGING / "man.list").read_text().splitlines():
        page, source, about = line.split(maxsplit=2)
        document, _, part = source.partition("#")
        text = (ROOT / "docs" / document).read_text()
        assert text.startswith("# ")
        assert not part or f"\n## {part.replace('_', ' ')}\n" in text, page
        assert about
