"""A queue: one thread inside ``lib.queue_run()``, and how it ended."""

from __future__ import annotations

import errno
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ublkd._core import ffi, lib
from ublkd.errors import DMESG, UblkdError, reason
from ublkd.features import Lease
from ublkd.target import Native


@dataclass(frozen=True, kw_only=True)
class QueueConfig:
    """What a queue needs to know; sizes in bytes."""

    dev_fd: int
    qid: int
    depth: int
    max_io: int
    block: int
    align: int
    lease: Lease
    lease_slots: int
    max_members: int
    files: Sequence[int]
    native: Native
    fixed_streams: bool  # SEND and RECV take lent pages
    stats: Any  # struct queue_stats *
    notify_fd: int  # an eventfd that hears of the first failure, and of the end


class Queue:
    """Serves one hardware queue from ``start`` until the driver stops the device."""

    def __init__(self, config: QueueConfig, on_end: Callable[[], None]) -> None:
        """``on_end`` is called in the queue's thread when it has ended."""
        self.qid = config.qid
        self._stats = config.stats
        self._native = config.native  # lives as long as the thread does
        self.result: int | None = None  # 0 or -errno, once ended
        self._on_end = on_end
        self._handle = self._new(config)
        self._thread = threading.Thread(
            target=self._run, name=f"ublk-queue-{config.qid}", daemon=True
        )

    @staticmethod
    def _new(config: QueueConfig) -> Any:
        files = ffi.new("int[]", list(config.files))
        raw = ffi.new(
            "struct queue_config *",
            {
                "dev_fd": config.dev_fd,
                "qid": config.qid,
                "depth": config.depth,
                "max_io": config.max_io,
                "block": config.block,
                "align": config.align,
                "lease": config.lease.number,
                "lease_slots": config.lease_slots,
                "max_members": config.max_members,
                "files": files,
                "nr_files": len(config.files),
                "ops": config.native.ops,
                "target": config.native.handle,
                "stats": config.stats,
                "fixed_streams": config.fixed_streams,
                "notify_fd": config.notify_fd,
            },
        )
        out = ffi.new("struct queue **")
        ret = lib.queue_new(raw, out)
        if ret < 0:
            hint = "lower --depth" if ret in (-errno.E2BIG, -errno.ENOMEM) else DMESG
            raise UblkdError(f"cannot make queue {config.qid}: {reason(-ret)}", hint=hint)
        return out[0]

    def start(self) -> None:
        """Start the thread; ``wait_ready`` tells how that went."""
        self._thread.start()

    def _run(self) -> None:
        # signals are for the main thread: here one would only interrupt the wait for requests
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        self.result = lib.queue_run(self._handle)
        self._on_end()

    @property
    def ended(self) -> bool:
        """Whether its thread has come and gone."""
        return self._thread.ident is not None and not self._thread.is_alive()

    @property
    def error(self) -> int:
        """The first failure, a negative errno, even while the queue still runs; 0: none."""
        return self.result or int(lib.queue_error(self._handle))

    def poke(self) -> int:
        """Have its thread make a turn; the number of those that it has made so far."""
        lib.queue_poke(self._handle)
        return int(self._stats.turns)

    def wait_ready(self, seconds: float) -> None:
        """Return once every tag can take a request. Raises UblkdError with the cause if not."""
        ret = lib.queue_wait_ready(self._handle, int(seconds * 1000))
        if ret == 0:
            return
        hints = {
            errno.ENOMEM: "raise the limit of locked memory ('ulimit -l unlimited'), or lower "
            "--depth or --max-io",
            errno.EPERM: "io_uring may be disabled: 'sysctl kernel.io_uring_disabled'",
            errno.ENOSYS: "a seccomp filter may forbid io_uring",
            errno.EMFILE: "raise the limit of open files",
        }
        raise UblkdError(
            f"queue {self.qid} did not get ready: {reason(-ret)}", hint=hints.get(-ret, DMESG)
        )

    def join(self, seconds: float) -> bool:
        """Wait for the thread's end; whether it has ended."""
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def free(self) -> None:
        """Give the memory back. Only after the thread has ended."""
        lib.queue_free(self._handle)
        self._handle = ffi.NULL
