"""Small things about files that several tests need."""

from __future__ import annotations

import os
import random
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager

FileMaker = Callable[..., int]


def noise(length: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(length)


def content(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size + 1, 0)


def open_fds() -> set[str]:
    """All descriptors of this process, but for the one that lists them."""
    with os.scandir("/proc/self/fd") as entries:
        names = [e.name for e in entries]
    return {name for name in names if os.path.lexists(f"/proc/self/fd/{name}")}


@contextmanager
def limit(what: int, soft: int) -> Iterator[None]:
    """A resource limit of this process, for a while."""
    before = resource.getrlimit(what)
    resource.setrlimit(what, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(what, before)
