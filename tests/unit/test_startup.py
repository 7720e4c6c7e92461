"""What every verb would wait for is loaded by those who need it."""

from __future__ import annotations

from tests.unit.helpers import python


def test_a_verb_does_not_wait_for_asyncio_or_logging() -> None:
    names = "import sys, ublkd.registry, ublkd.daemon; print(*sys.modules)"
    loaded = set(python("-c", names).stdout.split())
    assert "ublkd.target.bytes_target" in loaded
    assert not loaded & {"asyncio", "logging", "logging.handlers", "ublkd.log"}
