"""Direct I/O goes on at a whole block: what moved of a broken one moves again."""

from __future__ import annotations

import errno

from .driver import READ, WRITE, DriverMaker, Member, Op, Request, cut
from .files import FileMaker, content, noise

SIZE = 4096
BLOCK = 512


def test_after_an_odd_cut_the_rest_starts_at_its_block(
    new_driver: DriverMaker, new_file: FileMaker
) -> None:
    fd = new_file(noise(SIZE))
    driver = new_driver([fd])
    driver.env.align = BLOCK
    request = Request(WRITE, SIZE, [Member(Op.WRITE, len=SIZE)], {0: cut(700, 1000)})
    assert driver.serve(request) == SIZE
    assert [event.off for event in driver.issued()] == [0, 512, 1024]
    assert [event.len for event in driver.issued()] == [SIZE, SIZE - 512, SIZE - 1024]


def test_a_cut_that_brings_nothing_new_is_tried_again_but_not_for_ever(
    new_driver: DriverMaker, new_file: FileMaker
) -> None:
    driver = new_driver([new_file(noise(SIZE))])
    driver.env.align = BLOCK
    patient = Request(READ, SIZE, [Member(Op.READ, len=SIZE)], {0: cut(300, 200, 300, 100)})
    assert driver.serve(patient) == SIZE
    hopeless = Request(READ, SIZE, [Member(Op.READ, len=SIZE)], {0: cut(*[100] * 200)})
    assert driver.serve(hopeless) == -errno.EIO


def test_what_moved_before_a_broken_block_is_committed(
    new_driver: DriverMaker, new_file: FileMaker
) -> None:
    fd = new_file(noise(SIZE))
    driver = new_driver([fd])
    driver.env.align = BLOCK
    odd = cut(BLOCK + 100, *[100] * 200)
    assert driver.serve(Request(READ, SIZE, [Member(Op.READ, len=SIZE)], {0: odd})) == BLOCK
    assert len(content(fd)) == SIZE
