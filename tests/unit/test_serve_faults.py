"""A daemon whose own code fails while it serves."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from tests.unit import test_serve
from tests.unit.test_serve import Bench
from ublkd import daemon

bench = test_serve.bench


class Faulty(daemon.Manner):
    def pause(self, disk: Any) -> float:
        raise OSError(errno.EMFILE, "too many")


def test_its_fault_takes_no_disk_away(bench: Bench) -> None:
    with pytest.raises(OSError, match="too many"):
        bench.serve(manner=Faulty())
    assert bench.log == ["up", "leave at once", "down"]
