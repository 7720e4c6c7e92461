"""Certificates, made for the run; and the proof that no test leaves a descriptor or a thread."""

from __future__ import annotations

import gc
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.helpers import open_fds


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """For every test that opens a socket."""
    before, threads = open_fds(), threading.active_count()
    yield
    if open_fds() != before:  # what pytest keeps of a failure may hold some
        gc.collect()
    assert open_fds() == before
    assert threading.active_count() == threads


def _openssl(*words: str, cwd: Path) -> None:
    ran = subprocess.run(["openssl", *words], cwd=cwd, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def _authority(folder: Path, name: str) -> None:
    _openssl("req", "-x509", *EC, "-keyout", f"{name}-key.pem", "-out", f"{name}-cert.pem",
             "-subj", f"/CN={name}", "-days", "2",
             "-addext", "keyUsage=critical,keyCertSign,cRLSign", cwd=folder)  # fmt: skip


def _certificate(folder: Path, name: str, subject: str = "", days: int = 2, ca: str = "ca") -> None:
    for_whom = ("-addext", f"subjectAltName={subject}") if subject else ()
    _openssl("req", *EC, "-keyout", f"{name}-key.pem", "-out", f"{name}.csr",
             "-subj", f"/CN={name}", *for_whom, cwd=folder)  # fmt: skip
    _openssl("x509", "-req", "-in", f"{name}.csr", "-CA", f"{ca}-cert.pem", "-CAkey",
             f"{ca}-key.pem", "-days", str(days), "-copy_extensions", "copy",
             "-out", f"{name}-cert.pem", cwd=folder)  # fmt: skip


def _revoke(folder: Path, name: str) -> None:
    """A list of the revoked, with this one on it."""
    (folder / "ca.conf").write_text(
        "[ca]\ndefault_ca=it\n[it]\ndatabase=index\ncrlnumber=number\ndefault_md=sha256\n"
        "default_crl_days=2\ncertificate=ca-cert.pem\nprivate_key=ca-key.pem\n"
    )
    (folder / "index").touch()
    (folder / "number").write_text("01\n")
    _openssl("ca", "-config", "ca.conf", "-revoke", f"{name}-cert.pem", cwd=folder)
    _openssl("ca", "-config", "ca.conf", "-gencrl", "-out", "ca-crl.pem", cwd=folder)


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority, ``ca``, and what it has signed; and what ``other`` has."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl to make certificates with")
    folder = tmp_path_factory.mktemp("pki")
    local = "DNS:localhost,IP:127.0.0.1"
    _authority(folder, "ca")
    _authority(folder, "other-ca")
    _certificate(folder, "server", local)
    _certificate(folder, "client")
    _certificate(folder, "expired", local, days=-1)
    _certificate(folder, "elsewhere", "DNS:db.example.com")
    _certificate(folder, "stranger", local, ca="other-ca")
    _certificate(folder, "revoked", local)
    _revoke(folder, "revoked")
    _openssl("pkcs8", "-topk8", "-in", "client-key.pem", "-out", "locked-key.pem",
             "-passout", "pass:secret", cwd=folder)  # fmt: skip
    return folder
