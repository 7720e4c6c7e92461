from __future__ import annotations

import errno
import signal
import threading
from typing import Any

import pytest

from tests.unit.helpers import is_one_line
from ublkd import queue
from ublkd._core import ffi
from ublkd.errors import UblkdError
from ublkd.features import Lease
from ublkd.queue import Queue, QueueConfig
from ublkd.target import Native


class FakeLib:
    """The C side of a queue, which ends when ``end`` is set."""

    def __init__(self, *, new: int = 0, ready: int = 0, result: int = 0, error: int = 0) -> None:
        self.new, self.ready, self.result, self.error = new, ready, result, error
        self.config: dict[str, Any] = {}
        self.mask: set[int] = set()
        self.end = threading.Event()
        self.freed = 0

    def queue_new(self, raw: Any, out: Any) -> int:
        files = [raw.files[i] for i in range(raw.nr_files)]
        self.config = {"qid": raw.qid, "depth": raw.depth, "lease": raw.lease, "files": files,
                       "notify_fd": raw.notify_fd}  # fmt: skip
        return self.new

    def queue_run(self, _: Any) -> int:
        self.mask = {int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())}
        assert self.end.wait(30)
        return self.result

    def queue_wait_ready(self, _: Any, timeout_ms: int) -> int:
        assert timeout_ms == 1500
        return self.ready

    def queue_error(self, _: Any) -> int:
        return self.error

    def queue_free(self, _: Any) -> None:
        self.freed += 1


def made(monkeypatch: pytest.MonkeyPatch, lib: FakeLib, on_end: Any = lambda: None) -> Queue:
    monkeypatch.setattr(queue, "lib", lib)
    config = QueueConfig(
        dev_fd=0,
        qid=5,
        depth=64,
        max_io=4096,
        block=512,
        align=1,
        lease=Lease.COPY,
        lease_slots=64,
        max_members=1,
        files=(7, 8),
        native=Native(ffi.NULL, ffi.NULL),
        stats=ffi.NULL,
        fixed_streams=True,
        notify_fd=9,
    )
    return Queue(config, on_end)


def test_a_queue_runs_in_its_thread_until_the_driver_ends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lib, ended_in = FakeLib(), []
    serving = made(monkeypatch, lib, lambda: ended_in.append(threading.current_thread().name))
    assert lib.config == {"qid": 5, "depth": 64, "lease": Lease.COPY.number, "files": [7, 8],
                          "notify_fd": 9}  # fmt: skip
    assert not serving.ended  # it has not begun
    assert serving.join(0)  # not started: there is nothing to wait for
    serving.start()
    serving.wait_ready(1.5)
    assert not serving.join(0.01)
    assert serving.result is None
    assert (serving.ended, serving.error) == (False, 0)
    assert ended_in == []
    lib.end.set()
    assert serving.join(30)
    assert serving.result == 0
    assert (serving.ended, serving.error) == (True, 0)
    assert ended_in == ["ublk-queue-5"]
    serving.free()
    assert lib.freed == 1


def test_signals_are_left_to_the_main_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    lib = FakeLib()
    lib.end.set()
    serving = made(monkeypatch, lib)
    serving.start()
    assert serving.join(30)
    assert {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD} <= lib.mask
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_how_a_queue_ended_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    lib = FakeLib(result=-errno.EIO)
    lib.end.set()
    serving = made(monkeypatch, lib)
    serving.start()
    assert serving.join(30)
    assert serving.result == serving.error == -errno.EIO


def test_a_failure_is_told_while_the_queue_still_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    lib = FakeLib(error=-errno.ENOMEM)
    serving = made(monkeypatch, lib)
    serving.start()
    assert (serving.error, serving.result, serving.ended) == (-errno.ENOMEM, None, False)
    lib.end.set()
    assert serving.join(30)


def test_a_queue_that_cannot_be_made_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UblkdError, match="cannot make queue 5: cannot allocate memory") as caught:
        made(monkeypatch, FakeLib(new=-errno.ENOMEM))
    assert "--depth" in caught.value.hint


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.ENOMEM, "ulimit -l"),
        (errno.EPERM, "io_uring_disabled"),
        (errno.ENOSYS, "seccomp"),
        (errno.EMFILE, "open files"),
        (errno.EIO, ""),
    ],
)
def test_a_queue_that_does_not_get_ready_says_why(
    monkeypatch: pytest.MonkeyPatch, number: int, hint: str
) -> None:
    serving = made(monkeypatch, FakeLib(ready=-number))
    with pytest.raises(UblkdError, match="queue 5 did not get ready") as caught:
        serving.wait_ready(1.5)
    assert is_one_line(caught.value.message)
    assert hint in caught.value.hint
