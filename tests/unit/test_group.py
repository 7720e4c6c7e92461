"""A request in Python: what its members become in C, and how it is answered."""

from __future__ import annotations

import errno
import gc
import os
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.engine import Engine, install, read, write
from ublkd._core import ffi
from ublkd.target import Group, Held, IoDesc, Op
from ublkd.target.group import GroupOverError, error_number

FLUSH = IoDesc(Op.FLUSH, 0, 0)
Adds = Callable[[Group], object]


class Made:
    """A group, and what it asks of its bridge."""

    def __init__(self, io: IoDesc, engine: Engine) -> None:
        self.kept: list[Any] = []
        self.reports: list[tuple[IoDesc, BaseException]] = []
        raw = engine.request(io.op, io.offset, io.length)
        self.group = Group(raw, io, 3, self.kept.append, lambda *said: self.reports.append(said))


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    return install(monkeypatch)


MEMBERS: list[tuple[Adds, tuple[Any, ...]]] = [
    (lambda g: g.read(0, 512, 1024), ("group_read", 1, 512, 0, 1024)),
    (lambda g: g.read(2, 512, 1024, 2048), ("group_read", 3, 512, 2048, 1024)),
    (lambda g: g.write(0, 1 << 40, 4096), ("group_write", 1, 1 << 40, 0, 4096, 0)),
    (lambda g: g.write(1, 0, 1, 512, durable=True), ("group_write", 2, 0, 512, 1, os.RWF_DSYNC)),
    (lambda g: g.zeroes(0, 512, 5 << 30), ("group_zeroes", 1, 512, 5 << 30, 0)),
    (lambda g: g.zeroes(0, 0, 1, durable=True), ("group_zeroes", 1, 0, 1, os.RWF_DSYNC)),
    (lambda g: g.fsync(0), ("group_fsync", 1, 1)),
    (lambda g: g.fallocate(0, 3, 512, 1024), ("group_fallocate", 1, 3, 512, 1024)),
    (lambda g: g.discard(1, 512, 1024), ("group_discard", 2, 512, 1024)),
    (lambda g: g.send(0, 4096), ("group_send", 1, 0, 4096, 0)),
    (lambda g: g.send(0, 512, 1024, more=True), ("group_send", 1, 1024, 512, socket.MSG_MORE)),
    (lambda g: g.recv(1, 512, 1024), ("group_recv", 2, 1024, 512)),
]  # fmt: skip


@pytest.mark.parametrize(("adds", "call"), MEMBERS, ids=[call[0] for _, call in MEMBERS])
def test_files_count_from_0_here_and_from_1_behind_the_drivers_there(
    engine: Engine, adds: Adds, call: tuple[Any, ...]
) -> None:
    made = Made(write(), engine)
    assert not made.group.used
    adds(made.group)
    assert engine.calls == [call]
    assert made.group.used


@pytest.mark.parametrize(
    ("durable", "fua", "flags"),
    [
        (None, False, 0),
        (None, True, os.RWF_DSYNC),
        (False, True, 0),
        (True, False, os.RWF_DSYNC),
    ],
)
def test_what_is_written_is_durable_where_the_request_asks_for_it(
    engine: Engine, durable: bool | None, fua: bool, flags: int
) -> None:
    group = Made(write(fua=fua), engine).group
    group.write(0, 0, 4096, durable=durable)
    group.zeroes(0, 0, 4096, durable=durable)
    assert [call[-1] for call in engine.calls] == [flags, flags]


@pytest.mark.parametrize(("adds", "call"), MEMBERS, ids=[call[0] for _, call in MEMBERS])
def test_a_member_that_cannot_be_had_raises_and_a_transfer_beyond_the_capacity_does_not(
    engine: Engine, adds: Adds, call: tuple[Any, ...]
) -> None:
    """What there is no room for comes back with the rest of the request, if it is a transfer."""
    for number, words in ((errno.EINVAL, "beyond the request"), (errno.ENOTSOCK, "no stream")):
        engine.returns[call[0]] = -number
        with pytest.raises(ValueError, match=words):
            adds(Made(write(), engine).group)
    engine.returns[call[0]] = -errno.EPIPE
    with pytest.raises(BrokenPipeError):
        adds(Made(write(), engine).group)
    engine.returns[call[0]] = -errno.E2BIG
    if call[0] in ("group_read", "group_write"):
        adds(Made(write(), engine).group)
    else:
        with pytest.raises(ValueError, match="max_members"):
            adds(Made(write(), engine).group)


