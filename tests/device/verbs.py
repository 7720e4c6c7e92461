"""Verbs run in forks of one process that has loaded ublkd, because starting it is slow.

In an emulated guest it takes two seconds until `ublkd` has started and has imported what it needs,
and the device tests run a good thousand verbs. With zygote.py that is paid once a session.

What a fork cannot show: imports that fail or take time, an interpreter's end, memory that holds
only what one verb needs, and what else a process inherits: limits, processors, namespaces, ids are
those of the session here. A test to which one of these matters uses the fixture ``commands``, or
runs the command itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ZYGOTE = Path(__file__).with_name("zygote.py")
ROOM = "x" * 8192
"""What a command line has room for in /proc/PID/cmdline."""

_requests: socket.socket | None = None
"""To the zygote, if one runs. The tests' children inherit it."""


@contextlib.contextmanager
def forked() -> Iterator[None]:
    """While the block runs, there is a zygote to ask."""
    global _requests  # noqa: PLW0603
    command = shutil.which("ublkd")
    assert command, "no ublkd in PATH"
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [Path(command).with_name("python"), ZYGOTE, str(theirs.fileno()), command, ROOM],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said,
            pass_fds=[theirs.fileno()], start_new_session=True,
        )  # fmt: skip
        theirs.close()
        _requests = ours
        try:
            yield
        finally:
            _requests = None
            early = process.poll()
            process.kill()
            process.wait()
            said.seek(0)
            assert early is None, f"the zygote ended with {early}: {said.read().decode()}"


@contextlib.contextmanager
def unasked() -> Iterator[None]:
    """While the block runs, it is as if there were no zygote."""
    global _requests  # noqa: PLW0603
    kept, _requests = _requests, None
    try:
        yield
    finally:
        _requests = kept


def running() -> bool:
    """Whether there is a zygote."""
    return _requests is not None


def ask(
    words: Sequence[str], seconds: float, dies: Sequence[Any] | None = None
) -> subprocess.CompletedProcess[str]:
    """Have the zygote run `ublkd` with these words, on our standard input.

    ``dies`` is what steps.die_at() is to be called with. Raises subprocess.TimeoutExpired, as
    subprocess does; the command is killed then.
    """
    assert _requests is not None
    ours, theirs = socket.socketpair()
    out, out_end = os.pipe()
    err, err_end = os.pipe()
    folder = os.open(".", os.O_PATH)
    with ours, open(out, "rb", buffering=0) as stdout, open(err, "rb", buffering=0) as stderr:
        with theirs:
            socket.send_fds(_requests, [b"?"], [0, out_end, err_end, folder, theirs.fileno()])
        for fd in (out_end, err_end, folder):
            os.close(fd)
        asked = {"words": words, "environ": dict(os.environ), "dies": dies}
        ours.sendall(json.dumps(asked).encode() + b"\n")
        said = collect([stdout.fileno(), stderr.fileno(), ours.fileno()], seconds)
    if said is None:
        raise subprocess.TimeoutExpired(["ublkd", *words], seconds)
    text = [part.decode().replace("\r\n", "\n").replace("\r", "\n") for part in said]
    assert text[2], "the zygote has ended; why stands at the end of the session"
    return subprocess.CompletedProcess(["ublkd", *words], int(text[2]), text[0], text[1])


def collect(sources: Sequence[int], seconds: float) -> list[bytes] | None:
    """What each descriptor gives until its end; None if that takes longer."""
    until = time.monotonic() + seconds
    found, live = dict.fromkeys(sources, b""), set(sources)
    while live:
        ready = select.select(list(live), [], [], max(0.0, until - time.monotonic()))[0]
        if not ready:
            return None
        for fd in ready:
            part = os.read(fd, 65536)
            found[fd] += part
            if not part:
                live.remove(fd)
    return list(found.values())
