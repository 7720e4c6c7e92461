"""daemon.await_node: what a disk gets once it is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from ublkd import daemon, names
from ublkd.config import DeviceConfig
from ublkd.errors import UblkdError
from ublkd.state import DeviceState, StateDir


def test_a_disk_that_has_gone_before_its_node_was_there_gives_nothing_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = StateDir(tmp_path)
    states.write(DeviceState(id=3, cookie=5, pid=1, name="db", target="null", options={},
                             lease="copy", started=True))  # fmt: skip
    asked: list[int] = []

    def settled(dev_id: int, *_: object) -> str:
        asked.append(dev_id)
        return ""

    monkeypatch.setattr(daemon, "StateDir", lambda: states)
    monkeypatch.setattr(daemon, "wait_for_node", lambda *_: None)
    monkeypatch.setattr(names, "settled", settled)
    config = DeviceConfig(target="null", options={}, name="db")
    with pytest.raises(UblkdError, match="was stopped or deleted before"):
        daemon.await_node(config, daemon.Ready(id=3, cookie=4))
    assert asked == []
    for ready in (daemon.Ready(id=3, cookie=5), daemon.Ready(id=3)):
        daemon.await_node(config, ready)
    assert asked == [3, 3]
