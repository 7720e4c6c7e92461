"""A machine of its own for a server: a network namespace behind a wire that can be spoilt."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from pyroute2 import IPRoute, NetNS, netns
from tools import run

NAME = "ublkd-test"
HERE, THERE = "10.81.9.1", "10.81.9.2"


class Wire:
    """Between us and the server. What spoils it holds for both directions."""

    def __init__(self, ends: list[tuple[Any, int]]) -> None:
        """Each with the index of its interface."""
        self._ends = ends
        self._spoilt = False

    def spoil(self, **how: float) -> None:
        """``loss`` in percent, ``delay`` in microseconds."""
        self.heal()
        for end, index in self._ends:
            end.tc("add", "netem", index=index, handle="1:", limit=10_000, **how)
        self._spoilt = True

    def cut(self) -> None:
        """Nothing comes through, and nobody is told."""
        self.spoil(loss=100)

    def heal(self) -> None:
        """As good as new."""
        if self._spoilt:
            for end, index in self._ends:
                end.tc("del", index=index, root=True)
        self._spoilt = False


def inside() -> list[str]:
    """What runs a command there."""
    return ["nsenter", f"--net=/run/netns/{NAME}"]


@contextlib.contextmanager
def wire() -> Iterator[Wire]:
    """A namespace that ``THERE`` is in."""
    run("modprobe", "-a", "veth", "sch_netem")
    netns.create(NAME)
    try:
        with IPRoute() as here, NetNS(NAME) as there:
            peer = {"ifname": "there", "net_ns_fd": NAME}
            here.link("add", ifname="here", kind="veth", peer=peer)
            ends = []
            for end, name, address in ((here, "here", HERE), (there, "there", THERE)):
                (index,) = end.link_lookup(ifname=name)
                end.addr("add", index=index, address=address, prefixlen=24)
                end.link("set", index=index, state="up")
                ends.append((end, index))
            try:
                yield Wire(ends)
            finally:
                here.link("del", index=ends[0][1])
    finally:
        netns.remove(NAME)
