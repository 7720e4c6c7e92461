"""From a URI to a connected socket: its addresses, tried in turn, and what each failure means."""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ublkd.errors import UblkdError, printable, quoted, reason
from ublkd.targets.nbd.stream import Patience, TimedOut
from ublkd.targets.nbd.uri import Uri

MOST = 16
"""Addresses of one name that are tried."""

IDLE, INTERVAL, PROBES = 10, 5, 3  # seconds, seconds, count: a dead peer is noticed in 25 s
USER_TIMEOUT_MS = 30_000
"""How long what we sent may stay without an acknowledgement before the connection is dead."""
FULL_SECONDS = 0.05
"""Between two tries at a local socket whose line is full: the kernel tells nobody of a place."""

HINTS = {
    errno.ECONNREFUSED: "is the server running, and does it listen there?",
    errno.ENOENT: "is the server running, and is the path of its socket right?",
    errno.EACCES: "see 'ls -l' of the socket and its folders, or the firewall",
    errno.EPERM: "a firewall of this machine forbids it",
    errno.EHOSTUNREACH: "see 'ip route get ADDRESS'; a firewall may answer so, too",
    errno.ENETUNREACH: "see 'ip route get ADDRESS'",
    errno.ETIMEDOUT: "a firewall may swallow what we send; --open-timeout SECONDS waits longer",
    errno.ECONNRESET: "is the server running, and does it listen there?",
    errno.ENODEV: "vsock is for virtual machines: modprobe vhost_vsock, or vsock_loopback",
    errno.EAFNOSUPPORT: "the kernel of this machine lacks this kind of socket",
    errno.EADDRNOTAVAIL: "see 'ip address'",
}


@dataclass(frozen=True)
class Address:
    """One place to connect to."""

    family: int
    place: Any  # what socket.connect() takes
    shown: str


def addresses_of(uri: Uri, patience: Patience) -> Sequence[Address]:
    """Where the server may be. Raises UblkdError, TimedOut or Stopped."""
    if uri.transport == "unix":
        path = uri.socket.encode("utf-8", "surrogateescape")
        return [Address(socket.AF_UNIX, path, printable(uri.socket))]
    if uri.transport == "vsock":
        shown = f"vsock {uri.host}:{uri.port}"
        return [Address(socket.AF_VSOCK, (int(uri.host), uri.port), shown)]
    try:
        found = _looked_up(uri.host, uri.port, patience)
    except TimedOut:
        raise UblkdError(
            f"no answer for the name {quoted(uri.host)} within {patience.seconds:g} seconds",
            hint="see the name servers in /etc/resolv.conf",
        ) from None
    return [Address(family, place, place[0]) for family, _, _, _, place in found[:MOST]]


Found = Sequence[tuple[int, int, int, str, Any]]


def _looked_up(host: str, port: int, patience: Patience) -> Found:
    """In a thread of its own: the resolver knows no deadline of ours."""
    try:
        return _look_up(host, port, socket.AI_NUMERICHOST)
    except OSError:
        pass  # a name
    answers: list[Found | OSError] = []
    done, end = os.pipe()

    def ask() -> None:
        try:
            answers.append(_look_up(host, port))
        except OSError as error:
            answers.append(error)
        finally:
            os.close(end)

    thread = threading.Thread(target=ask, name="resolver", daemon=True)
    thread.start()
    try:
        patience.wait(done, select.POLLIN)
    finally:
        os.close(done)
    thread.join()  # it has answered, so it is about to end
    if isinstance(answer := answers[0], OSError):
        raise _nameless(host, answer)
    return answer


def _look_up(host: str, port: int, flags: int = 0) -> Found:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    except UnicodeError as error:  # what can be no name
        raise socket.gaierror(socket.EAI_NONAME, str(error)) from error


def _nameless(host: str, error: OSError) -> UblkdError:
    shown = printable(host)
    if error.errno in (socket.EAI_NONAME, socket.EAI_NODATA):
        return UblkdError(
            f"the host {quoted(shown)} is unknown", hint=f"see 'getent hosts {shown}'"
        )
    words = error.strerror or "no reason given"
    return UblkdError(
        f"the name {quoted(shown)} cannot be looked up: {words[:1].lower()}{words[1:]}",
        hint="see the name servers in /etc/resolv.conf",
    )


def dial(addresses: Sequence[Address], patience: Patience) -> socket.socket:
    """A socket, connected to the first that answers. It does not block.

    No address may use up the time of those behind it. Raises UblkdError or Stopped.
    """
    assert addresses
    failures: list[tuple[Address, int]] = []
    for number, address in enumerate(addresses):
        try:
            return _connected(address, patience.share(len(addresses) - number))
        except TimedOut:
            failures.append((address, errno.ETIMEDOUT))
        except OSError as error:
            failures.append((address, error.errno or errno.EIO))
    raise _nobody(failures)


def _connected(address: Address, patience: Patience) -> socket.socket:
    sock = socket.socket(address.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if address.family in (socket.AF_INET, socket.AF_INET6):
            _keep_watch(sock)
        while (result := sock.connect_ex(address.place)) == errno.EAGAIN:
            patience.pause(FULL_SECONDS)
        if result == errno.EINPROGRESS:
            patience.wait(sock.fileno(), select.POLLOUT)
            result = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if result:
            raise OSError(result, os.strerror(result))
    except BaseException:
        sock.close()
        raise
    return sock


def _keep_watch(sock: socket.socket) -> None:
    """Small requests leave at once, and a peer that is gone is noticed."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_NODELAY, 1),
        (socket.TCP_KEEPIDLE, IDLE),
        (socket.TCP_KEEPINTVL, INTERVAL),
        (socket.TCP_KEEPCNT, PROBES),
        (socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS),
    ):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


def _nobody(failures: Sequence[tuple[Address, int]]) -> UblkdError:
    """One reason with all addresses that gave it, or each with its own."""
    by_reason: dict[str, list[str]] = {}
    for address, number in failures:
        why = "no answer" if number == errno.ETIMEDOUT else reason(number)
        by_reason.setdefault(why, []).append(address.shown)
    told = "; ".join(f"{why} ({', '.join(where)})" for why, where in by_reason.items())
    return UblkdError(f"cannot connect: {told}", hint=HINTS.get(failures[0][1], "see ublkd(8)"))