@pytest.mark.parametrize("file", [-1, 3, 1 << 20])
def test_a_file_that_is_not_there_is_named(engine: Engine, file: int) -> None:
    with pytest.raises(IndexError, match=f"no file {file} among the 3"):
        Made(read(), engine).group.read(file, 0, 512)
    assert not engine.calls


USES: list[Adds] = [
    *(adds for adds, _ in MEMBERS),
    lambda g: g.send_bytes(0, b"x"),
    lambda g: g.expect(0, b"x"),
    lambda g: g.complete(),
    lambda g: g.fail(errno.EIO),
    lambda g: g.hold(),
    lambda g: g.memory,
]


@pytest.mark.parametrize("use", USES)
def test_after_submit_a_group_is_over(engine: Engine, use: Adds) -> None:
    made = Made(write(), engine)
    made.group.over()
    with pytest.raises(GroupOverError, match=r"hold\(\)"):
        use(made.group)
    assert not engine.calls
    assert not made.kept


# --- memory of the target's own ---------------------------------------------


def test_memory_that_is_sent_is_kept_until_the_request_is_over(engine: Engine) -> None:
    made = Made(write(), engine)
    header = bytearray(b"header")
    made.group.send_bytes(0, header, more=True)  # type: ignore[arg-type]
    made.group.expect(1, b"done")
    header[:] = b"second"  # the kernel sends it later
    (_, file, sent, length, flags), (_, to, into, room, expected) = engine.calls
    assert (file, bytes(ffi.buffer(sent)), length, flags) == (1, b"header", 6, socket.MSG_MORE)
    assert (to, room, bytes(ffi.buffer(expected))) == (2, 4, b"done")
    assert len(ffi.buffer(into)) == 4
    assert any(kept == b"header" for kept in made.kept)
    assert any(kept[0] == b"done" and kept[1] is into for kept in made.kept)


# --- the request's own bytes ------------------------------------------------


def test_the_memory_of_a_request_is_as_long_as_the_request(engine: Engine) -> None:
    assert engine.pages is not None
    engine.pages[:8192] = b"x" * 8192
    memory = Made(read(length=4096), engine).group.memory
    assert (len(memory), memory.readonly) == (4096, False)
    memory[:] = b"y" * 4096
    assert engine.pages[:8192] == b"y" * 4096 + b"x" * 4096


def test_pages_that_are_lent_are_no_memory(engine: Engine) -> None:
    engine.pages = None
    with pytest.raises(RuntimeError, match="in_memory"):
        _ = Made(write(), engine).group.memory


@pytest.mark.parametrize("op", [Op.FLUSH, Op.DISCARD, Op.WRITE_ZEROES])
def test_a_request_without_bytes_has_no_memory(engine: Engine, op: Op) -> None:
    engine.pages = None
    with pytest.raises(RuntimeError, match="only if it is a READ or WRITE"):
        _ = Made(IoDesc(op, 0, 1 << 30), engine).group.memory


# --- answers ----------------------------------------------------------------


@given(moved=st.sampled_from([None, -1, 0, 1, 4095, 4096, 4097, 1 << 40]), late=st.booleans())
def test_no_more_is_answered_than_was_asked_for(moved: int | None, late: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        engine = install(patch)
        made = Made(write(), engine)
        answers = made.group.hold() if late else made.group
        if moved is not None and not 0 <= moved <= 4096:
            with pytest.raises(ValueError, match="of 4096"):
                answers.complete(moved)
            assert engine.answers() == []
            answers.fail(OSError(errno.EIO, "wrong"))
        else:
            answers.complete(moved)
            assert engine.answers() == [4096 if moved is None else moved]


@pytest.mark.parametrize("late", [False, True])
def test_a_read_that_nobody_can_have_filled_is_not_answered(engine: Engine, late: bool) -> None:
    engine.pages = None
    made = Made(read(), engine)
    answers = made.group.hold() if late else made.group
    with pytest.raises(RuntimeError, match="only members reach its pages"):
        answers.complete()
    assert engine.answers() == []
    made.group.recv(0, 4096)  # a member fills it
    answers.complete()
    assert engine.answers() == [4096]


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (errno.ENOSPC, -errno.ENOSPC),
        (-errno.ENOSPC, -errno.EIO),
        (0, -errno.EIO),
        (OSError(errno.ENODATA, "none"), -errno.ENODATA),
        (OSError("no number"), -errno.EIO),
        (TimeoutError(), -errno.ETIMEDOUT),
    ],
)
def test_a_failure_is_always_negative(engine: Engine, error: OSError | int, answer: int) -> None:
    Made(FLUSH, engine).group.fail(error)
    assert engine.calls == [("group_complete", answer)]


