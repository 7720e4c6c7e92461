"""Certificates for tests: an authority, and what it signs and revokes."""

from __future__ import annotations

import subprocess
from pathlib import Path


def openssl(*words: str, cwd: Path) -> None:
    ran = subprocess.run(["openssl", *words], cwd=cwd, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def authority(folder: Path, name: str) -> None:
    openssl("req", "-x509", *EC, "-keyout", f"{name}-key.pem", "-out", f"{name}-cert.pem",
             "-subj", f"/CN={name}", "-days", "2",
             "-addext", "keyUsage=critical,keyCertSign,cRLSign", cwd=folder)  # fmt: skip


def certificate(folder: Path, name: str, subject: str = "", days: int = 2, ca: str = "ca") -> None:
    for_whom = ("-addext", f"subjectAltName={subject}") if subject else ()
    openssl("req", *EC, "-keyout", f"{name}-key.pem", "-out", f"{name}.csr",
             "-subj", f"/CN={name}", *for_whom, cwd=folder)  # fmt: skip
    openssl("x509", "-req", "-in", f"{name}.csr", "-CA", f"{ca}-cert.pem", "-CAkey",
             f"{ca}-key.pem", "-days", str(days), "-copy_extensions", "copy",
             "-out", f"{name}-cert.pem", cwd=folder)  # fmt: skip


def revoke(folder: Path, name: str) -> None:
    """A list of the revoked, with this one on it."""
    (folder / "ca.conf").write_text(
        "[ca]\ndefault_ca=it\n[it]\ndatabase=index\ncrlnumber=number\ndefault_md=sha256\n"
        "default_crl_days=2\ncertificate=ca-cert.pem\nprivate_key=ca-key.pem\n"
    )
    (folder / "index").touch()
    (folder / "number").write_text("01\n")
    openssl("ca", "-config", "ca.conf", "-revoke", f"{name}-cert.pem", cwd=folder)
    openssl("ca", "-config", "ca.conf", "-gencrl", "-out", "ca-crl.pem", cwd=folder)
