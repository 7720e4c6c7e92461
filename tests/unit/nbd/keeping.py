"""A keeper among links, a clock and servers that do as a test says."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.nbd.links import EXPORT, PATIENCE, Clock, Links, Servers
from ublkd._core import ffi
from ublkd.target import Params
from ublkd.targets.nbd import keeper as module
from ublkd.targets.nbd import parting, stream
from ublkd.targets.nbd.export import Export, Refusal
from ublkd.targets.nbd.keeper import Keeper
from ublkd.targets.nbd.replay import Write
from ublkd.targets.nbd.settings import Settings
from ublkd.targets.nbd.stream import Patience, Stream
from ublkd.targets.nbd.uri import parse

URI = parse("nbd://127.0.0.1/")

PARAMS = Params(size=EXPORT.size, max_io=1 << 16)
"""What the kernel was told of it."""


class FakeJournal:
    """It has three writes, whatever was written."""

    bytes = 1 << 16
    kept = (Write(1, 0, 0, 1, b"a"), Write(1, 0, 1, 1, b"b"), Write(4, 0, 2, 1))

    def __init__(self) -> None:
        self.closed = 0
        self.memory = ffi.new("char[]", self.bytes)

    def writes(self, links: object) -> list[Write]:
        assert isinstance(links, Links)
        return list(self.kept)

    def close(self) -> None:
        self.closed += 1


class RealPatience(Patience):
    """For what is heard of real sockets."""

    def __init__(self, seconds: float, stop: int | None = None) -> None:
        super().__init__(seconds, stop)
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return max(0.0, self._end - time.monotonic())


class World:
    """A keeper, its links, its clock and its servers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.clock = Clock()
        self.servers = Servers(self.clock)
        self.links = Links(1, self.clock)
        self.keeper: Keeper | None = None
        self.replays: list[BaseException | float | None] = []
        """How the next ones end, or how many seconds they take; those behind them are good."""
        self.replayed: list[tuple[list[Write], float]] = []
        """And in how many seconds they had to be."""
        self.on_replay: Callable[[], object] = lambda: None

    def keep(
        self, *script: Any, connections: int = 1, export: Export = EXPORT, **settings: Any
    ) -> Links:
        """With ``script`` for all connections behind the first ones."""
        self.links = Links(connections, self.clock)
        for name in ("time", "random", "select"):
            self.monkeypatch.setattr(module, name, self.clock)
        self.monkeypatch.setattr(stream, "time", self.clock)
        self.monkeypatch.setattr(parting, "Patience", RealPatience)
        self.monkeypatch.setattr(parting, "BOUND", 0.01)
        self.monkeypatch.setattr(module, "APART_SECONDS", PATIENCE)
        self.monkeypatch.setattr(module, "lib", self.links)
        self.monkeypatch.setattr(module, "Journal", FakeJournal)
        self.monkeypatch.setattr(module, "replay", self._replay)
        self.clock.napped = self.links.notice
        self.servers.script = list(script)
        settings.setdefault("after_reconnect", "trust")
        self.keeper = Keeper(
            Settings(uri=URI, connections=connections, **settings),
            [self.servers.new(export) for _ in range(connections)],
            params=PARAMS,
            dial=self.servers.dial,
        )
        return self.links

    def in_tls(self, relay: Any) -> None:
        """All connections that are made from now on, each behind such a relay."""
        self.monkeypatch.setattr(module, "ssl", SimpleNamespace(SSLSocket=object))
        self.monkeypatch.setattr(module, "Relay", relay)

    def _replay(
        self,
        over: Stream,
        writes: list[Write],
        patience: Patience,
        flushed: Callable[[Write], None],
    ) -> None:
        assert over.socket.fileno() >= 0
        self.on_replay()
        self.replayed.append((writes, patience.left))
        ends = self.replays.pop(0) if self.replays else None
        if isinstance(ends, BaseException):
            raise ends
        self.clock.now += min(ends or 0.0, patience.left)
        if not patience.left:
            raise Refusal("not in time")
        flushed(writes[-1])

    def until_attached(self, times: int, link: int = 0) -> None:
        self.links.until(lambda: self.links.did.count(f"attach {link}") >= times)

    def until_script_is_over(self) -> None:
        assert self.servers.waiting.wait(30)

    def after_a_while(self, do: Callable[[], object]) -> None:
        """In the keeper's first pause from here on."""

        def napped() -> None:
            self.clock.napped = self.links.notice
            do()

        self.clock.napped = napped

    def failed_after(self) -> float:
        """Seconds until requests failed, from the beginning on."""
        return self.links.when[self.links.did.index("fail 0")] - 1000

    def stop(self) -> None:
        assert self.keeper is not None
        self.keeper.stopping()

    def close(self) -> None:
        if self.keeper is not None:
            journal = self.keeper.journal
            self.keeper.close()
            assert self.links.freed
            assert all(self.servers.closed())
            assert not isinstance(journal, FakeJournal) or journal.closed == 1
            self.keeper = None
        self.servers.close()
