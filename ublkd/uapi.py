"""The kernel's numbers as Python enums; each is bound to ``core/uapi.h``, none is typed twice."""

from __future__ import annotations

from enum import IntEnum, IntFlag

from ublkd._core import lib


class Cmd(IntEnum):
    """Commands on /dev/ublk-control (``UBLK_U_CMD_*``)."""

    GET_DEV_INFO = lib.UBLK_U_CMD_GET_DEV_INFO
    ADD_DEV = lib.UBLK_U_CMD_ADD_DEV
    DEL_DEV = lib.UBLK_U_CMD_DEL_DEV
    START_DEV = lib.UBLK_U_CMD_START_DEV
    STOP_DEV = lib.UBLK_U_CMD_STOP_DEV
    SET_PARAMS = lib.UBLK_U_CMD_SET_PARAMS
    GET_PARAMS = lib.UBLK_U_CMD_GET_PARAMS
    START_USER_RECOVERY = lib.UBLK_U_CMD_START_USER_RECOVERY
    END_USER_RECOVERY = lib.UBLK_U_CMD_END_USER_RECOVERY
    UPDATE_SIZE = lib.UBLK_U_CMD_UPDATE_SIZE
    QUIESCE_DEV = lib.UBLK_U_CMD_QUIESCE_DEV
    GET_DEV_INFO2 = lib.UBLK_U_CMD_GET_DEV_INFO2
    GET_FEATURES = lib.UBLK_U_CMD_GET_FEATURES
    TRY_STOP_DEV = lib.UBLK_U_CMD_TRY_STOP_DEV


class Feature(IntFlag):
    """Device features (``UBLK_F_*``)."""

    SUPPORT_ZERO_COPY = lib.UBLK_F_SUPPORT_ZERO_COPY
    URING_CMD_COMP_IN_TASK = lib.UBLK_F_URING_CMD_COMP_IN_TASK
    NEED_GET_DATA = lib.UBLK_F_NEED_GET_DATA
    USER_RECOVERY = lib.UBLK_F_USER_RECOVERY
    USER_RECOVERY_REISSUE = lib.UBLK_F_USER_RECOVERY_REISSUE
    UNPRIVILEGED_DEV = lib.UBLK_F_UNPRIVILEGED_DEV
    CMD_IOCTL_ENCODE = lib.UBLK_F_CMD_IOCTL_ENCODE
    USER_COPY = lib.UBLK_F_USER_COPY
    ZONED = lib.UBLK_F_ZONED
    USER_RECOVERY_FAIL_IO = lib.UBLK_F_USER_RECOVERY_FAIL_IO
    UPDATE_SIZE = lib.UBLK_F_UPDATE_SIZE
    AUTO_BUF_REG = lib.UBLK_F_AUTO_BUF_REG
    QUIESCE = lib.UBLK_F_QUIESCE
    PER_IO_DAEMON = lib.UBLK_F_PER_IO_DAEMON
    BUF_REG_OFF_DAEMON = lib.UBLK_F_BUF_REG_OFF_DAEMON
    BATCH_IO = lib.UBLK_F_BATCH_IO
    INTEGRITY = lib.UBLK_F_INTEGRITY
    SAFE_STOP_DEV = lib.UBLK_F_SAFE_STOP_DEV
    NO_AUTO_PART_SCAN = lib.UBLK_F_NO_AUTO_PART_SCAN
    SHMEM_ZC = lib.UBLK_F_SHMEM_ZC


class Op(IntEnum):
    """What a request asks for (``UBLK_IO_OP_*``)."""

    READ = lib.UBLK_IO_OP_READ
    WRITE = lib.UBLK_IO_OP_WRITE
    FLUSH = lib.UBLK_IO_OP_FLUSH
    DISCARD = lib.UBLK_IO_OP_DISCARD
    WRITE_ZEROES = lib.UBLK_IO_OP_WRITE_ZEROES


class DevState(IntEnum):
    """The driver's states of a device (``UBLK_S_DEV_*``)."""

    DEAD = lib.UBLK_S_DEV_DEAD
    LIVE = lib.UBLK_S_DEV_LIVE
    QUIESCED = lib.UBLK_S_DEV_QUIESCED
    FAIL_IO = lib.UBLK_S_DEV_FAIL_IO

    @classmethod
    def _missing_(cls, value: object) -> DevState | None:
        """A state that only a newer kernel has: listed by its number."""
        if not isinstance(value, int):
            return None
        unknown = int.__new__(cls, value)
        unknown._name_, unknown._value_ = f"STATE_{value}", value
        return unknown


class ParamType(IntFlag):
    """Which parts of ``struct ublk_params`` are filled in (``UBLK_PARAM_TYPE_*``)."""

    BASIC = lib.UBLK_PARAM_TYPE_BASIC
    DISCARD = lib.UBLK_PARAM_TYPE_DISCARD
    DMA_ALIGN = lib.UBLK_PARAM_TYPE_DMA_ALIGN


class Attr(IntFlag):
    """Attributes of the disk (``UBLK_ATTR_*``)."""

    READ_ONLY = lib.UBLK_ATTR_READ_ONLY
    ROTATIONAL = lib.UBLK_ATTR_ROTATIONAL
    VOLATILE_CACHE = lib.UBLK_ATTR_VOLATILE_CACHE
    FUA = lib.UBLK_ATTR_FUA


SECTOR = 512
"""Bytes of a sector, the block layer's unit."""

MAX_QUEUES: int = lib.UBLK_MAX_NR_QUEUES
MAX_DEPTH: int = lib.UBLK_MAX_QUEUE_DEPTH
MAX_IO_BYTES: int = 1 << lib.UBLK_IO_BUF_BITS
"""Bytes of the largest request: what the offsets of user-copy can express."""
MAX_BUFFER_SLOTS: int = lib.UBLKD_MAX_BUF_TABLE
