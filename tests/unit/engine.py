"""What stands for the C engine behind a target in Python: writes down what groups are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from ublkd._core import ffi, lib
from ublkd.target import IoDesc, Op, bridge, group

Call = tuple[Any, ...]


class Engine:
    """In the place of ``lib``: its ``group_*`` functions; all else is the real one's."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        """Name and arguments, the group left out."""
        self.returns: dict[str, int] = {}
        self.pages: bytearray | None = bytearray(1 << 20)
        """The bytes of all requests; None: they are lent."""
        self._alive: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("group_"):
            return getattr(lib, name)

        def call(raw: Any, *args: Any) -> int:
            assert ffi.typeof(raw) is ffi.typeof("struct group *")
            self.calls.append((name, *args))
            return self.returns.get(name, 0)

        return call

    def group_memory(self, raw: Any) -> Any:
        return ffi.NULL if self.pages is None else ffi.from_buffer(self.pages)

    def answers(self) -> list[int]:
        """What was answered, at once or late."""
        ends = ("group_complete", "group_answer", "group_abandon")
        return [call[1] for call in self.calls if call[0] in ends]

    def request(self, op: int, offset: int = 0, length: int = 0, flags: int = 0) -> Any:
        """A ``struct group *`` that leads it."""
        iod = ffi.new(
            "struct ublksrv_io_desc *",
            {"op_flags": op | flags, "start_sector": offset >> 9, "nr_sectors": length >> 9},
        )
        raw = ffi.new("struct group *")
        raw.iod = iod
        self._alive += [iod, raw]
        return raw

    def turn(self, native: Any, requests: Sequence[Any]) -> None:
        """A turn of a queue has brought these: through the C boundary, as there."""
        native.ops.submit_all(native.handle, ffi.new("struct group *[]", requests), len(requests))


def install(patch: pytest.MonkeyPatch) -> Engine:
    """One behind the groups and the bridge."""
    engine = Engine()
    for module in (group, bridge):
        patch.setattr(module, "lib", engine)
    return engine


def read(offset: int = 0, length: int = 4096) -> IoDesc:
    return IoDesc(Op.READ, offset, length)


def write(offset: int = 0, length: int = 4096, *, fua: bool = False) -> IoDesc:
    return IoDesc(Op.WRITE, offset, length, fua)
