"""The loaded library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cffi import FFI

from .build import ROOT
from .headers import declarations


class Core:
    """`ffi` and `lib` of one libcoretest.so."""

    def __init__(self, path: Path) -> None:
        self.ffi: Any = FFI()
        self.ffi.cdef(declarations(ROOT))
        self.lib: Any = self.ffi.dlopen(str(path))
        self.libc: Any = self.ffi.dlopen(None)

    def io_uring_error(self) -> int:
        """0 where rings can be had, else -errno."""
        config = self.ffi.new("struct fake_config *")
        config.depth, config.max_members, config.sqes = 1, 1, 4
        config.max_io = config.block = 4096
        config.dev_fd = -1
        config.lease = self.lib.LEASE_COPY
        config.ops = self.lib.scripted_ops()
        out = self.ffi.new("struct fake **")
        ret = int(self.lib.fake_new(config, out))
        if ret == 0:
            self.lib.fake_free(out[0])
        return ret
