"""What systemd hears, by a real socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ublkd import notify
from ublkd.notify import Notifier, is_journal, levelled, watchdog_seconds


class Listener:
    """systemd's end."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address.replace("@", "\0", 1))
        self._socket.settimeout(10)
        self.environ = {"NOTIFY_SOCKET": address}

    def heard(self) -> str:
        return self._socket.recv(65536).decode()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Listener]:
    abstract = f"@ublkd-test-{os.getpid()}"
    made = Listener(str(tmp_path / "notify") if request.param == "path" else abstract)
    yield made
    made.close()


def test_each_message_arrives_by_a_path_and_by_an_abstract_address(listener: Listener) -> None:
    notifier = Notifier(listener.environ)
    assert notifier.wanted
    notifier.status("opens it")
    notifier.extend(1.5)
    notifier.ready("serves /dev/ublkb0")
    notifier.alive()
    notifier.stopping("ends")
    assert [listener.heard() for _ in range(5)] == [
        "STATUS=opens it",
        "EXTEND_TIMEOUT_USEC=1500000",
        "READY=1\nSTATUS=serves /dev/ublkb0",
        "WATCHDOG=1",
        "STOPPING=1\nSTATUS=ends",
    ]


@pytest.mark.parametrize("address", ["", "relative", "vsock:2:1", "/nowhere/at/all", "@nobody"])
def test_nobody_who_listens_is_no_failure(address: str) -> None:
    Notifier({"NOTIFY_SOCKET": address}).ready("done")
    Notifier({}).ready("done")
    assert Notifier({"NOTIFY_SOCKET": address}).wanted == (address[:1] in ("/", "@"))


def test_a_listener_that_does_not_read_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "SEND_SECONDS", 0.001)
    deaf = Listener(str(tmp_path / "notify"))
    try:
        for _ in range(1000):
            Notifier(deaf.environ).alive()
    finally:
        deaf.close()


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "ours"}, 0.5),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_PID": "ours"}, None),
    ],
    ids=str,
)
def test_the_watchdog_is_fed_only_by_whom_systemd_means(
    environ: dict[str, str], seconds: float | None
) -> None:
    found = {key: value.replace("ours", str(os.getpid())) for key, value in environ.items()}
    assert watchdog_seconds(found) == seconds


@given(st.text(st.characters(codec="ascii")), st.text(st.characters(codec="ascii")))
def test_whatever_the_environment_says_gives_a_time_or_none(usec: str, pid: str) -> None:
    found = watchdog_seconds({"WATCHDOG_USEC": usec, "WATCHDOG_PID": pid})
    assert found is None or found > 0


def test_only_a_descriptor_that_leads_to_the_journal_gets_levels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "journal").open("w") as journal, (tmp_path / "else").open("w") as other:
        found = os.fstat(journal.fileno())
        said = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        assert is_journal(journal.fileno(), said)
        assert not is_journal(other.fileno(), said)
        assert not is_journal(journal.fileno(), {})
        assert not is_journal(1 << 20, said)
    assert levelled("it ends", notify.WARNING) == "it ends"
    monkeypatch.setattr(notify, "is_journal", lambda: True)
    assert levelled("it ends", notify.WARNING) == "<4>it ends"
