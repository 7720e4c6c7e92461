"""The command lines of QEMU and virtiofsd. No I/O: who runs them is in session.py."""

import dataclasses
import enum
import re
from pathlib import Path

from .arch import Arch
from .errors import Exit, LabError


class Accel(enum.Enum):
    """How the guest's instructions are run."""

    KVM = "kvm"
    TCG = "tcg"
    COUNTING = "icount"  # emulated, and the clock counts instructions


@dataclasses.dataclass(frozen=True)
class Machine:
    """What to boot; ``memory`` in MiB, ``disk`` a raw image that outlives the boot, or None."""

    arch: Arch
    image: Path
    accel: Accel
    cpus: int
    memory: int
    disk: Path | None = None


@dataclasses.dataclass(frozen=True)
class Wiring:
    """What ties the machine to the lab.

    ``folder`` is the session's own, where init and its settings are; ``ports`` are file
    descriptors: of ports 1 to 3, and of the console for a shell or None.
    """

    folder: Path
    root_socket: Path
    log: Path
    ports: tuple[int, int, int]
    console: int | None


def parse_memory(text: str) -> int:
    """Return MiB for a size like 3G or 512M.

    >>> parse_memory("3G")
    3072
    """
    found = re.fullmatch(r"(\d+)([MG])", text)
    size = int(found[1]) * (1024 if found[2] == "G" else 1) if found else 0
    if size < 128:
        raise LabError(f"memory {text!r}", hint="say 512M or 3G", status=Exit.USAGE)
    return size


def kernel_line(machine: Machine, wiring: Wiring) -> str:
    """Return the kernel's command line."""
    words = [
        "root=root rootfstype=virtiofs ro",
        f"init={wiring.folder}/init LAB_DIR={wiring.folder}",
        f"console={machine.arch.console} loglevel=5",
        # A panic ends the VM, which tells the lab.
        "panic=-1 oops=continue sysrq_always_enabled printk.devkmsg=on",
        # No time for what guards others: nobody else is in there.
        "mitigations=off init_on_alloc=0 audit=0 apparmor=0 nokaslr",
        "rcupdate.rcu_expedited=1 random.trust_cpu=on cryptomgr.notests 8250.nr_uarts=1",
    ]
    return " ".join(words)


def qemu(machine: Machine, wiring: Wiring) -> list[str]:
    """Return the command that runs ``machine``."""
    # Emulated x86 goes without cmpxchg16b: QEMU 7.2 leaves garbage in the flags register
    # after it, and kernels that allocate memory with it (6.12) panic in every other boot.
    emulated = "max,-cx16" if machine.arch.debian == "amd64" else "max"
    cpu = "host" if machine.accel is Accel.KVM else emulated
    cpus = 1 if machine.accel is Accel.COUNTING else machine.cpus
    return [
        machine.arch.qemu,
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-machine", machine.arch.machine, *_accel(machine.accel), "-cpu", cpu),
        *("-smp", str(cpus), "-m", f"{machine.memory}M"),
        *("-object", f"memory-backend-memfd,id=ram,size={machine.memory}M,share=on"),
        *("-numa", "node,memdev=ram"),
        *("-kernel", str(machine.image), "-append", kernel_line(machine, wiring)),
        *("-chardev", f"file,id=log,path={wiring.log}", "-serial", "chardev:log"),
        *("-device", "virtio-serial-pci"),
        *_ports(wiring),
        *("-chardev", f"socket,id=root,path={wiring.root_socket}"),
        *("-device", "vhost-user-fs-pci,chardev=root,tag=root,queue-size=1024"),
        *_disk(machine),
    ]


def _disk(machine: Machine) -> list[str]:
    if machine.disk is None:
        return []
    # The host keeps what the guest has written, however the guest ends.
    return ["-drive", f"file={machine.disk},format=raw,if=virtio,cache=unsafe"]


def _accel(accel: Accel) -> list[str]:
    if accel is Accel.KVM:
        return ["-accel", "kvm"]
    if accel is Accel.TCG:
        return ["-accel", "tcg,thread=multi,tb-size=512"]
    return ["-accel", "tcg,thread=single", "-icount", "shift=1,sleep=off"]


def _ports(wiring: Wiring) -> list[str]:
    words: list[str] = []
    if wiring.console is not None:
        words += ["-chardev", f"socket,id=console,fd={wiring.console}"]
        words += ["-device", "virtconsole,nr=0,chardev=console"]
    for number, port in enumerate(wiring.ports, start=1):
        words += ["-chardev", f"socket,id=port{number},fd={port}"]
        words += ["-device", f"virtserialport,nr={number},chardev=port{number}"]
    return words


def virtiofsd(program: Path, listening: int, version: str) -> list[str]:
    """Return the command that serves the host's root on the socket ``listening``.

    ``version`` is what `virtiofsd --version` says: the server that came with QEMU until
    7.2 (in C) and its successor (in Rust) have little in common but the name.
    """
    if "FUSE kernel interface" in version:
        options = ("source=/", "cache=always", "sandbox=chroot", "log_level=err")
        return [str(program), f"--fd={listening}", *(w for o in options for w in ("-o", o))]
    return [
        str(program),
        f"--fd={listening}",
        *("--shared-dir=/", "--cache=always", "--sandbox=chroot", "--log-level=error"),
    ]
