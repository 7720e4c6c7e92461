"""The file of the journal."""

from __future__ import annotations

import fcntl
import os

import pytest

from tests.unit.helpers import open_fds
from ublkd._core import ffi
from ublkd.targets.nbd.journal import Journal

SIZE = 1 << 20
AT_ONCE = os.O_DIRECT | os.O_NONBLOCK


def memory_takes_o_direct() -> bool:
    fd = os.memfd_create("probe", os.MFD_CLOEXEC)
    try:
        os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_DIRECT))
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


@pytest.mark.skipif(not memory_takes_o_direct(), reason="it came with Linux 6.6")
def test_io_uring_can_write_to_it_at_once() -> None:
    made = Journal(SIZE)
    assert fcntl.fcntl(made.fd, fcntl.F_GETFL) & AT_ONCE == AT_ONCE
    assert os.pwrite(made.fd, b"x" * 7, 5) == 7, "it is as free of blocks as any"
    assert bytes(ffi.buffer(made.memory, 13))[4:] == b"\0" + b"x" * 7 + b"\0"
    made.close()


def test_where_the_kernel_cannot_it_is_the_file_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "open", refuse)
    made = Journal(SIZE)
    assert os.pwrite(made.fd, b"x", 0) == 1
    made.close()


def test_nothing_of_it_stays_open() -> None:
    before = open_fds()
    Journal(SIZE).close()
    assert open_fds() == before
