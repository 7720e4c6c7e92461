"""Files, request pages and a driver: plays a round on them and says what became of every byte."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Mapping
from dataclasses import dataclass

from .core import Core
from .driver import (
    LEAD,
    LEND,
    NEED_REG_BUF,
    READ,
    UNLEND,
    WRITE,
    Driver,
    Issued,
    Kind,
    Op,
    Outcome,
    Request,
)
from .model import Played, committed, play
from .strategies import MAX_SIZE, NR_FILES, Round


@dataclass(frozen=True)
class Way:
    """By which the pages of all requests are reached."""

    lease: str
    flags: int = 0
    refused: int = 0
    """REGISTER's errno."""

    @property
    def by_hand(self) -> bool:
        return self.lease == "REGISTER" or bool(self.flags & NEED_REG_BUF)

    @property
    def carries(self) -> bool:
        return self.lease == "USER_COPY" or self.refused < 0

    @property
    def in_memory(self) -> bool:
        """Whether a target can reach a request's bytes by itself."""
        return self.carries or self.lease == "COPY"


WAYS = {
    "copy": Way("COPY"),
    "auto": Way("AUTO"),
    "auto-by-hand": Way("AUTO", NEED_REG_BUF),
    "auto-refused": Way("AUTO", NEED_REG_BUF, -errno.EBUSY),
    "register": Way("REGISTER"),
    "register-refused": Way("REGISTER", 0, -errno.EINVAL),
    "group": Way("GROUP"),
    "user-copy": Way("USER_COPY"),
}
MAX_IO = MAX_SIZE + 4096
DEPTH = 4
QID = 2
SQES = 8
"""Fewer than most requests need: they are submitted in the middle of a turn."""
REQUEST_AT, TAG_SHIFT, QID_SHIFT = 0x80000000, 25, 41


@dataclass(frozen=True)
class Expected:
    files: list[bytes]
    pages: dict[int, bytes]
    played: dict[int, dict[int, Played]]


