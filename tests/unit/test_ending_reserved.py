"""A disk that nobody may come to use while something is done with it."""

from __future__ import annotations

import errno
import os

import pytest

from ublkd import ending, holders
from ublkd.errors import UblkdError

FAR = 990000  # a number that no device of this machine has


@pytest.mark.parametrize("is_taken", [False, True])
def test_a_disk_is_reserved_for_as_long_as_it_is_said(
    monkeypatch: pytest.MonkeyPatch, is_taken: bool
) -> None:
    opened, closed, flags = os.open, os.close, []

    def take(path: str, how: int) -> int:
        flags.append((path, bool(how & os.O_EXCL)))
        if is_taken:
            raise OSError(errno.EBUSY, "")
        return opened(os.devnull, os.O_RDONLY)

    log: list[str] = []

    def let_go(fd: int) -> None:
        log.append("let go")
        closed(fd)

    with monkeypatch.context() as patched:
        patched.setattr(ending, "LOOK_SECONDS", -1)
        patched.setattr(os, "open", take)
        patched.setattr(os, "close", let_go)
        with ending.reserved(FAR) as words:
            log.append(words)
    assert flags == [(f"/dev/ublkb{FAR}", True)]
    assert log == ([ending.CLAIMED] if is_taken else ["", "let go"])


def test_a_disk_that_is_held_is_reserved_by_those_who_hold_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = holders.Holders(mounted_on=("/mnt",))
    monkeypatch.setattr(holders, "of", lambda *_, **__: held)
    with ending.reserved(FAR) as words:
        assert words == "mounted on /mnt"


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM, errno.ENXIO])
def test_a_shortage_does_not_make_a_disk_free(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def short(*_: object) -> int:
        raise OSError(number, "")

    monkeypatch.setattr(os, "open", short)
    if number == errno.ENXIO:  # there is no disk
        assert not ending.claimed("/dev/ublkb3")
        return
    with pytest.raises(UblkdError, match="cannot see whether /dev/ublkb3 is in use"):
        ending.claimed("/dev/ublkb3")


def test_another_verb_that_looks_at_the_disk_does_not_use_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Several that delete it at once look at it in the same way, for an instant each."""
    opened, looks = os.open, iter([True, True, False])

    def take(path: str, how: int) -> int:
        if next(looks):
            raise OSError(errno.EBUSY, "")
        return opened(os.devnull, os.O_RDONLY)

    monkeypatch.setattr(ending, "PASSING_PAUSE", 0)
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", take)
        assert not ending.claimed("/dev/ublkb3")
