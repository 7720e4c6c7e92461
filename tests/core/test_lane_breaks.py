"""Stream sockets one by one: what breaks them, whom that concerns, and what does not wait."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .core import Core
from .driver import FLUSH, READ, WRITE, DriverMaker, Member, Op, Request, cut, instead
from .files import FileMaker, noise, open_fds
from .peer import Pair, tcp_pair, unix_pair
from .streams import MSG_WAITALL

SIZE = 8192
PAYLOAD = Member(Op.SEND, len=SIZE)
ARRIVAL = Member(Op.RECV, len=SIZE)
SENDER = Request(WRITE, SIZE, [PAYLOAD])
RECEIVER = Request(READ, SIZE, [ARRIVAL])
GROUP_SEND_ZC = 1 << 31

PairMaker = Callable[..., Pair]


@pytest.fixture
def new_pair() -> Iterator[PairMaker]:
    """Pairs of connected sockets, closed at the test's end."""
    with contextlib.ExitStack() as undo:

        def make(of: Callable[[], Pair] = unix_pair) -> Pair:
            pair = of()
            for end in pair:
                end.settimeout(60)
                undo.callback(end.close)
            pair[0].setblocking(True)  # a time limit would mean O_NONBLOCK
            return pair

        yield make


def drain(end: socket.socket) -> bytes:
    """All until the stream ends."""
    return b"".join(iter(lambda: end.recv(65536), b""))


def take(end: socket.socket, length: int) -> bytes:
    got = b""
    while len(got) < length:
        got += end.recv(length - len(got)) or pytest.fail(f"the stream ends after {len(got)} bytes")
    return got


def text_of(core: Core, text: bytes) -> tuple[Any, int]:
    """Memory that holds it, and where that is."""
    memory = core.ffi.new("char[]", text)
    return memory, int(core.ffi.cast("uintptr_t", memory))


# --- who waits for whom -----------------------------------------------------


@pytest.mark.parametrize("of", [unix_pair, tcp_pair])
def test_a_send_does_not_wait_for_a_receive(
    new_driver: DriverMaker, new_pair: PairMaker, of: Callable[[], Pair]
) -> None:
    ours, theirs = new_pair(of)
    driver = new_driver([ours.fileno()])
    driver.pages(1)[:SIZE] = noise(SIZE)
    driver.begin({0: RECEIVER, 1: SENDER})
    assert driver.run(turns=1) == -errno.ETIME
    assert (driver.commits(0), driver.commits(1)) == (0, 1)
    assert take(theirs, SIZE) == noise(SIZE)
    theirs.sendall(noise(SIZE, 1))
    assert driver.run() == 0
    assert driver.result(0) == driver.result(1) == SIZE
    assert driver.pages(0)[:SIZE] == noise(SIZE, 1)


def test_a_receive_does_not_wait_for_a_send(new_driver: DriverMaker, new_pair: PairMaker) -> None:
    ours, theirs = new_pair(lambda: unix_pair(room=1))
    large = 256 << 10
    driver = new_driver([ours.fileno()], max_io=large)
    driver.pages(0)[:] = noise(large)
    theirs.sendall(noise(512, 1))
    driver.begin({0: Request(WRITE, large, [Member(Op.SEND, len=large)])})
    driver.begin({1: Request(READ, 512, [Member(Op.RECV, len=512)])})
    while not driver.commits(1):
        assert driver.run(turns=1) == -errno.ETIME
    assert driver.commits(0) == 0  # more than the socket takes, and nobody has read
    theirs.close()
    assert driver.run() == 0
    assert driver.result(1) == 512
    assert driver.result(0) != large


