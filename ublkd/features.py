"""Which lease a device gets and which feature flags go with it: a table and a pure function.

The ladder is tried from the top. Each rung above the chosen one is refused for a reason, and the
reason is kept: ``show`` prints it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from ublkd._core import lib
from ublkd.errors import SHORTAGE, NotPossibleError, UblkdError, reason
from ublkd.uapi import Feature


class Lease(Enum):
    """How a request's pages are reached. The values are the words of the command line."""

    AUTO = "auto"
    REGISTER = "register"
    GROUP = "group"
    COPY = "copy"
    USER_COPY = "user-copy"

    @property
    def number(self) -> int:
        """``enum lease_kind`` of core/lease.h."""
        return int(getattr(lib, "LEASE_" + self.name))


class Recovery(Enum):
    """What becomes of a device whose daemon dies. The values are the words of the command line."""

    NONE = "none"
    QUEUE = "queue"
    REISSUE = "reissue"
    FAIL = "fail"

    @property
    def flags(self) -> Feature:
        """What it is to the driver."""
        return RECOVERY_FLAGS[self]


NOTHING = Feature(0)

RECOVERY_FLAGS = {
    Recovery.NONE: NOTHING,
    Recovery.QUEUE: Feature.USER_RECOVERY,
    Recovery.REISSUE: Feature.USER_RECOVERY | Feature.USER_RECOVERY_REISSUE,
    Recovery.FAIL: Feature.USER_RECOVERY | Feature.USER_RECOVERY_FAIL_IO,
}


@dataclass(frozen=True)
class Rung:
    """A lease: what it needs from the kernel, and the release that first offers it.

    ``asks`` goes to ADD_DEV beside the needs: the kernel that can do it does not offer it.
    """

    lease: Lease
    needs: Feature
    since: str
    asks: Feature = NOTHING
    lends: bool = True


LEND = Feature.SUPPORT_ZERO_COPY | Feature.USER_COPY
"""Lending by hand, and user-copy for a request whose pages could not be lent at all."""

LADDER = (
    Rung(Lease.AUTO, Feature.AUTO_BUF_REG | LEND, "6.16"),
    Rung(Lease.REGISTER, LEND, "6.15"),
    Rung(Lease.GROUP, Feature.USER_COPY, "6.5", asks=LEND),
    Rung(Lease.COPY, Feature(0), "6.0", lends=False),
    Rung(Lease.USER_COPY, Feature.USER_COPY, "6.5", lends=False),
)
"""Best first."""

NO_GROUPS = "the kernel does not carry the SQE-group series"

IN_MEMORY = "the target works on bytes in memory"

REQUIRED = Feature.CMD_IOCTL_ENCODE
"""What no ublkd device can do without."""


@dataclass(frozen=True)
class Features:
    """The verdict: the lease, the flags for ADD_DEV, and why nothing better was chosen."""

    lease: Lease
    flags: Feature
    refused: Mapping[Lease, str] = field(default_factory=dict)
    recovery: Recovery = Recovery.NONE
    recovery_reason: str = ""


def names(flags: Feature) -> list[str]:
    """The single flags of a set by name; bits this program does not know by number."""
    known = [f.name or "" for f in Feature if f in flags]
    rest = int(flags) & ~sum(Feature)
    return known + [f"bit {bit}" for bit in range(64) if rest >> bit & 1]


def groups(wanted: Lease | None = None) -> bool:
    """Whether this kernel carries the SQE-group series: a probe without side effects.

    Raises UblkdError where a shortage keeps that from being seen and ``wanted`` insists on it.
    """
    answer = int(lib.lease_probe_group())
    if wanted is Lease.GROUP and -answer in SHORTAGE:
        raise UblkdError(
            f"cannot see whether lease {wanted.value} is possible: {reason(answer)}",
            hint="try again",
        )
    return answer == 1


def ring_error() -> int:
    """The errno with which this process is refused an io_uring; 0: it is not."""
    return -min(0, int(lib.lease_probe_group()))


def streams() -> bool:
    """Whether SEND and RECV take lent pages here: a probe on a socketpair."""
    return bool(lib.lane_probe() == 1)


def _obstacle(rung: Rung, offered: Feature, groups: bool, in_memory: bool) -> str:
    """Why it cannot be; empty if it can."""
    if in_memory and rung.lends:
        return IN_MEMORY
    if missing := rung.needs & ~offered:
        return f"the kernel lacks {', '.join(names(missing))} (Linux {rung.since} has it)"
    return NO_GROUPS if rung.lease is Lease.GROUP and not groups else ""


