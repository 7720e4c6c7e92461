"""What operations may do with a request's pages, and until when. docs/kernel.md says it in words.

A kernel that lends no pages is asked for it all the same: `lacks()` shows that it grants nothing.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from raw import (
    AUTO_FALLBACK,
    BLOCK,
    F_AUTO_BUF_REG,
    F_ZERO_COPY,
    FLUSH,
    IO_COMMIT,
    IO_REGISTER,
    IO_UNREGISTER,
    NEED_REG_BUF,
    POISON,
    Server,
    lacks,
    words,
)
from tools import nothing_left, wait_until
from uring import (
    OP_READ_FIXED,
    OP_WRITE_FIXED,
    SECONDS,
    Ring,
)

from ublkd.uapi import Feature

NO_OFFSET = (1 << 64) - 1
AUTO = F_ZERO_COPY | F_AUTO_BUF_REG


@contextmanager
def opened(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


# --- slots ------------------------------------------------------------------------------------


def test_a_member_reaches_its_request_in_its_direction_and_nothing_else() -> None:
    if lacks(F_ZERO_COPY):
        return
    with opened("/dev/zero") as zero, Server(F_ZERO_COPY, slots=2) as server:
        (client,) = server.serve().clients
        for verb, what, right, wrong in (
            ("read", BLOCK, OP_READ_FIXED, OP_WRITE_FIXED),
            ("write", words(0, BLOCK), OP_WRITE_FIXED, OP_READ_FIXED),
        ):
            client.begin(verb, server.node, 0, what)
            server.request()
            assert server.member(right, zero) == -errno.EFAULT, "an empty slot"
            assert server.member(right, zero, slot=2) == -errno.EFAULT, "beyond the table"
            assert server.lend(0) == 0
            assert server.member(right, zero) == BLOCK
            assert server.member(wrong, zero) == -errno.EFAULT
            assert server.member(right, zero, BLOCK - 1, 1) == 1
            for addr, length in ((BLOCK, 1), (BLOCK - 1, 2), (0, BLOCK + 1), (NO_OFFSET, 2)):
                assert server.member(right, zero, addr, length) == -errno.EFAULT
            assert server.take_back() == 0
            server.commit(0, BLOCK)
            answer = client.end()
            assert answer.res == BLOCK
        assert answer.data == words(0, BLOCK)
    nothing_left()


def test_a_read_from_dev_zero_fills_lent_pages() -> None:
    if lacks(F_ZERO_COPY):
        return
    with opened("/dev/zero") as zero, Server(F_ZERO_COPY, slots=1) as server:
        (client,) = server.serve().clients
        client.begin("read", server.node, 0, 4 * BLOCK)
        server.request()
        assert server.lend(0) == 0
        assert server.member(OP_READ_FIXED, zero, BLOCK, 2 * BLOCK) == 2 * BLOCK
        assert server.take_back() == 0
        server.commit(0, 4 * BLOCK)
        old = bytes([POISON]) * BLOCK
        # the driver clears nothing: the rest shows what the reader's memory had in it
        assert client.end().data == old + bytes(2 * BLOCK) + old
    nothing_left()


def test_a_slot_is_taken_by_one_and_a_request_may_take_several() -> None:
    if lacks(F_ZERO_COPY):
        return
    with Server(F_ZERO_COPY, depth=2, clients=2, slots=3) as server:
        one, two = server.serve().clients
        one.begin("read", server.node, 0, BLOCK)
        first = server.request().tag
        two.begin("read", server.node, 0, BLOCK)
        second = server.request().tag
        assert server.take_back(0) == -errno.EINVAL, "nothing in it"
        assert server.lend(first, 0) == 0
        assert server.lend(first, 0) == server.lend(second, 0) == -errno.EBUSY
        assert server.lend(first, 3) == server.take_back(3) == -errno.EINVAL
        assert server.lend(first, 1) == 0
        server.commit(first, BLOCK)
        assert server.in_flight() == 2, "held by its two slots"
        assert server.take_back(0) == 0
        assert server.in_flight() == 2
        assert server.take_back(1) == 0
        assert server.in_flight() == 1
        assert one.end().res == BLOCK
        # a tag that is not the server's, and a request without data, have no pages
        assert server.lend(first) == -errno.EBUSY
        one.begin("sync", server.node)
        flush = server.request()
        assert flush.op == FLUSH
        assert server.lend(flush.tag) == -errno.EINVAL
        server.commit(flush.tag, 0)
        server.commit(second, BLOCK)
        assert one.end().res == 0
        assert two.end().res == BLOCK
    nothing_left()


def test_a_wrong_slot_takes_back_and_then_fills_another_requests_pages() -> None:
    if lacks(F_ZERO_COPY):
        return
    with opened("/dev/zero") as zero, Server(
        F_ZERO_COPY, depth=2, clients=2, slots=2
    ) as server:  # fmt: skip
        one, two = server.serve().clients
        one.begin("read", server.node, 0, BLOCK)
        first = server.request().tag
        two.begin("read", server.node, 0, BLOCK)
        second = server.request().tag
        assert server.lend(first, 0) == server.lend(second, 1) == 0
        # only the slot counts: neither another's tag nor one that does not exist is minded
        assert server.take_back(1, tag=first) == 0
        assert server.member(OP_READ_FIXED, zero, slot=1) == -errno.EFAULT
        assert server.take_back(0, tag=999) == 0
        assert server.lend(first, 1) == 0
        assert server.member(OP_READ_FIXED, zero, slot=1) == BLOCK, "meant for the second"
        assert server.take_back(1) == 0
        server.commit(first, BLOCK)
        server.commit(second, BLOCK)
        assert set(one.end().data) == {0}
        assert set(two.end().data) == {POISON}, "told of success, and nothing was read"
    nothing_left()


def test_the_rest_of_a_request_is_lent_from_0_again() -> None:
    if lacks(F_ZERO_COPY):
        return
    theirs, ours = socket.socketpair()
    with theirs, ours, Server(F_ZERO_COPY, slots=1) as server:
        (client,) = server.serve().clients
        client.begin("write", server.node, 0, words(0, BLOCK))
        for at, moved in ((0, 1536), (1536, BLOCK - 1536)):
            assert server.request().asked == (1, at, BLOCK - at)
            assert server.lend(0) == 0
            assert server.member(OP_WRITE_FIXED, ours.fileno(), 0, moved) == moved
            assert theirs.recv(BLOCK) == words(at, moved)
            assert server.take_back() == 0
            server.commit(0, moved)
        assert client.end().res == BLOCK
    nothing_left()


# --- who may --------------------------------------------------------------------------------


def test_only_the_thread_that_fetched_may_commit_and_any_may_lend() -> None:
    if lacks(F_ZERO_COPY):
        return

    def elsewhere() -> list[int]:
        ring = Ring(slots=1)
        done = [
            ring.result(server.command(number, 0, ring=ring))
            for number in (IO_COMMIT, IO_REGISTER, IO_UNREGISTER)
        ]
        ring.close()
        return done

    with Server(F_ZERO_COPY, slots=1) as server:
        (client,) = server.serve().clients
        client.begin("read", server.node, 0, BLOCK)
        server.request()
        with ThreadPoolExecutor(1) as another:
            assert another.submit(elsewhere).result(SECONDS) == [-errno.EINVAL, 0, 0]
        server.commit(0, BLOCK)
        assert client.end().res == BLOCK
    nothing_left()


def test_a_commit_by_another_ring_leaves_the_pages_lent() -> None:
    if lacks(AUTO):
        return
    with Server(AUTO, slots=1) as server:
        (client,) = server.serve().clients
        client.begin("read", server.node, 0, BLOCK)
        server.request()
        other = Ring(slots=1)
        server.commit(0, BLOCK, ring=other)
        assert server.in_flight() == 1
        assert server.take_back() == 0
        assert server.in_flight() == 0
        assert client.end().res == BLOCK
        other.close()
    nothing_left()


# --- how long ---------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [F_ZERO_COPY, AUTO], ids=["register", "auto"])
@pytest.mark.parametrize("brought", [BLOCK, 512, 0])
def test_a_commit_waits_for_members_and_does_not_mind_what_they_bring(
    flags: Feature, brought: int
) -> None:
    if lacks(flags):
        return
    with Server(flags, slots=1) as server:
        empty, feed = os.pipe()  # after the clients, which would hold its other end open
        (client,) = server.serve().clients
        client.begin("read", server.node, 0, BLOCK)
        server.request()
        assert flags & F_AUTO_BUF_REG or server.lend(0) == 0
        member = server.ring.issue(OP_READ_FIXED, empty, length=BLOCK, off=NO_OFFSET)
        assert flags & F_AUTO_BUF_REG or server.take_back() == 0
        server.commit(0, BLOCK)
        assert server.ring.arrived() == []
        assert server.in_flight() == 1
        assert not client.answered()
        os.write(feed, words(0, brought))
        os.close(feed)
        assert server.ring.result(member) == brought
        assert server.in_flight() == 0
        answer = client.end()
        # what was committed is what is told, whatever has been filled
        assert answer.res == BLOCK
        assert answer.data == words(0, brought) + bytes([POISON]) * (BLOCK - brought)
        os.close(empty)
    nothing_left()


# --- auto -------------------------------------------------------------------------------------


def test_a_request_without_a_free_slot_asks_for_help() -> None:
    """Both tags name slot 0: the second request finds it busy."""
    if lacks(AUTO):
        return
    with opened("/dev/zero") as zero, Server(
        AUTO, depth=2, clients=2, slots=2, auto=[AUTO_FALLBACK] * 2
    ) as server:  # fmt: skip
        one, two = server.serve().clients
        one.begin("read", server.node, 0, BLOCK)
        first = server.request()
        two.begin("read", server.node, 0, BLOCK)
        second = server.request()
        assert not first.flags & NEED_REG_BUF
        assert second.flags & NEED_REG_BUF
        assert server.lend(second.tag, 0) == -errno.EBUSY
        assert server.lend(second.tag, 1) == 0
        for slot in (0, 1):
            assert server.member(OP_READ_FIXED, zero, slot=slot) == BLOCK
        server.commit(first.tag, BLOCK)
        assert set(one.end().data) == {0}
        server.commit(second.tag, BLOCK)
        assert server.in_flight() == 1, "what was lent by hand is taken back by hand"
        assert server.take_back(1) == 0
        assert set(two.end().data) == {0}
    nothing_left()


def test_without_the_flag_for_it_such_a_request_fails_and_nobody_tells_the_server() -> None:
    if lacks(AUTO):
        return
    with Server(AUTO, slots=1, auto=[5]) as server:  # slot 5 of 1
        (client,) = server.serve().clients
        for verb, what in (("read", BLOCK), ("write", words(0, BLOCK))):
            client.begin(verb, server.node, 0, what)
            # what arrives is seen, and the driver looks at the slot, only while we are in it
            wait_until(lambda: server.ring.arrived() or client.answered(), SECONDS, "any answer")
            assert server.ring.arrived() == []
            assert client.end().res == -errno.EIO
        client.begin("sync", server.node)
        assert server.request().op == FLUSH, "the FETCH is still good for what has no pages"
        server.commit(0, 0)
        assert client.end().res == 0
    nothing_left()
