"""Find the Debian archive in the host's own apt configuration. No I/O but `read_all`."""

import dataclasses
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

# Suites of the main archive. Security updates live on another tree and other vendors
# use names of their own, so the suite's name is what tells the archive from them.
_SUITE = re.compile(
    r"(bullseye|bookworm|trixie|forky|duke|sid|unstable|testing|stable|oldstable|oldoldstable)"
    r"(-updates|-backports)?/?"
)


@dataclasses.dataclass(frozen=True)
class Source:
    """One archive as apt knows it."""

    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]


def parse_list(text: str) -> Iterator[Source]:
    """Parse the one-line format of sources.list(5)."""
    for line in text.splitlines():
        words = re.sub(r"\[[^\]]*\]", " ", line.partition("#")[0]).split()
        if len(words) >= 3 and words[0] == "deb":
            yield Source(words[1], (words[2],), tuple(words[3:]))


def parse_deb822(text: str) -> Iterator[Source]:
    """Parse the stanza format of sources.list(5)."""
    for stanza in re.split(r"\n[ \t]*\n", _without_comments(text)):
        fields = _fields(stanza)
        if "deb" not in fields.get("types", "").split():
            continue
        if fields.get("enabled", "yes").strip().lower() in ("no", "false", "0"):
            continue
        suites = tuple(fields.get("suites", "").split())
        components = tuple(fields.get("components", "").split())
        for uri in fields.get("uris", "").split():
            yield Source(uri, suites, components)


def _without_comments(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.startswith("#"))


def _fields(stanza: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    name = ""
    for line in stanza.splitlines():
        if line[:1].isspace():
            if name:
                fields[name] += " " + line.strip()
        elif ":" in line:
            name, _, value = line.partition(":")
            name = name.strip().lower()
            fields[name] = value.strip()
    return fields


def debian_archive(sources: Iterable[Source]) -> str | None:
    """Return the URI of the first source that is Debian's main archive."""
    for source in sources:
        if "main" in source.components and any(_SUITE.fullmatch(s) for s in source.suites):
            return source.uri
    return None


def read_all(etc: Path = Path("/etc/apt")) -> list[Source]:
    """Read what apt itself would read below ``etc``; unreadable files are left out."""
    found: list[Source] = []
    parts = etc / "sources.list.d"
    for path in [etc / "sources.list", *sorted(parts.glob("*.list"))]:
        found += parse_list(_text(path))
    for path in sorted(parts.glob("*.sources")):
        found += parse_deb822(_text(path))
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
