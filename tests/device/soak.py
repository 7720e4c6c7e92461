"""A gigabyte through transfers that fall short and stumble, for each target and each lease.

One line for each: target, lease, bytes, short members, again members, errors. Exit status 1 if a
byte came back wrong, a request failed, or too few transfers fell short to show anything. Long
where the machine is emulated, so `make soak` runs it and `make test` does not.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tools import counters, device, fio, leases, sparse

MIB = 1 << 20
FILES = {"loop": 1, "stripe": 4, "mirror": 2}
FAULTS = ("--short", "0.5", "--odd", "0.3", "--again", "0.2", "--seed", "7")
DISK = 128 * MIB
BYTES = 1 << 30
SHORT_MEMBERS = 10_000
COLUMNS = "{:<8} {:<10} {:>12} {:>10} {:>10} {:>8}"


def soak(folder: Path, over: str, lease: str) -> bool:
    """One combination, and its line; whether all was well."""
    count = FILES[over]
    size = DISK // count if over == "stripe" else DISK
    paths = [sparse(folder / f"{n}.img", size) for n in range(count)]
    files = [word for path in paths for word in ("--file", path)]
    with device("faulty", "--over", over, *files, *FAULTS, "--lease", lease) as node:
        told = fio(
            node, "--rw=randwrite", "--bsrange=4k-256k", "--iodepth=16", "--verify=crc32c",
            "--verify_fatal=1", f"--loops={BYTES // (2 * DISK)}", "--serialize_overlap=1",
            check=False,
        )  # fmt: skip
        seen = counters(node)
    data = [seen["read"], seen["write"]]
    moved, errors = (sum(part[key] for part in data) for key in ("bytes", "errors"))
    errors += told["jobs"][0]["error"] != 0
    print(COLUMNS.format(over, lease, moved, seen["short_members"], seen["again_members"], errors),
          flush=True)  # fmt: skip
    return bool(moved >= BYTES and seen["short_members"] > SHORT_MEMBERS and not errors)


def main() -> int:
    """The targets named on the command line, else all."""
    print(COLUMNS.format("target", "lease", "bytes", "short", "again", "errors"), flush=True)
    base = "/scratch" if Path("/scratch").is_dir() else "/var/tmp"
    with tempfile.TemporaryDirectory(prefix="ublkd-soak-", dir=base) as folder:
        done = [
            soak(Path(folder), over, lease) for over in sys.argv[1:] or FILES for lease in leases()
        ]
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main())