def test_sockets_do_not_wait_for_each_other(new_driver: DriverMaker, new_pair: PairMaker) -> None:
    slow, fast = new_pair(), new_pair()
    driver = new_driver([slow[0].fileno(), fast[0].fileno()])
    fast[1].sendall(noise(2 * SIZE))
    quick = RECEIVER.but(members=[Member(Op.RECV, 2, len=SIZE)])
    driver.begin({0: RECEIVER, 1: quick, 2: RECEIVER, 3: quick})
    while driver.commits(3) == 0:
        assert driver.run(turns=1) == -errno.ETIME
    assert [driver.commits(tag) for tag in range(4)] == [0, 1, 0, 1]
    slow[1].sendall(noise(2 * SIZE, 1))
    assert driver.run() == 0
    assert driver.pages(3)[:SIZE] == noise(2 * SIZE)[SIZE:]
    assert driver.pages(2)[:SIZE] == noise(2 * SIZE, 1)[SIZE:]


def test_a_message_of_several_parts_is_not_divided_by_another_request(
    core: Core, new_driver: DriverMaker, new_pair: PairMaker
) -> None:
    """A header goes on before anything else does, and what belongs to it follows at once."""
    ours, theirs = new_pair()
    driver = new_driver([ours.fileno()])
    requests, want = {}, b""
    keep = []
    for tag in range(4):
        driver.pages(tag)[:SIZE] = noise(SIZE, tag)
        memory, address = text_of(core, b"header of %d" % tag)
        keep.append(memory)
        header = Member(Op.SEND, offset=address, len=len(memory) - 1)
        steps = {0: [*cut(1, 2), *instead(-errno.EAGAIN)], 1: cut(1, 4000)}
        requests[tag] = SENDER.but(members=[header, PAYLOAD], outcomes=steps)
        want += b"header of %d" % tag + noise(SIZE, tag)
    driver.begin(requests)
    assert driver.run() == 0
    assert take(theirs, len(want)) == want
    assert [driver.result(tag) for tag in range(4)] == [SIZE] * 4


# --- what breaks a stream ---------------------------------------------------


def closed(theirs: socket.socket) -> None:
    theirs.close()


def reset(theirs: socket.socket) -> None:
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()


@pytest.mark.parametrize(
    ("of", "end"), [(unix_pair, closed), (tcp_pair, closed), (tcp_pair, reset)]
)
@pytest.mark.parametrize("zc", [False, True], ids=["send", "send-zc"])
def test_a_peer_that_goes_fails_what_is_under_way_what_waits_and_what_comes_later(
    new_driver: DriverMaker,
    new_pair: PairMaker,
    of: Callable[[], Pair],
    end: Callable[[socket.socket], None],
    zc: bool,
) -> None:
    (ours, theirs), other = new_pair(of), new_pair()
    driver = new_driver([ours.fileno(), other[0].fileno()])
    theirs.sendall(noise(1024))  # a part of what is waited for
    sends = Member(Op.SEND_ZC if zc else Op.SEND, len=SIZE)
    driver.begin({0: RECEIVER, 1: RECEIVER})
    assert driver.run(turns=0) == -errno.ETIME
    end(theirs)
    assert driver.run() == 0
    assert driver.result(0) in (1024, -errno.EIO)  # a reset throws away what was not read
    assert driver.result(1) == -errno.EIO

    other[1].sendall(noise(SIZE))
    healthy = RECEIVER.but(members=[Member(Op.RECV, 2, len=SIZE)])
    driver.begin({0: SENDER.but(members=[sends]), 1: RECEIVER, 2: healthy})
    assert driver.run() == 0
    assert driver.result(0) == driver.result(1) == -errno.EIO
    assert {e.fd for e in driver.issued()} == {2}
    assert driver.result(2) == SIZE


def test_the_first_error_is_what_later_requests_are_told(
    new_driver: DriverMaker, new_pair: PairMaker
) -> None:
    ours, theirs = new_pair()
    driver = new_driver([ours.fileno()])
    broken = SENDER.but(outcomes={0: instead(-errno.ENOLINK)})
    driver.begin({0: broken, 1: SENDER, 2: RECEIVER})
    assert driver.run() == 0
    assert [driver.result(tag) for tag in (0, 1)] == [-errno.ENOLINK] * 2
    assert driver.result(2) in (-errno.EIO, -errno.ENOLINK)  # it was under way, and found an end
    assert driver.serve(RECEIVER) == -errno.ENOLINK
    assert driver.added() == [-errno.ENOLINK]
    assert not driver.issued()
    assert drain(theirs) == b""


