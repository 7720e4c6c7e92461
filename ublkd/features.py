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
    COPY = "copy"

    @property
    def number(self) -> int:
        """``enum lease_kind`` of core/lease.h."""
        return int({Lease.AUTO: lib.LEASE_AUTO, Lease.COPY: lib.LEASE_COPY}[self])


@dataclass(frozen=True)
class Rung:
    """A lease: what it needs from the kernel, and the release that first offers it."""

    lease: Lease
    needs: Feature
    since: str


LADDER = (
    # USER_COPY beside AUTO_BUF_REG: a request whose pages could not be registered is served by it
    Rung(Lease.AUTO, Feature.AUTO_BUF_REG | Feature.USER_COPY, "6.16"),
    Rung(Lease.COPY, Feature(0), "6.0"),
)
"""Best first."""

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


def negotiate(offered: Feature, wanted: Lease | None) -> Features:
    """Choose the best lease that ``offered`` (the driver's features) allows.

    ``wanted`` insists on one. Raises NotPossibleError with the reason if it cannot be had.
    """
    if REQUIRED not in offered:
        raise NotPossibleError(
            "this kernel's ublk driver lacks " + ", ".join(names(REQUIRED & ~offered)),
            hint="ublkd needs Linux 6.5 or newer",
        )
    refused: dict[Lease, str] = {}
    for rung in LADDER:
        missing = rung.needs & ~offered
        if missing:
            lacks = ", ".join(names(missing))
            refused[rung.lease] = f"the kernel lacks {lacks} (Linux {rung.since} has it)"
        elif wanted not in (None, rung.lease):
            refused[rung.lease] = f"--lease {wanted.value} was asked for" if wanted else ""
        else:
            return Features(rung.lease, rung.needs | REQUIRED, refused)
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
