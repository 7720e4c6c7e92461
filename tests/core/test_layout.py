"""What Python has read from the headers is what the compiler made of them."""

from __future__ import annotations

import pytest

from .core import Core
from .driver import (
    DISCARD,
    FLUSH,
    FUA,
    LEAD,
    LEND,
    NEED_REG_BUF,
    NOUNMAP,
    READ,
    UNLEND,
    WRITE,
    WRITE_ZEROES,
    Kind,
    Op,
)

STRUCTS = [
    "fake_config",
    "group",
    "group_env",
    "issued",
    "lease_table",
    "loop",
    "member",
    "outcome",
    "plan_member",
    "queue_config",
    "queue_stats",
    "recorded",
    "reaction",
    "ublksrv_io_desc",
]


@pytest.mark.parametrize("name", STRUCTS)
def test_a_struct_is_as_large_for_python_as_for_c(core: Core, name: str) -> None:
    full = f"struct {name}"
    assert core.ffi.sizeof(full) == core.lib.size_of(full.encode())


def test_python_counts_members_and_outcomes_as_c_does(core: Core) -> None:
    for op in Op:
        assert getattr(core.lib, f"MEMBER_{op.name}") == op
    for kind in Kind:
        assert getattr(core.lib, f"OUTCOME_{kind.name}") == kind


def test_python_knows_the_requests_by_the_kernels_numbers(core: Core) -> None:
    lib = core.lib
    assert (READ, WRITE, FLUSH, DISCARD, WRITE_ZEROES) == (
        lib.UBLK_IO_OP_READ,
        lib.UBLK_IO_OP_WRITE,
        lib.UBLK_IO_OP_FLUSH,
        lib.UBLK_IO_OP_DISCARD,
        lib.UBLK_IO_OP_WRITE_ZEROES,
    )
    assert (FUA, NOUNMAP, NEED_REG_BUF) == (
        lib.UBLK_IO_F_FUA,
        lib.UBLK_IO_F_NOUNMAP,
        lib.UBLK_IO_F_NEED_REG_BUF,
    )


def test_python_has_the_same_places_for_commands_as_c(core: Core) -> None:
    assert (LEND, UNLEND, LEAD) == (core.lib.AT_LEND, core.lib.AT_UNLEND, core.lib.AT_LEAD)