class World:
    """With a user copy, a sparse file stands for /dev/ublkcN."""

    def __init__(self, core: Core, way: Way, batched: bool = False) -> None:
        self._core = core
        self._way = way
        self._batched = batched
        self._fds = [os.memfd_create(f"file{i + 1}") for i in range(NR_FILES)]
        self._dev = os.memfd_create("ublkc")
        self._driver: Driver | None = None

    def close(self) -> None:
        if self._driver:
            self._driver.close()
        for fd in (*self._fds, self._dev):
            os.close(fd)

    def _take_driver(self) -> Driver:
        """A driver whose last round came to no good end is not used again."""
        driver, self._driver = self._driver, None
        return driver or Driver(
            self._core,
            self._fds,
            lease=self._way.lease,
            depth=DEPTH,
            max_io=MAX_IO,
            sqes=SQES,
            dev_fd=self._dev,
            qid=QID,
            batched=self._batched,
        )

    # --- bytes -----------------------------------------------------------

    def _fill(self, driver: Driver, r: Round) -> tuple[list[bytes], list[bytes]]:
        rng = random.Random(r.seed)
        files = [rng.randbytes(size) for size in r.sizes]
        for fd, data in zip(self._fds, files, strict=True):
            os.ftruncate(fd, 0)
            os.pwrite(fd, data, 0)
        pages = [rng.randbytes(MAX_IO) for _ in range(DEPTH)]
        for tag, data in enumerate(pages):
            if self._way.carries:
                os.pwrite(self._dev, data, position(tag))
                driver.memory(tag)[:] = data[::-1]
            else:
                driver.pages(tag)[:] = data
        return files, pages

    def _pages(self, driver: Driver, tag: int) -> bytes:
        if self._way.carries:
            return os.pread(self._dev, MAX_IO, position(tag))
        return bytes(driver.pages(tag)[:])

    def _expect(self, r: Round, files: list[bytes], pages: list[bytes]) -> Expected:
        after = [bytearray(f) for f in files]
        lent = {tag: bytearray(data) for tag, data in enumerate(pages)}
        played: dict[int, dict[int, Played]] = {}
        for tag, request in r.requests.items():
            played[tag] = {}
            for i, m in enumerate(request.members[: r.max_members]):
                steps = (request.outcomes or {}).get(i, ())
                p = played[tag][i] = play(m, steps, len(files[m.file - 1]))
                if m.op == Op.READ:
                    moved = files[m.file - 1][m.offset : m.offset + p.touched]
                    lent[tag][m.buf : m.buf + p.touched] = moved
                elif m.op == Op.WRITE:
                    source = pages[tag][m.buf : m.buf + p.touched]
                    _write(after[m.file - 1], m.offset, source)
                elif m.op == Op.ZEROES:
                    _write(after[m.file - 1], m.offset, bytes(p.touched))
        return Expected([bytes(f) for f in after], {t: bytes(d) for t, d in lent.items()}, played)

    # --- a round ---------------------------------------------------------

    def check(self, r: Round) -> None:
        """Serves the round and compares everything that can be seen."""
        driver = self._take_driver()
        driver.env.block, driver.env.max_members = r.block, r.max_members
        files, pages = self._fill(driver, r)
        want = self._expect(r, files, pages)
        shorts, agains = driver.stats.short_members, driver.stats.again_members

        driver.begin({tag: self._reached(request) for tag, request in r.requests.items()})
        ret = driver.run()
        assert ret == 0, os.strerror(-ret)
        results = {tag: driver.result(tag) for tag in r.requests}
        issued = driver.issued()

        _check_issues(want.played, issued)
        self._check_commands(r, driver.everything())
        for tag, request in r.requests.items():
            ends = {e.member: e.order for e in issued if e.tag == tag}
            rule = committed(
                request,
                want.played[tag],
                ends,
                block=r.block,
                max_members=r.max_members,
                in_memory=self._way.in_memory,
            )
            assert results[tag] == rule, f"tag {tag}"
        for fd, data in zip(self._fds, want.files, strict=True):
            assert os.pread(fd, len(data) + 1, 0) == data
        for tag in range(DEPTH):
            assert self._pages(driver, tag) == self._seen(r, results, tag, pages[tag], want)
        everyone = [p for members in want.played.values() for p in members.values()]
        assert driver.stats.short_members - shorts == sum(p.shorts for p in everyone)
        assert driver.stats.again_members - agains == sum(p.agains for p in everyone)
        assert driver.stats.in_flight == 0
        self._driver = driver

    def _reached(self, request: Request) -> Request:
        """The request as it comes on this way."""
        outcomes = dict(request.outcomes or {})
        if self._way.refused:
            outcomes[LEND] = [Outcome(Kind.INSTEAD, self._way.refused)]
        return request.but(flags=self._way.flags, outcomes=outcomes)

    def _check_commands(self, r: Round, everything: list[Issued]) -> None:
        """Pages are lent once per request or once per issue, and only where there are some."""
        for tag, request in r.requests.items():
            mine = [e for e in everything if e.tag == tag]
            want: list[int] = []
            if self._way.by_hand and request.op in (READ, WRITE):
                want = [LEND] if self._way.refused else [LEND, UNLEND]
            elif self._way.lease == "GROUP":
                led = [e for e in mine if e.member < LEAD and request.members[e.member].carries]
                want = [LEAD] * len(led)
            assert [e.member for e in mine if e.member >= LEAD] == want

    def _seen(
        self, r: Round, results: Mapping[int, int], tag: int, before: bytes, want: Expected
    ) -> bytes:
        """What the request's own pages hold after it."""
        if not self._way.carries or tag not in r.requests:
            return want.pages[tag]
        request = r.requests[tag]
        arrived = max(0, results[tag]) if request.op == READ else 0
        if not any(m.carries for m in request.members):  # the target itself has filled memory
            return before[::-1][:arrived] + before[arrived:]
        return want.pages[tag][:arrived] + before[arrived:]


def position(tag: int) -> int:
    """Where a tag's request begins in /dev/ublkcN."""
    return REQUEST_AT + (QID << QID_SHIFT) + (tag << TAG_SHIFT)


def _write(content: bytearray, at: int, data: bytes) -> None:
    if data:
        content.extend(bytes(max(0, at - len(content))))
        content[at : at + len(data)] = data


def _check_issues(played: Mapping[int, Mapping[int, Played]], issued: list[Issued]) -> None:
    """Every issue asks for exactly the bytes that are missing, and nobody issues anything else."""
    asynchronous = 1 << 4  # IOSQE_ASYNC
    seen: dict[tuple[int, int], list[tuple[int, int, bool]]] = {}
    for e in issued:
        seen.setdefault((e.tag, e.member), []).append((e.off, e.len, bool(e.flags & asynchronous)))
    want = {(tag, i): p.issues for tag, members in played.items() for i, p in members.items()}
    assert seen == want
