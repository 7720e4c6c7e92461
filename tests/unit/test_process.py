"""What /proc says of other processes."""

from __future__ import annotations

import os
import signal

import pytest

from ublkd import process


def test_a_process_listens_to_the_signals_that_it_has_handlers_for() -> None:
    before = signal.signal(signal.SIGUSR2, lambda *_: None)
    try:
        assert process.listens_to(os.getpid(), signal.SIGUSR2)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert not process.listens_to(os.getpid(), signal.SIGUSR2)


def test_a_process_that_is_gone_is_no_listener_and_not_there() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    assert not process.is_there(child)
    assert not process.serves(child)
    with pytest.raises(OSError, match="No such"):
        process.listens_to(child, signal.SIGTERM)
