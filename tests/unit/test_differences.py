"""What a file says now, beside what its device was made with."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from ublkd import differences
from ublkd.config import DeviceConfig, build
from ublkd.state import DeviceState, _decoded


def remembered(config: DeviceConfig, **more: Any) -> DeviceState:
    """A device of that config as another process reads it from its file."""
    state = DeviceState(
        id=0, cookie=1, pid=1, name=config.name, target=config.target,
        options=dict(config.options) | more, lease="copy", asked=config.asked,
    )  # fmt: skip
    read = _decoded(json.dumps(asdict(state)).encode(), 0)
    assert read
    return read


def told(old: DeviceConfig, new: DeviceConfig) -> list[str]:
    return [str(change) for change in differences.between(remembered(old), new)]


LOOP = {"file": "/a"}


@pytest.mark.parametrize(
    "config",
    [
        build("loop", LOOP),
        build("stripe", {"file": ("/a", "/b")}, queues="64", depth="7", name="x"),
        build("nbd", {"uri": "nbd://h", "reconnect-window": "inf"}, lease="copy"),
        build("faulty", {"over": "loop", "file": "/a"}, no_partscan=True, recovery="fail"),
    ],
)
def test_the_same_is_no_change(config: DeviceConfig) -> None:
    assert not told(config, config)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ({}, {"queues": "2"}, ["queues 1 -> 2"]),
        ({"depth": "64"}, {}, ["depth 64 -> 128"]),
        ({"max_io": "64K"}, {"max_io": "1M"}, ["max-io 64K -> 1M"]),
        ({}, {"lease": "copy"}, ["lease the default -> copy"]),
        ({"recovery": "fail"}, {}, ["recovery fail -> the default"]),
        ({}, {"no_partscan": True}, ["no-partscan false -> true"]),
        ({"id": "3"}, {"queues": "2"}, ["id 3 -> the default", "queues 1 -> 2"]),
        ({"name": "a"}, {"name": "b"}, []),
    ],
    ids=str,
)
def test_general_options_are_compared_as_they_were_asked_for(
    old: dict[str, Any], new: dict[str, Any], said: list[str]
) -> None:
    assert told(build("loop", LOOP, **old), build("loop", LOOP, **new)) == said


def test_options_of_the_target_are_compared_with_their_defaults() -> None:
    old, new = build("loop", LOOP), build("loop", {"file": "/b", "offset": "1M", "share": True})
    assert told(old, new) == ["file /a -> /b", "offset 0 -> 1M", "share false -> true"]
    old = build("mirror", {"file": ("/a", "/b")})
    assert told(old, build("mirror", {"file": ("/b", "/a")})) == ["file /a, /b -> /b, /a"]
    old = build("null", {"size": "1M"})
    assert told(old, build("null", {"size": "1M", "block-size": "4K"})) == ["block-size none -> 4K"]


def test_what_can_be_changed_while_the_disk_is_there_is_told_apart() -> None:
    old = build("nbd", {"uri": "nbd://h"}, queues="1")
    new = build("nbd", {"uri": "nbd://h", "reconnect-window": "60", "request-timeout": "0.25",
                        "connections": "2"}, queues="2")  # fmt: skip
    assert told(old, new) == [
        "queues 1 -> 2", "connections 1 -> 2", "reconnect-window 30 -> 60",
        "request-timeout 60 -> 0.25",
    ]  # fmt: skip
    live = differences.live(remembered(old), new)
    assert live == {"reconnect_window": 60.0, "request_timeout": 0.25}
    assert not differences.live(remembered(old), build("loop", LOOP | {"follow-size": True}))


def test_another_target_is_one_change() -> None:
    assert told(build("null", {"size": "1M"}), build("loop", LOOP)) == ["target null -> loop"]


def test_an_option_that_is_new_in_this_version_is_no_change() -> None:
    state = remembered(build("loop", LOOP))
    older = {key: value for key, value in state.options.items() if key != "sizelimit"}
    assert not differences.between(replace(state, options=older), build("loop", LOOP))
