"""Requests that are held, and answered from other threads."""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from .driver import (
    DISCARD,
    FLUSH,
    LEND,
    READ,
    UNLEND,
    WRITE,
    Driver,
    DriverMaker,
    Member,
    Op,
    Outcome,
    Request,
    cut,
    instead,
)
from .files import FileMaker, noise
from .profile import searching
from .world import QID, WAYS, Way, position

SIZE = 8192
HELD = Request(WRITE, SIZE, holds=1)
WRITER = HELD.but(members=[Member(Op.WRITE, len=SIZE)])


def answer_in_threads(driver: Driver, answers: Sequence[tuple[int, int]], threads: int = 1) -> None:
    """(tag, answer), divided among threads that begin at the same time; and run to the end."""
    start = threading.Barrier(threads + 1)

    def answer(mine: Sequence[tuple[int, int]]) -> None:
        start.wait()
        for tag, moved in mine:
            driver.lib.group_answer(driver.group(tag), moved)

    everyone = [
        threading.Thread(target=answer, args=(answers[n::threads],)) for n in range(threads)
    ]
    for thread in everyone:
        thread.start()
    start.wait()
    ret = driver.run()
    for thread in everyone:
        thread.join()
    assert ret == 0, os.strerror(-ret)


@pytest.fixture
def driver(new_driver: DriverMaker, new_file: FileMaker) -> Driver:
    """Slot 1 is a file, empty at first."""
    return new_driver([new_file()], batched=True, depth=8)


# --- one request ------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "answer", "want"),
    [
        (WRITE, SIZE, SIZE),
        (WRITE, 1024, 1024),
        (WRITE, 1025, 1024),
        (WRITE, 511, -errno.EIO),
        (WRITE, 0, -errno.EIO),
        (WRITE, SIZE + 1, SIZE),
        (WRITE, -errno.ENOSPC, -errno.ENOSPC),
        (READ, SIZE, SIZE),
        (READ, 1535, 1024),
        (READ, -errno.ENODATA, -errno.ENODATA),
        (FLUSH, 0, 0),
        (FLUSH, -errno.EROFS, -errno.EIO),
        (DISCARD, SIZE, 0),
    ],
)
def test_an_answer_is_committed_as_group_complete_would(
    driver: Driver, op: int, answer: int, want: int
) -> None:
    size = 0 if op == FLUSH else SIZE
    driver.held({0: HELD.but(op=op, size=size)})
    assert driver.commits() == 0
    answer_in_threads(driver, [(0, answer)])
    assert driver.result() == want
    assert driver.stats.in_flight == 0


def test_an_answer_waits_for_the_members(new_driver: DriverMaker) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        driver = new_driver([ours.fileno()], batched=True)
        driver.held({0: HELD.but(op=READ, members=[Member(Op.RECV, len=SIZE)])})
        assert driver.run(turns=0) == -errno.ETIME
        driver.lib.group_answer(driver.group(), 0)
        driver.lib.groups_answered(driver.env)
        assert driver.commits() == 0
        theirs.sendall(noise(SIZE))
        assert driver.run() == 0
        assert driver.result() == SIZE  # of the member: it has filled them
        assert driver.pages()[:SIZE] == noise(SIZE)


def test_members_wait_for_the_answer(driver: Driver) -> None:
    driver.held({0: WRITER, 1: WRITER.but(holds=0)})
    while driver.commits(1) == 0:
        assert driver.run(turns=1) == -errno.ETIME
    assert driver.run(turns=0) == -errno.ETIME
    assert driver.commits(0) == 0
    answer_in_threads(driver, [(0, SIZE)])
    assert driver.result(0) == driver.result(1) == SIZE


@pytest.mark.parametrize("member", [[], cut(1000) + instead(-errno.ENOSPC)])
def test_a_negative_answer_undoes_what_members_did(driver: Driver, member: list[Outcome]) -> None:
    driver.held({0: WRITER.but(outcomes={0: member})})
    answer_in_threads(driver, [(0, -errno.EREMOTEIO)])
    first = -errno.ENOSPC if member else -errno.EREMOTEIO
    assert driver.result() in (first, -errno.EREMOTEIO)


def test_a_good_answer_does_not_heal_a_member_that_failed(driver: Driver) -> None:
    driver.held({0: WRITER.but(outcomes={0: cut(1024) + instead(-errno.ENOSPC)})})
    answer_in_threads(driver, [(0, SIZE)])
    assert driver.result() == 1024
    flush = Request(FLUSH, 0, [Member(Op.FSYNC)], {0: instead(-errno.ENOSPC)}, holds=1)
    driver.held({0: flush})
    answer_in_threads(driver, [(0, 0)])
    assert driver.result() == -errno.ENOSPC


def test_a_hold_that_is_dropped_leaves_the_result_to_the_members(driver: Driver) -> None:
    for request, want in ((WRITER, SIZE), (HELD, -errno.EIO)):
        driver.held({0: request})
        driver.lib.group_drop(driver.group())
        assert driver.run() == 0
        assert driver.result() == want


def test_a_target_that_answers_and_holds_is_waited_for(driver: Driver) -> None:
    driver.held({0: HELD.but(answer=SIZE), 1: HELD.but(answer=-errno.ENOSPC)})
    assert driver.commits(0) == driver.commits(1) == 0
    driver.lib.group_drop(driver.group(0))
    assert driver.result(0) == SIZE
    answer_in_threads(driver, [(1, SIZE)])
    assert driver.result(1) == -errno.ENOSPC


# --- pages that nobody can have filled --------------------------------------


