"""TLS as the NBD tools have it: a folder of certificates, and the server verified."""

from __future__ import annotations

import select
import ssl
from pathlib import Path
from socket import socket

from ublkd.errors import UblkdError, printable, quoted, reason
from ublkd.targets.nbd.export import Refusal
from ublkd.targets.nbd.stream import Patience, Stream
from ublkd.targets.nbd.uri import Uri

CA, CRL, CERT, KEY = "ca-cert.pem", "ca-crl.pem", "client-cert.pem", "client-key.pem"

TRUST = f"--tls-certificates DIR names the folder whose {CA} signed the server's certificate"

UNTRUSTED = "is signed by nobody who is trusted here"
CERTIFICATE: dict[int, tuple[str, str]] = {
    9: ("is not valid yet", "are the clocks of both machines right?"),
    10: ("has expired", "the server needs a new one"),
    23: ("has been revoked", f"{CRL} in the folder of certificates says so"),
    2: (UNTRUSTED, TRUST),
    18: (UNTRUSTED, TRUST),
    19: (UNTRUSTED, TRUST),
    20: (UNTRUSTED, TRUST),
    21: (UNTRUSTED, TRUST),
}
"""What OpenSSL's X509_V_ERR numbers mean."""
OTHER_NAME = (62, 64)  # a host, an address

PLAIN = ("WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL", "HTTP_REQUEST", "RECORD_LAYER_FAILURE",
         "UNEXPECTED_MESSAGE", "BAD_RECORD_TYPE", "INVALID_RECORD_TYPE",
         "PACKET_LENGTH_TOO_LONG", "BAD_PACKET_LENGTH")  # fmt: skip
WANTS_OURS = ("CERTIFICATE_REQUIRED", "HANDSHAKE_FAILURE")
WRONG_OURS = ("UNKNOWN_CA", "BAD_CERTIFICATE", "CERTIFICATE_EXPIRED", "CERTIFICATE_UNKNOWN",
              "CERTIFICATE_REVOKED", "UNSUPPORTED_CERTIFICATE", "ACCESS_DENIED",
              "DECRYPT_ERROR")  # fmt: skip
OLD = ("UNSUPPORTED_PROTOCOL", "PROTOCOL_VERSION", "NO_PROTOCOLS_AVAILABLE", "NO_SHARED_CIPHER")


class _EncryptedError(Exception):
    """The key wants a password."""


def context(uri: Uri) -> ssl.SSLContext:
    """What is trusted, and who we are. Raises UblkdError for a folder that does not hold it."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.check_hostname = uri.verify and _name(uri) is not None
    made.verify_mode = ssl.CERT_REQUIRED if uri.verify else ssl.CERT_NONE
    if uri.certificates is not None:
        _load(made, Path(uri.certificates), verify=uri.verify)
    elif uri.verify:
        made.load_default_certs()
    _check_name(made, _name(uri))
    return made


def _name(uri: Uri) -> str | None:
    """What the server's certificate must be for; a local socket has no name by itself."""
    if uri.tls_hostname is not None or uri.transport != "tcp":
        return uri.tls_hostname
    return uri.host.partition("%")[0]


def _check_name(made: ssl.SSLContext, name: str | None) -> None:
    """Where a bad one takes no socket with it."""
    try:
        made.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=name)
    except ValueError as error:  # UnicodeError is one, too
        raise UblkdError(
            f"no certificate can be for the host {quoted(name or '')}",
            hint="tls-hostname=NAME in the URI says which name it must be for",
        ) from error


def _load(made: ssl.SSLContext, folder: Path, *, verify: bool) -> None:
    shown = printable(str(folder))
    hint = f"it takes {CA}, and {CERT} with {KEY} if the server asks for one"
    part = CA
    try:
        if verify:
            made.load_verify_locations(folder / CA)
        part = CRL
        if verify and (folder / CRL).exists():
            made.load_verify_locations(folder / CRL)
            made.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
        part = f"{CERT} and {KEY}"
        if (folder / CERT).exists() or (folder / KEY).exists():
            made.load_cert_chain(folder / CERT, folder / KEY, password=_no_password)
    except _EncryptedError:
        raise UblkdError(
            f"the key in {shown} is encrypted",
            hint=f"write {KEY} without a password, readable for its owner alone",
        ) from None
    except ssl.SSLError as error:
        raise UblkdError(f"{part} in {shown} cannot be used: {_words(error)}", hint=hint) from error
    except OSError as error:
        raise UblkdError(f"cannot read {part} in {shown}: {reason(error)}", hint=hint) from error


def _no_password() -> str:
    raise _EncryptedError


def start(made: ssl.SSLContext, sock: socket, uri: Uri, patience: Patience) -> ssl.SSLSocket:
    """TLS on a connected socket, which belongs to the result from then on.

    Raises Refusal, or TimedOut or Stopped from the stream; the socket is closed then.
    """
    wrapped = made.wrap_socket(sock, server_hostname=_name(uri), do_handshake_on_connect=False)
    try:
        Stream(wrapped, patience).patiently(wrapped.do_handshake, blocked=select.POLLIN)
    except OSError as error:
        wrapped.close()
        raise failed(error, uri) from error
    except BaseException:
        wrapped.close()
        raise
    return wrapped


def failed(error: OSError, uri: Uri) -> Refusal:
    """The words for a connection that TLS ended."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _unverified(error, uri)
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError | ConnectionError):
        return Refusal(
            "the server closed the connection in the TLS handshake",
            hint=f"its log may say why; perhaps it wants a {CERT}: --tls-certificates DIR",
        )
    why = (getattr(error, "reason", None) or "").upper()
    if "ALERT" not in why and any(word in why for word in PLAIN):
        return Refusal(
            "the server does not speak TLS where TLS had to begin",
            hint="somebody on the way may be meddling: nothing of it was used",
        )
    if any(why.endswith(word) for word in WRONG_OURS):
        return Refusal(
            f"the server does not accept our certificate: {_words(error)}",
            hint=f"{CERT} in the folder of --tls-certificates is not what it wants",
        )
    if any(why.endswith(word) for word in WANTS_OURS):
        return Refusal(
            f"the server wants a certificate of ours: {_words(error)}",
            hint=f"put {CERT} and {KEY} into the folder of --tls-certificates",
        )
    if any(why.endswith(word) for word in OLD):
        return Refusal(f"the server has no TLS that is safe: {_words(error)}",
                       hint="it must do TLS 1.2 or newer")  # fmt: skip
    return Refusal(f"TLS failed: {_words(error)}", hint="the server's log may say more")


def _unverified(error: ssl.SSLCertVerificationError, uri: Uri) -> Refusal:
    if error.verify_code in OTHER_NAME:
        return Refusal(
            f"the server's certificate is not for {printable(_name(uri) or '')}",
            hint="tls-hostname=NAME in the URI says which name it must be for",
        )
    told = CERTIFICATE.get(error.verify_code)
    if told is None:
        return Refusal(f"the server's certificate is refused: {error.verify_message}", hint=TRUST)
    return Refusal(f"the server's certificate {told[0]}", hint=told[1])


def _words(error: OSError) -> str:
    """OpenSSL's reason as words."""
    why = getattr(error, "reason", None)
    return printable(why.lower().replace("_", " ") if why else reason(error))