def _recovery(offered: Feature, wanted: Recovery | None, default: Recovery) -> tuple[Recovery, str]:
    """The recovery, and why it is this one. Raises NotPossibleError."""
    missing = (wanted or default).flags & ~offered
    lacks = f"the kernel lacks {', '.join(names(missing))}"
    if wanted and missing:
        raise NotPossibleError(
            f"recovery {wanted.value} is not possible: {lacks}",
            hint="leave --recovery out to get what the target can do here",
        )
    if wanted:
        return wanted, f"--recovery {wanted.value} was asked for"
    return (Recovery.NONE, lacks) if missing else (default, "the target's own")


def recovery_of(flags: Feature) -> Recovery:
    """That of a device, by the flags that the driver has for it."""
    mask = RECOVERY_FLAGS[Recovery.REISSUE] | RECOVERY_FLAGS[Recovery.FAIL]
    found = (kind for kind, bits in RECOVERY_FLAGS.items() if bits == flags & mask)
    return next(found, Recovery.NONE)


def lease_of(flags: Feature, remembered: str) -> Lease | None:
    """That of a device by its flags; what is remembered decides where two have the same."""
    mask = LADDER[0].needs
    fitting = [rung.lease for rung in LADDER if (rung.needs | rung.asks) & mask == flags & mask]
    named = (lease for lease in fitting if lease.value == remembered)
    return next(named, next((lease for lease in fitting if lease is not Lease.GROUP), None))


def lends(lease: Lease) -> bool:
    """Whether the request's own pages are used."""
    return next(rung.lends for rung in LADDER if rung.lease is lease)


def survey(offered: Feature, *, groups: bool = False) -> dict[Lease, str]:
    """Every lease, best first, with what stands in its way; nothing where it can be had."""
    return {rung.lease: _obstacle(rung, offered, groups, in_memory=False) for rung in LADDER}


def negotiate(
    offered: Feature,
    wanted: Lease | None,
    *,
    groups: bool = False,
    partscan: bool = True,
    in_memory: bool = False,
    recovery: Recovery | None = None,
    recovery_default: Recovery = Recovery.NONE,
) -> Features:
    """Choose the best lease that ``offered`` (the driver's features) and ``groups`` allow.

    ``in_memory``: the target must see the bytes. ``wanted`` insists on one lease. Without
    ``partscan`` the kernel shall not look for partitions. ``recovery`` insists on one, where the
    target's ``recovery_default`` is only tried.
    Raises NotPossibleError with the reason if either cannot be had.
    """
    if REQUIRED not in offered:
        raise NotPossibleError(
            "this kernel's ublk driver lacks " + ", ".join(names(REQUIRED & ~offered)),
            hint="ublkd needs Linux 6.5 or newer",
        )
    extra = Feature(0) if partscan else Feature.NO_AUTO_PART_SCAN
    if extra & ~offered:
        raise NotPossibleError(
            "this kernel always looks for partitions: it lacks NO_AUTO_PART_SCAN",
            hint="--no-partscan needs Linux 7.0 or newer",
        )
    kind, why = _recovery(offered, recovery, recovery_default)
    extra |= kind.flags | (offered & Feature.QUIESCE if kind.flags else NOTHING)
    extra |= offered & Feature.UPDATE_SIZE
    refused: dict[Lease, str] = {}
    for rung in LADDER:
        if obstacle := _obstacle(rung, offered, groups, in_memory):
            refused[rung.lease] = obstacle
        elif wanted not in (None, rung.lease):
            refused[rung.lease] = f"--lease {wanted.value} was asked for" if wanted else ""
        else:
            flags = rung.needs | rung.asks | REQUIRED | extra
            return Features(rung.lease, flags, refused, kind, why)
        if wanted is rung.lease:
            break
    assert wanted is not None  # the last rung needs nothing
    raise NotPossibleError(
        f"lease {wanted.value} is not possible: {refused[wanted]}",
        hint="leave --lease out to get the best one that is; 'ublkd features' lists them",
    )


def granted(asked: Features, given: Feature) -> None:
    """Check ADD_DEV's answer: the driver may clear what it does not do after all."""
    missing = asked.flags & ~given
    if missing:
        raise NotPossibleError(
            "the ublk driver offered " + ", ".join(names(missing)) + " and then did not give it",
            hint="try --lease copy",
        )
