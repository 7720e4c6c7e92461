"""From a turn of the engine's loop into a target in Python, and what its failures become."""

from __future__ import annotations

import errno
import gc
import logging
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.unit.engine import Engine, install
from tests.unit.helpers import is_one_line
from ublkd._core import lib
from ublkd.target import Group, Held, IoDesc, Native, Op, Params
from ublkd.target.bridge import LINES, SECONDS, Bridge, serving

Submit = Callable[[IoDesc, Group], object]


class Plain:
    """A target as far as the bridge sees one."""

    def __init__(self, submit: Submit, *, read_only: bool = False) -> None:
        self.submit = submit
        self.params = Params(size=1 << 20, read_only=read_only)

    def files(self) -> Sequence[int]:
        return (0, 1)


class Served:
    """A target behind its bridge."""

    def __init__(self, engine: Engine, submit: Submit, **how: bool) -> None:
        self.engine = engine
        self.native = Bridge(Plain(submit, **how), "toy").native

    def turn(self, *requests: Any) -> list[int]:
        """What was answered in this turn."""
        before = len(self.engine.answers())
        self.engine.turn(self.native, requests)
        return self.engine.answers()[before:]

    def flush(self) -> list[int]:
        return self.turn(self.engine.request(Op.FLUSH))


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    return install(monkeypatch)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that reports see."""
    now = [1000.0]
    monkeypatch.setattr("ublkd.target.bridge.time.monotonic", lambda: now[0])
    return now


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def raising(error: BaseException) -> Submit:
    def submit(io: IoDesc, group: Group) -> None:
        raise error

    return submit


# --- a turn -----------------------------------------------------------------


def test_a_turn_is_served_request_by_request_in_its_order(engine: Engine) -> None:
    seen: list[IoDesc] = []

    def submit(io: IoDesc, group: Group) -> None:
        seen.append(io)
        group.complete()

    requests = [
        engine.request(Op.READ, 1 << 40, 4096),
        engine.request(Op.WRITE, 512, 1024, lib.UBLK_IO_F_FUA),
        engine.request(Op.WRITE_ZEROES, 0, 1 << 30, lib.UBLK_IO_F_NOUNMAP),
        engine.request(Op.FLUSH),
    ]
    assert Served(engine, submit).turn(*requests) == [4096, 1024, 0, 0]
    assert seen == [
        IoDesc(Op.READ, 1 << 40, 4096),
        IoDesc(Op.WRITE, 512, 1024, fua=True),
        IoDesc(Op.WRITE_ZEROES, 0, 1 << 30, keep_space=True),
        IoDesc(Op.FLUSH, 0, 0),
    ]


def test_the_table_says_that_answers_may_come_late(engine: Engine) -> None:
    ops = Served(engine, lambda _io, group: group.complete()).native.ops
    assert (ops.abi, ops.flags) == (lib.UBLKD_TARGET_ABI, lib.UBLKD_ANSWERS_LATE)


def test_native_functions_go_before_submit() -> None:
    native = Native("ops", "handle")
    plain = Plain(lambda _io, _group: None)
    assert isinstance(serving(plain, "toy").keep, Bridge)  # type: ignore[arg-type]
    plain.native = lambda: native  # type: ignore[attr-defined]
    assert serving(plain, "toy") is native  # type: ignore[arg-type]


def test_a_bridge_lives_as_long_as_its_table_is_held(engine: Engine) -> None:
    served = Served(engine, lambda _io, group: group.complete())
    alive = weakref.ref(served.native.keep)
    gc.collect()
    assert served.flush() == [0]
    del served
    gc.collect()
    assert alive() is None


def test_an_op_that_nobody_knows_is_not_supported(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    served = Served(engine, lambda _io, group: group.complete())
    assert served.turn(engine.request(200), engine.request(Op.FLUSH)) == [-errno.EOPNOTSUPP, 0]
    assert said(caplog) == []


def test_a_read_only_disk_is_only_read(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    seen = []

    def submit(io: IoDesc, group: Group) -> None:
        seen.append(io.op)
        group.complete()

    served = Served(engine, submit, read_only=True)
    answers = served.turn(*(engine.request(op, 0, 0) for op in Op))
    assert seen == [Op.READ, Op.FLUSH]
    assert answers == [0, -errno.EROFS, 0, -errno.EROFS, -errno.EROFS]
    assert said(caplog) == []


# --- failures ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (OSError(errno.ENOSPC, "full"), -errno.ENOSPC),
        (TimeoutError(), -errno.ETIMEDOUT),
        (TimeoutError(errno.EIO, "odd"), -errno.ETIMEDOUT),
        (ConnectionResetError(errno.ECONNRESET, "gone"), -errno.ECONNRESET),
    ],
)
def test_an_oserror_is_its_errno_and_no_line_in_the_log(
    engine: Engine, caplog: pytest.LogCaptureFixture, error: OSError, answer: int
) -> None:
    assert Served(engine, raising(error)).flush() == [answer]
    assert said(caplog) == []


@pytest.mark.parametrize(
    "error",
    [
        ValueError("it\nis\x1b[31m wrong"),
        KeyError("what"),
        SystemExit(3),
        RuntimeError(),
        OSError("without a number"),
    ],
)
def test_any_other_exception_is_eio_and_one_line_that_says_where(
    engine: Engine, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    served = Served(engine, raising(error))
    assert served.turn(engine.request(Op.WRITE, 8192, 4096)) == [-errno.EIO]
    (line,) = said(caplog)
    assert is_one_line(line)
    assert line.startswith("target toy: WRITE of 4096 bytes at byte 8192 failed: ")
    assert type(error).__name__ in line
    assert f"{__file__}:" in line


def test_a_failure_spares_the_other_requests_of_its_turn(engine: Engine) -> None:
    def submit(io: IoDesc, group: Group) -> None:
        if io.offset == 4096:
            raise ValueError("this one")
        group.complete()

    requests = [engine.request(Op.WRITE, at, 512) for at in (0, 4096, 8192)]
    assert Served(engine, submit).turn(*requests) == [512, -errno.EIO, 512]


@pytest.mark.parametrize(
    "use", [lambda g: None, lambda g: g._io, lambda g: g.memory], ids=["nothing", "looks", "reads"]
)
def test_a_target_that_does_nothing_fails_the_request_and_is_named(
    engine: Engine, caplog: pytest.LogCaptureFixture, use: Callable[[Group], object]
) -> None:
    served = Served(engine, lambda _io, group: use(group))
    assert served.turn(engine.request(Op.READ, 0, 512)) == [-errno.EIO]
    (line,) = said(caplog)
    assert "target toy: READ" in line
    assert "neither added a member nor answered" in line


@pytest.mark.parametrize(
    "use",
    [lambda g: g.fsync(0), lambda g: g.fail(5), lambda g: g.send_bytes(0, b"x")],
    ids=["member", "answer", "bytes"],
)
def test_a_target_that_does_something_is_left_to_it(
    engine: Engine, caplog: pytest.LogCaptureFixture, use: Callable[[Group], object]
) -> None:
    Served(engine, lambda _io, group: use(group)).flush()
    assert len(engine.calls) == 1
    assert said(caplog) == []


def test_a_group_is_over_when_submit_has_returned(engine: Engine) -> None:
    groups: list[Group] = []
    Served(engine, lambda _io, group: groups.append(group)).flush()
    with pytest.raises(RuntimeError, match="submit"):
        groups[0].fsync(0)


def test_a_request_that_was_held_and_forgotten_fails_and_is_reported(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    kept: list[Held] = []
    served = Served(engine, lambda _io, group: kept.append(group.hold()))
    assert served.turn(engine.request(Op.WRITE, 512, 512)) == []
    kept.clear()
    gc.collect()
    assert engine.answers() == [-errno.EIO]
    (line,) = said(caplog)
    assert "target toy: WRITE of 512 bytes at byte 512 failed: " in line
    assert "forgot to answer" in line


# --- how often it is said ---------------------------------------------------


def test_a_disk_that_keeps_failing_is_not_all_that_is_in_the_log(
    engine: Engine, caplog: pytest.LogCaptureFixture, clock: list[float]
) -> None:
    served = Served(engine, raising(ValueError("again")))
    for _ in range(LINES + 7):
        assert served.flush() == [-errno.EIO]
        clock[0] += 0.001
    assert len(said(caplog)) == LINES
    assert not any("not logged" in line for line in said(caplog))
    clock[0] += SECONDS
    served.flush()
    served.flush()
    assert said(caplog)[LINES].endswith("; 7 failures before it were not logged")
    assert "not logged" not in said(caplog)[LINES + 1]


def test_the_lines_of_a_minute_are_counted_as_it_moves(
    engine: Engine, caplog: pytest.LogCaptureFixture, clock: list[float]
) -> None:
    served = Served(engine, raising(ValueError("slowly")))
    for _ in range(5 * LINES):
        served.flush()
        clock[0] += SECONDS / LINES
    assert len(said(caplog)) == 5 * LINES


# --- memory -----------------------------------------------------------------


def test_memory_lives_until_the_groups_next_request(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)

    def submit(io: IoDesc, group: Group) -> None:
        if io.op is Op.FLUSH:
            group.complete()
            return
        group.send_bytes(0, b"header")
        group.expect(0, b"done")

    def kept() -> list[int]:
        return [len(what) for what in served.native.keep._kept.values()]

    served = Served(engine, submit)
    first, second = (engine.request(Op.WRITE, 0, 512) for _ in range(2))
    served.turn(first, second)
    engine.calls.clear()
    gc.collect()
    assert kept() == [2, 2]
    first.iod = engine.request(Op.FLUSH).iod
    served.turn(first)
    gc.collect()
    assert kept() == [2]
    assert said(caplog) == []
