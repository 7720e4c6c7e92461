"""An NBD disk behind the fake driver whose connections are kept as those of a real one are."""

from __future__ import annotations

import math
import os
import select
import time
from collections.abc import Callable

import pytest

from tests.unit.nbd.misbehaving import Misbehaving
from ublkd.target import Params
from ublkd.targets.nbd import journal, keeper, parting, tls
from ublkd.targets.nbd.connect import Connection, connect
from ublkd.targets.nbd.dial import addresses_of
from ublkd.targets.nbd.keeper import Keeper
from ublkd.targets.nbd.settings import Settings
from ublkd.targets.nbd.stream import Patience
from ublkd.targets.nbd.uri import parse

from .core import Core
from .nbd_disk import MAX_IO, PAGES, PATIENCE, NbdDisk, Pages

WINDOW = 600.0
"""Seconds: no test here is as long."""


class KeptDisk:
    """One link or several, each with a driver that the test turns; and a keeper in its thread."""

    def __init__(
        self,
        core: Core,
        monkeypatch: pytest.MonkeyPatch,
        server: Misbehaving,
        *,
        query: str = "",
        links: int = 1,
        pages: Pages = PAGES["copy"],
        after_reconnect: str = "replay",
        window: float = WINDOW,
        timeout: float = math.inf,
        open_timeout: float = 30.0,
    ) -> None:
        # the library of the tests in the place of the installed
        for module in (keeper, journal, parting):
            monkeypatch.setattr(module, "lib", core.lib)
        for module in (keeper, journal):
            monkeypatch.setattr(module, "ffi", core.ffi)
        for pause in ("FIRST_PAUSE", "LONGEST_PAUSE"):
            monkeypatch.setattr(keeper, pause, 0.001)
        self.tries = 0
        self.before_try: Callable[[], object] = lambda: None
        """In the keeper's thread."""
        self._tried = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        uri = parse(server.uri(query))
        addresses = addresses_of(uri, Patience(PATIENCE))
        context = tls.context(uri) if uri.tls else None

        def dial(seconds: float, stop: int | None) -> Connection:
            self.before_try()
            self.tries += 1
            os.eventfd_write(self._tried, 1)
            return connect(uri, seconds, stop=stop, addresses=addresses, context=context)

        made = [dial(PATIENCE, None) for _ in range(links)]
        self.tries = 0
        self.keeper = Keeper(
            Settings(
                uri=uri,
                connections=links,
                open_timeout=open_timeout,
                timeout=timeout,
                window=window,
                after_reconnect=after_reconnect,
            ),
            made,
            params=Params(size=made[0].export.size, max_io=MAX_IO),
            dial=dial,
        )
        self.disks: list[NbdDisk] = []
        for link in range(links):
            self.disks.append(NbdDisk(core, pages=pages, link=link, keeper=self.keeper))

    def close(self) -> None:
        for disk in reversed(self.disks):
            disk.close()
        self.keeper.close()
        os.close(self._tried)

    def settle(self) -> None:
        for disk in self.disks:
            disk.settle()

    def until(self, done: Callable[[], object]) -> None:
        """Turns all drivers, and waits where nothing is to be done."""
        end = time.monotonic() + PATIENCE
        drivers = [disk.driver for disk in self.disks]
        ready = [fd for driver in drivers for fd in (driver.ready_fd, driver.wake_fd)]
        while True:
            self.settle()
            if done():
                return
            left = end - time.monotonic()
            assert left > 0, [disk.status for disk in self.disks]
            if self._tried in select.select([*ready, self._tried], [], [], left)[0]:
                os.eventfd_read(self._tried)

    def until_tried(self, tries: int) -> None:
        """So often, at the least."""
        self.until(lambda: self.tries >= tries)

    def until_committed(self, *tags: int) -> None:
        """On every link."""
        self.until(lambda: all(disk.committed(tag) for disk in self.disks for tag in tags))


KeptMaker = Callable[..., KeptDisk]


def ways_of_greeting(server: Misbehaving, tls_step: int = 13) -> list[int]:
    """Where to cut what it says before the first request: anywhere, but in TLS, which is long and
    whose signatures differ by some bytes.
    """
    return [*range(0, server.greeted - 16, tls_step)] if server.tls else [*range(server.greeted)]
