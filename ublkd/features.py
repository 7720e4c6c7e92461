"""Which lease a device gets and which feature flags go with it: a table and a pure function.

The ladder is tried from the top. Each rung above the chosen one is refused for a reason, and the
reason is kept: ``show`` prints it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from ublkd._core import lib
from ublkd.errors import NotPossibleError
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


NOTHING = Feature(0)


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


def names(flags: Feature) -> list[str]:
    """The single flags of a set by name; bits this program does not know by number."""
    known = [f.name or "" for f in Feature if f in flags]
    rest = int(flags) & ~sum(Feature)
    return known + [f"bit {bit}" for bit in range(64) if rest >> bit & 1]


def groups() -> bool:
    """Whether this kernel carries the SQE-group series: a probe without side effects."""
    return bool(lib.lease_probe_group() == 1)


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
) -> Features:
    """Choose the best lease that ``offered`` (the driver's features) and ``groups`` allow.

    ``in_memory``: the target must see the bytes. ``wanted`` insists on one lease. Without
    ``partscan`` the kernel shall not look for partitions.
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
    refused: dict[Lease, str] = {}
    for rung in LADDER:
        if obstacle := _obstacle(rung, offered, groups, in_memory):
            refused[rung.lease] = obstacle
        elif wanted not in (None, rung.lease):
            refused[rung.lease] = f"--lease {wanted.value} was asked for" if wanted else ""
        else:
            return Features(rung.lease, rung.needs | rung.asks | REQUIRED | extra, refused)
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
