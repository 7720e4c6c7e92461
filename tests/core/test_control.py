"""The control node, as far as it goes without the driver."""

from __future__ import annotations

import errno
import os

import pytest

from .core import Core
from .files import open_fds


def test_without_the_driver_there_is_no_control_and_nothing_is_left(core: Core) -> None:
    if os.path.exists("/dev/ublk-control"):
        pytest.skip("the driver is loaded: tests/device asks it")
    before = open_fds()
    out = core.ffi.new("struct control **")
    assert core.lib.control_init(out) == -errno.ENOENT
    assert out[0] == core.ffi.NULL
    assert open_fds() == before


def test_no_control_is_nothing_to_close(core: Core) -> None:
    core.lib.control_deinit(core.ffi.NULL)
