"""Names of kernels: which version a name like "7.2" stands for. No I/O."""

import dataclasses
import re
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Choice:
    """The version taken for a name; ``exact`` is False for a newer one than asked for."""

    version: str
    exact: bool


def key(version: str) -> tuple[int, ...]:
    """Return what versions sort by: the numbers in front of the packaging suffix.

    >>> key("7.2.12+deb13-cloud-amd64")
    (7, 2, 12)
    """
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(number) for number in found[0].split(".")) if found else ()


def matches(name: str, version: str) -> bool:
    """Say whether ``version`` is one of ``name``: 7.2 is 7.2.12, and is not 7.20."""
    rest = version[len(name) :]
    return version.startswith(name) and not rest[:1].isdigit()


def newest(versions: Iterable[str]) -> str | None:
    """Return the newest of ``versions``."""
    return max(versions, key=lambda version: (key(version), version), default=None)


def choose(name: str, versions: Iterable[str]) -> Choice | None:
    """Return the newest version of ``name``, else the newest that is newer than it."""
    have = list(versions)
    same = newest(version for version in have if matches(name, version))
    if same:
        return Choice(same, exact=True)
    later = newest(version for version in have if key(version) > key(name))
    return Choice(later, exact=False) if later else None


def of_packages(names: Iterable[str], flavour: str) -> list[str]:
    """Return the kernel versions among package names like linux-image-VERSION-FLAVOUR."""
    pattern = re.compile(rf"linux-image-(\d.*-{re.escape(flavour)})")
    return [found[1] for found in map(pattern.fullmatch, names) if found]
