"""What becomes of what a server commits and commands. docs/kernel.md says it in words."""

from __future__ import annotations

import contextlib
import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from raw import (
    BLOCK,
    DISCARD,
    F_NONE,
    F_USER_COPY,
    FLUSH,
    POISON,
    READ,
    WRITE,
    WRITE_ZEROES,
    Server,
    delete,
    words,
)
from tools import nothing_left, wait_until
from uring import SECONDS

from ublkd.control import CommandError
from ublkd.uapi import Feature

# --- short, zero and odd results --------------------------------------------------------------


def test_a_write_committed_with_0_comes_back_until_it_is_not() -> None:
    with Server() as server:
        (client,) = server.serve().clients
        client.begin("write", server.node, BLOCK, words(BLOCK, BLOCK))
        for _ in range(200):
            assert server.request().asked == (WRITE, BLOCK, BLOCK)
            assert bytes(server.buffer(0)[:BLOCK]) == words(BLOCK, BLOCK)
            server.commit(0, 0)
        assert server.request().asked == (WRITE, BLOCK, BLOCK)
        assert not client.answered()
        server.commit(0, BLOCK)
        assert client.end().res == BLOCK
    nothing_left()


def test_a_read_committed_with_0_is_an_error() -> None:
    with Server() as server:
        (client,) = server.serve().clients
        client.begin("read", server.node, 0, BLOCK)
        server.request()
        server.commit(0, 0)
        assert client.end().res == -errno.EIO
    nothing_left()


def test_the_rest_behind_whole_sectors_is_a_new_request() -> None:
    with Server() as server:
        (client,) = server.serve().clients
        client.begin("read", server.node, BLOCK, 4 * BLOCK)
        at = BLOCK
        for moved in (512, 1536, BLOCK, 4 * BLOCK - 512 - 1536 - BLOCK):
            assert server.request().asked == (READ, at, 5 * BLOCK - at)
            server.buffer(0)[:moved] = words(at, moved)
            server.commit(0, moved)
            at += moved
        answer = client.end()
        assert (answer.res, answer.data) == (4 * BLOCK, words(BLOCK, 4 * BLOCK))

        client.begin("write", server.node, 0, words(0, BLOCK))
        server.request()
        server.commit(0, 512)
        assert server.request().asked == (WRITE, 512, BLOCK - 512)
        assert bytes(server.buffer(0)[: BLOCK - 512]) == words(512, BLOCK - 512)
        server.commit(0, BLOCK - 512)
        assert client.end().res == BLOCK
    nothing_left()


@pytest.mark.parametrize("flags", [F_NONE, F_USER_COPY], ids=["copy", "user-copy"])
def test_after_an_odd_result_a_read_gets_the_wrong_bytes(flags: Feature) -> None:
    """1000 of 4096 bytes: the driver asks on at sector 1, and puts it behind byte 1000."""
    with Server(flags) as server:
        (client,) = server.serve().clients

        def fill(data: bytes) -> None:
            if flags & F_USER_COPY:
                assert os.pwrite(server.char, data, server.user_copy(0)) == len(data)
            else:
                server.buffer(0)[: len(data)] = data

        for last, result in ((24, BLOCK), (0, -errno.EIO)):
            client.begin("read", server.node, 0, BLOCK)
            assert server.request().asked == (READ, 0, BLOCK)
            fill(words(0, BLOCK))
            server.commit(0, 1000)
            # 3096 bytes are left, of which six whole sectors can be told
            assert server.request().asked == (READ, 512, 3072)
            fill(words(512, 3072))
            server.commit(0, 3072)
            # and now a request for nothing: 24 bytes that are no sector
            assert server.request().asked == (READ, 7 * 512, 0)
            fill(words(7 * 512, 24))
            server.commit(0, last)
            answer = client.end()
            assert answer.res == result
        wrong = words(0, 1000) + words(512, 3072) + words(7 * 512, 24)
        assert answer.data[:4072] == wrong[:4072]
    nothing_left()


def test_after_an_odd_result_a_write_stores_the_wrong_bytes_and_never_ends() -> None:
    with Server() as server:
        (client,) = server.serve().clients
        data = words(0, BLOCK)
        client.begin("write", server.node, 0, data)
        assert server.request().asked == (WRITE, 0, BLOCK)
        server.commit(0, 1000)
        # what lies behind byte 1000 is to be stored from byte 512 on
        assert server.request().asked == (WRITE, 512, 3072)
        assert bytes(server.buffer(0)[:3072]) == data[1000:4072]
        server.commit(0, 3072)
        for _ in range(50):  # all of nothing, which is a WRITE committed with 0
            assert server.request().asked == (WRITE, 7 * 512, 0)
            server.commit(0, 0)
        assert server.request().asked == (WRITE, 7 * 512, 0)
        assert not client.answered()
        server.commit(0, 24)
        assert client.end().res == BLOCK, "it was told of no fault"
    nothing_left()


def test_more_than_was_asked_for_is_all_of_it() -> None:
    # not where the driver copies: there a READ of too much makes it warn in the kernel's log
    with Server(F_USER_COPY) as server:
        (client,) = server.serve().clients
        client.begin("read", server.node, 0, BLOCK)
        server.request()
        assert os.pwrite(server.char, words(0, BLOCK), server.user_copy(0)) == BLOCK
        server.commit(0, 1 << 30)
        answer = client.end()
        assert (answer.res, answer.data) == (BLOCK, words(0, BLOCK))
        client.begin("write", server.node, 0, words(0, BLOCK))
        server.request()
        server.commit(0, 1 << 30)
        assert client.end().res == BLOCK
        assert (server.in_flight(), server.ring.arrived()) == (0, [])
    nothing_left()


