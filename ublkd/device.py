"""A device's life, top to bottom: add, params, queues, start ... stop, del.

Or, for one that the driver has kept when its daemon died: queues, END_USER_RECOVERY ... stop, del.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

from ublkd import below, names, stats, writeback
from ublkd.config import DeviceConfig
from ublkd.control import ANY_ID, DEL_SECONDS, SLOW_SECONDS, CommandError, Control, DevInfo
from ublkd.errors import UblkdError, reason
from ublkd.features import Features, granted, streams
from ublkd.plugin import refuse_shared_streams
from ublkd.queue import Queue, QueueConfig
from ublkd.state import LOCK_SECONDS, DeviceState, StateDir
from ublkd.target import Target
from ublkd.target.bridge import serving
from ublkd.uapi import Feature
from ublkd.writeback import write_back

READY_SECONDS = 30
END_SECONDS = 60
EXIT_SECONDS = writeback.SECONDS + SLOW_SECONDS + END_SECONDS + DEL_SECONDS + LOCK_SECONDS
"""How long all of ``__exit__`` may take: what is dirty, STOP_DEV, the queues, DEL_DEV, the lock."""

_stuck: list[ExitStack] = []
"""What the threads of queues that did not end may still use, kept until the process ends."""


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A device that the driver has kept, and that this process has taken over."""

    info: DevInfo
    state: DeviceState
    dev_fd: int  # /dev/ublkcN: whoever has it open is the one