def test_a_break_ends_what_would_wait_for_ever_in_the_other_direction(
    new_driver: DriverMaker, new_pair: PairMaker
) -> None:
    ours, theirs = new_pair()
    driver = new_driver([ours.fileno()])
    driver.begin({0: RECEIVER, 1: RECEIVER, 2: SENDER.but(outcomes={0: instead(0)})})
    assert driver.run() == 0
    assert [driver.result(tag) for tag in range(3)] == [-errno.EIO] * 3
    assert drain(theirs) == b""


@pytest.mark.parametrize(
    ("members", "error"),
    [
        ([Member(Op.SEND, len=4096), PAYLOAD], -errno.EINVAL),
        ([Member(Op.SEND, len=512), Member(Op.SEND, buf=512, len=SIZE)], -errno.EINVAL),
        ([Member(Op.SEND, len=4096), Member(Op.SEND, buf=4096, len=4096)], -errno.E2BIG),
    ],
    ids=["beyond the request", "a little beyond", "beyond max_members"],
)
def test_a_member_that_cannot_be_had_breaks_the_stream_that_it_leaves_a_hole_in(
    new_driver: DriverMaker, new_pair: PairMaker, members: list[Member], error: int
) -> None:
    ours, theirs = new_pair()
    driver = new_driver([ours.fileno()], max_members=1 if error == -errno.E2BIG else 4)
    size = 4096 if members[-1] is PAYLOAD else SIZE
    driver.begin({0: Request(WRITE, size, members), 1: SENDER, 2: RECEIVER})
    assert driver.run() == 0
    assert driver.added(0) == [0, error]
    assert driver.result(0) <= members[0].len
    assert driver.result(1) == driver.result(2) == -errno.EIO
    assert driver.added(1) == driver.added(2) == [error]
    assert len(drain(theirs)) <= members[0].len


def test_memory_beyond_the_capacity_fails_its_request_and_the_stream(
    core: Core, new_driver: DriverMaker, new_pair: PairMaker
) -> None:
    ours, theirs = new_pair()
    driver = new_driver([ours.fileno()], max_members=1)
    _keep, address = text_of(core, b"the answer")
    answer = Member(Op.RECV, offset=address, len=10)
    assert driver.serve(SENDER.but(members=[PAYLOAD, answer])) == -errno.EIO
    assert driver.added() == [0, -errno.E2BIG]
    assert driver.serve(RECEIVER) == -errno.EIO
    assert len(drain(theirs)) <= SIZE


def test_what_is_no_stream_socket_fails_the_request_and_is_left_alone(
    new_driver: DriverMaker, new_file: FileMaker, new_pair: PairMaker
) -> None:
    one, _two = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, _two:
        file = new_file(noise(SIZE))
        driver = new_driver([file, one.fileno()])
        for slot in (0, 1, 2, 3, 65535):  # the driver's own, and some that are not there
            for request in (SENDER, RECEIVER):
                members = [Member(request.members[0].op, slot, len=SIZE)]
                assert driver.serve(request.but(members=members)) == -errno.EIO
                assert driver.added() == [-errno.ENOTSOCK]
                assert not driver.issued()
        assert driver.serve(Request(READ, SIZE, [Member(Op.READ, len=SIZE)])) == SIZE
        _two.send(b"x")
        assert one.recv(1) == b"x"


# --- sockets as they come ---------------------------------------------------


def test_a_socket_that_does_not_block_is_made_to_wait(
    new_driver: DriverMaker, new_pair: PairMaker
) -> None:
    ours, theirs = new_pair()
    ours.setblocking(False)
    driver = new_driver([ours.fileno()])
    assert not fcntl.fcntl(ours.fileno(), fcntl.F_GETFL) & os.O_NONBLOCK
    driver.begin({0: RECEIVER, 1: SENDER})
    assert driver.run(turns=1) == -errno.ETIME
    theirs.sendall(noise(SIZE))
    assert driver.run() == 0
    assert driver.result(0) == driver.result(1) == SIZE
    assert driver.stats.again_members == 0


