"""Run a download and show how far it is."""

import subprocess
import sys
from pathlib import Path

from .errors import LabError, say

_MIB = 1 << 20


def line(what: str, have: int, total: int) -> str:
    """Describe ``have`` of ``total`` bytes (0: unknown) of ``what``."""
    if not total:
        return f"fetching {what}: {have / _MIB:.1f} MiB"
    percent = min(100, 100 * have // total)
    return f"fetching {what}: {percent}% of {total / _MIB:.1f} MiB"


def run(
    command: list[str], what: str, folder: Path, total: int, environ: dict[str, str], cwd: Path
) -> None:
    """Run ``command`` in ``cwd``, watching ``folder`` grow to ``total`` bytes.

    Raises LabError with the last words of the command when it fails.
    """
    tty = sys.stderr.isatty()
    log = cwd / "command.log"
    say(line(what, 0, total) if total else f"fetching {what}")
    with log.open("wb") as out:
        child = subprocess.Popen(
            command, env=environ, cwd=cwd, stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )
        try:
            _watch(child, what, folder, total, tty)
        except BaseException:
            child.kill()
            child.wait()
            raise
    said = log.read_text(errors="replace").strip().splitlines()
    log.unlink()
    if child.returncode != 0:
        errors = [text for text in said if text.startswith(("E:", "W:"))] or said or ["failed"]
        raise LabError(
            f"fetching {what}: {errors[-1]}", hint="is the network there? `apt-get update` tells"
        )


def _watch(child: subprocess.Popen[bytes], what: str, folder: Path, total: int, tty: bool) -> None:
    every = 0.2 if tty else 3.0
    while True:
        try:
            child.wait(every)
            break
        except subprocess.TimeoutExpired:
            _show(line(what, _size(folder), total), tty)
    if tty:
        sys.stderr.write("\r\x1b[K")


def _show(text: str, tty: bool) -> None:
    if tty:
        sys.stderr.write(f"\r\x1b[Klab: {text}")
        sys.stderr.flush()
    else:
        say(text)


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue  # renamed while we looked
    return total
