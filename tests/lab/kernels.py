"""Kernels: find one by name in the cache, else fetch it, else use the host's own."""

import dataclasses
import os
import re
from collections.abc import Iterable
from pathlib import Path

from . import arch, archive, cache, tools, versions
from .errors import Exit, LabError, say

SUITES = ("trixie", "trixie-backports")
LATER_SUITES = (*SUITES, "sid")
HOST = "host"

# What the root file system needs before any module can be loaded.
_BUILT_IN = ("virtio_pci", "virtiofs")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel that can be booted.

    ``modules`` is the folder with its modules, None when the host has them in place.
    """

    version: str
    image: Path
    modules: Path | None


def get(name: str, *, refresh: bool = False) -> Kernel:
    """Return the kernel called ``name``, fetching it when the cache has none.

    ``refresh`` asks the archive again, for a newer one. Raises LabError.
    """
    if name == HOST:
        return host()
    if not re.fullmatch(r"\d[\w.+~-]*", name):
        raise LabError(f"{name!r} is not a kernel version", hint="like 7.2", status=Exit.USAGE)
    found = None if refresh else _cached(name)
    if found:
        return found
    if not archive.usable():
        return _host_instead(name)
    kmod = tools.get()
    with cache.locked():
        found = None if refresh else _cached(name)  # another lab may have fetched it meanwhile
        return found or _fetch(name, kmod)


def _tree(version: str) -> Path:
    return cache.folder() / "kernels" / version


def _cached(name: str) -> Kernel | None:
    marker = cache.folder() / "names" / name
    have = [path.name for path in (cache.folder() / "kernels").glob("[0-9]*")]
    version = marker.read_text().strip() if marker.exists() else None
    if version not in have:
        chosen = versions.choose(name, have)
        version = chosen.version if chosen and chosen.exact else None
    return _unpacked(_tree(version), version) if version else None


def _unpacked(tree: Path, version: str) -> Kernel:
    """Describe what `dpkg -x` left below ``tree``."""
    modules = tree / "lib" / "modules" / version
    for image in (modules / "vmlinuz", tree / "boot" / f"vmlinuz-{version}"):
        if image.exists() and (modules / "kernel").is_dir():
            return Kernel(version, image, modules)
    raise LabError(f"the packages of kernel {version} hold no kernel", hint=f"remove {tree}")


def _fetch(name: str, kmod: Path | None) -> Kernel:
    choice, packages = _search(name)
    if not choice.exact:
        say(f"kernel {name} is no longer in the archive: taking {choice.version}")
    if not _tree(choice.version).exists():
        with cache.building(_tree(choice.version)) as partial:
            packages.unpack(_closure(packages, choice.version), partial, f"kernel {choice.version}")
            if not (partial / "lib").exists():
                (partial / "lib").symlink_to("usr/lib")
            _unpacked(partial, choice.version)
            tools.depmod(kmod, partial, choice.version)
    packages.forget()
    kernel = _unpacked(_tree(choice.version), choice.version)
    cache.write(cache.folder() / "names" / name, choice.version + "\n")
    say(f"kernel {choice.version} is ready")
    return kernel


def _search(name: str) -> tuple[versions.Choice, archive.Archive]:
    """Look in the suites people run first; sid's long list is fetched only for a rare name."""
    best = None
    for suites in (SUITES, LATER_SUITES):
        packages = archive.Archive(cache.folder() / "apt" / suites[-1], suites)
        packages.update()
        have = versions.of_packages(packages.names("linux-image-"), arch.this().flavour)
        choice = versions.choose(name, have)
        if choice and choice.exact:
            return choice, packages
        if choice and best is None:
            best = choice, packages
        else:
            packages.forget()
    if best:
        return best
    raise LabError(
        f"no kernel {name} or later in {', '.join(LATER_SUITES)}", status=Exit.IMPOSSIBLE
    )


def _closure(packages: archive.Archive, version: str) -> list[archive.Package]:
    """Return the image's package and those that it takes its files from."""
    todo = [f"linux-image-{version}"]
    found: dict[str, archive.Package] = {}
    while todo:
        name = todo.pop()
        if name not in found:
            found[name] = packages.package(name)
            todo += kernel_parts(found[name].depends)
    return list(found.values())


def kernel_parts(depends: Iterable[str]) -> list[str]:
    """Return those of ``depends`` that hold files of a kernel."""
    return [name for name in depends if re.match(r"linux-(image|binary|modules|base)-\d", name)]


def host() -> Kernel:
    """Return the host's own kernel, if the lab can use it."""
    version = os.uname().release
    image = Path(f"/boot/vmlinuz-{version}")
    modules = Path(f"/lib/modules/{version}")
    problem = "" if os.access(image, os.R_OK) else f"{image} is not readable"
    problem = problem or unfit(_read(modules / "modules.builtin"), _read(modules / "modules.dep"))
    if problem:
        raise LabError(
            f"the host's own kernel {version} cannot be used: {problem}",
            hint="where apt and dpkg are, the lab fetches a kernel (and archive keyring) of Debian",
            status=Exit.IMPOSSIBLE,
        )
    return Kernel(version, image, None)


def unfit(builtin: str, dep: str) -> str:
    """Say what a kernel with these module lists lacks; empty when it will do."""
    inside = {Path(line).stem for line in builtin.split()}
    loadable = {Path(line.partition(":")[0]).name.partition(".")[0] for line in dep.splitlines()}
    for name in _BUILT_IN:
        if name not in inside:
            return f"{name} is not built in"
    if "ublk_drv" not in inside | loadable:
        return "it has no ublk_drv"
    return ""


def _host_instead(name: str) -> Kernel:
    kernel = host()
    if not versions.matches(name, kernel.version) and versions.key(kernel.version) < versions.key(
        name
    ):
        raise LabError(
            f"the host's kernel {kernel.version} is older than {name}",
            hint="a machine with apt and dpkg can fetch it",
            status=Exit.IMPOSSIBLE,
        )
    say(f"no apt and dpkg here: using the host's own kernel {kernel.version}")
    return kernel


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
