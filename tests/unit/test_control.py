from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.helpers import DRIVER_THERE, is_one_line, open_fds
from ublkd import control
from ublkd._core import ffi
from ublkd.control import CommandError, Control, unavailable
from ublkd.errors import NotPossibleError, UblkdError
from ublkd.target import Params
from ublkd.uapi import Attr, Cmd, DevState, Feature, ParamType

powers = st.integers(9, 30).map(lambda shift: 1 << shift)
lengths = st.integers(0, 0xFFFFFFFF)
all_params = st.builds(
    Params,
    size=st.integers(1, 1 << 48).map(lambda pages: pages * 4096),
    logical_block=st.integers(9, 12).map(lambda shift: 1 << shift),
    physical_block=powers,
    io_min=powers,
    io_opt=powers,
    dma_align=st.sampled_from([4, 8, 512, 4096]),
    read_only=st.booleans(),
    rotational=st.booleans(),
    volatile_cache=st.booleans(),
    fua=st.booleans(),
    discard_granularity=st.integers(0, 1 << 30),
    max_discard=lengths,
    max_write_zeroes=lengths,
)


@given(all_params, st.integers(4096, 1 << 25))
def test_params_reach_the_driver_as_shifts_and_sectors(params: Params, max_io: int) -> None:
    raw = control._raw_params(params, max_io)
    basic, discard = raw.basic, raw.discard
    assert raw.len == ffi.sizeof("struct ublk_params")
    for shift, size in (
        (basic.logical_bs_shift, params.logical_block),
        (basic.physical_bs_shift, params.physical_block),
        (basic.io_min_shift, params.io_min),
        (basic.io_opt_shift, params.io_opt),
    ):
        assert 1 << shift == size
    assert basic.dev_sectors == params.size // 512
    assert basic.max_sectors == max_io // 512
    assert raw.dma.alignment == params.dma_align - 1
    has_discard = bool(params.max_discard or params.max_write_zeroes)
    assert bool(raw.types & ParamType.DISCARD) == has_discard
    assert raw.types & (ParamType.BASIC | ParamType.DMA_ALIGN) == raw.types & ~ParamType.DISCARD
    if has_discard:
        assert discard.max_discard_sectors == params.max_discard // 512
        assert discard.max_write_zeroes_sectors == params.max_write_zeroes // 512
        assert discard.discard_granularity == params.discard_granularity
        assert discard.max_discard_segments == 1


@given(all_params)
def test_attributes_are_told_as_they_are_and_fua_only_with_a_cache(params: Params) -> None:
    attrs = Attr(control._raw_params(params, 4096).basic.attrs)
    assert (Attr.READ_ONLY in attrs) == params.read_only
    assert (Attr.ROTATIONAL in attrs) == params.rotational
    assert (Attr.VOLATILE_CACHE in attrs) == params.volatile_cache
    assert (Attr.FUA in attrs) == (params.fua and params.volatile_cache)


NUMBERS = [errno.ENOENT, errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENXIO, errno.ENODEV,
           errno.EINVAL]  # fmt: skip