def test_a_file_that_is_no_socket_keeps_its_flags(new_driver: DriverMaker) -> None:
    ends = os.pipe2(os.O_NONBLOCK)
    try:
        new_driver(ends)
        assert all(not os.get_blocking(end) for end in ends)
    finally:
        for end in ends:
            os.close(end)


def test_the_probe_knows_the_answer_and_leaves_nothing_behind(core: Core) -> None:
    before = open_fds()
    answers = {int(core.lib.lane_probe()) for _ in range(3)}
    assert len(answers) == 1
    assert answers <= {0, 1}
    assert open_fds() == before


# --- sending without a copy -------------------------------------------------

LENDING = pytest.mark.parametrize("lease", ["AUTO", "REGISTER", "COPY"])
ZC = SENDER.but(members=[Member(Op.SEND_ZC, len=SIZE)])


@LENDING
def test_send_zc_is_done_with_its_notification_and_commits_once(
    new_driver: DriverMaker, new_pair: PairMaker, lease: str
) -> None:
    """The watch fails a commit that comes while the first answer's second is still to come."""
    ours, theirs = new_pair(tcp_pair)
    driver = new_driver([ours.fileno()], lease=lease, fixed_streams=False)
    for tag in range(4):
        driver.pages(tag)[:SIZE] = noise(SIZE, tag)
    short = ZC.but(outcomes={0: cut(1, 4000)})
    driver.begin({0: ZC, 1: short, 2: SENDER, 3: ZC})
    assert driver.run() == 0
    assert [driver.result(tag) for tag in range(4)] == [SIZE] * 4
    assert take(theirs, 4 * SIZE) == b"".join(noise(SIZE, tag) for tag in range(4))
    zc = [e for e in driver.issued() if e.tag != 2]
    assert {e.opcode for e in zc} == {47}
    assert [(e.len, e.res) for e in zc if e.tag == 1] == [(SIZE, 1), (SIZE - 1, 4000), (4191, 4191)]
    assert {e.op_flags for e in zc} == {MSG_WAITALL}
    assert {e.ioprio for e in zc} == {0 if lease == "COPY" else 4}


@LENDING
def test_where_send_zc_cannot_be_the_stream_breaks(
    new_driver: DriverMaker, new_pair: PairMaker, lease: str
) -> None:
    ours, theirs = new_pair(unix_pair)
    driver = new_driver([ours.fileno()], lease=lease)
    driver.begin({0: ZC, 1: SENDER})
    assert driver.run() == 0
    assert driver.result(0) == driver.result(1) == -errno.EIO
    assert drain(theirs) == b""


def test_a_target_that_has_not_asked_for_it_sends_with_a_copy(
    new_driver: DriverMaker, new_pair: PairMaker
) -> None:
    ours, theirs = new_pair(unix_pair)
    driver = new_driver([ours.fileno()], batched=True)
    driver.pages()[:SIZE] = noise(SIZE)
    assert driver.serve(ZC) == SIZE
    assert [(e.opcode, e.op_flags) for e in driver.issued()] == [(26, MSG_WAITALL)]
    assert take(theirs, SIZE) == noise(SIZE)


def test_memory_is_sent_with_a_copy_and_with_no_flag_that_is_only_ours(
    core: Core, new_driver: DriverMaker, new_pair: PairMaker
) -> None:
    ours, theirs = new_pair(tcp_pair)
    driver = new_driver([ours.fileno()])
    _keep, address = text_of(core, b"header")
    member = Member(Op.SEND, offset=address, len=6, flags=GROUP_SEND_ZC)
    assert driver.serve(Request(FLUSH, 0, [member])) == 0
    assert [(e.opcode, e.op_flags) for e in driver.issued()] == [(26, MSG_WAITALL)]
    assert take(theirs, 6) == b"header"
