"""An NBD server that cuts, lies and forgets: no error reaches the application, and no wrong byte.

The server also holds each request against what it advertised; the end of its block asserts that.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from direct import Direct, direct
from nbd import (
    KIB,
    MIB,
    Meanwhile,
    discard,
    disk,
    is_connected,
    lost,
    reading,
    settled,
    writing,
    zero,
)
from tools import fio, leases, nothing_left, wait_until

from tests.unit.nbd.faults import (
    ALL,
    DISC,
    FLUSH,
    READ,
    READ_ONLY,
    TRIM,
    WRITE,
    WRITE_ZEROES,
    Fault,
    Offer,
)
from tests.unit.nbd.misbehaving import Misbehaving

pytestmark = pytest.mark.one_kernel

SIZE = 4 * MIB
LENGTH = 64 * KIB


@dataclass(frozen=True)
class Case:
    """One command, and what goes wrong with it."""

    command: int
    fault: Fault

    def __str__(self) -> str:
        return f"{self.command}: {self.fault.what} {self.fault.place} {self.fault.at}"


def cuts() -> Iterator[Case]:
    """Before, inside and behind each header and payload."""
    places = {"request": (0, 1, 27, 28), "reply": (0, 1, 15)}
    data = (0, 1, LENGTH // 2 + 1, LENGTH - 1)
    for command in (READ, WRITE, FLUSH, TRIM, WRITE_ZEROES):
        mine: dict[str, tuple[int, ...]] = dict(places)
        if command == READ:
            mine["data"] = data
        if command == WRITE:
            mine |= {"payload": (*data, LENGTH), "apply": (0,)}
        for place, offsets in mine.items():
            for at in offsets:
                yield Case(command, Fault("cut", place, at, command))
        yield Case(command, Fault("reset", "reply", 3, command))
        yield Case(command, Fault("farewell", command=command))


def lies() -> Iterator[Case]:
    """What makes a connection useless; the next one is as good as new."""
    for command in (READ, WRITE, FLUSH, TRIM, WRITE_ZEROES):
        for what in ("magic", "cookie", "old", "stale", "unasked", "twice"):
            yield Case(command, Fault(what, command=command))


class Disk:
    """The node, and what each of its bytes has to be."""

    def __init__(self, at: Direct, server: Misbehaving) -> None:
        self.at = at
        self.server = server
        self.model = bytearray(SIZE)
        self.rounds = 0

    def do(self, command: int) -> str:
        """Another place and other bytes each time."""
        self.rounds += 1
        start = self.rounds * LENGTH % SIZE
        here = slice(start, start + LENGTH)
        if command == READ:
            told, found = self.at.read(start, LENGTH)
            return told if found == self.model[here] else "wrong bytes"
        if command == FLUSH:
            return self.at.sync()
        if command == WRITE:
            data = os.urandom(LENGTH)
            self.model[here] = data
            return self.at.write(start, data)
        self.model[here] = bytes(LENGTH)
        return (discard if command == TRIM else zero)(self.at, start, LENGTH)

    def fill(self) -> None:
        """Bytes that are nowhere else."""
        self.model[:] = os.urandom(SIZE)
        assert self.at.write(0, bytes(self.model[:MIB])) == "ok"
        self.server.data[:] = self.model

    def check(self, case: object) -> None:
        """At the server, and as the application reads it."""
        assert self.server.data == self.model, case
        assert self.at.read(0, MIB) == ("ok", bytes(self.model[:MIB])), case


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
@pytest.mark.parametrize("cases", [cuts, lies])
def test_no_error_and_no_wrong_byte_whatever_the_server_does(
    scratch: Path, cases: Callable[[], Iterator[Case]], tcp: bool
) -> None:
    for lease in leases()[: 1 if tcp else None]:
        with (
            Misbehaving(0 if tcp else scratch / "sock", offer=Offer(SIZE)) as server,
            disk(
                server.uri(), "--lease", lease, "--after-reconnect", "trust" if tcp else "replay"
            ) as node,
            direct(node) as at,
        ):
            found = Disk(at, server)
            found.fill()
            for count, case in enumerate(cases(), 1):
                server.fault(case.fault)
                assert found.do(case.command) == "ok", (lease, case)
                if case.fault.what == "twice":  # the second is noticed when somebody listens
                    wait_until(lambda n=count: lost(node) == n, 30, "a dead connection")
                    # while writes are told again, older ones stand in the place of newer ones
                    wait_until(lambda: is_connected(node), 30, "the next connection")
                server.heal()
                found.check((lease, case))
                assert server.connections == count + 1, (lease, case)
        nothing_left()


def test_many_requests_are_under_way_when_the_connection_is_cut(scratch: Path) -> None:
    for lease in leases():
        faults = [Fault("cut", place, at, nth=40 * n + 20) for n, (place, at) in enumerate(
            [("request", 13), ("payload", 5000), ("reply", 8), ("data", 3000), ("apply", 0)] * 2
        )]  # fmt: skip
        with (
            Misbehaving(scratch / "sock", *faults, offer=Offer(SIZE), shuffle=True) as server,
            disk(
                server.uri(), "--lease", lease, "--connections", "2", "--reconnect-window", "inf"
            ) as node,
        ):
            told = fio(
                node, "--rw=randwrite", "--bsrange=4k-64k", "--iodepth=16", f"--size={SIZE}",
                "--verify=crc32c", "--verify_fatal=1",
            )  # fmt: skip
            assert all(job["error"] == 0 for job in told["jobs"]), lease
            assert server.connections > 2, "nothing was cut"
    nothing_left()


def test_a_byte_at_a_time_is_slow_and_right(scratch: Path) -> None:
    for lease in leases():
        faults = (Fault("trickle", place, times=None) for place in ("reply", "data", "payload"))
        with (
            Misbehaving(scratch / "sock", *faults, offer=Offer(SIZE)) as server,
            disk(server.uri(), "--lease", lease) as node,
            direct(node) as at,
        ):
            data = os.urandom(4 * KIB)
            assert at.write(8 * KIB, data) == "ok"
            assert at.read(8 * KIB, 4 * KIB) == ("ok", data)
            assert lost(node) == 0
    nothing_left()


def test_an_answer_before_the_payload_has_left_harms_nobody(scratch: Path) -> None:
    with (
        Misbehaving(scratch / "sock", offer=Offer(SIZE)) as server,
        disk(server.uri(), "--after-reconnect", "trust") as node,
        direct(node) as at,
    ):
        found = Disk(at, server)
        server.fault(Fault("early", command=WRITE))
        assert found.do(WRITE) == "ok"
        assert found.do(FLUSH) == "ok"
        assert server.data == found.model
    nothing_left()


# --- what was advertised, and what comes back -----------------------------------------------


def test_nothing_is_sent_that_is_not_advertised(scratch: Path) -> None:
    with (
        Misbehaving(scratch / "sock", offer=Offer(SIZE, flags=1)) as server,
        disk(server.uri()) as node,
        direct(node) as at,
        direct(node, os.O_DSYNC) as forced,
    ):
        cache = Path("/sys/block", Path(node).name, "queue/write_cache")
        assert cache.read_text().strip() == "write through"
        assert at.write(0, b"\x11" * LENGTH) == "ok"
        assert forced.write(LENGTH, b"\x11" * LENGTH) == "ok"
        assert at.sync() == "ok"
        assert discard(at, 0, LENGTH) == "ENOTSUP"
        assert zero(at, 0, LENGTH) == "ok"
        assert server.data[: 2 * LENGTH] == bytes(LENGTH) + b"\x11" * LENGTH
        assert {request.command for request in server.requests} <= {READ, WRITE}
        assert not any(request.flags for request in server.requests)
    nothing_left()


def test_the_end_of_a_disk_is_told_to_the_server(scratch: Path) -> None:
    with Misbehaving(scratch / "sock", offer=Offer(SIZE)) as server:
        with disk(server.uri(), "--connections", "2"):
            assert server.connections == 2
        server.wait_for(lambda: sum(r.command == DISC for r in server.requests) == 2)


@pytest.mark.parametrize(
    ("offer", "says"),
    [
        (Offer(SIZE // 2), "bytes and had"),
        (Offer(SIZE, flags=ALL | READ_ONLY), "read-only now"),
        (Offer(SIZE, minimum=4096), "blocks of 4096"),
        (Offer(SIZE, flags=1), "cannot flush"),
    ],
)
def test_another_export_than_before_is_not_taken_for_it(
    scratch: Path, offer: Offer, says: str
) -> None:
    with (
        Misbehaving(scratch / "sock", offer=Offer(SIZE)) as server,
        disk(server.uri(), "--reconnect-window", "0", "--after-reconnect", "trust") as node,
        direct(node) as at,
    ):
        assert at.write(0, bytes([7]) * LENGTH) == "ok"
        server.stop()
        good, server.offer = server.offer, offer
        server.start()
        assert at.read(0, LENGTH)[0] == "EIO"
        server.wait_for(lambda: server.connections >= 2)
        assert at.read(0, LENGTH)[0] == "EIO", says
        server.offer = good
        wait_until(lambda: at.read(0, LENGTH) == ("ok", bytes([7]) * LENGTH), 120, "the old one")
    nothing_left()


# --- a server that says nothing -------------------------------------------------------------


def test_a_request_without_an_answer_gives_the_connection_up_and_is_asked_again(
    scratch: Path,
) -> None:
    for lease in leases():
        faults = (Fault("silent", command=READ, nth=3), Fault("silent", command=WRITE))
        with (
            Misbehaving(scratch / "sock", offer=Offer(SIZE)) as server,
            disk(server.uri(), "--request-timeout", "1", "--lease", lease) as node,
            direct(node) as at,
        ):
            settled(node)
            server.fault(*faults)
            assert at.write(0, b"\x33" * LENGTH) == "ok"
            first = lost(node)  # one, unless anybody was held up for a second
            assert first >= 1
            for n in range(6):
                assert at.read(0, LENGTH) == ("ok", b"\x33" * LENGTH), n
            assert lost(node) > first
            assert server.connections == lost(node) + 1
    nothing_left()


def test_without_a_request_timeout_an_answer_may_take_its_time(scratch: Path) -> None:
    with (
        Misbehaving(scratch / "sock", offer=Offer(SIZE)) as server,
        disk(server.uri(), "--request-timeout", "inf") as node,
    ):
        server.fault(Fault("stall", "reply", command=READ, times=None))
        with Meanwhile(reading(node, 0, LENGTH)) as asked:
            server.wait_for(lambda: any(r.length == LENGTH for r in server.asked(READ)))
            assert not asked.done
            server.heal()
            assert asked.wait() == ["ok"]
        assert lost(node) == 0
    nothing_left()


def test_a_write_whose_connection_was_given_up_lands_twice_and_is_answered_once(
    scratch: Path,
) -> None:
    """No NBD server can be told to forget a request: the first one still lands when it likes."""
    with (
        Misbehaving(scratch / "sock", offer=Offer(SIZE)) as server,
        disk(server.uri(), "--request-timeout", "1", "--after-reconnect", "trust") as node,
    ):
        server.fault(Fault("stall", "apply", command=WRITE))
        assert writing(node, 0, b"\x01" * LENGTH)() == "ok"
        one, *again = server.asked(WRITE)  # one more, unless anybody was held up for a second
        assert again
        assert one.connection not in {r.connection for r in again}
        assert {r.offset for r in (one, *again)} == {0}
        before = lost(node)
        assert before >= 1
        server.data[:LENGTH] = bytes(LENGTH)
        server.go_on()
        wait_until(lambda: server.data[:LENGTH] == b"\x01" * LENGTH, 30, "the first write")
        assert lost(node) == before
    nothing_left()
