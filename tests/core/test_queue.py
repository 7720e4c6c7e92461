"""A queue that cannot serve: it is refused, or it ends and says why; it never hangs."""

from __future__ import annotations

import errno
import os
import resource
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from .core import Core
from .files import FileMaker, limit, open_fds

DEADLINE = 60
QUEUE_DEPTH = 8


class Queues:
    """Makes queues of null targets and runs them in threads."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.stats = core.ffi.new("struct queue_stats *")
        self.made: list[Any] = []

    def new(self, dev_fd: int = -1, files: Sequence[int] = (), **changes: Any) -> int:
        c = self.core.ffi.new("struct queue_config *")
        c.dev_fd, c.depth, c.max_io, c.block, c.max_members = dev_fd, QUEUE_DEPTH, 1 << 20, 512, 4
        c.align = 1
        c.notify_fd = -1
        c.lease = self.core.lib.LEASE_COPY
        c.lease_slots = QUEUE_DEPTH
        c.ops = self.core.lib.null_ops()
        c.stats = self.stats
        c.files = kept = self.core.ffi.new("int[]", list(files))
        c.nr_files = len(files)
        for name, value in changes.items():
            setattr(c, name, value)
        out = self.core.ffi.new("struct queue **")
        ret = int(self.core.lib.queue_new(c, out))
        self.core.ffi.release(kept)  # the config and its files are copied
        if ret == 0:
            self.made.append(out[0])
        else:
            assert out[0] == self.core.ffi.NULL
        return ret

    def run(self) -> int:
        """The last queue's thread, from start to end."""
        ended: list[int] = []
        queue = self.made[-1]
        thread = threading.Thread(
            target=lambda: ended.append(self.core.lib.queue_run(queue)), daemon=True
        )
        thread.start()
        ready = self.wait(DEADLINE * 1000)
        thread.join(DEADLINE)
        assert not thread.is_alive(), "the queue hangs"
        assert ready == ended[0]
        return ended[0]

    def wait(self, ms: int) -> int:
        return int(self.core.lib.queue_wait_ready(self.made[-1], ms))

    def free(self) -> None:
        while self.made:
            self.core.lib.queue_free(self.made.pop())


@pytest.fixture
def queues(core: Core) -> Iterator[Queues]:
    before = open_fds()
    made = Queues(core)
    yield made
    made.free()
    assert open_fds() == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"depth": 0},
        {"depth": 4097},
        {"max_members": 0},
        {"max_io": 0},
        {"block": 0},
        {"align": 0},
    ],
    ids=str,
)
def test_sizes_that_make_no_sense_are_refused(queues: Queues, wrong: dict[str, Any]) -> None:
    assert queues.new(**wrong) == -errno.EINVAL


def test_a_target_of_another_abi_is_refused(queues: Queues) -> None:
    ops = queues.core.ffi.new("struct ublkd_target_ops *")
    for abi in (0, queues.core.lib.UBLKD_TARGET_ABI + 1):
        ops.abi = abi
        assert queues.new(ops=ops) == -errno.ELIBBAD


def test_a_queue_that_goes_on_for_a_dead_daemons_counts_from_its_beginning(queues: Queues) -> None:
    assert queues.new() == 0
    began = queues.stats.started
    assert began > 0
    assert queues.new() == 0
    assert queues.stats.started == began


def test_nothing_is_nothing_to_free(core: Core) -> None:
    core.lib.queue_free(core.ffi.NULL)


def test_a_queue_may_be_freed_before_it_ran(queues: Queues) -> None:
    assert queues.new() == 0
    assert queues.stats.magic == queues.core.lib.STATS_MAGIC


def test_a_queue_that_nobody_runs_is_not_ready_in_time(queues: Queues) -> None:
    assert queues.new() == 0
    for ms in (0, 50, 1001):
        began = time.monotonic()
        assert queues.wait(ms) == -errno.ETIMEDOUT
        assert ms / 1000 <= time.monotonic() - began < ms / 1000 + 5


@pytest.mark.parametrize("lease", ["AUTO", "REGISTER", "GROUP", "COPY", "USER_COPY"])
def test_a_file_that_is_no_ublk_device_ends_the_queue(
    queues: Queues, new_file: FileMaker, lease: str
) -> None:
    kind = getattr(queues.core.lib, f"LEASE_{lease}")
    assert queues.new(new_file(bytes(1 << 20)), lease=kind) == 0
    assert queues.run() == -errno.EOPNOTSUPP
    for ms in (0, 1000):
        assert queues.wait(ms) == -errno.EOPNOTSUPP


def test_a_device_that_cannot_be_mapped_ends_the_queue(queues: Queues) -> None:
    reading, writing = os.pipe()
    try:
        assert queues.new(reading) == 0
        assert queues.run() == -errno.ENODEV
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("fd", [-1, 9999])
def test_a_device_that_is_not_open_ends_the_queue(queues: Queues, fd: int) -> None:
    assert queues.new(fd) == 0
    assert queues.run() == -errno.EBADF


def test_a_file_of_the_target_that_is_not_open_ends_the_queue(
    queues: Queues, new_file: FileMaker
) -> None:
    assert queues.new(new_file(), files=[0, 9999]) == 0
    assert queues.run() == -errno.EBADF


@pytest.mark.parametrize("lease", ["AUTO", "REGISTER"])
def test_a_buffer_table_beyond_the_kernels_ends_the_queue(
    queues: Queues, new_file: FileMaker, lease: str
) -> None:
    slots = queues.core.lib.UBLKD_MAX_BUF_TABLE + 1
    kind = getattr(queues.core.lib, f"LEASE_{lease}")
    assert queues.new(new_file(), lease=kind, lease_slots=slots) == 0
    assert queues.run() == -errno.EINVAL


def test_without_a_descriptor_left_the_queue_ends(queues: Queues, new_file: FileMaker) -> None:
    assert queues.new(new_file()) == 0
    lowest = os.dup(0)
    os.close(lowest)
    with limit(resource.RLIMIT_NOFILE, lowest):
        assert queues.run() == -errno.EMFILE


def test_the_deepest_queue_fails_as_cleanly(queues: Queues, new_file: FileMaker) -> None:
    assert queues.new(new_file(bytes(1 << 20)), depth=4096, max_members=12) == 0
    assert queues.run() == -errno.EOPNOTSUPP


@pytest.mark.parametrize(("depth", "members"), [(4096, 64), (4096, 14), (979, 64)])
def test_more_members_at_once_than_a_ring_can_tell_of_are_refused(
    queues: Queues, depth: int, members: int
) -> None:
    assert queues.new(depth=depth, max_members=members) == -errno.E2BIG


def test_as_many_members_at_once_as_a_ring_can_tell_of_are_taken(queues: Queues) -> None:
    for depth, members in ((4096, 13), (978, 64)):
        assert queues.new(depth=depth, max_members=members) == 0


def test_several_wait_for_the_same_end(queues: Queues, new_file: FileMaker) -> None:
    assert queues.new(new_file(bytes(1 << 20))) == 0
    seen: list[int] = []
    waiters = [
        threading.Thread(target=lambda: seen.append(queues.wait(DEADLINE * 1000)), daemon=True)
        for _ in range(4)
    ]
    for thread in waiters:
        thread.start()
    queues.run()
    for thread in waiters:
        thread.join(DEADLINE)
    assert seen == [-errno.EOPNOTSUPP] * 4
