"""Which way to run the guest, and what this machine's KVM turned out to be worth."""

import os
from pathlib import Path

from . import cache
from .machine import Accel

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def candidates(*, counting: bool, kvm: bool | None) -> tuple[Accel, ...]:
    """Return what to try, best first; ``kvm``: it works, it does not, None for not known."""
    if counting:
        return (Accel.COUNTING,)
    return (Accel.TCG,) if kvm is False else (Accel.KVM, Accel.TCG)


def kvm() -> bool | None:
    """Return whether KVM works here, None when that must be tried."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    try:
        boot, _, verdict = _memory().read_text().strip().partition(" ")
    except OSError:
        return None
    return verdict == "works" if boot == _boot() else None


def remember(works: bool) -> None:
    """Keep the verdict until the host boots again."""
    cache.write(_memory(), f"{_boot()} {'works' if works else 'fails'}\n")


def _memory() -> Path:
    return cache.folder() / "kvm"


def _boot() -> str:
    return _BOOT_ID.read_text().strip()
