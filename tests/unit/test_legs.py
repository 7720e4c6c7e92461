"""Stripe and mirror: which backings they take, and what disk they make of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.helpers import open_fds
from ublkd._core import ffi, lib
from ublkd.config import build
from ublkd.errors import UblkdError, UsageError
from ublkd.targets import legs
from ublkd.targets.mirror import MirrorTarget
from ublkd.targets.stripe import StripeTarget

KIB = 1 << 10


def files(folder: Path, *sizes: int) -> tuple[str, ...]:
    """Sparse files of those sizes."""
    paths = [folder / f"{number}.img" for number in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        with path.open("wb") as f:
            f.truncate(size)
    return tuple(map(str, paths))


def stripe(paths: tuple[str, ...], **words: str | bool) -> StripeTarget:
    return StripeTarget.from_options(build("stripe", {"file": paths, **words}).options)


def mirror(paths: tuple[str, ...], **words: str | bool) -> MirrorTarget:
    return MirrorTarget.from_options(build("mirror", {"file": paths, **words}).options)


def test_a_stripe_is_as_large_as_all_of_its_smallest(tmp_path: Path) -> None:
    made = stripe(files(tmp_path, 256 * KIB, 300 * KIB, 256 * KIB + 1), chunk="64K")
    assert made.params.size == 3 * 256 * KIB
    assert str(44 * KIB + 1) in str(made.describe()["warning"])
    assert len(made.files()) == 3
    made.close()


def test_a_mirror_is_as_large_as_its_smallest(tmp_path: Path) -> None:
    made = mirror(files(tmp_path, 8 * KIB, 16 * KIB))
    assert made.params.size == 8 * KIB
    assert "warning" in made.describe()
    made.close()


def test_a_request_over_the_smallest_chunks_has_room_for_its_members(tmp_path: Path) -> None:
    made = stripe(files(tmp_path, 64 * KIB, 64 * KIB), chunk="4K")
    assert made.params.max_members >= (1 << 20) // (4 * KIB) + 1
    made.close()


@pytest.mark.parametrize(("target", "most"), [("concat", 64), ("stripe", 64), ("mirror", 8)])
def test_files_are_counted_before_any_is_opened(target: str, most: int) -> None:
    for count in (2, most):
        assert build(target, {"file": ("/none",) * count})
    for count in (1, most + 1):
        says = f"target {target} takes --file 2 to {most} times, not {count}"
        with pytest.raises(UsageError, match=f"^{says}$") as caught:
            build(target, {"file": ("/none",) * count})
        assert caught.value.hint
    with pytest.raises(UsageError, match=f"target {target} needs --file"):
        build(target, {"file": ()})


@pytest.mark.parametrize("make", [stripe, mirror])
def test_a_refused_backing_leaves_no_other_open(tmp_path: Path, make: object) -> None:
    before = open_fds()
    some = files(tmp_path, 4096, 4096)
    for bad in ((*some, str(tmp_path / "missing")), (*some, some[0]), (str(tmp_path), *some)):
        with pytest.raises(UblkdError):
            make(bad)  # type: ignore[operator]
        assert open_fds() == before


@pytest.mark.parametrize("make", [stripe, mirror])
@pytest.mark.parametrize("how", ["itself", "link", "hard"])
def test_the_same_file_twice_is_said_before_any_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: object, how: str
) -> None:
    def opened(*_: object, **__: object) -> None:
        pytest.fail("it must not be opened")

    one, two = files(tmp_path, 4096, 4096)
    again = tmp_path / "again"
    if how == "link":
        again.symlink_to(one)
    elif how == "hard":
        again.hardlink_to(one)
    monkeypatch.setattr(legs, "Backing", opened)
    with pytest.raises(UblkdError, match="are the same file") as caught:
        make((one, two, one if how == "itself" else str(again)))  # type: ignore[operator]
    assert caught.value.hint


def test_too_small_for_one_chunk_is_refused_by_name(tmp_path: Path) -> None:
    before = open_fds()
    with pytest.raises(UblkdError, match=r"1\.img has 4096 bytes, less than 65536") as caught:
        stripe(files(tmp_path, 1 << 20, 4096))
    assert "truncate -s +10G" in caught.value.hint
    assert open_fds() == before


@given(
    legs=st.integers(2, lib.STRIPE_MAX_LEGS),
    chunk=st.integers(9, 20).map(lambda shift: 1 << shift),
    start=st.integers(0, 1 << 40),
    length=st.integers(0, 1 << 24),
)
def test_what_a_range_is_on_the_legs_adds_up_to_the_range(
    legs: int, chunk: int, start: int, length: int
) -> None:
    """stripe.c discards and zeroes by this sum; the legs share no byte and leave none out."""
    handle = ffi.new("struct stripe *", {"nr_legs": legs, "chunk": chunk})
    ends = [
        [lib.stripe_leg_pos(handle, leg, pos) for leg in range(legs)]
        for pos in (start, start + length)
    ]
    assert sum(ends[0]) == start
    assert sum(ends[1]) == start + length
    assert all(low <= high for low, high in zip(*ends, strict=True))


def test_a_mirror_after_a_dead_daemon_does_without_what_that_did_without(tmp_path: Path) -> None:
    made = mirror(files(tmp_path, 8 * KIB, 8 * KIB, 8 * KIB))
    made.recovered([{"failed_files": 0b100}, {"failed_files": 0}, {"failed_files": 0b10}])
    assert made._handle.failed == 0b011  # the second and the first
    with pytest.raises(UblkdError, match="which files it did without"):
        made.recovered([])
    made.close()
