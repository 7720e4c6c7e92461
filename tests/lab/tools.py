"""kmod, which the guest loads modules with: the host's own, else fetched like a kernel."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from . import archive, cache
from .errors import Exit, LabError

_NAMES = ("modprobe", "depmod", "insmod", "rmmod", "lsmod", "modinfo")
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"


def _host_has(tool: str) -> bool:
    return (
        shutil.which(tool, path=f"{os.environ.get('PATH', '')}:{_SBIN}:/usr/bin:/bin") is not None
    )


def get() -> Path | None:
    """Return a folder with kmod and its library, or None where the host has kmod installed.

    Fetches it if need be. Raises LabError.
    """
    if _host_has("modprobe") and _host_has("depmod"):
        return None
    if not _folder().exists():
        with cache.locked():
            if not _folder().exists():  # another lab may have been faster
                _fetch(_folder())
    return _folder()


def _folder() -> Path:
    return cache.folder() / "tools"


def _fetch(folder: Path) -> None:
    codename = codename_of(_os_release())
    if codename is None or not archive.usable():
        raise LabError(
            "no modprobe and depmod on this machine", hint="install kmod", status=Exit.IMPOSSIBLE
        )
    packages = archive.Archive(cache.folder() / "apt" / codename, (codename,))
    packages.update()
    wanted = [packages.package(name) for name in ("kmod", "libkmod2")]
    with cache.building(folder) as partial:
        packages.unpack(wanted, partial / "root", "kmod")
        _arrange(partial)


def _arrange(folder: Path) -> None:
    """Leave only the program, its names and its library, all side by side."""
    root = folder / "root"
    program = next(path for path in root.rglob("bin/kmod") if path.is_file())
    program.rename(folder / "kmod")
    library = next(path for path in root.rglob("libkmod.so.2.*") if path.is_file())
    library.rename(folder / "libkmod.so.2")
    for name in _NAMES:
        (folder / name).symlink_to("kmod")
    shutil.rmtree(root)


def codename_of(os_release: str) -> str | None:
    """Return the suite of a Debian host from the text of os-release(5), else None."""
    fields = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', os_release, re.MULTILINE))
    return fields.get("VERSION_CODENAME") if fields.get("ID") == "debian" else None


def _os_release() -> str:
    try:
        return Path("/etc/os-release").read_text()
    except OSError:
        return ""


def depmod(ours: Path | None, tree: Path, version: str) -> None:
    """Write the indexes `modprobe` needs into the unpacked kernel below ``tree``.

    ``ours`` is what `get` returned.
    """
    environ = dict(os.environ)
    if ours:
        environ["LD_LIBRARY_PATH"] = str(ours)
    environ["PATH"] = f"{ours or ''}:{environ.get('PATH', '')}:{_SBIN}"
    done = subprocess.run(
        ["depmod", "-b", str(tree), version],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise LabError(f"depmod: {(done.stderr.strip() or 'failed').splitlines()[-1]}")
