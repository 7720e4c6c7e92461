"""Which errno the block layer may see."""

from __future__ import annotations

import errno

import pytest

from .driver import DISCARD, FLUSH, READ, WRITE, DriverMaker, Member, Op, Reaction, Request, instead
from .files import FileMaker

SIZE = 4096
ALL = [*sorted(set(errno.errorcode) - {errno.EAGAIN, errno.EINTR}), 200, 4095]
FULL = {errno.EDQUOT, errno.EFBIG, errno.ENOSPC}
UNDERSTOOD = {
    errno.EOPNOTSUPP,
    errno.ENODATA,
    errno.EILSEQ,
    errno.ENOLINK,
    errno.EREMOTEIO,
    errno.ETIMEDOUT,
}
SECOND_MEANING = (
    errno.EAGAIN,
    errno.EBUSY,
    errno.EOVERFLOW,
    errno.ETIME,
    errno.EREMCHG,
    errno.ETOOMANYREFS,
    errno.ENOMEM,
)

READER = Request(READ, SIZE, [Member(Op.READ, len=SIZE)])
WRITER = Request(WRITE, SIZE, [Member(Op.WRITE, len=SIZE)])
FLUSHER = Request(FLUSH, 0, [Member(Op.FSYNC)])


def told(op: int, error: int) -> int:
    if error in FULL:
        return -errno.ENOSPC
    if error == errno.EOPNOTSUPP and op in (READ, WRITE, FLUSH):
        return -errno.EIO
    return -error if error in UNDERSTOOD else -errno.EIO


@pytest.mark.parametrize("request_", [READER, WRITER, FLUSHER], ids=["read", "write", "flush"])
@pytest.mark.parametrize("way", ["member", "on_cqe", "submit", "complete"])
def test_an_errno_passes_or_becomes_eio_by_whatever_way_it_comes(
    new_driver: DriverMaker, new_file: FileMaker, request_: Request, way: str
) -> None:
    driver = new_driver([new_file(bytes(SIZE))])
    for error in ALL:
        r = {
            "member": request_.but(outcomes={0: instead(-error)}),
            "on_cqe": request_.but(reactions=[Reaction(0, result=-error)]),
            "submit": request_.but(returns=-error),
            "complete": request_.but(members=(), answer=-error),
        }[way]
        assert driver.serve(r) == told(request_.op, error), errno.errorcode.get(error)


def test_no_errno_with_a_second_meaning_is_ever_told() -> None:
    for error in SECOND_MEANING:
        for op in (READ, WRITE, FLUSH):
            assert told(op, error) == -errno.EIO


@pytest.mark.parametrize("op", [READ, WRITE])
def test_a_transfer_that_is_not_supported_is_an_error_and_no_invitation(
    new_driver: DriverMaker, op: int
) -> None:
    """Who reads or writes through io_uring would be made to try again, for ever."""
    assert new_driver().serve(Request(op, SIZE, returns=-errno.EOPNOTSUPP)) == -errno.EIO
    assert new_driver().serve(Request(DISCARD, SIZE, returns=-errno.EOPNOTSUPP)) == (
        -errno.EOPNOTSUPP
    )


@pytest.mark.parametrize("request_", [READER, WRITER, FLUSHER], ids=["read", "write", "flush"])
@pytest.mark.parametrize("error", [errno.EAGAIN, errno.EINTR])
def test_a_target_that_says_try_again_is_told_as_eio(
    new_driver: DriverMaker, request_: Request, error: int
) -> None:
    driver = new_driver()
    assert driver.serve(request_.but(members=(), answer=-error)) == -errno.EIO
    assert driver.serve(request_.but(members=(), returns=-error)) == -errno.EIO


@pytest.mark.parametrize("op", [READ, WRITE])
def test_a_positive_errno_is_not_taken_for_bytes(new_driver: DriverMaker, op: int) -> None:
    driver = new_driver()
    for error in ALL:
        if error < 512:
            assert driver.serve(Request(op, SIZE, answer=error)) == -errno.EIO
            assert driver.serve(Request(op, SIZE, returns=error)) == -errno.EIO


def test_an_answer_is_no_more_than_the_request_and_in_whole_blocks(
    new_driver: DriverMaker,
) -> None:
    driver = new_driver(block=1024)
    for answer, committed in (
        (SIZE, SIZE),
        (SIZE + 1, SIZE),
        (1 << 30, SIZE),
        (SIZE - 1, SIZE - 1024),
        (1024, 1024),
        (1023, -errno.EIO),
        (0, -errno.EIO),
    ):
        assert driver.serve(Request(WRITE, SIZE, answer=answer)) == committed


def test_an_answer_does_not_add_to_what_members_have_covered(
    new_driver: DriverMaker, new_file: FileMaker
) -> None:
    driver = new_driver([new_file(bytes(SIZE))])
    half = READER.but(members=[Member(Op.READ, len=SIZE // 2)])
    assert driver.serve(half.but(answer=SIZE)) == SIZE // 2
    assert driver.serve(half.but(returns=SIZE)) == SIZE // 2


def test_on_cqe_cannot_claim_more_than_the_member_was_asked(
    new_driver: DriverMaker, new_file: FileMaker
) -> None:
    driver = new_driver([new_file(bytes(SIZE))])
    for claim in (SIZE + 1, (1 << 31) - 1):
        assert driver.serve(READER.but(reactions=[Reaction(0, result=claim)])) == -errno.EIO


def test_the_first_error_is_the_one_that_is_told(
    new_driver: DriverMaker, new_file: FileMaker
) -> None:
    driver = new_driver([new_file(bytes(SIZE))])
    two = READER.but(
        members=[Member(Op.READ, len=512), Member(Op.READ, buf=512, len=512)],
        outcomes={0: instead(-errno.ENODATA), 1: instead(-errno.EILSEQ)},
    )
    assert driver.serve(two) == -errno.ENODATA
    assert driver.serve(two.but(returns=-errno.ENOLINK)) == -errno.ENOLINK


def test_an_error_behind_a_whole_block_leaves_that_block_committed(
    new_driver: DriverMaker, new_file: FileMaker
) -> None:
    driver = new_driver([new_file(bytes(SIZE))])
    two = WRITER.but(
        members=[Member(Op.WRITE, len=600), Member(Op.WRITE, offset=600, buf=600, len=SIZE - 600)],
        outcomes={1: instead(-errno.ENOSPC)},
    )
    assert driver.serve(two) == 512
