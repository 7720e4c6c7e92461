"""SQE groups: every issue of a member that carries data has a leader, and follows it at once."""

from __future__ import annotations

import errno
import os
import resource

import pytest

from .core import Core
from .driver import (
    LEAD,
    READ,
    WRITE,
    Driver,
    DriverMaker,
    Member,
    Op,
    Outcome,
    Outcomes,
    Reaction,
    Request,
    cut,
    instead,
)
from .files import FileMaker, content, limit, noise, open_fds

SIZE = 8192
HALF = SIZE // 2
FIXED, DRAIN, SKIP, GROUP = 1 << 0, 1 << 1, 1 << 6, 1 << 7  # IOSQE_*
PROVIDE = 0xC0107523  # _IOWR('u', 0x23, struct ublksrv_io_cmd)
URING_CMD, READ_, WRITE_ = 46, 22, 23  # IORING_OP_*

READER = Request(READ, SIZE, [Member(Op.READ, len=SIZE)])
WRITER = Request(WRITE, SIZE, [Member(Op.WRITE, len=SIZE)])


def halves(op: Op) -> list[Member]:
    return [Member(op, 1, at, at, HALF) for at in (0, HALF)]


def steps(driver: Driver) -> list[int]:
    return [e.member for e in driver.everything()]


# --- the pair ---------------------------------------------------------------


def test_a_leader_and_its_member_are_what_the_series_wants(
    new_driver: DriverMaker, new_file: FileMaker
) -> None:
    driver = new_driver([new_file(noise(SIZE))], lease="GROUP", qid=5)
    for op, member, opcode in ((READ, Op.READ, READ_), (WRITE, Op.WRITE, WRITE_)):
        driver.begin({2: Request(op, SIZE, halves(member))})
        assert driver.run() == 0
        assert driver.result(2) == SIZE
        assert steps(driver) == [LEAD, 0, LEAD, 1]
        for e in driver.everything():
            if e.member == LEAD:
                assert (e.opcode, e.fd, e.off) == (URING_CMD, 0, PROVIDE)
                assert e.flags == GROUP | SKIP | FIXED
                assert e.addr3 == 5 | 2 << 16  # q_id and tag
            else:
                assert (e.opcode, e.addr, e.len) == (opcode, e.member * HALF, HALF)
                assert e.flags == DRAIN | FIXED
        assert driver.pages(2)[:SIZE] == noise(SIZE)


def test_what_is_written_comes_from_the_leaders_pages(
    new_driver: DriverMaker, new_file: FileMaker
) -> None:
    fd = new_file()
    driver = new_driver([fd], lease="GROUP")
    driver.pages()[:SIZE] = noise(SIZE)
    assert driver.serve(WRITER) == SIZE
    assert content(fd) == noise(SIZE)


def test_the_rest_of_a_short_member_has_a_leader_of_its_own(
    new_driver: DriverMaker, new_file: FileMaker
) -> None:
    driver = new_driver([new_file(noise(SIZE))], lease="GROUP")
    short = READER.but(outcomes={0: [*cut(100), *instead(-errno.EAGAIN), *cut(1)]})
    assert driver.serve(short) == SIZE
    assert steps(driver) == [LEAD, 0] * 4
    assert [(e.addr, e.len) for e in driver.issued()] == [
        (0, SIZE),
        (100, SIZE - 100),
        (100, SIZE - 100),
        (101, SIZE - 101),
    ]
    assert driver.pages()[:SIZE] == noise(SIZE)


def test_members_that_carry_no_data_have_no_leader(
    new_driver: DriverMaker, new_file: FileMaker
) -> None:
    driver = new_driver([new_file(noise(SIZE))], lease="GROUP")
    zeroes = Member(Op.ZEROES, offset=SIZE, len=SIZE)
    r = WRITER.but(
        members=[Member(Op.FSYNC), *WRITER.members, zeroes],
        reactions=[Reaction(1, add=Member(Op.FSYNC))],
    )
    assert driver.serve(r) == SIZE
    assert steps(driver) == [0, LEAD, 1, 2, 3]
    assert {e.flags for e in driver.issued() if e.member != 1} == {FIXED}


# --- tiny queues ------------------------------------------------------------


@pytest.mark.parametrize(("sqes", "ahead"), [(n, k) for n in (2, 4, 8) for k in range(n)])
def test_a_group_is_never_split_over_two_submissions(
    new_driver: DriverMaker, new_file: FileMaker, sqes: int, ahead: int
) -> None:
    """With `ahead` SQEs in the queue before it; the harness sees every submission."""
    driver = new_driver([new_file(noise(SIZE))], lease="GROUP", sqes=sqes)
    r = READER.but(members=[Member(Op.FSYNC)] * ahead + halves(Op.READ))
    assert driver.serve(r) == SIZE
    assert steps(driver) == [*range(ahead), LEAD, ahead, LEAD, ahead + 1]
    assert driver.pages()[:SIZE] == noise(SIZE)