def test_what_carries_no_data_succeeds_with_any_result_from_0_on() -> None:
    with Server() as server:
        (client,) = server.serve().clients
        for verb, op in (("sync", FLUSH), ("discard", DISCARD), ("zero", WRITE_ZEROES)):
            place = () if op == FLUSH else (BLOCK, 2 * BLOCK)
            for result in (0, 1, 512, 1 << 30):
                client.begin(verb, server.node, *place)
                request = server.request()
                assert request.op == op
                assert op == FLUSH or request.asked == (op, *place)
                server.commit(0, result)
                assert client.end().res == 0
                assert (server.in_flight(), server.ring.arrived()) == (0, [])
    nothing_left()


# --- errnos -----------------------------------------------------------------------------------

UNDERSTOOD = [
    "EAGAIN", "EBUSY", "ENOMEM", "ETIME", "EREMCHG", "ETOOMANYREFS", "EOVERFLOW", "ENOSPC",
    "ENODATA", "EREMOTEIO", "EILSEQ", "ENOLINK", "ETIMEDOUT", "EBADE", "EINVAL", "EOPNOTSUPP",
    "ENODEV", "EIO",
]  # fmt: skip
NOT_UNDERSTOOD = ["EPERM", "EINTR", "EROFS", "ESHUTDOWN", "EFBIG", "EDQUOT", "ESTALE", "EPIPE"]


def test_an_errno_reaches_the_reader_as_itself_or_as_eio() -> None:
    """Nothing is tried again by the driver or the block layer, not even EAGAIN or ENOMEM."""
    with Server() as server:
        (client,) = server.serve().clients
        for name in UNDERSTOOD + NOT_UNDERSTOOD:
            client.begin("read", server.node, 0, BLOCK)
            server.request()
            server.commit(0, -getattr(errno, name))
            answer = client.end()
            told = name if name in UNDERSTOOD else "EIO"
            assert (name, -answer.res) == (name, getattr(errno, told))
            assert set(answer.data) == {POISON}
            assert (server.in_flight(), server.ring.arrived()) == (0, [])
    nothing_left()


@pytest.mark.parametrize("name", ["EAGAIN", "EOPNOTSUPP"])
def test_a_reader_through_io_uring_is_told_or_tries_again_for_ever(name: str) -> None:
    """Kernels differ, and none says which it does: its first answer decides."""
    number = getattr(errno, name)
    with Server() as server:
        (client,) = server.serve().clients
        client.begin("read by io_uring", server.node, 0, BLOCK)
        server.request()
        server.commit(0, -errno.ENOMEM)
        assert client.end().res == -errno.ENOMEM, "which no kernel tries again"

        client.begin("read by io_uring", server.node, 0, BLOCK)
        server.request()
        server.commit(0, -number)
        wait_until(lambda: server.ring.arrived() or client.answered(), SECONDS, "any answer")
        if client.answered():
            assert client.end().res == -number
            assert (server.in_flight(), server.ring.arrived()) == (0, [])
        else:
            for _ in range(50):
                assert server.request().asked == (READ, 0, BLOCK)
                server.commit(0, -number)
            server.request()
            assert not client.answered()
            server.buffer(0)[:BLOCK] = words(0, BLOCK)
            server.commit(0, BLOCK)
            answer = client.end()
            assert (answer.res, answer.data) == (BLOCK, words(0, BLOCK))
    nothing_left()


# --- the order of commands --------------------------------------------------------------------


def in_the_driver() -> bool:
    """Whether one of this process's workers in the kernel is inside the driver."""
    for stack in Path("/proc/self/task").glob("*/stack"):
        with contextlib.suppress(OSError):  # they come and go
            if "[ublk_drv]" in stack.read_text():
                return True
    return False


def test_start_waits_for_the_last_fetch() -> None:
    with Server(depth=2) as server:
        server.fetch(0)
        started = server.start()
        wait_until(in_the_driver, 20, "START_DEV in the driver")
        assert not started.done()
        assert not Path(server.node).exists()
        server.fetch(1)
        server.until(started)
        assert Path(server.node).exists()
    nothing_left()


def test_a_started_device_keeps_its_parameters_and_its_server() -> None:
    with Server() as server:
        server.set_params()
        server.serve()
        with pytest.raises(CommandError) as refused:
            server.set_params()
        assert refused.value.errno == errno.EACCES
        with pytest.raises(OSError) as second:
            os.open(f"/dev/ublkc{server.id}", os.O_RDWR)
        assert second.value.errno == errno.EBUSY
    nothing_left()


def test_del_waits_until_the_server_lets_go() -> None:
    """DEL_DEV stops the disk at once; the server's descriptors and its ring hold the rest."""
    with Server() as server:
        server.serve()
        with ThreadPoolExecutor(1) as another:
            deleted = another.submit(delete, server.id)
            wait_until(in_the_driver, 20, "DEL_DEV in the driver")
            # the FETCH comes back, and nothing else can be had of the device
            assert server.ring.wait(lambda _: True).res == -errno.ENODEV
            assert not Path(server.node).exists()
            assert not deleted.done()
            server.let_go()
            deleted.result(60)
    nothing_left()
