"""What differs between the machines the lab knows."""

import dataclasses
import platform

from .errors import Exit, LabError


@dataclasses.dataclass(frozen=True)
class Arch:
    """One architecture: how Debian, QEMU and the kernel name its parts."""

    debian: str
    qemu: str
    machine: str
    console: str

    @property
    def flavour(self) -> str:
        """The kernel flavour with virtio built in."""
        return f"cloud-{self.debian}"


_KNOWN = {
    "x86_64": Arch("amd64", "qemu-system-x86_64", "q35", "ttyS0"),
    "aarch64": Arch("arm64", "qemu-system-aarch64", "virt", "ttyAMA0"),
}


def this() -> Arch:
    """Return the architecture of this machine, or raise LabError."""
    name = platform.machine()
    if name not in _KNOWN:
        raise LabError(
            f"no kernel for {name} in the lab",
            hint=f"it knows {' and '.join(_KNOWN)}",
            status=Exit.IMPOSSIBLE,
        )
    return _KNOWN[name]
