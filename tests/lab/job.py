"""What to run in the guest, and the files that tell its init about it."""

import dataclasses
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from .kernels import Kernel

_SBIN = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# In /dev, and made by udev where that runs.
_LINKS = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
)


@dataclasses.dataclass(frozen=True)
class Job:
    """A command, or a shell for ``command`` None.

    ``size`` is that of the terminal, rows and columns; ``ublk``: load ublk_drv first.
    ``before``: systemd runs as process 1, with the job as a unit, and this command before it.
    """

    command: str | None
    project: Path
    environ: Mapping[str, str]
    ublk: bool = True
    size: tuple[int, int] = (24, 80)
    before: str | None = None


def environment(
    host: Mapping[str, str], project: Path, passed: Sequence[str], *, venv: bool
) -> dict[str, str]:
    """Return the job's environment: little of the host's, and what ``passed`` names."""
    path = [str(project / ".venv" / "bin")] if venv else []
    path += [part for part in host.get("PATH", "").split(":") if part.startswith("/")]
    path += [part for part in _SBIN.split(":") if part not in path]
    environ = {
        "HOME": "/root",
        "USER": "root",
        "LOGNAME": "root",
        "SHELL": "/bin/bash",
        "LANG": "C.UTF-8",
        "TERM": host.get("TERM", "dumb"),
        "PATH": ":".join(path),
        "UBLKD_LAB": "1",
    }
    return environ | {name: host[name] for name in passed if name in host}


def script(job: Job) -> str:
    """Return the program that init starts as the job."""
    lines = ["#!/bin/sh"]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in job.environ.items()]
    lines += [f"cd {shlex.quote(str(job.project))}", "unset OLDPWD"]
    lines += ["shell=sh; [ -x /bin/bash ] && shell=bash"]
    if job.command is None:
        rows, columns = job.size
        lines += [f"stty rows {rows} cols {columns}", "exec $shell -i"]
    else:
        lines += [f"exec $shell -c {shlex.quote(job.command)}"]
    return "\n".join(lines) + "\n"


def settings(job: Job, kernel: Kernel, tools: Path | None) -> str:
    """Return init's variables, as shell."""
    values = {
        "LAB_TOOLS": str(tools or ""),
        "LAB_TREE": str(kernel.modules.parents[2]) if kernel.modules else "",
        "LAB_UBLK": "1" if job.ublk else "",
        "LAB_SHELL": "1" if job.command is None else "",
        "LAB_SYSTEMD": "" if job.before is None else "1",
    }
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())


def fstab(job: Job, kernel: Kernel, memory: int) -> str:
    """Return what init mounts; ``memory`` is the guest's in MiB."""
    scratch = memory * 3 // 4
    mounts = [
        ("sysfs", "/sys", "sysfs", "nosuid"),
        ("devtmpfs", "/dev", "devtmpfs", "nosuid"),
        ("devpts", "/dev/pts", "devpts", "gid=5,mode=620,ptmxmode=666,x-mount.mkdir"),
        ("shm", "/dev/shm", "tmpfs", "mode=1777,x-mount.mkdir"),
        ("tmp", "/tmp", "tmpfs", "mode=1777"),
        ("scratch", "/scratch", "tmpfs", f"mode=1777,size={scratch}M,x-mount.mkdir"),
        ("cgroup2", "/sys/fs/cgroup", "cgroup2", "nosuid"),
        ("debugfs", "/sys/kernel/debug", "debugfs", "nosuid"),
        ("tracefs", "/sys/kernel/tracing", "tracefs", "nosuid"),
    ]
    # These come from below /tmp, too, when that is where the host has them.
    for source, target in _binds(job, kernel):
        mounts.append((f"/run/host{source}", str(target), "none", "bind,ro,x-mount.mkdir"))
    return "".join(" ".join(_escape(word) for word in mount) + " 0 0\n" for mount in mounts)


def _binds(job: Job, kernel: Kernel) -> list[tuple[Path, Path]]:
    binds = [(job.project, job.project)]
    if kernel.modules:
        binds.append((kernel.modules, Path("/lib/modules") / kernel.version))
    return binds


def _escape(word: str) -> str:
    return word.replace("\\", "\\134").replace(" ", "\\040").replace("\t", "\\011")


def write(folder: Path, job: Job, kernel: Kernel, tools: Path | None, memory: int) -> None:
    """Write all that init reads into ``folder``."""
    init = Path(__file__).with_name("init.sh")
    files = {
        "init": init.read_text(),
        "settings": settings(job, kernel, tools),
        "fstab": fstab(job, kernel, memory),
        "job": script(job),
    }
    if job.before is not None:
        files["before"] = script(dataclasses.replace(job, command=job.before))
        shutil.copytree(init.with_name("systemd"), folder / "systemd", dirs_exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / "dev").mkdir(exist_ok=True)
    for name, target in _LINKS:
        (folder / "dev" / name).unlink(missing_ok=True)
        (folder / "dev" / name).symlink_to(target)


def host_environment(project: Path, passed: Sequence[str]) -> dict[str, str]:
    """Return `environment` for the machine the lab runs on."""
    venv = (project / ".venv" / "bin").is_dir()
    return environment(os.environ, project, passed, venv=venv)
