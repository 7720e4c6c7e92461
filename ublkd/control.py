"""Commands to the driver: one method per ``UBLK_U_CMD_*``, each with a deadline.

Source: Documentation/block/ublk.rst and drivers/block/ublk_drv.c.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ublkd._core import ffi, lib
from ublkd.errors import DMESG, SHORTAGE, NotPossibleError, UblkdError, reason
from ublkd.target import Params
from ublkd.uapi import SECTOR, Attr, Cmd, DevState, Feature, ParamType

QUICK_SECONDS = 10
"""Deadline of commands that only look something up or write it down."""
SLOW_SECONDS = 60
"""Deadline of commands that wait for I/O or for a process to let go: START, STOP."""
DEL_SECONDS = 5
"""Deadline of DEL, which comes when the server is gone: only programs can hold it up then."""

ANY_ID = 0xFFFFFFFF
"""The ``dev_id`` that lets the driver choose."""

CONTROL_NODE = Path("/dev/ublk-control")
IO_URING_DISABLED = Path("/proc/sys/kernel/io_uring_disabled")


@dataclass(frozen=True, kw_only=True)
class DevInfo:
    """What the driver says of a device (``struct ublksrv_ctrl_dev_info``)."""

    id: int
    state: DevState
    queues: int
    depth: int
    max_io: int  # bytes
    pid: int  # of the server, as this process sees it; -1: none
    flags: Feature
    cookie: int  # 64 bits that belong to whoever added the device


class CommandError(UblkdError):
    """The driver refused a command; ``errno`` says how."""

    def __init__(self, cmd: Cmd, number: int, dev_id: int = ANY_ID) -> None:
        """``dev_id``: of the device that it was for, if there was one."""
        what, hint = f"the ublk driver refused {cmd.name}: {reason(number)}", DMESG
        if number == errno.ENODEV and dev_id != ANY_ID:  # who wants to know looks before
            what = f"/dev/ublkb{dev_id} was stopped or deleted meanwhile ({what})"
            hint = "see 'ublkd list'"
        super().__init__(what, hint=hint)
        self.errno = number


class TimedOutError(UblkdError):
    """The driver did not answer in time; the command was taken back."""


HELD = "something may hold the device in the kernel; see dmesg for blocked tasks"
UNANSWERED = (
    "a request is not answered: end the daemon, whose pid 'ublkd show' tells, with SIGKILL, "
    "and delete again"
)


class Control:
    """The driver's control node. A context manager; not for several threads at once."""

    def __init__(self) -> None:
        self._handle: Any = ffi.NULL

    def __enter__(self) -> Self:
        out = ffi.new("struct control **")
        ret = lib.control_init(out)
        if ret < 0:
            raise unavailable(-ret)
        self._handle = out[0]
        return self

    def __exit__(self, *_: object) -> None:
        lib.control_deinit(self._handle)
        self._handle = ffi.NULL

    def _command(
        self,
        cmd: Cmd,
        dev_id: int = ANY_ID,
        *,
        data: int = 0,
        buf: Any = ffi.NULL,
        length: int = 0,
        path_length: int = 0,
        seconds: float = QUICK_SECONDS,
    ) -> None:
        ret = lib.control_cmd(
            self._handle, cmd, dev_id, data, buf, length, path_length, int(seconds * 1000)
        )
        if ret == -errno.ETIMEDOUT:
            raise TimedOutError(
                f"the ublk driver did not answer {cmd.name} within {seconds:g} seconds",
                hint=UNANSWERED if cmd in (Cmd.STOP_DEV, Cmd.TRY_STOP_DEV) else HELD,
            )
        if ret < 0:
            raise CommandError(cmd, -ret, dev_id)

    def get_features(self) -> Feature:
        """Everything this kernel's driver offers. NotPossibleError before Linux 6.5, CommandError
        where a shortage keeps it from being told.
        """
        bits = ffi.new("uint64_t *")
        try:
            self._command(Cmd.GET_FEATURES, buf=bits, length=8)
        except CommandError as error:
            if error.errno in SHORTAGE:
                raise
            raise NotPossibleError(
                "this kernel's ublk driver is too old to name its features",
                hint="ublkd needs Linux 6.5 or newer",
            ) from error
        return Feature(bits[0])

    def add_dev(
        self, *, dev_id: int, queues: int, depth: int, max_io: int, flags: Feature, cookie: int
    ) -> DevInfo:
        """Create /dev/ublkcN. The answer is the driver's: its id, queues and flags count.

        ``dev_id`` may be ANY_ID. Raises CommandError with EEXIST for an id that is taken.
        """
        info = ffi.new("struct ublksrv_ctrl_dev_info *")
        info.dev_id = dev_id
        info.nr_hw_queues = queues
        info.queue_depth = depth
        info.max_io_buf_bytes = max_io
        info.flags = flags
        info.ublksrv_flags = cookie
        self._command(Cmd.ADD_DEV, dev_id, buf=info, length=ffi.sizeof(info[0]))
        return _dev_info(info)

    def get_dev_info(self, dev_id: int) -> DevInfo:
        """CommandError with ENODEV where there is no such device."""
        info = ffi.new("struct ublksrv_ctrl_dev_info *")
        try:
            self._command(Cmd.GET_DEV_INFO, dev_id, buf=info, length=ffi.sizeof(info[0]))
        except CommandError as error:
            if error.errno != errno.EINVAL:
                raise
            return self._get_dev_info2(dev_id)
        return _dev_info(info)

    def _get_dev_info2(self, dev_id: int) -> DevInfo:
        """An unprivileged device wants to be asked by the path of its node as well."""
        path = os.fsencode(f"/dev/ublkc{dev_id}") + b"\0"
        size = ffi.sizeof("struct ublksrv_ctrl_dev_info")
        buf = ffi.new("char[]", len(path) + size)
        buf[0 : len(path)] = path
        self._command(
            Cmd.GET_DEV_INFO2, dev_id, buf=buf, length=len(path) + size, path_length=len(path)
        )
        return _dev_info(ffi.cast("struct ublksrv_ctrl_dev_info *", buf + len(path)))

    def set_params(self, dev_id: int, params: Params, *, max_io: int) -> None:
        """Describe the disk; ``max_io`` is in bytes. Only before the device is started."""
        raw = _raw_params(params, max_io)
        try:
            self._command(Cmd.SET_PARAMS, dev_id, buf=raw, length=ffi.sizeof(raw[0]))
        except CommandError as error:
            if error.errno != errno.EINVAL:
                raise
            raise UblkdError(
                f"the ublk driver does not take these parameters: {params}",
                hint="this is a defect of the target: please report it",
            ) from error

    def get_params(self, dev_id: int) -> Params:
        """The disk as the driver knows it; what is for ublkd alone has its defaults."""
        raw = self._raw_params(dev_id)
        if not raw.types & ParamType.BASIC:  # whoever asks knew an earlier one of that number
            raise CommandError(Cmd.GET_PARAMS, errno.ENODEV, dev_id)
        return _params(raw)

    def get_size(self, dev_id: int) -> int:
        """Bytes of the disk; 0 where the driver does not tell."""
        try:
            return int(self._raw_params(dev_id).basic.dev_sectors) * SECTOR
        except (CommandError, TimedOutError):  # a device that hangs does not tell
            return 0

    def update_size(self, dev_id: int, size: int) -> None:
        """The disk has ``size`` bytes from now on, and whoever looks is told (UPDATE_SIZE).

        CommandError with ENODEV for a device that is no disk: the first drivers with this command
        do not ask, and use what is not there. NotPossibleError where the driver cannot do it.
        """
        refuse_fixed_size(self.get_features())
        if self.get_dev_info(dev_id).state is DevState.DEAD:
            raise CommandError(Cmd.UPDATE_SIZE, errno.ENODEV, dev_id)
        self._command(Cmd.UPDATE_SIZE, dev_id, data=size // SECTOR)

    def _raw_params(self, dev_id: int) -> Any:
        raw = ffi.new("struct ublk_params *")
        raw.len = ffi.sizeof(raw[0])
        self._command(Cmd.GET_PARAMS, dev_id, buf=raw, length=raw.len)
        return raw

    def start_dev(self, dev_id: int, pid: int) -> None:
        """Make /dev/ublkbN; every tag's FETCH must be in the driver already."""
        self._command(Cmd.START_DEV, dev_id, data=pid, seconds=SLOW_SECONDS)

    def start_recovery(self, dev_id: int) -> None:
        """Ask for a device that nobody serves; CommandError with EBUSY while somebody does."""
        self._command(Cmd.START_USER_RECOVERY, dev_id)

    def end_recovery(self, dev_id: int, pid: int) -> None:
        """Have requests come again; every tag's FETCH must be in the driver already."""
        self._command(Cmd.END_USER_RECOVERY, dev_id, data=pid, seconds=SLOW_SECONDS)

    def quiesce_dev(self, dev_id: int, seconds: float) -> None:
        """Have the server's idle commands taken back, and no request come any more (QUIESCE).

        CommandError with EBUSY where after ``seconds`` a queue had none that was idle.
        """
        milliseconds = max(1, int(seconds * 1000))  # 0 would be for ever
        self._command(Cmd.QUIESCE_DEV, dev_id, data=milliseconds, seconds=seconds + QUICK_SECONDS)

    def stop_dev(self, dev_id: int) -> None:
        """Take the disk away; waits for requests in flight."""
        self._command(Cmd.STOP_DEV, dev_id, seconds=SLOW_SECONDS)

    def try_stop_dev(self, dev_id: int) -> None:
        """Like stop_dev, but CommandError with EBUSY while the disk is open (Linux 7.0)."""
        self._command(Cmd.TRY_STOP_DEV, dev_id, seconds=SLOW_SECONDS)

    def del_dev(self, dev_id: int) -> bool:
        """Remove the device; waits until its server has closed /dev/ublkcN.

        False where its number stays taken because some program still has the dead disk open:
        the device is gone all the same.
        """
        try:
            self._command(Cmd.DEL_DEV, dev_id, seconds=DEL_SECONDS)
        except TimedOutError:
            if self.is_listed(dev_id):
                raise
            return False
        return True

    def is_listed(self, dev_id: int) -> bool:
        """Whether there is the device, and nobody has begun to delete it: DEL_DEV takes it out of
        /sys first, and only then waits for those who have a node of it open.
        """
        return Path(f"/sys/class/ublk-char/ublkc{dev_id}").exists()

    def refuse_deleted(self, dev_id: int, cookie: int) -> None:
        """Raise UblkdError unless it is listed, and that very device."""
        if not self.is_listed(dev_id) or self.get_dev_info(dev_id).cookie != cookie:
            raise self.deleted(dev_id)

    @staticmethod
    def deleted(dev_id: int) -> UblkdError:
        """The error for a device that others have deleted while it was made, or taken over."""
        return UblkdError(
            f"/dev/ublkb{dev_id} was stopped or deleted before it was ready",
            hint="see 'ublkd list'",
        )


def _dev_info(info: Any) -> DevInfo:
    return DevInfo(
        id=info.dev_id,
        state=DevState(info.state),
        queues=info.nr_hw_queues,
        depth=info.queue_depth,
        max_io=info.max_io_buf_bytes,
        pid=info.ublksrv_pid,
        flags=Feature(info.flags),
        cookie=info.ublksrv_flags,
    )


def _shift(size: int) -> int:
    return size.bit_length() - 1


def _raw_params(params: Params, max_io: int) -> Any:
    raw = ffi.new("struct ublk_params *")
    raw.len = ffi.sizeof(raw[0])
    raw.types = ParamType.BASIC | ParamType.DMA_ALIGN
    raw.basic.attrs = (
        (Attr.READ_ONLY if params.read_only else 0)
        | (Attr.ROTATIONAL if params.rotational else 0)
        | (Attr.VOLATILE_CACHE if params.volatile_cache else 0)
        | (Attr.FUA if params.volatile_cache and params.fua else 0)
    )
    raw.basic.logical_bs_shift = _shift(params.logical_block)
    raw.basic.physical_bs_shift = _shift(params.physical_block)
    raw.basic.io_min_shift = _shift(params.io_min)
    raw.basic.io_opt_shift = _shift(params.io_opt)
    raw.basic.max_sectors = max_io // SECTOR
    raw.basic.dev_sectors = params.size // SECTOR
    raw.dma.alignment = params.dma_align - 1
    if params.max_discard or params.max_write_zeroes:
        raw.types |= ParamType.DISCARD
        raw.discard.discard_granularity = params.discard_granularity
        raw.discard.max_discard_sectors = params.max_discard // SECTOR
        raw.discard.max_write_zeroes_sectors = params.max_write_zeroes // SECTOR
        raw.discard.max_discard_segments = 1
    return raw


def _params(raw: Any) -> Params:
    basic, attrs = raw.basic, Attr(raw.basic.attrs)
    discards = bool(raw.types & ParamType.DISCARD)
    return Params(
        size=basic.dev_sectors * SECTOR,
        logical_block=1 << basic.logical_bs_shift,
        physical_block=1 << basic.physical_bs_shift,
        io_min=1 << basic.io_min_shift,
        io_opt=1 << basic.io_opt_shift,
        dma_align=raw.dma.alignment + 1 if raw.types & ParamType.DMA_ALIGN else Params.dma_align,
        read_only=Attr.READ_ONLY in attrs,
        rotational=Attr.ROTATIONAL in attrs,
        volatile_cache=Attr.VOLATILE_CACHE in attrs,
        fua=Attr.FUA in attrs,
        discard_granularity=raw.discard.discard_granularity if discards else 0,
        max_discard=raw.discard.max_discard_sectors * SECTOR if discards else 0,
        max_write_zeroes=raw.discard.max_write_zeroes_sectors * SECTOR if discards else 0,
    )


def refuse_fixed_size(offered: Feature) -> None:
    """Raise NotPossibleError where the driver, by its features, cannot resize a disk."""
    if Feature.UPDATE_SIZE not in offered:
        raise NotPossibleError(
            "disks cannot be resized: the kernel lacks UPDATE_SIZE (Linux 6.16 has it)",
            hint="delete the device and add it anew: it is then as large as what stands behind it",
        )


def unavailable(number: int) -> UblkdError:
    """Why the control node or its ring could not be opened: a NotPossibleError, unless it may be
    otherwise in a moment.
    """
    if number in SHORTAGE:
        return _short(number)
    if number == errno.ENOENT or not CONTROL_NODE.exists():
        return NotPossibleError(
            "there is no /dev/ublk-control: the ublk driver is not loaded",
            hint="run 'modprobe ublk_drv'; if there is no such module, use a kernel 6.5 or newer "
            "that has CONFIG_BLK_DEV_UBLK (Debian 13, Fedora 40, Ubuntu 24.04)",
        )
    if number in (errno.EPERM, errno.ENOSYS, errno.EACCES):
        return _forbidden(number)
    if number in (errno.ENXIO, errno.ENODEV):
        return NotPossibleError(
            "/dev/ublk-control is there but no driver stands behind it",
            hint="run 'modprobe ublk_drv'",
        )
    kind = NotPossibleError if number in (errno.EINVAL, errno.EOPNOTSUPP) else UblkdError
    return kind(f"cannot use /dev/ublk-control: {reason(number)}", hint=DMESG)


def _short(number: int) -> UblkdError:
    if number == errno.ENOMEM:
        return UblkdError(
            "no memory may be locked for io_uring",
            hint="raise the limit: 'ulimit -l unlimited', or LimitMEMLOCK=infinity in the unit",
        )
    return UblkdError(f"cannot use /dev/ublk-control: {reason(number)}", hint=DMESG)


def _forbidden(number: int) -> NotPossibleError:
    if os.geteuid() != 0:
        return NotPossibleError("ublk devices need root", hint="run it with sudo")
    try:
        setting = IO_URING_DISABLED.read_text().strip()
    except OSError:
        setting = "0"
    if setting == "2" or (setting == "1" and number == errno.EPERM):
        return NotPossibleError(
            f"io_uring is disabled on this machine (kernel.io_uring_disabled = {setting})",
            hint="run 'sysctl kernel.io_uring_disabled=0'",
        )
    return NotPossibleError(
        f"io_uring or /dev/ublk-control may not be used here: {reason(number)}",
        hint="a container or a seccomp filter may forbid it, or CAP_SYS_ADMIN is missing",
    )
