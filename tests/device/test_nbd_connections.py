"""An NBD disk of four connections, each with a queue and so a CPU of its own.

In `make test` and `make device` it has a boot to itself, with four CPUs.
"""

from __future__ import annotations

import functools
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from direct import direct
from mortals import KINDS, serving
from nbd import KIB, MIB, Meanwhile, Mortal, connections, disk, lost, queues, verify
from tools import digest, mounted, nothing_left, run, sparse, wait_until

pytestmark = pytest.mark.skipif((os.cpu_count() or 1) < 4, reason="needs 4 CPUs")

SIZE = 8 * MIB
LENGTH = 64 * KIB

SERVERS = pytest.mark.parametrize("kind", KINDS)
PLACES = pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])


@SERVERS
@PLACES
def test_what_is_written_is_read_over_one_connection_and_over_four(
    scratch: Path, kind: str, tcp: bool
) -> None:
    path = sparse(scratch / "disk.img", SIZE)
    with serving(kind, scratch, path, tcp=tcp) as server:
        for wanted in (1, 4):
            with disk(server.uri(), "--connections", str(wanted)) as node:
                assert connections(node) == wanted
                verify(node, SIZE // wanted, f"--numjobs={wanted}", "--cpus_allowed_policy=split",
                       f"--offset_increment={SIZE // wanted}",
                       f"--cpus_allowed=0-{wanted - 1}")  # fmt: skip
                assert lost(node) == 0
                assert all(queue["write"]["requests"] for queue in queues(node))
                assert digest(node, SIZE) == digest(path, SIZE)
    nothing_left()


@SERVERS
@PLACES
def test_a_filesystem_survives_a_remount_and_a_check(scratch: Path, kind: str, tcp: bool) -> None:
    listing = f"cd {scratch}/mnt/tree && sha256sum *"
    path = sparse(scratch / "disk.img", SIZE)
    with serving(kind, scratch, path, tcp=tcp) as server:
        with disk(server.uri(), "--connections", "4") as node:
            assert connections(node) == 4
            run("mkfs.ext4", "-q", node)
            with mounted(node, scratch / "mnt", "-o", "discard") as mnt:
                (mnt / "tree").mkdir()
                run("sh", "-c", f"cp {Path(__file__).parent}/*.py {mnt}/tree")
                before = run("sh", "-c", listing).stdout
                run("rm", mnt / "tree" / Path(__file__).name)
        with disk(server.uri()) as node:
            run("e2fsck", "-fn", node)
            with mounted(node, scratch / "mnt"):
                after = run("sh", "-c", listing).stdout
    name = Path(__file__).name
    assert [line for line in before.splitlines() if not line.endswith(name)] == after.splitlines()
    nothing_left()


@pytest.mark.one_kernel
def test_a_server_that_shuts_down_with_requests_in_flight_is_asked_again(scratch: Path) -> None:
    """Reads and writes, on each connection: nbdkit answers them with ESHUTDOWN then."""
    path = sparse(scratch / "disk.img", SIZE)
    words: list[str | Path] = ["--filter=delay", "file", path, "rdelay=100ms", "wdelay=100ms"]
    over: list[bool] = []

    def write_and_read(node: str, cpu: int) -> set[str]:
        """Always, and on this CPU: nbdkit waits for a connection on which nothing is asked."""
        os.sched_setaffinity(0, {cpu})
        seen: set[str] = set()
        with direct(node) as at:
            while not over:
                data = os.urandom(LENGTH)
                seen.add(at.write(cpu * LENGTH, data))
                told, found = at.read(cpu * LENGTH, LENGTH)
                seen.add(told if found == data else "other bytes")
        return seen

    with (
        Mortal(scratch, *words) as server,
        disk(server.uri(), "--connections", "4", "--reconnect-window", "inf") as node,
        Meanwhile(*(functools.partial(write_and_read, node, cpu) for cpu in range(4))) as load,
    ):
        for _ in range(3):
            begun = [served(queue) for queue in queues(node)]
            wait_until(
                lambda b=begun: load.done or all(
                    served(queue) > n for queue, n in zip(queues(node), b, strict=True)
                ), 60, "requests on each connection",
            )  # fmt: skip
            server.end(signal.SIGTERM)
            server.start()
        wait_until(lambda: lost(node) >= 3 * 4, 60, "the last loss")
        over.append(True)
        assert load.wait() == [{"ok"}] * 4
    nothing_left()


def served(queue: dict[str, Any]) -> int:
    """How many reads and writes of it have been answered."""
    return int(queue["read"]["requests"] + queue["write"]["requests"])
