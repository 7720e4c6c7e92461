"""What members a request may have, and what they do to its end."""

from __future__ import annotations

import errno

import pytest

from .driver import (
    DISCARD,
    FLUSH,
    READ,
    WRITE,
    WRITE_ZEROES,
    DriverMaker,
    Member,
    Op,
    Reaction,
    Request,
    cut,
    instead,
)
from .files import FileMaker, content, noise

SIZE = 4096
MEGA = 1 << 20
RWF_DSYNC = 2
URING_CMD = 46
ASYNC = 1 << 4  # IOSQE_ASYNC


# --- zeroes -----------------------------------------------------------------


def test_zeroes_land_as_zeroes_however_many(new_driver: DriverMaker, new_file: FileMaker) -> None:
    length = 5 * MEGA + 77
    fd = new_file(b"\xff" * (length + 200))
    driver = new_driver([fd])
    zeroes = Member(Op.ZEROES, offset=100, len=length, flags=RWF_DSYNC)
    assert driver.serve(Request(WRITE_ZEROES, 6 * MEGA, [zeroes])) == 0
    assert content(fd) == b"\xff" * 100 + bytes(length) + b"\xff" * 100
    assert [e.len for e in driver.issued()] == [MEGA] * 5 + [77]
    assert {e.op_flags for e in driver.issued()} == {RWF_DSYNC}
    assert driver.stats.short_members == 0


def test_short_zeroes_go_on_where_they_stopped(
    new_driver: DriverMaker, new_file: FileMaker
) -> None:
    fd = new_file(b"\xff" * (2 * MEGA))
    driver = new_driver([fd])
    zeroes = Member(Op.ZEROES, offset=1, len=2 * MEGA - 2)
    r = Request(WRITE_ZEROES, 2 * MEGA, [zeroes], {0: cut(1, MEGA - 1, 512)})
    assert driver.serve(r) == 0
    assert content(fd) == b"\xff" + bytes(2 * MEGA - 2) + b"\xff"
    assert driver.stats.short_members == 3


def test_zeroes_that_fail_half_way_fail_the_request(
    new_driver: DriverMaker, new_file: FileMaker
) -> None:
    driver = new_driver([new_file()])
    zeroes = Member(Op.ZEROES, len=2 * MEGA)
    failing = cut(MEGA) + instead(-errno.ENOSPC)
    r = Request(WRITE_ZEROES, 2 * MEGA, [zeroes], {0: failing})
    assert driver.serve(r) == -errno.ENOSPC


# --- gaps and capacity ---------------------------------------------------------------


def halves(op: Op) -> list[Member]:
    half = SIZE // 2
    return [Member(op, len=half), Member(op, offset=half, buf=half, len=half)]


@pytest.mark.parametrize(("buf", "length"), [(SIZE - 1, 2), (SIZE, 1), (0, SIZE + 1)])
def test_a_member_beyond_its_request_touches_nobody_elses_memory(
    new_driver: DriverMaker, new_file: FileMaker, buf: int, length: int
) -> None:
    driver = new_driver([new_file(noise(3 * SIZE))])
    beyond = Member(Op.READ, 1, 0, buf, length)
    assert driver.serve(Request(READ, SIZE, [beyond])) == -errno.EIO
    assert not driver.issued()


def test_at_a_gap_the_prefix_ends(new_driver: DriverMaker, new_file: FileMaker) -> None:
    driver = new_driver([new_file(noise(SIZE))])
    first, second = halves(Op.READ)
    hole = Member(Op.READ, 1, second.offset + 1, second.buf + 1, second.len - 1)
    assert driver.serve(Request(READ, SIZE, [first, hole])) == SIZE // 2
    assert driver.serve(Request(READ, SIZE, [second])) == -errno.EIO
    assert driver.serve(Request(READ, SIZE, [first, second])) == SIZE


def test_beyond_the_capacity_the_prefix_ends(new_driver: DriverMaker, new_file: FileMaker) -> None:
    driver = new_driver([new_file(noise(SIZE))], max_members=1)
    assert driver.serve(Request(READ, SIZE, halves(Op.READ))) == SIZE // 2
    assert driver.added() == [0, -errno.E2BIG]


def test_a_mirror_beyond_the_capacity_was_not_written(
    new_driver: DriverMaker, new_file: FileMaker
) -> None:
    """Half of the copies is no copy: the block must not count as moved."""
    driver = new_driver([new_file(), new_file()], max_members=3)
    both = [m for h in halves(Op.WRITE) for m in (h, Member(h.op, 2, h.offset, h.buf, h.len))]
    assert driver.serve(Request(WRITE, SIZE, both)) == SIZE // 2
    driver.env.max_members = 1
    assert driver.serve(Request(WRITE, SIZE, both)) == -errno.EIO


