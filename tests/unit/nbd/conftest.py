"""Certificates, made for the run; and the proof that no test leaves a descriptor or a thread."""

from __future__ import annotations

import gc
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.helpers import open_fds
from tests.unit.nbd.certificates import authority, certificate, openssl, revoke
from tests.unit.nbd.keeping import World


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """For every test that opens a socket."""
    before, threads = open_fds(), set(threading.enumerate())
    yield
    if open_fds() != before:  # what pytest keeps of a failure may hold some
        gc.collect()
    assert open_fds() == before
    assert set(threading.enumerate()) <= threads  # those of earlier tests may end meanwhile


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, nothing_left: None) -> Iterator[World]:
    """A keeper to be made, and its end."""
    made = World(monkeypatch)
    yield made
    made.close()


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority, ``ca``, and what it has signed; and what ``other`` has."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl to make certificates with")
    folder = tmp_path_factory.mktemp("pki")
    local = "DNS:localhost,IP:127.0.0.1"
    authority(folder, "ca")
    authority(folder, "other-ca")
    certificate(folder, "server", local)
    certificate(folder, "client")
    certificate(folder, "expired", local, days=-1)
    certificate(folder, "elsewhere", "DNS:db.example.com")
    certificate(folder, "stranger", local, ca="other-ca")
    certificate(folder, "revoked", local)
    revoke(folder, "revoked")
    openssl("pkcs8", "-topk8", "-in", "client-key.pem", "-out", "locked-key.pem",
             "-passout", "pass:secret", cwd=folder)  # fmt: skip
    return folder