class Device:
    """A context manager: inside it the disk exists and is served; after it everything is gone.

    ``wait`` returns when the queues have ended, which they do when somebody stops the device: it
    is then left to them to delete it. Raises UblkdError with the cause from ``__enter__``, and
    leaves nothing behind.
    """

    def __init__(
        self,
        control: Control,
        config: DeviceConfig,
        target: Target,
        features: Features,
        states: StateDir,
        *,
        cookie: int,
        lease_slots: int | None = None,
        taken: Taken | None = None,
    ) -> None:
        """Takes the target over, to close it, once entered; and ``taken``, if it is there already.

        ``cookie``: 64 bits that mark the device in the driver (state.new_cookie).

        ``lease_slots``: entries of each queue's buffer table, by default one per tag; requests
        of the tags beyond are copied.
        """
        self.control = control
        self.config = config
        self.target = target
        self._features = features
        self._states = states
        self._cookie = cookie
        self._lease_slots = lease_slots
        self._taken = taken
        self.ended_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        """Becomes readable when a queue has ended, and stays so."""
        self._queues: list[Queue] = []
        self._undo = ExitStack()
        self._dev_fd: int | None = None
        self._left = self._at_once = False
        self._started = False
        self.info: DevInfo | None = None

    @property
    def id(self) -> int:
        """The number the driver gave."""
        assert self.info is not None
        return self.info.id

    @property
    def queues(self) -> int:
        """How many hardware queues the driver made."""
        assert self.info is not None
        return self.info.queues

    @property
    def stopped_by_others(self) -> bool:
        """Whether the queues ended without an error and without ``__exit__``."""
        return self.wait(0) and not self.failure

    @property
    def failure(self) -> str:
        """Why a queue ended before its time; empty while all is well."""
        for queue in self._queues:
            if error := queue.error:
                return f"queue {queue.qid}: {reason(-error)}"
        return ""

    def __enter__(self) -> Self:
        undo = ExitStack()
        try:
            # the target is let go last: its lock must outlive every queue's I/O
            undo.callback(self.target.close)
            undo.callback(os.close, self.ended_fd)
            self.info = self._take(undo) if self._taken else self._make(undo)
            counters = undo.enter_context(
                stats.create(
                    self._states.counters(self.id), self.info.queues, keep=bool(self._taken)
                )
            )
            self._start_queues(counters)
            self._start()
        except BaseException as error:
            deleted = self.info is not None and not self.control.is_listed(self.id)
            if self._taken and deleted:
                # whoever deleted it may not have seen our files; others get the number only when
                # this process lets go of the device
                self._states.remove(self.id)
            self._unwind(undo, type(error), error, error.__traceback__)
            if deleted and isinstance(error, UblkdError):
                raise self.control.deleted(self.id) from error
            raise
        self._undo = undo
        return self

    def _unwind(
        self,
        undo: ExitStack,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the queues, then undo the rest; with a queue that does not end, undo nothing: its
        thread still uses the counters, the files and the target.
        """
        if self._waits_for_another:
            _stuck.append(undo)  # the process's end lets go of all
            return
        try:
            self._end_queues()
        except UblkdError:
            _stuck.append(undo)
            raise
        undo.__exit__(kind, error, trace)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._unwind(self._undo, kind, error, trace)

    def poke(self) -> list[int]:
        """Have each queue make a turn of its loop; how many they have made so far."""
        return [queue.poke() for queue in self._queues]

    def stopping(self) -> None:
        """The disk is about to go: what waits for something that may never come shall not."""
        if hook := getattr(self.target, "stopping", None):
            with contextlib.suppress(Exception):  # the disk goes whatever its target says
                hook()

    def leave(self, *, at_once: bool = False) -> None:
        """Let the device stay in the driver after ``__exit__``: whoever stopped it deletes it.

        ``at_once``: its queues run, and end with the process only.
        """
        self._left, self._at_once = True, at_once

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until a queue has ended; whether one has."""
        return bool(select.select([self.ended_fd], [], [], seconds)[0])

    # --- the steps of __enter__, in their order ---------------------------------------------

    def _make(self, undo: ExitStack) -> DevInfo:
        info = self.info = self._add()
        undo.callback(self._forget)
        undo.callback(self._delete)
        granted(self._features, info.flags)
        undo.callback(self._close_char_device)
        self._dev_fd = self._open_char_device()
        self._refuse_deleted()  # from now on the number cannot come to be another's
        self.control.set_params(info.id, self.target.params, max_io=info.max_io)
        return info

    def _take(self, undo: ExitStack) -> DevInfo:
        assert self._taken
        self._left = True  # until requests come: what fails before may be tried again
        info, self._dev_fd = self._taken.info, self._taken.dev_fd
        undo.callback(self._forget)
        undo.callback(self._delete)
        undo.callback(self._close_char_device)
        return info

    def _start(self) -> None:
        assert self.info is not None
        if self._taken:
            self._remember(self.info)
            self.control.end_recovery(self.id, os.getpid())
            self._left = False
        else:
            with self._states.lock(look=self._refuse_deleted):  # see ending.py, _made
                kept = self._states.read(self.id)
            if kept is None or any(queue.ended for queue in self._queues):
                raise self.control.deleted(self.id)
            self.control.start_dev(self.id, os.getpid())
            self._remember(self.info)
        self._started = True

    def _remember(self, info: DevInfo) -> None:
        """As started; what somebody has changed since this daemon looked stays as it is."""
        mine = replace(self._state(info), started=True)
        # whoever deletes it has the lock, and waits for this process to let go of it
        with self._states.lock(look=self._refuse_deleted):
            self._states.write(mine.with_changes_of(self._states.read(info.id)))

    def _add(self) -> DevInfo:
        config = self.config
        if config.id is not None:  # a number that the driver chooses has no disk yet
            below.refuse_itself(self.target.files(), config.id, self._states.backings)
        with self._states.lock():
            if config.name is not None:
                names.refuse_taken(self.control, self._states, config.name)
            try:
                info = self.control.add_dev(
                    dev_id=ANY_ID if config.id is None else config.id,
                    queues=self._nr_queues(),
                    depth=config.depth,
                    max_io=min(config.max_io, self.target.params.max_io or config.max_io),
                    flags=self._features.flags,
                    cookie=self._cookie,
                )
            except CommandError as error:
                raise names.not_added(self.control, config, error) from error
            try:
                self._states.write(self._state(info))
            except BaseException:
                self.control.del_dev(info.id)
                self._states.remove(info.id)
                raise
        return info

    def _nr_queues(self) -> int:
        asked, params = self.config.queues, self.target.params
        return params.queues or min(asked, params.max_queues or asked)

    def _state(self, info: DevInfo) -> DeviceState:
        return DeviceState(
            id=info.id,
            cookie=self._cookie,
            pid=os.getpid(),
            name=self.config.name,
            target=self.config.target,
            options=dict(self.config.options),
            lease=self._features.lease.value,
            refused={lease.value: why for lease, why in self._features.refused.items()},
            recovery_reason=self._features.recovery_reason,
            access=self.config.access,
            answered=self._taken.state.revision if self._taken else 0,
            describe=dict(self.target.describe()),
            origin=self.config.origin,
            asked=dict(self.config.asked),
        )

    def _refuse_deleted(self) -> None:
        self.control.refuse_deleted(self.id, self._cookie)

    def _open_char_device(self) -> int:
        node = f"/dev/ublkc{self.id}"
        until = time.monotonic() + READY_SECONDS
        while True:
            try:
                return os.open(node, os.O_RDWR | os.O_CLOEXEC)
            except OSError as error:
                self._refuse_deleted()
                # without devtmpfs udev makes the node; and udev may hold a new one for a moment
                passing = error.errno in (errno.ENOENT, errno.EBUSY)
                if not passing or time.monotonic() > until:
                    raise UblkdError(
                        f"cannot open {node}: {reason(error)}",
                        hint="is udev running, or /dev a devtmpfs?",
                    ) from error
            time.sleep(0.01)

    def _start_queues(self, counters: list[Any]) -> None:
        assert self.info is not None
        assert self._dev_fd is not None
        slots = self.info.depth if self._lease_slots is None else self._lease_slots
        refuse_shared_streams(self.config.target, self.target.files(), len(counters))
        native = serving(self.target, self.config.target)
        fixed_streams = streams()
        for qid, counter in enumerate(counters):
            config = QueueConfig(
                dev_fd=self._dev_fd,
                qid=qid,
                depth=self.info.depth,
                max_io=self.info.max_io,
                block=self.target.params.logical_block,
                align=self.target.params.io_align,
                lease=self._features.lease,
                lease_slots=slots,
                max_members=self.target.params.max_members,
                files=[*self.target.files(), *[-1] * self.target.params.streams],
                native=native,
                fixed_streams=fixed_streams,
                stats=counter,
                notify_fd=self.ended_fd,
            )
            self._queues.append(Queue(config, lambda: os.eventfd_write(self.ended_fd, 1)))
        for queue in self._queues:
            queue.start()
        # START_DEV waits for every FETCH: a queue that could not post its own would hang it
        for queue in self._queues:
            queue.wait_ready(READY_SECONDS)

    # --- and their undoing ------------------------------------------------------------------

    @property
    def _is_recoverable(self) -> bool:
        return self.info is not None and Feature.USER_RECOVERY in self.info.flags

    @property
    def _is_kept(self) -> bool:
        """Whether the driver keeps it for another daemon once this one has gone."""
        return self._left and self._is_recoverable

    @property
    def _waits_for_another(self) -> bool:
        """Whether its queues could only be ended together with the device, which shall live on."""
        unserved = not self._started or self.failure or self._at_once
        return bool(self._is_kept and unserved and not all(q.ended for q in self._queues))

    def _end_queues(self) -> None:
        """Stop the device, which ends the queues, and wait for their threads."""
        if not self._queues:
            return
        if not self._is_kept:  # what waits there goes on with the next daemon
            self.stopping()
            if self._started and self._is_recoverable and not self.failure:
                write_back(f"/dev/ublkb{self.id}")
        if all(queue.ended for queue in self._queues):
            # what they left unanswered only the driver can fail, once nobody serves
            self._close_char_device()
        if not self._is_kept:
            with contextlib.suppress(UblkdError):
                if names.is_there(self.control, self.id, self._cookie):
                    self.control.stop_dev(self.id)
        until = time.monotonic() + END_SECONDS
        stuck = [q.qid for q in self._queues if not q.join(max(0.0, until - time.monotonic()))]
        if stuck:
            raise UblkdError(
                f"queues {stuck} of /dev/ublkb{self.id} did not end within {END_SECONDS} seconds",
                hint="their I/O may be stuck in the backing; see dmesg for blocked tasks",
            )
        for queue in self._queues:
            queue.free()
        self._queues.clear()

    def _close_char_device(self) -> None:
        if self._dev_fd is not None:
            os.close(self._dev_fd)
            self._dev_fd = None

    def _forget(self) -> None:
        if not self._left:
            self._states.forget(self.id, self._cookie)

    def _delete(self) -> None:
        if self._left:
            return
        try:
            # since nobody has its node open, others may have deleted it and an add have its number;
            # not under the lock, which all others would wait for while the disk is open
            if names.is_there(self.control, self.id, self._cookie):
                self.control.del_dev(self.id)
        except CommandError as error:
            if error.errno != errno.ENODEV:  # somebody else was faster
                raise
