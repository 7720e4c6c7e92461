"""Addresses that do not answer: each reason in words, and with what to do about it."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable

import pytest

from tests.unit.helpers import is_one_line
from ublkd.errors import UblkdError
from ublkd.targets.nbd.dial import Address, dial
from ublkd.targets.nbd.stream import Patience

pytestmark = pytest.mark.usefixtures("nothing_left")

FAMILIES = [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX]


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The kernel says so of each address in turn, at once or when the socket is asked later."""

    def answer(*numbers: int, later: bool = False) -> None:
        left = list(numbers)

        class Socket(socket.socket):
            def connect_ex(self, _: object) -> int:
                self.error = left.pop(0)
                return errno.EINPROGRESS if later else self.error

            def getsockopt(self, *_: object) -> int:  # type: ignore[override]
                return self.error

        monkeypatch.setattr(socket, "socket", Socket)

    return answer


def refusal(*addresses: Address) -> UblkdError:
    with pytest.raises(UblkdError) as caught:
        dial(addresses, Patience(20))
    assert is_one_line(caught.value.message)
    assert is_one_line(caught.value.hint)
    return caught.value


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize(
    ("number", "words", "hint"),
    [
        (errno.EHOSTUNREACH, "no route to host", "ip route get"),
        (errno.ENETUNREACH, "network is unreachable", "ip route get"),
        (errno.ECONNREFUSED, "connection refused", "is the server running"),
        (errno.ETIMEDOUT, "no answer", "firewall"),
        (errno.ENOENT, "no such file or directory", "path of its socket"),
        (errno.EACCES, "permission denied", "ls -l"),
        (errno.EPERM, "operation not permitted", "firewall"),
        (errno.ENODEV, "no such device", "vsock"),
        (errno.EADDRNOTAVAIL, "cannot assign requested address", "ip address"),
        (errno.EIO, "input/output error", "ublkd(8)"),
    ],
)
def test_nobody_there(
    answering: Callable[..., None], number: int, words: str, hint: str, later: bool
) -> None:
    answering(number, later=later)
    error = refusal(Address(socket.AF_INET, ("192.0.2.1", 1), "192.0.2.1"))
    assert error.message == f"cannot connect: {words} (192.0.2.1)"
    assert hint in error.hint


def test_each_reason_is_told_once_with_its_addresses(answering: Callable[..., None]) -> None:
    answering(errno.ECONNREFUSED, errno.ENETUNREACH, errno.ECONNREFUSED)
    error = refusal(
        *[Address(family, "", name) for family, name in zip(FAMILIES, "abc", strict=True)]
    )
    assert error.message == (
        "cannot connect: connection refused (a, c); network is unreachable (b)"
    )
    assert "is the server running" in error.hint


def test_a_kind_of_socket_that_the_kernel_lacks_is_one_more_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lacking(*_: object) -> None:
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))

    monkeypatch.setattr(socket, "socket", lacking)
    error = refusal(Address(socket.AF_VSOCK, (3, 7), "vsock 3:7"))
    assert "address family not supported by protocol (vsock 3:7)" in error.message
    assert "lacks this kind of socket" in error.hint
