"""Devices that another program has made, in every state: they are told of, and left alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from raw import F_NONE, Server
from tools import device, nothing_left, refused, ublkd, ublkd_json, wait_until

from ublkd.uapi import Feature

pytestmark = pytest.mark.one_kernel

VERBS = (["del"], ["del", "--force"], ["stop"], ["stop", "--force"], ["recover"], ["quiesce"],
         ["upgrade"])  # fmt: skip


def left_alone(dev_id: int, state: str) -> None:
    """Every verb that would change it is refused, and those for all do not mean it."""
    (told,) = [told for told in ublkd_json("list") if told["id"] == dev_id]
    assert (told["ours"], told["state"], told["target"]) == (False, state, None)
    assert "not ours" in ublkd("list").stdout
    assert ublkd_json("show", str(dev_id))["counters"] == []
    for verb, *more in VERBS:
        said = refused(verb, str(dev_id), *more)
        assert f"/dev/ublkb{dev_id} was not made by ublkd and is left alone" in said
    for verb in ("recover", "upgrade", "del"):
        assert not ublkd(verb, "--all").stdout
    assert ublkd_json("show", str(dev_id))["state"] == state


def leftovers() -> list[tuple[str, str]]:
    """What doctor says of devices that nobody serves, and what it would do."""
    told = json.loads(ublkd("doctor", "--json", check=False).stdout)["checks"]
    found = [line for line in told if line["check"] == "leftovers"]
    return [(line["seen"], line["fix"]) for line in found if line["verdict"] == "warning"]


@pytest.mark.parametrize("flags", [Feature.USER_RECOVERY, F_NONE], ids=["kept", "dead"])
def test_a_device_of_another_program_is_told_of_and_left_alone_in_every_state(
    flags: Feature,
) -> None:
    with Server(flags) as server:
        if flags:
            left_alone(server.id, "dead")  # half made
        server.serve()
        if flags:
            left_alone(server.id, "live")
            assert leftovers() == []
        server.let_go()
        end = "quiesced" if flags else "dead"
        wait_until(lambda: ublkd_json("show", str(server.id))["state"] == end, 30, "its end")
        left_alone(server.id, end)
        assert leftovers() == [(f"{server.node} is {end} and nobody serves it", "ask who made it")]
    nothing_left()


def test_between_devices_of_others_ours_are_found_and_theirs_are_not_touched(
    scratch: Path,
) -> None:
    with Server() as server, device("null", "--size", "1M", "--name", "mine") as node:
        server.serve()
        assert [told["ours"] for told in ublkd_json("list")] == [False, True]
        ublkd("del", "--all")
        assert [told["id"] for told in ublkd_json("list")] == [server.id]
        assert not Path(node).exists()
    nothing_left()
