"""Makes sure that it is the installed ublkd that is tested: the source tree has no ``_core``."""

from __future__ import annotations

import gc
import importlib.util
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[2]

# `python -m pytest` puts the project first on the path, where the folder ublkd/ would hide the
# installed package. Last on the path it still lets `tests.*` be imported.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT] + [str(ROOT)]

# No database: the tree may be read-only. No deadline: a guest without KVM is slow.
settings.register_profile(
    "unit",
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("unit")

if importlib.util.find_spec("ublkd._core") is None:
    raise pytest.UsageError("ublkd is not installed with its C part: run 'make install-dev'")


def pytest_collection_finish() -> None:
    """What is there before the first test stays: helpers.open_fds() need not look through it."""
    gc.collect()
    gc.freeze()


TEST_SECONDS = 60


def _too_long(*_: object) -> None:
    raise TimeoutError(f"the test hangs: {TEST_SECONDS} seconds are over")


@pytest.fixture(autouse=True)
def _deadline() -> Iterator[None]:
    """A wait without an end is a failure of its test, not of the whole run."""
    before = signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(TEST_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Puts a BytesTarget behind its bridge: disks.Served."""
    from tests.unit.disks import serving_disks

    with serving_disks(monkeypatch) as make:
        yield make


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A device on fakes: bench.Bench."""
    from tests.unit.bench import on_a_bench

    return on_a_bench(tmp_path, monkeypatch)