@pytest.mark.parametrize("op", [Op.FSYNC, Op.ZEROES, Op.FALLOCATE, Op.DISCARD])
def test_a_member_without_data_beyond_the_capacity_fails_the_request(
    new_driver: DriverMaker, new_file: FileMaker, op: Op
) -> None:
    driver = new_driver([new_file()], max_members=1)
    members = [Member(Op.WRITE, len=SIZE), Member(op, len=SIZE)]
    assert driver.serve(Request(WRITE, SIZE, members)) == -errno.EIO
    assert driver.added() == [0, -errno.E2BIG]
    flush = Request(FLUSH, 0, [Member(Op.FSYNC), Member(op, len=SIZE)])
    assert driver.serve(flush) == -errno.EIO


def test_members_of_one_tag_do_not_touch_those_of_another(
    new_driver: DriverMaker, new_file: FileMaker
) -> None:
    driver = new_driver([new_file(noise(16 * SIZE))], depth=4)
    requests = {
        tag: Request(
            READ, SIZE, [Member(Op.READ, 1, tag * SIZE + i * 64, i * 64, 64) for i in range(64)]
        )
        for tag in (3, 0, 2, 1)
    }
    driver.begin(requests)
    assert driver.run() == 0
    for tag in requests:
        assert driver.result(tag) == SIZE
        assert driver.pages(tag)[:SIZE] == noise(16 * SIZE)[tag * SIZE : (tag + 1) * SIZE]


# --- targets ----------------------------------------------------------------


@pytest.mark.parametrize("op", [READ, WRITE, FLUSH, DISCARD, WRITE_ZEROES])
def test_a_target_that_neither_adds_nor_completes_fails_the_request(
    new_driver: DriverMaker, op: int
) -> None:
    assert new_driver().serve(Request(op, SIZE)) == -errno.EIO


@pytest.mark.parametrize("op", [FLUSH, DISCARD, WRITE_ZEROES])
def test_success_without_data_is_0(new_driver: DriverMaker, op: int) -> None:
    driver = new_driver()
    for answer in (0, 5, SIZE):
        assert driver.serve(Request(op, SIZE, answer=answer)) == 0


def test_members_added_before_submit_failed_are_waited_for(
    new_driver: DriverMaker, new_file: FileMaker
) -> None:
    fd = new_file()
    driver = new_driver([fd])
    driver.pages()[:SIZE] = noise(SIZE)
    driver.begin({0: Request(WRITE, SIZE, halves(Op.WRITE), returns=-errno.ENOLINK)})
    assert driver.run(turns=0) == -errno.ETIME  # in service
    assert driver.run() == 0
    assert driver.result(0) == -errno.ENOLINK
    assert content(fd) == noise(SIZE)


def test_on_cqe_may_add_a_member_and_its_end_decides(
    new_driver: DriverMaker, new_file: FileMaker
) -> None:
    driver = new_driver([new_file()])
    r = Request(
        WRITE, SIZE, [Member(Op.WRITE, len=SIZE)], reactions=[Reaction(0, add=Member(Op.FSYNC))]
    )
    assert driver.serve(r) == SIZE
    assert [e.member for e in driver.issued()] == [0, 1]
    assert driver.serve(r.but(outcomes={1: instead(-errno.EREMOTEIO)})) == -errno.EREMOTEIO


def test_on_cqe_may_put_one_member_in_the_place_of_another(
    new_driver: DriverMaker, new_file: FileMaker
) -> None:
    driver = new_driver([new_file(), new_file()])
    r = Request(
        DISCARD,
        SIZE,
        [Member(Op.FALLOCATE, len=SIZE)],
        {0: instead(-errno.EOPNOTSUPP)},
        [Reaction(0, result=0, add=Member(Op.ZEROES, 2, len=SIZE))],
    )
    assert driver.serve(r) == 0
    assert [e.fd for e in driver.issued()] == [1, 2]


def test_on_cqe_that_adds_beyond_the_capacity_does_not_hang(
    new_driver: DriverMaker, new_file: FileMaker
) -> None:
    driver = new_driver([new_file()], max_members=1)
    r = Request(FLUSH, 0, [Member(Op.FSYNC)], reactions=[Reaction(0, add=Member(Op.FSYNC))])
    assert driver.serve(r) == -errno.EIO


def test_a_discard_travels_as_the_block_layers_command(
    new_driver: DriverMaker, new_file: FileMaker
) -> None:
    driver = new_driver([new_file()])
    member = Member(Op.DISCARD, 1, 3 << 40, 0, 5 << 30)
    assert driver.serve(Request(DISCARD, SIZE, [member], {0: instead(0)})) == 0
    (issued,) = driver.issued()
    assert issued.opcode == URING_CMD
    assert issued.off == 0x12 << 8  # _IO(0x12, 0)
    assert (issued.addr, issued.addr3) == (3 << 40, 5 << 30)
    assert issued.flags & ASYNC, "many disks refuse one that may not wait"
    assert driver.serve(Request(DISCARD, SIZE, [member])) == -errno.EOPNOTSUPP
