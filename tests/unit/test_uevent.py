from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pyroute2.netlink.uevent
import pytest

from tests.unit.helpers import open_fds
from ublkd.errors import UblkdError
from ublkd.uevent import wait_for_node


@pytest.fixture(autouse=True)
def _nothing_stays_open() -> Iterator[None]:
    before = open_fds()
    yield
    assert open_fds() == before


class FakeSocket:
    """Announces once; ``then`` is what happens before the program learns of it."""

    events = 1
    bound: Path | None = None  # made at bind, by whoever was faster
    node: Path | None = None  # made when the event is read

    def __enter__(self) -> FakeSocket:
        self.read_end, self.write_end = os.pipe()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.read_end)
        os.close(self.write_end)

    def bind(self) -> None:
        os.write(self.write_end, b"x" * self.events)
        if self.bound:
            self.bound.touch()

    def fileno(self) -> int:
        return self.read_end

    def get(self) -> None:
        os.read(self.read_end, 1)
        if self.node and FakeSocket.events == 1:
            self.node.touch()


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> type[FakeSocket]:
    for name in ("bound", "node"):
        monkeypatch.setattr(FakeSocket, name, None)
    monkeypatch.setattr(pyroute2.netlink.uevent, "UeventSocket", FakeSocket)
    return FakeSocket


def test_a_node_that_is_there_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "node").touch()
    wait_for_node(str(tmp_path / "node"), 0)


def test_a_node_is_seen_when_its_event_comes(tmp_path: Path, kernel: type[FakeSocket]) -> None:
    kernel.node = tmp_path / "node"
    wait_for_node(str(kernel.node), 30)


def test_a_node_made_just_before_the_listening_is_seen(
    tmp_path: Path, kernel: type[FakeSocket]
) -> None:
    kernel.bound = tmp_path / "node"
    wait_for_node(str(kernel.bound), 30)


def test_a_node_is_not_waited_for_when_its_disk_has_gone(
    tmp_path: Path, kernel: type[FakeSocket]
) -> None:
    node = tmp_path / "node"
    with pytest.raises(UblkdError, match="was stopped or deleted before it could be opened"):
        wait_for_node(str(node), 30, lambda: False)
    node.touch()
    wait_for_node(str(node), 30, lambda: True)


def test_a_node_that_never_comes_is_an_error_in_time(
    tmp_path: Path, kernel: type[FakeSocket]
) -> None:
    started = time.monotonic()
    with pytest.raises(UblkdError, match=r"within 0.2 seconds: no such file") as caught:
        wait_for_node(str(tmp_path / "node"), 0.2)
    assert 0.1 < time.monotonic() - started < 10
    assert "udev" in caught.value.hint


def test_the_real_socket_can_be_listened_to(tmp_path: Path) -> None:
    with pytest.raises(UblkdError, match="could not be opened"):
        wait_for_node(str(tmp_path / "node"), 0.05)