@given(
    error=st.one_of(
        st.integers().map(lambda n: OSError(n, "any")),
        st.sampled_from([socket.gaierror(-2, "no such name"), OSError("a", "b"), OSError()]),
        st.builds(ValueError),
    )
)
def test_every_exception_is_an_errno_that_means_failure(error: BaseException) -> None:
    assert error_number(error) in errno.errorcode


# --- held -------------------------------------------------------------------


def test_a_request_that_is_held_is_answered_after_submit(engine: Engine) -> None:
    made = Made(write(), engine)
    held = made.group.hold()
    assert made.group.used
    made.group.over()
    held.complete(512)
    assert engine.calls == [("group_hold",), ("group_answer", 512)]


def test_a_request_has_one_holder(engine: Engine) -> None:
    group = Made(write(), engine).group
    held = group.hold()
    with pytest.raises(RuntimeError, match="held already"):
        group.hold()
    held.complete()
    assert engine.answers() == [4096]


@pytest.mark.parametrize("op", [Op.FLUSH, Op.DISCARD, Op.WRITE_ZEROES])
def test_what_moves_no_bytes_is_answered_with_0_however_long_it_is(engine: Engine, op: Op) -> None:
    Made(IoDesc(op, 0, 0xFFFFF000), engine).group.complete()
    Made(IoDesc(op, 0, 0xFFFFF000), engine).group.hold().complete()
    assert engine.answers() == [0, 0]


@pytest.mark.parametrize("first", ["complete", "fail"])
def test_it_is_answered_once(engine: Engine, first: str) -> None:
    held = Made(write(), engine).group.hold()
    if first == "complete":
        held.complete()
    else:
        held.fail(OSError(errno.ENOSPC, "full"))
    with pytest.raises(GroupOverError, match="already"):
        held.complete()
    with pytest.raises(GroupOverError, match="already"):
        held.fail(OSError(errno.EIO, "again"))
    assert engine.answers() == [4096 if first == "complete" else -errno.ENOSPC]


def test_of_many_threads_one_answers(engine: Engine) -> None:
    held, start, refused = Made(write(), engine).group.hold(), threading.Barrier(8), []

    def answer(number: int) -> None:
        start.wait()
        try:
            held.complete(number)
        except GroupOverError:
            refused.append(number)

    threads = [threading.Thread(target=answer, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(engine.answers()) == 1
    assert sorted([*refused, *engine.answers()]) == list(range(8))


@pytest.mark.parametrize(
    ("error", "answer", "reported"),
    [
        (OSError(errno.ENOSPC, "full"), -errno.ENOSPC, False),
        (TimeoutError(), -errno.ETIMEDOUT, False),
        (KeyError("what"), -errno.EIO, True),
    ],
)
def test_only_what_has_no_errno_is_reported(
    engine: Engine, error: BaseException, answer: int, reported: bool
) -> None:
    made = Made(write(), engine)
    made.group.hold().fail(error)
    assert engine.answers() == [answer]
    assert made.reports == ([(write(), error)] if reported else [])


def test_a_request_that_the_target_forgets_fails(engine: Engine) -> None:
    made = Made(write(), engine)
    held: Held | None = made.group.hold()
    assert held is not None
    held = None
    gc.collect()
    assert engine.answers() == [-errno.EIO]
    ((_, said),) = made.reports
    assert "forgot" in str(said)
