"""The nbd target over the servers of others: every byte, every command, each error."""

from __future__ import annotations

import errno
import os
import re
import socket
from pathlib import Path

import pytest
from direct import direct
from nbd import (
    KIB,
    MIB,
    Mortal,
    certificates,
    connections,
    discard,
    disk,
    lost,
    queues,
    settled,
    verify,
    zero,
)
from tools import (
    counters,
    digest,
    leases,
    nothing_left,
    refused,
    run,
    sparse,
    ublkd,
    ublkd_json,
)

from tests.unit.nbd.stock import nbd_server, nbdkit

SIZE = 8 * MIB

PLACES = pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])


# --- every byte -----------------------------------------------------------------------------


@PLACES
def test_what_is_written_is_read_with_every_lease(scratch: Path, tcp: bool) -> None:
    path = sparse(scratch / "disk.img", SIZE)
    with nbdkit(scratch, "file", str(path), tcp=tcp) as place:
        for lease in leases():
            with disk(place.uri(), "--lease", lease) as node:
                verify(node, SIZE, f"--randseed={len(lease)}")
                assert lost(node) == 0
                assert digest(node, SIZE) == digest(path, SIZE)
    nothing_left()


def test_over_tls_what_is_written_is_read(scratch: Path) -> None:
    pki = certificates(scratch, "localhost", "127.0.0.1")
    words = [f"--tls-certificates={pki}", "--tls=require", "file"]
    path = sparse(scratch / "disk.img", SIZE)
    with nbdkit(scratch, *words, str(path), tcp=True) as place:
        uri = place.uri(tls=True)
        with disk(uri, "--tls-certificates", pki, "--connections", "2") as node:
            assert ublkd_json("show", node)["describe"]["tls"] == "verified"
            verify(node, SIZE)
            assert lost(node) == 0
            assert digest(node, SIZE) == digest(path, SIZE)
        assert "nobody who is trusted" in refused("add", "--target", "nbd", "--uri", uri)
    nothing_left()


# --- every command and nothing else ---------------------------------------------------------

LINE = re.compile(
    r"connection=\d+ (Read|Write|Flush|Trim|Zero|Cache|Extents) id=\d+ ?(.*?) ?\.\.\."
)


def commands(log: Path, since: int = 0) -> list[str]:
    """What nbdkit's log filter saw: the command, where it has one its range in KiB, and flags."""
    found = []
    for line in log.read_text().splitlines()[since:]:
        if match := LINE.search(line):
            words = dict(word.split("=") for word in match[2].split())
            told = match[1].lower()
            if "offset" in words:
                told += f" {int(words['offset'], 16) // KIB}+{int(words['count'], 16) // KIB}"
            if words.get("fua") == "1":
                told += " fua"
            if match[1] == "Zero":
                told += " may-trim" if words["trim"] == "1" else " keeps"
            found.append(told)
    return found


def test_each_command_reaches_the_server_once_and_as_it_was_meant(scratch: Path) -> None:
    log = scratch / "commands"
    words = ["--filter=log", "file", str(sparse(scratch / "disk.img", SIZE)), f"logfile={log}"]
    with nbdkit(scratch, *words) as place:
        for lease in leases():
            with disk(place.uri(), "--lease", lease) as node:
                settled(node)
                since = len(log.read_text().splitlines())
                with direct(node) as at, direct(node, os.O_DSYNC) as forced:
                    assert at.write(64 * KIB, bytes(4 * KIB)) == "ok"
                    assert at.sync() == "ok"
                    assert at.read(64 * KIB, 8 * KIB)[0] == "ok"
                    assert forced.write(128 * KIB, bytes(4 * KIB)) == "ok"
                    assert discard(at, MIB, MIB) == "ok"
                    assert zero(at, 2 * MIB, MIB) == "ok"
                    run("fallocate", "-p", "-o", "4M", "-l", "1M", node)
                    assert at.sync() == "ok"
            assert commands(log, since) == [
                "write 64+4", "flush",
                "read 64+8",
                "write 128+4 fua", "flush",
                "trim 1024+1024",
                "zero 2048+1024 keeps",
                "zero 4096+1024 may-trim", "flush",  # fallocate(1) syncs before it closes
                "flush",
            ], f"with lease {lease}"  # fmt: skip
    nothing_left()


def test_a_flag_that_is_not_offered_is_not_used(scratch: Path) -> None:
    """These filters of nbdkit take it from what is advertised."""
    log = scratch / "commands"
    words = ["--filter=log", "--filter=nozero", "--filter=fua", "memory", str(SIZE),
             f"logfile={log}"]  # fmt: skip
    with nbdkit(scratch, *words) as place, disk(place.uri()) as node:
        queue = Path("/sys/block", Path(node).name, "queue")
        assert (queue / "fua").read_text().strip() == "0"
        assert (queue / "write_zeroes_max_bytes").read_text().strip() == "0"
        settled(node)
        since = len(log.read_text().splitlines())
        with direct(node) as at, direct(node, os.O_DSYNC) as forced:
            assert forced.write(0, b"\x11" * 4 * KIB) == "ok"
            assert zero(at, 0, 4 * KIB) == "ok"
        # O_DSYNC without FUA: the kernel flushes behind the write, and syncs as it always does
        assert commands(log, since) == ["write 0+4", "flush", "flush", "write 0+4"]
    nothing_left()


