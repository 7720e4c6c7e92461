"""Boot until it works: KVM or not, again after an emulated boot that died early."""

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from . import accel, arch, cache, job, kernellog, kernels, session, terminal, tools
from .errors import Exit, LabError, say
from .machine import Accel, Machine
from .session import End, Limits, Result, Session

VIRTIOFSD = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd", "/usr/lib/virtiofsd")
_TRIES = 3
# Seconds to init's first line, and from there to the job.
_TO_JOB = {Accel.KVM: (10.0, 30.0), Accel.TCG: (90.0, 90.0), Accel.COUNTING: (180.0, 180.0)}
_PREFIX = "ublkd-lab-"


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line asks of the machine; ``memory`` in MiB, ``deadline`` in seconds."""

    kernel: str
    cpus: int = 2
    memory: int = 3072
    counting: bool = False
    deadline: float | None = 1800
    quiet: bool = False
    strict: bool = False
    disk: Path | None = None


def run(options: Options, what: job.Job) -> int:
    """Boot the kernel, run ``what`` in it and return the status to exit with."""
    if os.geteuid() != 0:
        # Tried: the guest's overlay opens files with O_NOATIME, which only their owner may,
        # and set-uid programs such as mount would run as nobody.
        raise LabError(
            "the lab needs root, to serve the host's files to the guest",
            hint="run it with sudo",
            status=Exit.IMPOSSIBLE,
        )
    programs = session.find_virtiofsd(VIRTIOFSD)
    this = arch.this()
    if not shutil.which(this.qemu):
        raise LabError(
            f"no {this.qemu} on this machine",
            hint="install qemu-system-x86 (or -arm)",
            status=Exit.IMPOSSIBLE,
        )
    kernel = kernels.get(options.kernel)
    tool_folder = tools.get()
    with _folder() as folder:
        for way, last in _attempts(options):
            machine = Machine(this, kernel.image, way, options.cpus, options.memory, options.disk)
            _say(options, f"booting {kernel.version} ({way.value})")
            environ = {"UBLKD_LAB_KERNEL": kernel.version, "UBLKD_LAB_ACCEL": way.value}
            todo = dataclasses.replace(what, environ={**what.environ, **environ})
            job.write(folder, todo, kernel, tool_folder, options.memory)
            with Session(machine, programs, folder) as boot:
                result = _boot(boot, todo, Limits(*_TO_JOB[way], options.deadline))
                early = result.end in (End.NO_INIT, End.NO_JOB)
                _keep_log(boot.log, options.kernel + ("-early" if early else ""))
                if way is Accel.KVM:
                    accel.remember(result.end is not End.NO_INIT)
                if not early or last:
                    return _conclude(options, boot, result)
            # Emulated SMP kernels die now and then while they patch their own code.
            _say(options, f"the guest did not come up ({way.value}): trying again")
    raise AssertionError("the last attempt returns")


def _attempts(options: Options) -> Iterator[tuple[Accel, bool]]:
    """Give each way to boot, and whether it is the last."""
    for way in accel.candidates(counting=options.counting, kvm=accel.kvm()):
        if way is Accel.KVM:
            yield way, False
            continue
        for number in range(_TRIES):
            yield way, number == _TRIES - 1


def _boot(boot: Session, what: job.Job, limits: Limits) -> Result:
    shell = what.command is None
    boot.start(shell=shell)
    if not shell:
        return boot.run(limits)
    with terminal.raw(lambda rows, columns: boot.tell(f"size {rows} {columns}")):
        return boot.run(limits)


def _conclude(options: Options, boot: Session, result: Result) -> int:
    """Say what is to be said of a boot, and return the status to exit with."""
    if result.end is End.DEADLINE:
        session.report(boot, result)
        say(f"the job was not done after {options.deadline:g} s; above, what is blocked")
        return Exit.DEADLINE
    if result.end is not End.DONE:
        session.report(boot, result)
        return Exit.FAILED
    trouble = kernellog.trouble(boot.kernel_log())
    for line in trouble:
        say(f"kernel said: {line}")
    if trouble and options.strict and result.status == 0:
        return Exit.FAILED
    return result.status


def _say(options: Options, message: str) -> None:
    if not options.quiet:
        say(message)


def _keep_log(log: Path, name: str) -> None:
    kept = cache.folder() / "logs" / f"last-{name}.log"
    kept.parent.mkdir(exist_ok=True)
    partial = kept.with_name(f".{kept.name}.{os.getpid()}")
    shutil.copyfile(log, partial)
    partial.replace(kept)


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """Give a folder for this session, and remove those of labs that were killed."""
    parent = Path(tempfile.gettempdir())
    if any(character.isspace() for character in str(parent)):
        parent = Path("/tmp")  # its path goes on the kernel's command line
    for left in parent.glob(f"{_PREFIX}*"):
        pid = left.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