SHORT = [errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.EINTR]


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A control node that is there, and a machine that does not forbid io_uring."""
    (tmp_path / "node").write_text("")
    monkeypatch.setattr(control, "CONTROL_NODE", tmp_path / "node")
    monkeypatch.setattr(control, "IO_URING_DISABLED", tmp_path / "io_uring_disabled")
    return tmp_path / "node"


@pytest.mark.parametrize("euid", [0, 1000])
@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("number", NUMBERS)
def test_an_unusable_driver_is_explained(
    node: Path, monkeypatch: pytest.MonkeyPatch, number: int, there: bool, euid: int
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: euid)
    if not there:
        node.unlink()
    error = unavailable(number)
    assert error.exit_code == 3
    assert is_one_line(error.message)
    assert is_one_line(error.hint)
    assert error.hint
    if not there:
        assert "modprobe ublk_drv" in error.hint
    elif number == errno.EACCES:
        assert ("sudo" in error.hint) == (euid != 0)


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("number", SHORT)
def test_a_shortage_is_no_reason_never_to_try_again(node: Path, number: int, there: bool) -> None:
    """A unit with status 3 is not started again, and its disk would wait for ever."""
    if not there:
        node.unlink()
    error = unavailable(number)
    assert error.exit_code == 1
    assert is_one_line(error.message)
    assert is_one_line(error.hint)
    assert error.hint
    assert ("ulimit -l" in error.hint) == (number == errno.ENOMEM)


@pytest.mark.parametrize("number", [errno.EIO, errno.EBUSY])
def test_what_is_not_known_to_stay_so_is_tried_again(node: Path, number: int) -> None:
    assert unavailable(number).exit_code == 1


@pytest.mark.parametrize(
    ("setting", "number", "disabled"),
    [
        ("0", errno.EPERM, False),
        ("1", errno.EPERM, True),
        ("1", errno.EACCES, False),
        ("2", errno.EPERM, True),
        ("2", errno.EACCES, True),
        (None, errno.EPERM, False),
    ],
)
def test_a_disabled_io_uring_is_named(
    node: Path, monkeypatch: pytest.MonkeyPatch, setting: str | None, number: int, disabled: bool
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    if setting is not None:
        node.with_name("io_uring_disabled").write_text(setting + "\n")
    assert ("kernel.io_uring_disabled" in unavailable(number).message) == disabled


@pytest.mark.skipif(DRIVER_THERE, reason="this machine has a ublk driver")
def test_without_a_driver_the_control_cannot_be_entered() -> None:
    before = open_fds()
    with pytest.raises(NotPossibleError, match="not loaded"), Control():
        pass
    assert open_fds() == before


Driver = Callable[[Cmd, int, int, Any, int, int], int]


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> Callable[[Driver], Control]:
    """A Control whose commands go to a function: (cmd, id, data, buf, length, path_length)."""

    def with_driver(driver: Driver) -> Control:
        def command(_: Any, cmd: int, dev_id: int, data: int, buf: Any, *rest: int) -> int:
            return driver(Cmd(cmd), dev_id, data, buf, rest[0], rest[1])

        monkeypatch.setattr(control, "lib", SimpleNamespace(control_cmd=command))
        return Control()

    return with_driver


def test_a_refused_command_is_named_with_its_reason(answered: Any) -> None:
    made = answered(lambda *_: -errno.EBUSY)
    for call in (made.start_dev, lambda n, _: made.stop_dev(n), lambda n, _: made.del_dev(n)):
        with pytest.raises(
            CommandError, match=r"refused .*_DEV: device or resource busy"
        ) as caught:
            call(3, 42)
        assert caught.value.errno == errno.EBUSY
        assert caught.value.hint


@pytest.mark.parametrize("answer", [-errno.ENODEV, 0])
def test_a_device_that_is_gone_is_said_to_be_gone(answered: Any, answer: int) -> None:
    """Also if its number is another's by now, who has yet to say what its disk is."""
    with pytest.raises(CommandError) as caught:
        answered(lambda *_: answer).get_params(3)
    assert caught.value.message == (
        "/dev/ublkb3 was stopped or deleted meanwhile (the ublk driver refused GET_PARAMS: no such "
        "device)"
    )
    assert caught.value.hint == "see 'ublkd list'"


def test_parameters_are_the_targets_fault_only_if_the_driver_calls_them_wrong(
    answered: Any,
) -> None:
    for number, words in ((errno.EINVAL, "these parameters"), (errno.ENODEV, "deleted meanwhile")):
        with pytest.raises(UblkdError, match=words):
            answered(lambda *_, number=number: -number).set_params(
                3, Params(size=4096), max_io=4096
            )


