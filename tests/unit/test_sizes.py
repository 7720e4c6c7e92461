"""What targets say of the size that their disks could have at this moment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ublkd.config import build
from ublkd.errors import UblkdError
from ublkd.plugin import Maker, guarded
from ublkd.registry import opened

KIB = 1 << 10


def target(name: str, **options: Any) -> Any:
    raw = {key.replace("_", "-"): value for key, value in options.items()}
    return opened(name, build(name, raw).options)


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    paths = (tmp_path / "a.img", tmp_path / "b.img")
    for path in paths:
        path.write_bytes(bytes(256 * KIB))
    return str(paths[0]), str(paths[1])


def test_a_loop_disk_could_be_as_large_as_what_of_its_file_it_covers(
    files: tuple[str, str],
) -> None:
    made = target("loop", file=files[0], offset="64K", block_size="4096")
    assert made.size_now() == made.params.size == 192 * KIB
    os.truncate(files[0], 1024 * KIB + 4095)
    assert (made.size_now(), made.params.size) == (960 * KIB, 192 * KIB)
    made.changed({"sizelimit": 512 * KIB})
    assert made.size_now() == 512 * KIB
    made.changed({"sizelimit": None})
    os.truncate(files[0], 64 * KIB)
    assert made.size_now() == 0
    made.close()


def test_disks_over_several_files_could_be_what_the_smallest_allows(
    files: tuple[str, str],
) -> None:
    stripe, mirror = target("stripe", file=files, share=True), target("mirror", file=files,
                                                                      share=True)  # fmt: skip
    os.truncate(files[0], 1024 * KIB)
    assert (stripe.size_now(), mirror.size_now()) == (512 * KIB, 256 * KIB)
    os.truncate(files[1], 512 * KIB)
    assert (stripe.size_now(), mirror.size_now()) == (1024 * KIB, 512 * KIB)
    os.truncate(files[1], 0)
    with pytest.raises(UblkdError, match="has 0 bytes"):
        mirror.size_now()
    stripe.close()
    mirror.close()


def test_where_one_file_ends_and_the_next_begins_cannot_change(files: tuple[str, str]) -> None:
    made = target("concat", file=files)
    assert made.size_now() is None
    made.close()


def test_faulty_says_what_the_one_says_that_it_stands_before(files: tuple[str, str]) -> None:
    made = target("faulty", over="loop", file=files[0])
    os.truncate(files[0], 512 * KIB)
    assert made.size_now() == 512 * KIB
    made.changed({"sizelimit": 64 * KIB})
    made.resizing(64 * KIB)
    assert made.size_now() == 64 * KIB
    made.close()


def test_a_plug_in_need_not_know_and_its_mistakes_are_its_own() -> None:
    maker = Maker("odd", "odd-package")
    silent: Any = guarded(object(), maker)
    assert silent.size_now() is None
    silent.resizing(7)
    silent.changed({})

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    broken: Any = guarded(
        type("Bad", (), {"size_now": lambda _: "1G", "resizing": fail, "changed": fail})(), maker
    )
    for ask, says in (
        (broken.size_now, r"has str in size_now\(\)"),
        (lambda: broken.resizing(7), r"failed in resizing\(\)"),
        (lambda: broken.changed({}), r"failed in changed\(\)"),
    ):
        with pytest.raises(UblkdError, match=says):
            ask()
