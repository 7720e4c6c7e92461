"""A disk from read() and write(): what its methods say of it, and how they are called."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.disks import FUA, Disk, Served, lines
from ublkd.target import BytesTarget, Op

# --- what the methods say of the disk ---------------------------------------


@given(methods=st.sets(st.sampled_from(["read", "write", "flush", "discard", "write_zeroes"])))
def test_a_method_that_is_there_is_a_capability(methods: set[str]) -> None:
    has = {name: getattr(Disk, name) for name in methods}
    made = type("Made", (BytesTarget,), {"size": 5000, "block_size": 1024, **has})()
    params = made.params
    assert params.in_memory
    assert (params.size, params.logical_block) == (4096, 1024)
    assert params.read_only == ("write" not in methods)
    assert params.volatile_cache == params.fua == ("flush" in methods)
    assert (params.max_discard > 0) == ("discard" in methods)
    assert params.discard_granularity == 1024
    assert (params.max_write_zeroes > 0) == ("write_zeroes" in methods)
    assert params.max_discard % 4096 == 0
    assert params.max_discard < 1 << 32
    assert (made.files(), made.describe()) == ((), {})


def test_options_become_keywords() -> None:
    class Sized(BytesTarget):
        def __init__(self, size: int, name: str) -> None:
            self.size, self.name = size, name

    made = Sized.from_options({"size": 8192, "name": "x"})
    assert (made.params.size, made.name) == (8192, "x")


# --- one after the other ----------------------------------------------------


def test_every_method_gets_what_its_request_names(
    serve: Callable[[BytesTarget], Served],
) -> None:
    disk = Disk()
    served = serve(disk)
    assert served.engine.pages is not None
    served.engine.pages[:4096] = b"w" * 4096
    requests = [
        (Op.WRITE, 8192, 4096), (Op.READ, 4096, 1024), (Op.FLUSH,),
        (Op.DISCARD, 0, 1 << 19), (Op.WRITE_ZEROES, 8192, 512),
    ]  # fmt: skip
    assert served.turn(*requests) == [4096, 1024, 0, 0, 0]
    assert disk.log == [
        ("write", 8192, 4096), ("read", 4096, 1024), ("flush",),
        ("discard", 0, 1 << 19), ("write_zeroes", 8192, 512),
    ]  # fmt: skip
    assert disk.data[8192:12288] == bytes(512) + b"w" * 3584
    assert served.engine.pages[:4096] == bytes(1024) + b"w" * 3072
    assert not [call for call in served.engine.calls if call[0] == "group_hold"]


def test_what_is_to_be_written_cannot_be_changed(serve: Callable[[BytesTarget], Served]) -> None:
    seen = []

    class Checks(Disk):
        def write(self, offset: int, data: memoryview) -> None:
            seen.append(data.readonly)

    assert serve(Checks()).turn((Op.WRITE, 0, 512)) == [512]
    assert seen == [True]


@pytest.mark.parametrize("op", [Op.WRITE, Op.WRITE_ZEROES])
def test_what_must_be_durable_is_flushed_after_it_was_written(
    serve: Callable[[BytesTarget], Served], op: Op
) -> None:
    disk = Disk()
    served = serve(disk)
    served.turn((op, 0, 512, FUA), (op, 0, 512), (Op.READ, 0, 512, FUA))
    assert [call[0] for call in disk.log] == [METHOD[op], "flush", METHOD[op], "read"]


METHOD = {Op.WRITE: "write", Op.WRITE_ZEROES: "write_zeroes"}


def test_a_flush_that_fails_fails_what_should_be_durable(
    serve: Callable[[BytesTarget], Served],
) -> None:
    class Unsafe(Disk):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "no room")

    assert serve(Unsafe()).turn((Op.WRITE, 0, 512, FUA)) == [-errno.ENOSPC]


@pytest.mark.parametrize("op", [Op.READ, Op.WRITE])
@pytest.mark.parametrize(
    ("returned", "answer", "said"),
    [
        (None, 4096, ""),
        (4096, 4096, ""),
        (1000, 1000, ""),
        (0, 0, ""),
        (4097, -errno.EIO, "returned 4097, of 4096 bytes"),
        (-1, -errno.EIO, "returned -1, of 4096 bytes"),
        ("all", -errno.EIO, "returned str"),
        (b"bytes", -errno.EIO, "returned bytes"),
    ],
)
def test_a_method_says_how_much_it_did(
    serve: Callable[[BytesTarget], Served],
    caplog: pytest.LogCaptureFixture,
    op: Op,
    returned: Any,
    answer: int,
    said: str,
) -> None:
    class Returns(Disk):
        def read(self, offset: int, into: memoryview) -> Any:
            return returned

        def write(self, offset: int, data: memoryview) -> Any:
            return returned

    assert serve(Returns()).turn((op, 0, 4096)) == [answer]
    assert len(lines(caplog)) == bool(said)
    assert said in "".join(lines(caplog))


@pytest.mark.parametrize(
    ("error", "answer", "logged"),
    [
        (OSError(errno.ENODATA, "none"), -errno.ENODATA, 0),
        (TimeoutError(), -errno.ETIMEDOUT, 0),
        (ZeroDivisionError("oops"), -errno.EIO, 1),
    ],
)
@pytest.mark.parametrize("how", ["sync", "async"])
def test_an_exception_is_the_requests_failure_and_the_next_one_is_served(
    serve: Callable[[BytesTarget], Served],
    caplog: pytest.LogCaptureFixture,
    how: str,
    error: BaseException,
    answer: int,
    logged: int,
) -> None:
    class Raises(Disk):
        def read(self, offset: int, into: memoryview) -> None:
            if offset == 0:
                raise error

    class RaisesLater(Disk):
        async def read(self, offset: int, into: memoryview) -> None:  # type: ignore[override]
            if offset == 0:
                raise error

    served = serve(Raises() if how == "sync" else RaisesLater())
    served.turn((Op.READ, 0, 512), (Op.READ, 512, 512))
    if how == "async":
        served.wait(2)
    assert served.engine.answers() == [answer, 512]
    assert len(lines(caplog)) == logged


def test_a_plain_method_that_returns_something_to_wait_for_is_a_mistake_and_said(
    serve: Callable[[BytesTarget], Served], caplog: pytest.LogCaptureFixture
) -> None:
    class Never:
        def __await__(self) -> Iterator[None]:
            yield

    class Hidden(Disk):
        def read(self, offset: int, into: memoryview) -> Any:
            return Never()

    assert serve(Hidden()).turn((Op.READ, 0, 512)) == [-errno.EIO]
    assert "async def" in "".join(lines(caplog))
