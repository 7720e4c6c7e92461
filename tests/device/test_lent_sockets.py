"""Lent pages and sockets: which operations take them, and when they are let go.

A kernel that lends no pages is asked for it all the same: `lacks()` shows that it grants nothing.
"""

from __future__ import annotations

import errno
import mmap
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from raw import BLOCK, F_ZERO_COPY, Server, lacks, words
from tools import nothing_left
from uring import (
    CQE_F_MORE,
    CQE_F_NOTIF,
    OP_READ_FIXED,
    OP_RECV,
    OP_SEND,
    OP_SEND_ZC,
    OP_WRITE_FIXED,
    RECVSEND_FIXED_BUF,
    SQE_CQE_SKIP,
    Ring,
    address,
)

NO_OFFSET = (1 << 64) - 1


@contextmanager
def tcp(room: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection over loopback; the second has room for about so many bytes."""
    with socket.socket() as door, socket.socket() as ours:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        door.bind(("127.0.0.1", 0))
        door.listen()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        ours.connect(door.getsockname())
        theirs, _ = door.accept()
        with theirs:
            yield ours, theirs


@pytest.mark.parametrize("blocked", [False, True], ids=["room", "no-room"])
def test_a_commit_waits_for_the_notification_of_a_send_zc(blocked: bool) -> None:
    if lacks(F_ZERO_COPY):
        return
    with (
        Server(F_ZERO_COPY, slots=1) as server,
        tcp(4096 if blocked else 1 << 20) as (ours, theirs),
    ):
        (client,) = server.serve().clients
        ahead = ours.send(bytes(128 << 10)) if blocked else 0
        client.begin("write", server.node, 0, words(0, BLOCK))
        server.request()
        assert server.lend(0) == 0
        token = server.ring.issue(
            OP_SEND_ZC, ours.fileno(), length=BLOCK, ioprio=RECVSEND_FIXED_BUF
        )
        sent = server.ring.wait(lambda cqe: cqe.token == token)
        assert (sent.res, sent.flags) == (BLOCK, CQE_F_MORE)
        assert server.take_back() == 0
        server.commit(0, BLOCK)
        if blocked:
            # the bytes stand in the socket's queue as these very pages, until the peer reads
            assert server.ring.arrived() == []
            assert server.in_flight() == 1
            assert not client.answered()
            assert theirs.recv(ahead, socket.MSG_WAITALL) == bytes(ahead)
        noted = server.ring.wait(lambda cqe: cqe.token == token)
        assert (noted.res, noted.flags) == (0, CQE_F_NOTIF)
        assert server.in_flight() == 0
        assert client.end().res == BLOCK
        assert theirs.recv(BLOCK, socket.MSG_WAITALL) == words(0, BLOCK)
    nothing_left()


def test_send_zc_is_refused_by_unix_sockets_and_without_a_completion() -> None:
    if lacks(F_ZERO_COPY):
        return
    unix, peer = socket.socketpair()
    with unix, peer, Server(F_ZERO_COPY, slots=1) as server, tcp(1 << 20) as (ours, _theirs):
        (client,) = server.serve().clients
        client.begin("write", server.node, 0, words(0, BLOCK))
        server.request()
        assert server.lend(0) == 0
        for fd, flags, error in (
            (unix.fileno(), 0, errno.EOPNOTSUPP),
            (ours.fileno(), SQE_CQE_SKIP, errno.EINVAL),
        ):
            token = server.ring.issue(
                OP_SEND_ZC, fd, length=BLOCK, ioprio=RECVSEND_FIXED_BUF, flags=flags
            )
            assert server.ring.result(token) == -error
        assert server.take_back() == 0
        server.commit(0, BLOCK)
        assert client.end().res == BLOCK
    nothing_left()


def plain_send_takes_slots() -> bool:
    """Ask the kernel as ublkd would have to: before there is a device."""
    ring = Ring()
    area = mmap.mmap(-1, BLOCK)
    ring.register(area)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        res = ring.result(
            ring.issue(
                OP_SEND, ours.fileno(), addr=address(area), length=BLOCK, ioprio=RECVSEND_FIXED_BUF
            )
        )
        assert res in (BLOCK, -errno.EINVAL)
    ring.close()
    return res == BLOCK


def test_plain_send_and_recv_take_lent_pages_where_they_take_slots() -> None:
    takes = plain_send_takes_slots()
    if lacks(F_ZERO_COPY):
        assert not takes, "slots came to SEND long after the leases"
        return
    ours, theirs = socket.socketpair()
    with ours, theirs, Server(F_ZERO_COPY, slots=1) as server:
        (client,) = server.serve().clients
        client.begin("write", server.node, 0, words(0, BLOCK))
        server.request()
        assert server.lend(0) == 0
        assert server.member(OP_SEND, ours.fileno()) == (BLOCK if takes else -errno.EINVAL)
        if takes:
            assert theirs.recv(BLOCK, socket.MSG_WAITALL) == words(0, BLOCK)
        assert server.take_back() == 0
        server.commit(0, BLOCK)
        assert client.end().res == BLOCK
        if not takes:
            return
        client.begin("read", server.node, 0, BLOCK)
        server.request()
        assert server.lend(0) == 0
        theirs.send(words(0, 1000))
        assert server.member(OP_RECV, ours.fileno(), off=512) == -errno.EINVAL, "addr2"
        assert server.member(OP_RECV, ours.fileno()) == 1000, "what is there is a success"
        rest = server.ring.issue(
            OP_RECV, ours.fileno(), addr=1000, length=BLOCK - 1000, ioprio=RECVSEND_FIXED_BUF,
            op_flags=socket.MSG_WAITALL,
        )  # fmt: skip
        theirs.send(words(1000, 1000))
        assert server.ring.arrived() == [], "MSG_WAITALL is honoured"
        theirs.send(words(2000, BLOCK - 2000))
        assert server.ring.result(rest) == BLOCK - 1000
        assert server.take_back() == 0
        server.commit(0, BLOCK)
        assert client.end().data == words(0, BLOCK)
    nothing_left()


def test_fixed_reads_and_writes_work_on_a_socket_and_do_not_wait_for_all() -> None:
    if lacks(F_ZERO_COPY):
        return
    ours, theirs = socket.socketpair()
    with ours, theirs, Server(F_ZERO_COPY, slots=1) as server:
        (client,) = server.serve().clients
        client.begin("write", server.node, 0, words(0, 16 * BLOCK))
        server.request()
        assert server.lend(0) == 0
        for off in (0, NO_OFFSET):
            assert server.member(OP_WRITE_FIXED, ours.fileno(), off=off) == BLOCK
            assert theirs.recv(BLOCK, socket.MSG_WAITALL) == words(0, BLOCK)
        assert server.member(OP_WRITE_FIXED, ours.fileno(), off=512) == -errno.ESPIPE
        assert server.take_back() == 0
        server.commit(0, 16 * BLOCK)
        assert client.end().res == 16 * BLOCK

        client.begin("read", server.node, 0, BLOCK)
        server.request()
        assert server.lend(0) == 0
        at = 0
        for part in (1000, 1, BLOCK - 1001):
            theirs.send(words(0, BLOCK)[at : at + part])
            assert server.member(OP_READ_FIXED, ours.fileno(), at, BLOCK - at) == part
            at += part
        assert server.take_back() == 0
        server.commit(0, BLOCK)
        assert client.end().data == words(0, BLOCK)
    nothing_left()
