"""Run in a child between fork and exec: see to it that it cannot outlive or harm the host."""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
_CLONE_NEWNS = 0x20000
_MS_REC_PRIVATE = 0x4000 | 1 << 18
_SYS_MOUNT_SETATTR = 442  # the same on every architecture
_AT_RECURSIVE = 0x8000
_MOUNT_ATTR_RDONLY = 1

# Loaded here and not in the child, where as little as possible should happen.
_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def die_with_parent() -> None:
    """Have this process killed when the lab dies, however it dies."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() == 1:
        os._exit(1)  # it died before we asked


def read_only_root() -> None:
    """See every file system read-only from here on, where the host allows it.

    The guest mounts the host's root read-only in any case; this is the second lock, on
    the side of the host. prctl's setting lives through it.
    """
    die_with_parent()
    if _libc.unshare(_CLONE_NEWNS) != 0:
        return  # a container may not allow it
    _libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC_PRIVATE), None)
    attr = _MountAttr(attr_set=_MOUNT_ATTR_RDONLY)
    size = ctypes.c_size_t(ctypes.sizeof(attr))
    _libc.syscall(_SYS_MOUNT_SETATTR, -100, b"/", _AT_RECURSIVE, ctypes.byref(attr), size)