def test_the_smallest_block_of_the_server_is_the_disks(scratch: Path) -> None:
    words = ["--filter=blocksize-policy", "memory", str(SIZE), "blocksize-minimum=4096",
             "blocksize-maximum=64K", "blocksize-error-policy=error"]  # fmt: skip
    with nbdkit(scratch, *words) as place, disk(place.uri()) as node:
        assert run("blockdev", "--getss", node).stdout.strip() == "4096"
        run("mkfs.ext4", "-q", node)
        run("e2fsck", "-fn", node)
        verify(node, SIZE)
        run("blkdiscard", node)
        assert all(c["errors"] == 0 for c in counters(node).values() if isinstance(c, dict)
                   and "errors" in c)  # fmt: skip
    nothing_left()


def test_a_read_only_export_is_a_read_only_disk(scratch: Path) -> None:
    path = scratch / "disk.img"
    path.write_bytes(os.urandom(MIB))
    with nbdkit(scratch, "-r", "file", str(path)) as place, disk(place.uri()) as node:
        assert run("blockdev", "--getro", node).stdout.strip() == "1"
        assert digest(node, MIB) == digest(path, MIB)
        with pytest.raises(OSError) as raised, open(node, "wb", buffering=0) as f:
            f.write(bytes(4 * KIB))
        assert raised.value.errno in (errno.EPERM, errno.EACCES, errno.EROFS)
    with (
        nbdkit(scratch, "file", str(path)) as place,
        disk(place.uri(), "--read-only") as node,
    ):
        assert run("blockdev", "--getro", node).stdout.strip() == "1"
    nothing_left()


# --- errors ---------------------------------------------------------------------------------


def test_an_error_of_the_server_is_that_error_once_and_then_the_bytes_are_right(
    scratch: Path,
) -> None:
    data = os.urandom(64 * KIB)
    faults = scratch / "faults"
    for lease in leases():
        for name in ("EIO", "ENOSPC", "EPERM", "ENOMEM"):
            words = ["--filter=error", "memory", str(SIZE), f"error={name}", "error-rate=100%",
                     f"error-file={faults}"]  # fmt: skip
            with (
                nbdkit(scratch, *words) as place,
                disk(place.uri(), "--lease", lease) as node,
                direct(node) as at,
            ):
                assert at.write(MIB, data) == "ok"
                faults.touch()
                told = "ENOSPC" if name == "ENOSPC" else "EIO"
                assert at.read(MIB, 64 * KIB) == (told, b"\xee" * 64 * KIB), lease
                assert at.write(MIB, bytes(64 * KIB)) == told
                faults.unlink()
                assert at.read(MIB, 64 * KIB) == ("ok", data)
                assert at.read(0, 64 * KIB) == ("ok", bytes(64 * KIB))
                assert lost(node) == 0, "an error is an answer"
            if lease != leases()[0]:
                break  # one kind is enough for the others
    nothing_left()


def test_an_export_whose_end_is_no_whole_block_is_cut_and_that_is_said(scratch: Path) -> None:
    with nbdkit(scratch, "memory", str(MIB + 100)) as place, disk(place.uri()) as node:
        assert ublkd_json("show", node)["size"] == MIB
        assert "100 bytes" in ublkd_json("show", node)["describe"]["warning"]


# --- what `add` refuses ---------------------------------------------------------------------


def cannot(uri: str, code: int = 1) -> str:
    said = refused("add", "--target", "nbd", "--uri", uri, code=code)
    nothing_left()
    return said


def test_a_server_that_is_not_there_is_told(scratch: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        said = cannot(f"nbd://127.0.0.1:{taken.getsockname()[1]}")
        assert "connection refused" in said.lower()
    assert "no such file" in cannot(f"nbd+unix:///?socket={scratch}/none").lower()


def test_an_export_that_is_not_there_is_told_with_those_that_are(scratch: Path) -> None:
    section = f"[one]\nexportname = {sparse(scratch / 'disk.img', MIB)}\n"
    with nbd_server(scratch, section, "allowlist = true") as place:
        said = cannot(place.uri("two"))
    assert "no export 'two'" in said
    assert "it offers 'one'" in said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["memory", "0"], "the export is empty"),
        (["--oldstyle", "memory", "1M"], "oldstyle"),
        (["--filter=blocksize-policy", "memory", "1M", "blocksize-minimum=64K",
          "blocksize-preferred=64K"], "blocks of 65536 bytes"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_disk_is_refused(scratch: Path, words: list[str], told: str) -> None:
    with nbdkit(scratch, *words) as place:
        assert told in cannot(place.uri())


def test_what_is_no_uri_is_a_mistake_of_the_command_line() -> None:
    assert "http" in cannot("http://localhost/", code=2)


def test_a_server_that_dies_at_once_is_told(scratch: Path) -> None:
    with Mortal(scratch, "memory", str(MIB)) as server:
        uri = server.uri()
        with disk(uri) as node:
            assert connections(node) == 1
    assert "cannot connect" in cannot(uri)


def test_more_connections_than_cpus_are_as_many_and_a_note(scratch: Path) -> None:
    cpus = os.cpu_count() or 1
    with nbdkit(scratch, "memory", str(MIB)) as place:
        words = ["--target", "nbd", "--uri", place.uri(), "--connections", str(cpus + 1)]
        done = ublkd("add", *words)
        node = done.stdout.strip()
        told = f"{cpus + 1} connections were asked for, {cpus} made: "
        assert told in done.stderr
        assert connections(node) == len(queues(node)) == cpus
        ublkd("del", node)
    nothing_left()


def test_more_connections_than_the_server_allows_are_one_and_a_note(scratch: Path) -> None:
    words = ["--filter=multi-conn", "memory", str(MIB), "multi-conn-mode=disable"]
    with nbdkit(scratch, *words) as place, disk(place.uri(), "--connections", "4") as node:
        told = ublkd_json("show", node)["describe"]
        assert told["connections"] == 1
        assert "4 connections were asked for, 1 made" in told["warning"]
