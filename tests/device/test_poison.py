"""No READ returns a byte that its backing did not hold, however short the backing falls.

What the driver lends are pages that nobody has cleared. So free memory is filled with a pattern
first, the disk's own bytes are known and never the pattern, and a reader's buffer starts with a
third one: whatever reaches the reader says where it came from.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tools import RUN_DIR, device, leases, mounted, nothing_left, run, sparse

from ublkd import stats

pytestmark = [pytest.mark.one_kernel, pytest.mark.deadline(1200)]

STEP = 1 if os.environ.get("THOROUGH") else 29
"""Every so manyth byte of a request is a place to fall short at, beside the edges of blocks."""
KIB, MIB = 1 << 10, 1 << 20
SECTOR = 512
POISON, BLANK = b"\xdb", b"\xee"
"""In memory that was freed, and in a buffer that nothing was read into."""
PLAIN = bytes(1 + b % 0x7E for b in range(256))
"""Makes any bytes such that are neither of these nor zero."""
REQUEST = 8 * KIB
EDGES = sorted({at + d for at in (0, 512, 4096, 4608, 7680, 8192) for d in (-1, 0, 1)})
ROUNDS = 25
"""At most, until reads have succeeded and failed often: a round or two, as the faults fall."""
OVERS = {"loop": 1, "stripe": 2, "mirror": 2}


# --- the three patterns ---------------------------------------------------------------------


def content(size: int) -> bytes:
    """A disk whose every sector begins with its number and is like no other."""
    raw = random.Random(size).randbytes(size).translate(PLAIN)
    sectors = (raw[at + 16 : at + SECTOR] for at in range(0, size, SECTOR))
    return b"".join(b"sector %08d " % n + rest for n, rest in enumerate(sectors))


def fill(size: int, *, huge: bool) -> None:
    """Write the pattern to that many bytes of memory and give them back."""
    step = 4 * MIB
    pattern = POISON * min(step, size)
    with mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as area:
        area.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
        for at in range(0, size, step):
            part = min(step, size - at)
            area[at : at + part] = pattern[:part]


@pytest.fixture(scope="module", autouse=True)
def _poisoned() -> None:
    """Nearly all memory that is free, 4 GiB at most, by a process that ends."""
    Path("/proc/sys/vm/drop_caches").write_text("3")
    told = Path("/proc/meminfo").read_text()
    free = int(re.findall(r"^MemAvailable:\s+(\d+) kB", told, re.MULTILINE)[0]) * KIB
    pid = os.fork()
    if pid == 0:
        try:
            fill(min(free - 192 * MIB, 4 << 30) // MIB * MIB, huge=True)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


def poison_next_pages(size: int) -> None:
    """So many and more of those that this processor frees last, and so hands out first."""
    fill(256 * KIB + 2 * size, huge=False)


# --- the reader -----------------------------------------------------------------------------


class Reader:
    """Reads a disk of known bytes, both ways, and looks at every byte that comes."""

    def __init__(self, node: str, data: bytes) -> None:
        self.data = data
        self.done = self.failed = 0
        self._direct = os.open(node, os.O_RDONLY | os.O_DIRECT)
        self._cached = os.open(node, os.O_RDONLY)
        self._area = mmap.mmap(-1, MIB)
        os.posix_fadvise(self._cached, 0, 0, os.POSIX_FADV_RANDOM)

    def close(self) -> None:
        os.close(self._direct)
        os.close(self._cached)
        self._area.close()

    def direct(self, at: int, size: int) -> bool:
        """Into a buffer of blanks, past the cache; whether it succeeded."""
        return self._read(self._direct, at, size)

    def cached(self, at: int, size: int) -> bool:
        """Into pages of the cache that carry the poison."""
        os.posix_fadvise(self._cached, 0, 0, os.POSIX_FADV_DONTNEED)
        poison_next_pages(size)
        return self._read(self._cached, at, size)

    def _read(self, fd: int, at: int, size: int) -> bool:
        self._area[:size] = BLANK * size
        with memoryview(self._area) as whole, whole[:size] as buffer:
            try:
                moved = os.preadv(fd, [buffer], at)
            except OSError as error:
                assert error.errno == errno.EIO
                moved = 0
            found = bytes(buffer)
        wanted = self.data[at : at + size]
        assert found[:moved] == wanted[:moved], f"of {moved} at {at}: {foreign(found, wanted)}"
        rest = foreign(found[moved:], wanted[moved:], BLANK[0])
        assert not rest, f"behind the {moved} bytes of a read at {at}: {rest}"
        self.done += moved == size
        self.failed += moved < size
        return moved == size


def foreign(found: bytes, wanted: bytes, *but: int) -> str:
    """Where the bytes are neither those wanted nor of a value that may be there, and what."""
    if found == wanted or all(byte in but for byte in set(found)):
        return ""
    odd = [at for at, (a, b) in enumerate(zip(found, wanted, strict=True)) if a not in (b, *but)]
    values = {f"{found[at]:#04x}" for at in odd}
    return f"{len(odd)} foreign bytes from {odd[0]} to {odd[-1]}: {values}" if odd else ""


@contextlib.contextmanager
def reading(node: str, data: bytes) -> Iterator[Reader]:
    """A reader on one processor, whose free pages it so knows."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    reader = Reader(node, data)
    try:
        yield reader
    finally:
        reader.close()
        os.sched_setaffinity(0, before)


