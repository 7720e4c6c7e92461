"""Lease auto where the pages cannot be registered: the request is carried by user-copy."""

from __future__ import annotations

import os
from pathlib import Path

from tools import fio, leases, sparse

from ublkd import stats
from ublkd.config import build
from ublkd.control import Control
from ublkd.device import Device
from ublkd.features import Lease, negotiate
from ublkd.registry import load
from ublkd.state import StateDir, new_cookie
from ublkd.uevent import wait_for_node

MIB = 1 << 20


def test_requests_without_a_buffer_slot_are_copied_and_verify_clean(scratch: Path) -> None:
    """Half of the tags have no slot in the buffer table, so the driver asks for help with them."""
    if Lease.AUTO.value not in leases():
        return  # the fallback belongs to a lease that this kernel does not have
    disk = sparse(scratch / "disk.img", 64 * MIB)
    config = build("loop", {"file": str(disk)}, depth="32")
    target = load("loop").from_options(config.options)
    states = StateDir()
    with Control() as control:
        features = negotiate(control.get_features(), Lease.AUTO)
        device = Device(
            control, config, target, features, states, cookie=new_cookie(), lease_slots=16
        )
        with device as served:
            node = f"/dev/ublkb{served.id}"
            wait_for_node(node, 10)
            told = fio(
                node, "--rw=randrw", "--bsrange=4k-256k", "--iodepth=32", "--size=32m",
                "--verify=crc32c", "--verify_fatal=1", "--serialize_overlap=1",
            )  # fmt: skip
            assert told["jobs"][0]["error"] == 0
            (counted,) = stats.read(states.counters(served.id))
            done = counted["read"]["requests"] + counted["write"]["requests"]
            assert 0 < counted["fallbacks"] < done
            assert counted["read"]["errors"] == counted["write"]["errors"] == 0
    assert not os.path.exists(node)