@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_read_is_answered_from_memory_or_not_at_all(
    new_driver: DriverMaker, new_file: FileMaker, way: Way, late: bool
) -> None:
    dev = new_file()
    driver = new_driver(lease=way.lease, dev_fd=dev, qid=QID, batched=True, block=4096)
    refused = {LEND: instead(way.refused)} if way.refused else {}
    read = Request(READ, SIZE, (), refused, answer=None if late else 5000, flags=way.flags)
    driver.held({1: read.but(holds=int(late))})
    while way.by_hand and not driver.batches:
        assert driver.run(turns=1) in (0, -errno.ETIME)
    if late:
        memory = driver.lib.group_memory(driver.group(1))
        assert (memory != driver.ffi.NULL) == way.in_memory
        if way.in_memory:
            driver.ffi.buffer(memory, SIZE)[:] = noise(SIZE)
        answer_in_threads(driver, [(1, 5000)])
    else:
        assert driver.run() == 0
    assert driver.result(1) == (4096 if way.in_memory else -errno.EIO)
    if late and way.carries:
        assert os.pread(dev, SIZE, position(1)) == noise(SIZE)[:4096]
    elif late and way.in_memory:
        assert driver.pages(1)[:SIZE] == noise(SIZE)
    lent = [e.member for e in driver.everything()]
    assert lent == ([LEND] + [UNLEND] * (not way.refused)) * way.by_hand


@pytest.mark.parametrize("op", [FLUSH, DISCARD])
@pytest.mark.parametrize("lease", ["COPY", "AUTO", "GROUP", "USER_COPY"])
def test_a_request_without_bytes_has_no_memory(
    new_driver: DriverMaker, lease: str, op: int
) -> None:
    """A discard names more bytes than there are: what lies behind is other requests'."""
    driver = new_driver(lease=lease, batched=True)
    driver.held({0: Request(op, 0 if op == FLUSH else 1 << 30, holds=1)})
    assert driver.lib.group_memory(driver.group()) == driver.ffi.NULL
    answer_in_threads(driver, [(0, 0)])
    assert driver.result() == 0


# --- many -------------------------------------------------------------------


def test_several_holders_of_one_request_are_all_waited_for(driver: Driver) -> None:
    """However their answers come: one by one, or all before the queue has heard of the first."""
    for at_once in (True, False):
        for answers, want in (
            ((SIZE, SIZE, SIZE), SIZE),
            ((SIZE, 1024, SIZE), 1024),  # no more than each of them has done
            ((1024, SIZE, SIZE), 1024),
            ((SIZE, -errno.ENOSPC, SIZE), -errno.ENOSPC),
            ((-errno.ENOSPC, SIZE, SIZE), -errno.ENOSPC),
        ):
            driver.held({0: HELD.but(holds=3)})
            for moved in answers:
                assert driver.commits() == 0
                driver.lib.group_answer(driver.group(), moved)
                if not at_once:
                    driver.lib.groups_answered(driver.env)
            assert driver.run() == 0
            assert driver.result() == want


def test_the_queue_is_woken_only_where_answers_come(
    new_driver: DriverMaker, driver: Driver
) -> None:
    assert new_driver().lib.groups_wake_fd(new_driver().env) == -1
    wake = driver.lib.groups_wake_fd(driver.env)
    driver.held({0: HELD, 1: HELD})
    assert select.select([wake], [], [], 0) == ([], [], [])
    driver.lib.group_answer(driver.group(0), SIZE)
    assert select.select([wake], [], [], 0)[0] == [wake]
    assert driver.commits(0) == 0  # only the queue's thread commits
    answer_in_threads(driver, [(1, SIZE)])
    assert driver.result(0) == driver.result(1) == SIZE


def test_threads_that_answer_at_the_same_moment_lose_no_answer(new_driver: DriverMaker) -> None:
    depth, threads = 1024, 4
    driver = new_driver(batched=True, depth=depth, max_io=4096, max_members=1)
    for _ in range(20):
        driver.held(dict.fromkeys(range(depth), HELD.but(size=512, holds=threads)))
        assert driver.answer_all(threads, 512) == 0
        assert {driver.result(tag) for tag in range(depth)} == {512}


@st.composite
def plans(draw: st.DrawFn) -> tuple[dict[int, Request], list[tuple[int, int]], int]:
    """Requests, who is answered with what and in which order, and by how many threads."""
    requests, answers = {}, []
    for tag in range(draw(st.integers(1, 8))):
        op = draw(st.sampled_from([READ, WRITE, FLUSH]))
        size = 0 if op == FLUSH else SIZE
        members = []
        if op == WRITE and draw(st.booleans()):
            members = [Member(Op.WRITE, 1, tag * SIZE, 0, SIZE)]
        requests[tag] = Request(op, size, members, holds=draw(st.integers(not members, 3)))
        moved = st.sampled_from([size, size, size, 700, -errno.EIO])
        answers += [(tag, draw(moved)) for _ in range(requests[tag].holds)]
    return requests, draw(st.permutations(answers)), draw(st.integers(1, 4))


@searching
@given(plan=plans())
def test_answers_from_any_threads_in_any_order_end_each_request_once(
    driver: Driver, plan: tuple[dict[int, Request], list[tuple[int, int]], int]
) -> None:
    requests, answers, threads = plan
    driver.held(requests)
    answer_in_threads(driver, answers, threads)
    for tag, request in requests.items():
        told = [moved for of, moved in answers if of == tag]
        least = min([*told, request.size])
        if request.op == FLUSH:
            want = min(least, 0)
        elif request.members and least > 0:
            want = request.size
        else:
            want = least // 512 * 512 if least > 0 else least
        assert driver.result(tag) == want, f"tag {tag}"
    assert driver.stats.in_flight == 0
