"""A hundred devices, one after the other, in an interpreter that does nothing else.

Prints what was held after each round as JSON: `own` and `served` in KiB of this process and of
the daemons, `blocks` of Python's own in this one, `fds` and `threads` as counts, `left` as
processes that were still there.
"""

from __future__ import annotations

import gc
import json
import os
import sys

from test_life import resident
from tools import daemons, threads

from ublkd import daemon, ending, manage
from ublkd.config import build
from ublkd.control import Control
from ublkd.state import StateDir


def main(path: str) -> None:
    """add, write, read, del: by what the verbs call, so that a round costs no interpreter."""
    states = StateDir()
    config = build("loop", {"file": path}, name="round", queues="2")
    held: dict[str, list[int]] = {k: [] for k in ("own", "blocks", "served", "fds", "left")}
    for _ in range(100):
        ready = daemon.start(config)
        data = os.urandom(64 << 10)
        with open(ready.node, "r+b", buffering=0) as f:
            f.write(data)
            os.fsync(f.fileno())
            f.seek(0)
            assert f.read(len(data)) == data
        with Control() as control:
            found = manage.find(control, states, "round")
            held["served"].append(resident(found.info.pid))
            ending.delete(control, states, found)
        os.waitpid(-1, os.WNOHANG)
        gc.collect()
        held["own"].append(resident("self"))
        held["blocks"].append(sys.getallocatedblocks())
        held["fds"].append(len(os.listdir("/proc/self/fd")))
        held["left"].append(len(daemons()) + os.path.exists(ready.node))
    print(json.dumps(held | {"threads": threads("self")}))


if __name__ == "__main__":
    main(sys.argv[1])
