"""Download packages with apt, in a folder of its own: the host's apt state is not touched."""

import dataclasses
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from . import progress, sources
from .errors import Exit, LabError

KEYRINGS = (
    Path("/usr/share/keyrings/debian-archive-keyring.pgp"),
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
)


@dataclasses.dataclass(frozen=True)
class Package:
    """One binary package of the archive; ``size`` is that of the download in bytes."""

    name: str
    version: str
    size: int
    depends: tuple[str, ...]


def parse_show(text: str) -> list[Package]:
    """Parse the output of `apt-cache show`: one package per stanza, best version first."""
    packages = []
    for stanza in text.split("\n\n"):
        fields = dict(re.findall(r"^([A-Za-z0-9-]+):[ \t]*(.*)$", stanza, re.MULTILINE))
        if "Package" in fields and "Version" in fields:
            size = int(fields.get("Size", "0"))
            depends = parse_depends(fields.get("Depends", ""))
            packages.append(Package(fields["Package"], fields["Version"], size, depends))
    return packages


def parse_depends(field: str) -> tuple[str, ...]:
    """Return every package name in a Depends field, alternatives included."""
    names = (re.split(r"[\s(:\[]", term.strip(), maxsplit=1)[0] for term in re.split("[,|]", field))
    return tuple(dict.fromkeys(name for name in names if name))


def configuration(root: Path, acquire: str) -> str:
    """Return the text of a private apt.conf with everything below ``root``.

    ``acquire`` is the host's own `apt-config dump Acquire`, so that its proxy is used.
    The rest of the host's configuration is left out on purpose: it may hold hooks
    that clean the host's cache after an update.
    """
    return f"""\
Dir::Etc::main "-";
Dir::Etc::parts "-";
Dir::Etc::sourcelist "{root}/sources.list";
Dir::Etc::sourceparts "-";
Dir::Etc::preferences "-";
Dir::Etc::preferencesparts "-";
Dir::State "{root}/state";
Dir::State::lists "{root}/lists";
Dir::State::status "{root}/status";
Dir::Cache "{root}/cache";
Dir::Log "{root}/log";
APT::Sandbox::User "root";
APT::Install-Recommends "false";
{acquire}
Acquire::Retries "5";
Acquire::Languages "none";
"""


class Archive:
    """The suites of one Debian archive, seen through a private apt."""

    def __init__(self, root: Path, suites: Sequence[str]) -> None:
        self.root = root
        self.suites = tuple(suites)
        self._environ = {**os.environ, "APT_CONFIG": str(root / "apt.conf"), "LC_ALL": "C.UTF-8"}

    def update(self) -> None:
        """Write the private configuration and download the package lists."""
        mirror = _mirror()
        keyring = next((path for path in KEYRINGS if path.exists()), None)
        if keyring is None:
            raise LabError(
                "no keyring of Debian's archive on this machine",
                hint="install debian-archive-keyring",
                status=Exit.IMPOSSIBLE,
            )
        for folder in ("lists/partial", "cache/archives/partial", "state"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        acquire = _output(["apt-config", "dump", "Acquire"], dict(os.environ))
        (self.root / "status").touch()
        (self.root / "apt.conf").write_text(configuration(self.root, acquire))
        (self.root / "sources.list").write_text(
            "".join(f"deb [signed-by={keyring}] {mirror} {suite} main\n" for suite in self.suites)
        )
        what = f"package lists of {', '.join(self.suites)}"
        command = ["apt-get", "-q", "update", "--error-on=any"]
        progress.run(command, what, self.root / "lists", 0, self._environ, self.root)

    def names(self, prefix: str) -> list[str]:
        """Return the names of all packages that start with ``prefix``."""
        return _output(["apt-cache", "pkgnames", prefix], self._environ).split()

    def package(self, name: str) -> Package:
        """Return the best version of the package ``name``."""
        shown = parse_show(_output(["apt-cache", "show", "--", name], self._environ))
        for package in shown:
            if package.name == name:
                return package
        raise LabError(f"no package {name} in {', '.join(self.suites)}")

    def unpack(self, packages: Sequence[Package], into: Path, what: str) -> None:
        """Download ``packages`` and unpack them all below ``into``; the archive's last use."""
        debs = self.root / "debs"
        shutil.rmtree(debs, ignore_errors=True)
        debs.mkdir(parents=True)
        total = sum(package.size for package in packages)
        wanted = [f"{package.name}={package.version}" for package in packages]
        try:
            command = ["apt-get", "-q", "download", *wanted]
            progress.run(command, what, debs, total, self._environ, debs)
            for deb in sorted(debs.glob("*.deb")):
                _output(["dpkg", "-x", str(deb), str(into)], dict(os.environ))
        finally:
            self.forget()

    def forget(self) -> None:
        """Leave nothing behind: another time everything is looked up anew."""
        shutil.rmtree(self.root, ignore_errors=True)


def usable() -> bool:
    """Say whether this machine has what a private apt needs."""
    tools = ("apt-get", "apt-cache", "apt-config", "dpkg")
    return all(shutil.which(tool) for tool in tools)


def _mirror() -> str:
    mirror = os.environ.get("UBLKD_LAB_MIRROR") or sources.debian_archive(sources.read_all())
    if mirror is None:
        raise LabError(
            "apt on this machine knows no Debian archive",
            hint="set UBLKD_LAB_MIRROR to the URI of one",
            status=Exit.IMPOSSIBLE,
        )
    return mirror


def _output(command: list[str], environ: dict[str, str]) -> str:
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise LabError(f"{' '.join(command[:2])}: {lines[-1]}")
    return done.stdout