def test_a_driver_that_does_not_answer_is_an_error_in_time(answered: Any) -> None:
    with pytest.raises(UblkdError, match=r"did not answer STOP_DEV within 60 seconds") as caught:
        answered(lambda *_: -errno.ETIMEDOUT).stop_dev(3)
    assert not isinstance(caught.value, CommandError)
    assert caught.value.hint


def test_a_device_that_is_gone_while_its_number_is_held_is_deleted(answered: Any) -> None:
    assert answered(lambda *_: 0).del_dev(3)
    # there is no such device in /sys, so it is only its number that the driver waits for
    assert not answered(lambda *_: -errno.ETIMEDOUT).del_dev(900_000)


def test_a_new_size_is_told_in_sectors_where_the_driver_can_change_it(answered: Any) -> None:
    said: list[tuple[int, int]] = []

    def driver(cmd: Cmd, dev_id: int, data: int, buf: Any, length: int, path_length: int) -> int:
        if cmd is Cmd.GET_FEATURES:
            ffi.cast("uint64_t *", buf)[0] = int(offered)
        elif cmd is Cmd.GET_DEV_INFO:
            buf.state = state
        else:
            assert cmd is Cmd.UPDATE_SIZE
            said.append((dev_id, data))
        return 0

    offered, state = Feature.UPDATE_SIZE, DevState.LIVE
    answered(driver).update_size(3, 1 << 20)
    assert said == [(3, 2048)]
    state = DevState.DEAD
    with pytest.raises(CommandError, match="UPDATE_SIZE: no such device"):
        answered(driver).update_size(3, 1 << 20)
    offered = Feature.QUIESCE
    with pytest.raises(NotPossibleError, match="UPDATE_SIZE") as caught:
        answered(driver).update_size(3, 1 << 20)
    assert "anew" in caught.value.hint
    assert len(said) == 1


def test_features_are_all_64_bits_or_the_kernel_is_too_old(answered: Any) -> None:
    def driver(cmd: Cmd, dev_id: int, data: int, buf: Any, length: int, path_length: int) -> int:
        assert (cmd, length) == (Cmd.GET_FEATURES, 8)
        ffi.cast("uint64_t *", buf)[0] = 1 << 63 | 0x1FE
        return 0

    assert answered(driver).get_features() == Feature(1 << 63 | 0x1FE)
    with pytest.raises(NotPossibleError, match="too old") as caught:
        answered(lambda *_: -errno.EOPNOTSUPP).get_features()
    assert "6.5" in caught.value.hint


@pytest.mark.parametrize("number", SHORT)
def test_a_shortage_does_not_make_the_kernel_too_old(answered: Any, number: int) -> None:
    with pytest.raises(CommandError) as caught:
        answered(lambda *_: -number).get_features()
    assert caught.value.exit_code == 1


def test_add_dev_asks_with_our_values_and_believes_the_answer(answered: Any) -> None:
    def driver(cmd: Cmd, dev_id: int, data: int, buf: Any, length: int, path_length: int) -> int:
        assert (cmd, dev_id, buf.dev_id) == (Cmd.ADD_DEV, control.ANY_ID, control.ANY_ID)
        assert (buf.nr_hw_queues, buf.queue_depth, buf.max_io_buf_bytes) == (4, 64, 1 << 20)
        assert (buf.flags, buf.ublksrv_flags) == (Feature.USER_COPY, (1 << 64) - 1)
        buf.dev_id, buf.nr_hw_queues, buf.ublksrv_pid = 9, 2, -1
        return 0

    info = answered(driver).add_dev(
        dev_id=control.ANY_ID, queues=4, depth=64, max_io=1 << 20, flags=Feature.USER_COPY,
        cookie=(1 << 64) - 1,
    )  # fmt: skip
    assert (info.id, info.queues, info.depth, info.pid) == (9, 2, 64, -1)
    assert (info.state, info.cookie) == (DevState.DEAD, (1 << 64) - 1)


