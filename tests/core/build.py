"""Where the library comes from: UBLKD_CORETEST names it, or meson builds it under .cache."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache"
BUILD = CACHE / "core"
TARGET = "tests/core/libcoretest.so"


def missing() -> str | None:
    """What a build would need and this system lacks."""
    compilers = (os.environ.get("CC", "cc"), "gcc", "clang")
    if not any(shutil.which(name) for name in compilers):
        return "no C compiler"
    if importlib.util.find_spec("mesonbuild") is None:
        return "no meson in this Python: install the build group"
    if not shutil.which("ninja", path=_path()):
        return "no ninja: install the build group"
    if not shutil.which("pkg-config"):
        return "no pkg-config"
    if subprocess.run(["pkg-config", "--exists", "liburing"], check=False).returncode:
        return "no liburing headers"
    return None


def build() -> Path:
    """Builds what changed. Raises CalledProcessError with the compiler's words in `output`."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "core.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (BUILD / "build.ninja").exists():
            _run(sys.executable, "-m", "mesonbuild.mesonmain", "setup", BUILD, "-Dcore_tests=true")
        _run("ninja", "-C", BUILD, TARGET)
    return BUILD / TARGET


def _path() -> str:
    return f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"


def _run(*command: str | Path) -> None:
    subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PATH": _path()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
