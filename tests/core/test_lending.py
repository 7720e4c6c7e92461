"""REGISTER and UNREGISTER: pages lent by hand, before the first member and until the last."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from .driver import (
    DISCARD,
    FLUSH,
    LEAD,
    LEND,
    NEED_REG_BUF,
    READ,
    UNLEND,
    WRITE,
    WRITE_ZEROES,
    Driver,
    DriverMaker,
    Issued,
    Member,
    Op,
    Reaction,
    Request,
    cut,
    instead,
)
from .files import FileMaker, content, noise

SIZE = 8192
DEV_AT = 0x80000000
"""Where request (0, 0) begins in /dev/ublkcN."""
LINK, HARDLINK, SKIP = 1 << 2, 1 << 3, 1 << 6  # IOSQE_*
REFUSALS = (errno.EBUSY, errno.EINVAL, errno.ENOMEM)
EVERY_LEASE = ("AUTO", "REGISTER", "GROUP", "COPY", "USER_COPY")

READER = Request(READ, SIZE, [Member(Op.READ, len=SIZE)])
WRITER = Request(WRITE, SIZE, [Member(Op.WRITE, len=SIZE)])

BY_HAND = pytest.mark.parametrize(
    ("lease", "flags"), [("REGISTER", 0), ("AUTO", NEED_REG_BUF)], ids=["register", "auto"]
)


def refused(*errors: int) -> dict[int, Any]:
    return {LEND: instead(*[-error for error in errors])}


def steps(driver: Driver, tag: int = 0) -> list[int]:
    """Members by number, and the commands about pages, in the order of their SQEs."""
    return [e.member for e in driver.everything() if e.tag == tag]


def only(driver: Driver, place: int) -> Issued:
    (found,) = [e for e in driver.everything() if e.member == place]
    return found


# --- lending ----------------------------------------------------------------


@BY_HAND
def test_what_is_read_by_lent_pages_is_in_them(
    new_driver: DriverMaker, new_file: FileMaker, lease: str, flags: int
) -> None:
    driver = new_driver([new_file(noise(SIZE))], lease=lease, qid=3)
    r = READER.but(flags=flags, outcomes={0: cut(700, 1) + instead(-errno.EINTR)})
    for _ in range(3):
        driver.pages()[:] = bytes(driver.max_io)
        assert driver.serve(r) == SIZE
        assert driver.pages()[:SIZE] == noise(SIZE)
        assert steps(driver) == [LEND, 0, 0, 0, 0, UNLEND]


@BY_HAND
def test_what_is_written_from_lent_pages_is_in_the_file(
    new_driver: DriverMaker, new_file: FileMaker, lease: str, flags: int
) -> None:
    fd = new_file()
    driver = new_driver([fd], lease=lease)
    driver.pages()[:SIZE] = noise(SIZE)
    r = WRITER.but(
        flags=flags,
        outcomes={0: cut(1000)},
        reactions=[Reaction(0), Reaction(0, add=Member(Op.FSYNC))],
    )
    assert driver.serve(r) == SIZE
    assert content(fd) == noise(SIZE)
    assert steps(driver) == [LEND, 0, 0, 1, UNLEND]


@BY_HAND
def test_no_member_is_issued_before_the_pages_are_lent(
    new_driver: DriverMaker, new_file: FileMaker, lease: str, flags: int
) -> None:
    driver = new_driver([new_file(noise(SIZE))], lease=lease)
    r = READER.but(flags=flags, members=[*READER.members, Member(Op.FSYNC)])
    driver.begin({0: r})
    assert driver.run(turns=0) == -errno.ETIME
    assert steps(driver) == [LEND]
    assert driver.run() == 0
    assert driver.result(0) == SIZE
    lent, taken = only(driver, LEND), only(driver, UNLEND)
    assert lent.order == 1
    assert steps(driver) == [LEND, 0, 1, UNLEND]
    assert taken.order == 0  # a success is not told
    assert driver.unlent() == []


@BY_HAND
@pytest.mark.parametrize(
    "how",
    [
        {"members": (), "answer": SIZE},
        {"members": (), "answer": -errno.ENOSPC},
        {"members": (), "returns": -errno.EIO},
        {"members": ()},
        {"returns": -errno.EIO},
        {"outcomes": {0: instead(-errno.EIO)}},
        {"outcomes": {0: cut(1024) + instead(0)}},
        {"members": [Member(Op.READ, len=SIZE + 1)]},
    ],
    ids=[
        "answers",
        "answers with an error",
        "refuses",
        "does nothing",
        "refuses with a member under way",
        "fails",
        "falls short",
        "reaches beyond the request",
    ],
)
def test_what_was_lent_is_taken_back_once_however_the_request_ends(
    new_driver: DriverMaker, new_file: FileMaker, lease: str, flags: int, how: dict[str, Any]
) -> None:
    driver = new_driver([new_file(noise(SIZE))], lease=lease)
    driver.serve(READER.but(flags=flags, **how))
    assert steps(driver).count(LEND) == 1
    assert steps(driver).count(UNLEND) == 1
    assert steps(driver)[-1] == UNLEND


@BY_HAND
def test_every_tag_lends_into_its_own_slot(
    new_driver: DriverMaker, new_file: FileMaker, lease: str, flags: int
) -> None:
    data, dev = noise(4 * SIZE), new_file()
    driver = new_driver([new_file(data)], lease=lease, dev_fd=dev, depth=4)
    requests = {
        tag: READER.but(flags=flags, members=[Member(Op.READ, 1, tag * SIZE, 0, SIZE)])
        for tag in (2, 0, 3, 1)
    }
    requests[3] = requests[3].but(outcomes=refused(errno.EBUSY))
    driver.begin(requests)
    assert driver.run() == 0
    for tag in requests:
        assert driver.result(tag) == SIZE
        assert steps(driver, tag) == ([LEND, 0] if tag == 3 else [LEND, 0, UNLEND])
        if tag != 3:
            assert driver.pages(tag)[:SIZE] == data[tag * SIZE : (tag + 1) * SIZE]


@pytest.mark.parametrize("lease", ["AUTO", "REGISTER"])
def test_members_of_lent_pages_name_the_slot_and_count_from_0(
    new_driver: DriverMaker, new_file: FileMaker, lease: str
) -> None:
    driver = new_driver([new_file(noise(SIZE))], lease=lease)
    halves = [Member(Op.READ, 1, i * 4096, i * 4096, 4096) for i in range(2)]
    driver.begin({2: READER.but(members=halves)})
    assert driver.run() == 0
    assert [e.addr for e in driver.issued()] == [0, 4096]
    assert driver.pages(2)[:SIZE] == noise(SIZE)


def test_what_the_driver_has_lent_itself_is_not_lent_again(
    new_driver: DriverMaker, new_file: FileMaker
) -> None:
    driver = new_driver([new_file(noise(SIZE))], lease="AUTO")
    for request in (READER, WRITER):
        assert driver.serve(request) == SIZE
        assert steps(driver) == [0]


@pytest.mark.parametrize("lease", EVERY_LEASE)
@pytest.mark.parametrize("op", [FLUSH, DISCARD, WRITE_ZEROES])
def test_a_request_without_data_lends_nothing(
    new_driver: DriverMaker, new_file: FileMaker, lease: str, op: int
) -> None:
    driver = new_driver([new_file(noise(SIZE))], lease=lease)
    members = [Member(Op.FSYNC), Member(Op.ZEROES, len=SIZE)]
    for flags in (0, NEED_REG_BUF):
        assert driver.serve(Request(op, SIZE, members, flags=flags)) == 0
        assert steps(driver) == [0, 1]
        assert driver.serve(Request(op, SIZE, answer=0, flags=flags)) == 0
        assert steps(driver) == []


# --- refusals ---------------------------------------------------------------


@BY_HAND
@pytest.mark.parametrize("error", REFUSALS)
@pytest.mark.parametrize("request_", [READER, WRITER], ids=["read", "write"])
def test_where_lending_is_refused_the_bytes_are_carried(
    new_driver: DriverMaker,
    new_file: FileMaker,
    lease: str,
    flags: int,
    error: int,
    request_: Request,
) -> None:
    dev, disk = new_file(), new_file()
    source, sink = ((disk, 0), (dev, DEV_AT)) if request_.op == READ else ((dev, DEV_AT), (disk, 0))
    os.pwrite(source[0], noise(SIZE), source[1])
    driver = new_driver([disk], lease=lease, dev_fd=dev)
    r = request_.but(flags=flags, outcomes={**refused(error), 0: cut(1000)})
    assert driver.serve(r) == SIZE
    assert steps(driver) == [LEND, 0, 0]
    assert os.pread(sink[0], SIZE + 1, sink[1]) == noise(SIZE)
    assert driver.pages()[:SIZE] == bytes(SIZE)  # the ones that were not lent


@BY_HAND
def test_a_refusal_is_forgotten_with_its_request(
    new_driver: DriverMaker, new_file: FileMaker, lease: str, flags: int
) -> None:
    driver = new_driver([new_file(noise(SIZE))], lease=lease, dev_fd=new_file())
    for outcomes, want in ((refused(errno.EBUSY), [LEND, 0]), ({}, [LEND, 0, UNLEND])) * 2:
        assert driver.serve(READER.but(flags=flags, outcomes=outcomes)) == SIZE
        assert steps(driver) == want


@BY_HAND
@pytest.mark.parametrize("request_", [READER, WRITER], ids=["read", "write"])
def test_a_request_that_can_neither_be_lent_nor_carried_fails_once(
    new_driver: DriverMaker, new_file: FileMaker, lease: str, flags: int, request_: Request
) -> None:
    driver = new_driver([new_file(noise(SIZE))], lease=lease, dev_fd=-1)
    r = request_.but(flags=flags, outcomes=refused(errno.ENOMEM))
    assert driver.serve(r) == -errno.EIO
    assert UNLEND not in steps(driver)


@BY_HAND
@pytest.mark.parametrize("error", [errno.EINVAL, errno.EBUSY])
def test_pages_that_cannot_be_taken_back_are_reported(
    new_driver: DriverMaker, new_file: FileMaker, lease: str, flags: int, error: int
) -> None:
    driver = new_driver([new_file(noise(SIZE))], lease=lease)
    r = READER.but(flags=flags, outcomes={UNLEND: instead(-error)})
    assert driver.serve(r) == SIZE
    assert driver.unlent() == [-error]
    assert driver.serve(READER.but(flags=flags)) == SIZE
    assert driver.unlent() == []


# --- flags ------------------------------------------------------------------


@pytest.mark.parametrize("lease", EVERY_LEASE)
@pytest.mark.parametrize("flags", [0, NEED_REG_BUF])
@pytest.mark.parametrize("error", [0, errno.EBUSY])
def test_nothing_is_ever_linked_and_only_commands_skip_their_answer(
    new_driver: DriverMaker, new_file: FileMaker, lease: str, flags: int, error: int
) -> None:
    driver = new_driver([new_file(noise(SIZE))], lease=lease, dev_fd=new_file())
    for op, member in ((READ, Op.READ), (WRITE, Op.WRITE)):
        halves = [Member(member, 1, i * 4096, i * 4096, 4096) for i in range(2)]
        outcomes = {1: cut(10) + instead(-errno.EAGAIN)} | (refused(error) if error else {})
        r = Request(op, SIZE, [*halves, Member(Op.FSYNC)], outcomes, flags=flags)
        driver.serve(r)
        for e in driver.everything():
            assert not e.flags & (LINK | HARDLINK)
            assert bool(e.flags & SKIP) == (e.member in (UNLEND, LEAD))
