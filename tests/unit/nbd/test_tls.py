"""TLS: begun before all else, verified, and every way in which it fails told apart."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import pytest

from tests.unit.helpers import is_one_line
from tests.unit.nbd.certificates import copied, serves
from tests.unit.nbd.scripted import Peer, Script, Scripted, in_tls, says
from tests.unit.nbd.streams import (
    ABORT,
    ACK,
    DISC,
    GIB,
    GO,
    HELLO,
    POLICY,
    STARTTLS,
    TLS_REQD,
    UNSUP,
    asking,
    export_info,
    greeting,
    option,
    reply,
)  # fmt: skip
from ublkd.errors import UblkdError
from ublkd.targets.nbd import connect, tls
from ublkd.targets.nbd.uri import Uri, parse

pytestmark = pytest.mark.usefixtures("nothing_left")

READY = greeting() + reply(STARTTLS, ACK)
INSIDE = export_info() + reply(GO, ACK)
SOON = 2.0


def uri_of(server: Scripted, certificates: Path | None = None, query: str = "") -> Uri:
    parts = [query] if query else []
    if certificates is not None:
        parts.append(f"tls-certificates={certificates}")
    return parse(server.uri(scheme="nbds", query="&".join(parts)))


def refusal(
    script: Script,
    certificates: Path | None,
    query: str = "",
    place: Path | str = "127.0.0.1",
    seconds: float = 20,
) -> UblkdError:
    with Scripted(script, place) as server:
        with pytest.raises(UblkdError) as caught:
            connect.connect(uri_of(server, certificates, query), seconds)
        assert is_one_line(caught.value.message)
        assert is_one_line(caught.value.hint)
        assert caught.value.hint
        return caught.value


# --- it works -------------------------------------------------------------------------------


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_all_but_starttls_goes_through_tls(tmp_path: Path, pki: Path, newest: int) -> None:
    certificates = copied(pki, tmp_path, ca_cert="ca-cert")
    script = in_tls(serves(pki, "server", newest=newest), INSIDE, READY)
    with Scripted(script) as server:
        made = connect.connect(uri_of(server, certificates))
        with made.socket as sock:
            assert isinstance(sock, ssl.SSLSocket)
            assert made.export.size == GIB
            assert not sock.getblocking()
            sock.send(DISC)
    assert server.heard == [HELLO + option(STARTTLS) + asking(GO) + DISC]


def test_a_server_that_wants_our_certificate_gets_it(tmp_path: Path, pki: Path) -> None:
    context = serves(pki, "server")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(pki / "ca-cert.pem")
    ours = {"ca_cert": "ca-cert", "client_cert": "client-cert", "client_key": "client-key"}
    with Scripted(in_tls(context, INSIDE, READY)) as server:
        connect.connect(uri_of(server, copied(pki, tmp_path, **ours))).socket.close()


def test_by_a_local_socket_the_authority_counts_and_a_name_only_if_it_is_given(
    tmp_path: Path, pki: Path
) -> None:
    certificates = copied(pki, tmp_path, ca_cert="ca-cert")
    script = in_tls(serves(pki, "elsewhere"), INSIDE, READY)
    with Scripted(script, tmp_path) as server:
        connect.connect(uri_of(server, certificates)).socket.close()
        named = uri_of(server, certificates, "tls-hostname=db.example.com")
        connect.connect(named).socket.close()
    error = refusal(script, certificates, "tls-hostname=other.example.com", tmp_path)
    assert "certificate is not for other.example.com" in error.message


@pytest.mark.parametrize("name", ["expired", "elsewhere", "stranger"])
def test_without_verification_any_certificate_will_do(pki: Path, name: str) -> None:
    with Scripted(in_tls(serves(pki, name), INSIDE, READY)) as server:
        connect.connect(uri_of(server, None, "tls-verify-peer=0")).socket.close()


# --- whose certificate it is ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "query", "told"),
    [
        ("expired", "", "the server's certificate has expired"),
        ("elsewhere", "", "the server's certificate is not for 127.0.0.1"),
        ("server", "tls-hostname=db.example.com", "is not for db.example.com"),
        ("stranger", "", "is signed by nobody who is trusted here"),
    ],
)
def test_a_wrong_certificate_is_told(
    tmp_path: Path, pki: Path, name: str, query: str, told: str
) -> None:
    certificates = copied(pki, tmp_path, ca_cert="ca-cert")
    assert told in refusal(in_tls(serves(pki, name), INSIDE, READY), certificates, query).message


@pytest.mark.parametrize(
    ("code", "told", "hint"),
    [
        (9, "is not valid yet", "clocks"),
        (10, "has expired", "a new one"),
        (18, "is signed by nobody who is trusted here", "--tls-certificates"),
        (23, "has been revoked", "ca-crl.pem"),
        (62, "is not for db", "tls-hostname"),
        (64, "is not for db", "tls-hostname"),
        (26, "is refused: unsuitable purpose", "--tls-certificates"),
    ],
)
def test_what_openssl_finds_wrong_is_told_in_words(code: int, told: str, hint: str) -> None:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code, error.verify_message = code, "unsuitable purpose"
    refused = tls.failed(error, parse("nbds://db"))
    assert refused.message == f"the server's certificate {told}"
    assert hint in refused.hint


def test_by_default_the_authorities_of_the_system_are_trusted_and_ours_is_none(pki: Path) -> None:
    error = refusal(in_tls(serves(pki, "server"), INSIDE, READY), None)
    assert "nobody who is trusted here" in error.message
    assert "--tls-certificates" in error.hint


def test_a_revoked_certificate_is_told(tmp_path: Path, pki: Path) -> None:
    certificates = copied(pki, tmp_path, ca_cert="ca-cert", ca_crl="ca-crl")
    script = in_tls(serves(pki, "revoked"), INSIDE, READY)
    assert "the server's certificate has been revoked" in refusal(script, certificates).message
    with Scripted(in_tls(serves(pki, "server"), INSIDE, READY)) as server:
        connect.connect(uri_of(server, certificates)).socket.close()


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("name", ["", "stranger"])
def test_our_own_certificate_is_missed_or_refused(
    tmp_path: Path, pki: Path, newest: int, name: str
) -> None:
    context = serves(pki, "server", newest=newest)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(pki / "ca-cert.pem")
    names = {"ca_cert": "ca-cert"}
    if name:
        names |= {"client_cert": f"{name}-cert", "client_key": f"{name}-key"}
    error = refusal(in_tls(context, b"", READY), copied(pki, tmp_path, **names))
    assert "certificate" in error.message or "closed the connection in the TLS" in error.message
    assert "client-cert.pem" in error.hint


# --- plain against TLS, and TLS against plain -----------------------------------------------


@pytest.mark.parametrize("kind", [UNSUP, POLICY])
def test_a_server_without_tls_is_left_alone(kind: int) -> None:
    error = refusal(says(greeting() + reply(STARTTLS, kind)), None)
    assert "the server does not do TLS" in error.message
    assert "nbd://" in error.hint


def test_a_server_that_insists_on_tls_is_told(tmp_path: Path) -> None:
    with Scripted(says(greeting() + reply(GO, TLS_REQD)), tmp_path) as server:
        with pytest.raises(UblkdError, match="insists on TLS") as caught:
            connect.connect(parse(server.uri()))
        assert "nbds" in caught.value.hint
    assert server.heard == [HELLO + asking(GO) + ABORT]


def test_a_server_that_is_all_tls_says_nothing_to_us(pki: Path) -> None:
    def script(peer: Peer) -> None:
        peer.start_tls(serves(pki, "server"))
        peer.until_closed()

    error = refusal(script, None, seconds=SOON)
    assert "has said nothing" in error.message
    assert "wait for the client to begin" in error.hint


@pytest.mark.parametrize("at_once", [True, False])
def test_plain_text_before_the_tls_handshake_is_refused_and_not_used(at_once: bool) -> None:
    def script(peer: Peer) -> None:
        peer.send(READY + (INSIDE if at_once else b""))
        if not at_once:
            peer.recv(4 + 16 + 100)  # into our part of the TLS handshake
            peer.send(INSIDE)
        peer.until_closed()

    error = refusal(script, None)
    assert "where TLS had to begin" in error.message
    assert "meddling" in error.hint


# --- it stops halfway -----------------------------------------------------------------------


def test_a_server_that_hangs_up_in_the_tls_handshake_is_told() -> None:
    def script(peer: Peer) -> None:
        peer.send(READY)
        peer.recv(4 + 16 + 100)
        peer.sock.shutdown(socket.SHUT_WR)
        peer.until_closed()

    assert "closed the connection in the TLS handshake" in refusal(script, None).message


def test_a_server_that_stalls_in_the_tls_handshake_is_told() -> None:
    error = refusal(says(READY), None, seconds=8)
    assert error.message.endswith(
        "after 8 seconds the server has not sent its part of the TLS handshake"
    )


def test_a_server_that_hangs_up_inside_tls_is_told(tmp_path: Path, pki: Path) -> None:
    context = serves(pki, "server")

    def script(peer: Peer) -> None:
        peer.send(READY)
        peer.recv(4 + 16)
        peer.start_tls(context)
        peer.send(export_info())
        peer.recv(4 + 16)

    error = refusal(script, copied(pki, tmp_path, ca_cert="ca-cert"))
    assert "before it had sent an answer about the export" in error.message


# --- our folder -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ({}, "cannot read ca-cert.pem"),
        ({"ca_cert": "client-key"}, "ca-cert.pem in .* cannot be used"),
        ({"ca_cert": "ca-cert", "ca_crl": "client-key"}, "ca-crl.pem in .* cannot be used"),
        ({"ca_cert": "ca-cert", "client_cert": "client-cert"}, "cannot read client-cert.pem and"),
        ({"ca_cert": "ca-cert", "client_key": "client-key"}, "cannot read client-cert.pem and"),
        (
            {"ca_cert": "ca-cert", "client_cert": "client-cert", "client_key": "server-key"},
            "cannot be used: key values mismatch",
        ),
        (
            {"ca_cert": "ca-cert", "client_cert": "client-cert", "client_key": "locked-key"},
            "is encrypted",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value.values()),
)
def test_a_folder_that_does_not_hold_it_is_told_before_anybody_is_called(
    tmp_path: Path, pki: Path, names: dict[str, str], told: str
) -> None:
    made = copied(pki, tmp_path, **names)
    with pytest.raises(UblkdError, match=told) as caught:
        connect.connect(parse(f"nbds://h?tls-certificates={made}"), addresses=())
    assert is_one_line(caught.value.message)
    assert caught.value.hint


@pytest.mark.parametrize("name", [".example.com", "a" * 64, "x..y"])
def test_a_name_that_no_certificate_can_have_is_told(name: str) -> None:
    with pytest.raises(UblkdError, match="no certificate can be for") as caught:
        connect.connect(parse(f"nbds://h?tls-hostname={name}"), addresses=())
    assert "tls-hostname" in caught.value.hint
