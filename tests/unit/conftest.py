"""Makes sure that it is the installed ublkd that is tested: the source tree has no ``_core``."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

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