def test_an_unprivileged_device_is_asked_again_by_its_path(answered: Any) -> None:
    asked = []

    def driver(cmd: Cmd, dev_id: int, data: int, buf: Any, length: int, path_length: int) -> int:
        asked.append(cmd)
        if cmd is Cmd.GET_DEV_INFO:
            return -errno.EINVAL
        assert ffi.buffer(buf, path_length)[:] == b"/dev/ublkc12\0"
        assert length == path_length + ffi.sizeof("struct ublksrv_ctrl_dev_info")
        info = ffi.cast("struct ublksrv_ctrl_dev_info *", buf + path_length)
        info.dev_id, info.state = dev_id, DevState.LIVE
        return 0

    info = answered(driver).get_dev_info(12)
    assert (info.id, info.state) == (12, DevState.LIVE)
    assert asked == [Cmd.GET_DEV_INFO, Cmd.GET_DEV_INFO2]


def test_a_device_that_is_not_there_is_not_asked_again(answered: Any) -> None:
    with pytest.raises(CommandError, match="GET_DEV_INFO:") as caught:
        answered(lambda *_: -errno.ENODEV).get_dev_info(12)
    assert caught.value.errno == errno.ENODEV


def test_a_state_that_a_newer_kernel_has_is_not_an_exception(answered: Any) -> None:
    def driver(cmd: Cmd, dev_id: int, data: int, buf: Any, length: int, path_length: int) -> int:
        buf.state = 99
        return 0

    assert "99" in answered(driver).get_dev_info(1).state.name


def test_params_that_the_driver_refuses_are_the_targets_fault(answered: Any) -> None:
    with pytest.raises(UblkdError, match="size=4096") as caught:
        answered(lambda *_: -errno.EINVAL).set_params(1, Params(size=4096), max_io=4096)
    assert is_one_line(caught.value.message)
    assert "report" in caught.value.hint


def test_the_size_is_in_bytes_and_0_where_it_is_not_told(answered: Any) -> None:
    def driver(cmd: Cmd, dev_id: int, data: int, buf: Any, length: int, path_length: int) -> int:
        buf.basic.dev_sectors = 8
        return 0

    assert answered(driver).get_size(1) == 4096
    assert answered(lambda *_: -errno.EPERM).get_size(1) == 0


def test_start_dev_tells_the_servers_pid(answered: Any) -> None:
    def driver(cmd: Cmd, dev_id: int, data: int, *_: Any) -> int:
        return 0 if (cmd, dev_id, data) == (Cmd.START_DEV, 5, 42) else -errno.EINVAL

    answered(driver).start_dev(5, 42)


@given(all_params, st.integers(4096, 1 << 25))
def test_what_the_driver_was_told_of_a_disk_is_read_from_it_again(
    params: Params, max_io: int
) -> None:
    told = control._params(control._raw_params(params, max_io))
    fua = params.fua and params.volatile_cache
    discards = params.max_discard or params.max_write_zeroes
    assert told == replace(
        params,
        fua=fua,
        discard_granularity=params.discard_granularity if discards else 0,
        max_discard=params.max_discard // 512 * 512,
        max_write_zeroes=params.max_write_zeroes // 512 * 512,
    )


def test_recovery_and_quiesce_tell_the_driver_a_pid_and_milliseconds(answered: Any) -> None:
    asked: list[tuple[Cmd, int, int]] = []

    def driver(cmd: Cmd, dev_id: int, data: int, *_: Any) -> int:
        asked.append((cmd, dev_id, data))
        return 0

    made = answered(driver)
    made.start_recovery(5)
    made.end_recovery(5, 42)
    made.quiesce_dev(5, 1.5)
    made.quiesce_dev(5, 0)  # 0 would be for ever
    assert asked == [
        (Cmd.START_USER_RECOVERY, 5, 0),
        (Cmd.END_USER_RECOVERY, 5, 42),
        (Cmd.QUIESCE_DEV, 5, 1500),
        (Cmd.QUIESCE_DEV, 5, 1),
    ]