# --- the disk -------------------------------------------------------------------------------


class Disk:
    """Files of known bytes behind a target."""

    def __init__(self, folder: Path, over: str, size: int) -> None:
        self.over, self.data = over, content(size)
        self.paths = [folder / f"{over}{n}.img" for n in range(OVERS[over])]
        self.write()

    @property
    def words(self) -> list[str | Path]:
        """As options; the chunk of a stripe is such that a request needs several members."""
        files = [word for path in self.paths for word in ("--file", path)]
        return [*files, *(["--chunk", "4K"] if self.over == "stripe" else [])]

    @property
    def last(self) -> Path:
        """The file whose end decides: a mirror does without the others."""
        return self.paths[-1]

    def write(self) -> None:
        """Every file as it should be."""
        for leg, path in enumerate(self.paths):
            path.write_bytes(self._part(leg))

    def _part(self, leg: int) -> bytes:
        if self.over != "stripe":
            return self.data
        chunk, legs = 4 * KIB, len(self.paths)
        starts = range(leg * chunk, len(self.data), legs * chunk)
        return b"".join(self.data[at : at + chunk] for at in starts)


def places(end: int, step: int) -> list[int]:
    """The edges of blocks below the end, and every so manyth place."""
    return sorted({at for at in EDGES if 0 <= at < end}.union(range(0, end, step)))


# --- the tests ------------------------------------------------------------------------------


def short_members(node: str) -> int:
    """Transfers that fell short so far, as the queue itself counts them."""
    number = int(node.removeprefix("/dev/ublkb"))
    return sum(queue["short_members"] for queue in stats.read(RUN_DIR / f"{number}.stats"))


@pytest.mark.parametrize("over", OVERS)
def test_a_read_that_falls_short_at_any_byte_shows_only_what_the_backing_holds(
    scratch: Path, over: str
) -> None:
    """First every transfer is cut and finished, then the file ends within the request."""
    disk = Disk(scratch, over, 5 * MIB)
    first = 64 * KIB  # of the request whose file ends, on the disk and on the file
    begins, there = (first // 2, REQUEST // 2) if over == "stripe" else (first, REQUEST)
    for lease in leases():
        disk.write()
        words = ["--over", over, *disk.words, "--walk", "--direct-io", "off", "--lease", lease]
        with device("faulty", *words) as node, reading(node, disk.data) as reader:
            sectors = places(REQUEST, STEP if over == "loop" else 31 * STEP)
            for at in sectors:
                assert reader.direct(at * SECTOR, REQUEST)
            # but for sector 0, and for cuts where two members of a stripe meet
            assert short_members(node) > 0.9 * len(sectors)
            for at in range(8, REQUEST, 8 * 37 * STEP):
                assert reader.cached(at * SECTOR, REQUEST)
            for path in disk.paths[:-1] if over == "mirror" else ():
                os.truncate(path, 0)
            for end in reversed(places(there, 61 * STEP if over == "loop" else there)):
                os.truncate(disk.last, begins + end)
                assert not reader.direct(first, REQUEST)
                if end in EDGES:
                    assert not reader.cached(first, REQUEST)
    nothing_left()


def test_direct_io_that_falls_short_shows_only_what_the_backing_holds(scratch: Path) -> None:
    """On a filesystem on a disk, where direct I/O is no copy out of the page cache."""
    data = content(5 * MIB)
    image = sparse(scratch / "ext4.img", 32 * MIB)
    run("mkfs.ext4", "-q", image)
    with mounted(str(image), scratch / "mnt", "-o", "loop") as mnt:
        path = mnt / "disk.img"
        for lease in leases():
            path.write_bytes(data)
            words: list[str | Path] = ["--over", "loop", "--file", path, "--walk"]
            words += ["--direct-io", "on", "--lease", lease]
            with device("faulty", *words) as node, reading(node, data) as reader:
                for at in places(REQUEST, 61 * STEP):
                    assert reader.direct(at * SECTOR, REQUEST)
                for end in (8191, 4097, 513, 512, 511, 1):
                    os.truncate(path, 64 * KIB + end)
                    # ext4 reads the whole of the last block, and has zeroes behind the end
                    reader.data = data[: 64 * KIB + end].ljust(len(data), b"\0")
                    assert not reader.direct(64 * KIB, REQUEST)
                    assert not reader.cached(64 * KIB, REQUEST)
    nothing_left()


def test_reads_of_every_size_amid_all_faults_show_nothing_foreign(scratch: Path) -> None:
    disk = Disk(scratch, "loop", 8 * MIB)
    dice = random.Random(1)
    faults = ["--short", "0.4", "--odd", "0.4", "--again", "0.2", "--error", "EIO:0.4"]
    for lease in leases():
        words = ["--over", "loop", *disk.words, *faults, "--lease", lease]
        with device("faulty", *words) as node, reading(node, disk.data) as reader:
            for read, block in ((reader.direct, SECTOR), (reader.cached, 4 * KIB)):
                reader.done = reader.failed = 0
                for _ in range(ROUNDS):
                    for size in [4 * KIB << n for n in range(8)] * 4:
                        read(dice.randrange(0, len(disk.data) - size + 1, block), size)
                    if min(reader.done, reader.failed) > 5:
                        break
                assert reader.done > 5
                assert reader.failed > 5
    nothing_left()
