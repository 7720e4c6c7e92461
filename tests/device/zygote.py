"""A process that has loaded ublkd and forks for each command line that it is handed.

The fork becomes what `ublkd` would be: the caller's descriptors, folder and environment and
nothing else that is open, the words in sys.argv and /proc/self/cmdline, no thread, no handler of
signals, no module of the tests but steps.py. Only its end is short: taking the interpreter apart
takes longer than most verbs. See verbs.py, which runs this file and asks it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import steps

STREAMS = ((0, "r"), (1, "w"), (2, "w"))


@dataclass
class Child:
    """A command that runs, and whom to tell how it ended: nobody any more, if None."""

    pid: int
    reply: socket.socket | None


def load() -> None:
    """Import what verbs import, and know nothing of the machine afterwards."""
    import importlib

    import ublkd.__main__
    import ublkd.apply
    import ublkd.daemon
    import ublkd.log  # noqa: F401
    from ublkd import registry

    for group in (registry.GROUP, registry.VERBS):
        for point in registry.points(group):
            point.load()
    importlib.invalidate_caches()


def serve(requests: socket.socket) -> dict[str, Any]:
    """Fork for each request; returns in the fork, with what was asked."""
    children: dict[int, Child] = {}  # by a descriptor of the process
    while True:
        asked = {child.reply.fileno(): fd for fd, child in children.items() if child.reply}
        for fd in select.select([requests.fileno(), *children, *asked], [], [])[0]:
            if fd == requests.fileno():
                if request := accepted(requests, children):
                    return request
            elif fd in children:
                ended(children.pop(fd))
                os.close(fd)
            elif asked[fd] in children:
                given_up(children[asked[fd]], asked[fd])


def ended(child: Child) -> None:
    """Tell who asked."""
    status = os.waitpid(child.pid, 0)[1]
    if child.reply:
        with child.reply, contextlib.suppress(BrokenPipeError):
            child.reply.sendall(str(os.waitstatus_to_exitcode(status)).encode())


def given_up(child: Child, process: int) -> None:
    """End a command for which nobody waits any more."""
    assert child.reply
    child.reply.close()
    child.reply = None
    signal.pidfd_send_signal(process, signal.SIGKILL)


def accepted(requests: socket.socket, children: dict[int, Child]) -> dict[str, Any] | None:
    """Take a request and fork. Returns what was asked in the fork, None in the parent."""
    _, fds, _, _ = socket.recv_fds(requests, 1, 5)
    if not fds:
        sys.exit()  # the session is over
    *given, reply_fd = fds
    reply = socket.socket(fileno=reply_fd)
    with reply.makefile("rb") as stream:
        line = stream.readline()
    pid = os.fork() if line else -1
    if pid == 0:
        for ours in (requests, reply, *(c.reply for c in children.values() if c.reply)):
            ours.close()  # as an object too, or it would one day close another's descriptor
        become(given)
        asked: dict[str, Any] = json.loads(line)
        return asked
    for fd in given:
        os.close(fd)
    if line:
        children[os.pidfd_open(pid)] = Child(pid, reply)
    else:
        reply.close()
    return None


def become(given: Sequence[int]) -> None:
    """Have the caller's descriptors and folder, and no other."""
    *standard, folder = given
    for number, fd in enumerate(standard):
        os.dup2(fd, number)
    os.fchdir(folder)
    os.closerange(3, 1 << 20)
    # the interpreter's own were made for others, which they may have asked for their position
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(fd, mode, closefd=False) for fd, mode in STREAMS)


def show(words: Sequence[str]) -> None:
    """Have these words as the process's command line, in place of its own."""
    with open("/proc/self/stat") as f:
        start, end = map(int, f.read().rpartition(")")[2].split()[45:47])
    line = b"".join(os.fsencode(word) + b"\0" for word in words)[: end - start - 1]
    with open("/proc/self/mem", "r+b", buffering=0) as memory:
        memory.seek(start)
        memory.write(line.ljust(end - start, b"\0"))
    with open("/proc/self/comm", "w") as f:
        f.write(os.path.basename(words[1]))


def main() -> None:
    """The life of the process and of each of its forks: a socket, and the path of `ublkd`."""
    fd, command = int(sys.argv[1]), sys.argv[2]
    sys.path[0] = os.path.dirname(command)  # where that looks first
    load()
    asked = serve(socket.socket(fileno=fd))
    os.environ.clear()
    os.environ.update(asked["environ"])
    sys.argv = [command, *asked["words"]]
    show([sys.executable, *sys.argv])
    if asked["dies"]:
        steps.die_at(*asked["dies"])

    from ublkd import cli

    try:
        cli.main()
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else 1)


if __name__ == "__main__":
    main()
