"""Another program's ublk device: added with a cookie that is not ublkd's, never started.

Prints its number, then waits to be ended.
"""

from __future__ import annotations

import signal

from ublkd.control import ANY_ID, Control
from ublkd.uapi import Feature


def main() -> None:
    """Add, tell, wait, delete."""
    with Control() as control:
        info = control.add_dev(
            dev_id=ANY_ID, queues=1, depth=4, max_io=65536, flags=Feature(0), cookie=0
        )
        try:
            print(info.id, flush=True)
            signal.sigwait({signal.SIGTERM, signal.SIGINT})
        finally:
            control.del_dev(info.id)


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    main()
