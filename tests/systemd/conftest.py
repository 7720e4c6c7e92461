"""Tests of the units and the package: in the lab, where systemd is process 1 (`make systemd`)."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import verbs

# Last on the path, where the folder ublkd/ does not hide the installed package: for `tests.*`.
sys.path.append(str(Path(__file__).resolve().parents[2]))

from tests.systemd import units

HERE = "UBLKD_LAB" in os.environ and Path("/run/systemd/system").exists()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if HERE:
        return
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.skip(reason="needs the lab with systemd (make systemd)"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    if HERE and report.failed and report.when == "call":
        report.sections.append(("journal", units.journal()))
    return report


@pytest.fixture(scope="session", autouse=True)
def _verbs() -> Iterator[None]:
    with verbs.forked():
        yield


@pytest.fixture
def described() -> Iterator[units.Describe]:
    """Describes devices, which are gone after the test with their files and drop-ins."""
    describe = units.Describe()
    yield describe
    describe.remove()
