"""Certificates for tests: an authority, what it signs and revokes, and who uses them."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import tempfile
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


def serves(
    pki: Path, name: str = "server", *, newest: int = ssl.TLSVersion.TLSv1_3
) -> ssl.SSLContext:
    """A server's context with one of the certificates."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki / f"{name}-cert.pem", pki / f"{name}-key.pem")
    context.maximum_version = ssl.TLSVersion(newest)
    return context


def copied(pki: Path, where: Path, **names: str) -> Path:
    """A new folder for --tls-certificates: client_key="locked-key" is the file of that name."""
    made = Path(tempfile.mkdtemp(dir=where))
    for name, source in names.items():
        shutil.copy(pki / f"{source}.pem", made / f"{name.replace('_', '-')}.pem")
    return made


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