@pytest.mark.parametrize("sqes", [2, 4, 64])
def test_2048_groups_pass_through_a_tiny_queue(
    new_driver: DriverMaker, new_file: FileMaker, sqes: int
) -> None:
    many, piece = 2048, 64
    size = many * piece
    driver = new_driver(
        [new_file(noise(size))], lease="GROUP", max_members=many, max_io=size, depth=2, sqes=sqes
    )
    r = Request(READ, size, [Member(Op.READ, 1, i * piece, i * piece, piece) for i in range(many)])
    driver.begin({0: r, 1: r})
    assert driver.run() == 0
    for tag in (0, 1):
        assert driver.result(tag) == size
        assert driver.pages(tag)[:] == noise(size)


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_ring_that_breaks_with_its_queue_full_is_reported(
    new_driver: DriverMaker, new_file: FileMaker, ahead: int
) -> None:
    driver = new_driver([new_file()], lease="GROUP", sqes=4)
    driver.break_ring()
    driver.begin({0: READER.but(members=[Member(Op.FSYNC)] * ahead + halves(Op.READ) * 8)})
    assert driver.run() in (-errno.EBADF, -errno.EINVAL)


# --- leaders that answer ----------------------------------------------------


@pytest.mark.parametrize("error", [errno.EINVAL, errno.EBUSY, errno.ENOMEM, errno.EAGAIN])
@pytest.mark.parametrize("request_", [READER, WRITER], ids=["read", "write"])
def test_a_leader_that_fails_fails_its_request_once(
    new_driver: DriverMaker, new_file: FileMaker, request_: Request, error: int
) -> None:
    fd = new_file(noise(SIZE))
    driver = new_driver([fd], lease="GROUP")
    driver.pages()[:SIZE] = bytes(SIZE)
    assert driver.serve(request_.but(outcomes={LEAD: instead(-error)})) == -errno.EIO
    assert steps(driver) == [LEAD, 0]
    assert content(fd) == noise(SIZE)
    assert driver.serve(request_) == SIZE


@pytest.mark.parametrize(
    ("leaders", "committed"),
    [
        (instead(-errno.EIO), -errno.EIO),
        ([*instead(0), *instead(-errno.EIO)], HALF),
    ],
    ids=["the first", "the second"],
)
def test_a_leader_that_fails_leaves_the_other_groups_alone(
    new_driver: DriverMaker, new_file: FileMaker, leaders: list[Outcome], committed: int
) -> None:
    fd = new_file(bytes(SIZE))
    driver = new_driver([fd], lease="GROUP")
    driver.pages()[:SIZE] = noise(SIZE)
    r = WRITER.but(members=halves(Op.WRITE), outcomes={LEAD: leaders})
    assert driver.serve(r) == committed
    moved = sorted(e.res for e in driver.issued())
    assert moved == [-errno.ECANCELED, HALF]
    intact = slice(0, HALF) if committed == HALF else slice(HALF, SIZE)
    assert content(fd)[intact] == noise(SIZE)[intact]


@pytest.mark.parametrize(
    ("outcomes", "committed"),
    [
        ({LEAD: instead(0)}, SIZE),
        ({0: cut(600)}, SIZE),
        ({0: cut(600) + instead(-errno.ENODATA)}, 512),
        ({0: instead(-errno.ENODATA)}, -errno.ENODATA),
    ],
    ids=["unasked", "short", "short and failed", "failed"],
)
def test_a_leader_that_answers_behind_its_member_is_not_taken_for_one(
    new_driver: DriverMaker, new_file: FileMaker, outcomes: Outcomes, committed: int
) -> None:
    """Even behind the last one, when the request is over."""
    driver = new_driver([new_file(noise(SIZE))], lease="GROUP")
    assert driver.serve(READER.but(outcomes=outcomes)) == committed
    leader, member = driver.everything()[:2]
    assert (leader.member, member.member) == (LEAD, 0)
    assert leader.order > member.order > 0
    assert driver.unlent() == []


# --- the probe --------------------------------------------------------------


def test_this_kernel_has_no_groups_and_asking_leaves_nothing(core: Core) -> None:
    before = open_fds()
    for _ in range(3):
        assert core.lib.lease_probe_group() == 0
    assert open_fds() == before


def test_without_a_descriptor_left_nobody_can_ask(core: Core) -> None:
    lowest = os.dup(0)
    os.close(lowest)
    before = open_fds()
    with limit(resource.RLIMIT_NOFILE, lowest):
        assert core.lib.lease_probe_group() == -errno.EMFILE
    assert open_fds() == before
