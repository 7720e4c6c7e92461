"""The servers that others have written: nbdkit, qemu-nbd and nbd-server, plain and in TLS."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.helpers import is_one_line
from tests.unit.nbd.certificates import copied
from tests.unit.nbd.stock import Server, nbd_server, nbdkit, qemu_nbd
from tests.unit.nbd.streams import DISC
from ublkd.errors import UblkdError
from ublkd.targets.nbd import connect
from ublkd.targets.nbd.export import BlockSizes, Export
from ublkd.targets.nbd.uri import parse

pytestmark = pytest.mark.usefixtures("nothing_left")

MIB = 1 << 20
PLACES = pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(10 * MIB)
    return path


def served(uri: str) -> Export:
    """The export of a connection that is ready for requests, and ended in order."""
    made = connect.connect(parse(uri))
    with made.socket as sock:
        sock.send(DISC)
    return made.export


def refusal(uri: str) -> UblkdError:
    with pytest.raises(UblkdError) as caught:
        connect.connect(parse(uri))
    assert is_one_line(caught.value.message)
    assert is_one_line(caught.value.hint)
    assert caught.value.hint
    return caught.value


# --- what each of them says -----------------------------------------------------------------


@PLACES
def test_nbdkit(tmp_path: Path, tcp: bool) -> None:
    with nbdkit(tmp_path, "memory", "1G", tcp=tcp) as place:
        export = served(place.uri())
        assert connect.look(parse(place.uri())) == export
        assert [offer.name for offer in connect.offers(parse(place.uri()))] == [""]
    assert (export.size, export.sizes, export.block) == (1 << 30, None, 512)
    assert export.flush
    assert export.fua
    assert export.trim
    assert export.write_zeroes
    assert export.multi_conn
    assert not export.read_only


@PLACES
def test_qemu_nbd(tmp_path: Path, image: Path, tcp: bool) -> None:
    with qemu_nbd(tmp_path, "-x", "a disk", "-D", "of mine", str(image), tcp=tcp) as place:
        uri = place.uri("a%20disk")
        export = served(uri)
        assert connect.look(parse(uri)) == export
        (offer,) = connect.offers(parse(place.uri()))
        assert (offer.name, offer.description) == ("a disk", "of mine")
        error = refusal(place.uri("another"))
        assert "no export 'another'" in error.message
        assert error.hint == "it offers 'a disk'"
    assert (export.size, export.sizes) == (10 * MIB, BlockSizes(1, 4096, 32 * MIB))
    assert export.description == "of mine"
    assert (export.block, export.preferred, export.maximum) == (512, 4096, 32 * MIB)
    assert export.flush
    assert export.fua
    assert export.write_zeroes


@PLACES
def test_nbd_server(tmp_path: Path, image: Path, tcp: bool) -> None:
    sections = (
        f"[one]\nexportname = {image}\nflush = true\nfua = true\n[two]\nexportname = {image}\n"
    )
    with nbd_server(tmp_path, sections, "allowlist = true", tcp=tcp) as place:
        export = served(place.uri("one"))
        assert connect.look(parse(place.uri("one"))) == export
        names = [offer.name for offer in connect.offers(parse(place.uri()))]
        assert names == ["one", "two"]
        error = refusal(place.uri("three"))
        assert "no export 'three'" in error.message
        assert error.hint == "it offers 'one', 'two'"
    assert (export.size, export.block) == (10 * MIB, 512)
    assert export.flush
    assert export.fua


def test_a_server_whose_policy_forbids_the_list(tmp_path: Path, image: Path) -> None:
    with nbd_server(tmp_path, f"[one]\nexportname = {image}\n") as place:
        with pytest.raises(UblkdError, match="policy refuses its list"):
            connect.offers(parse(place.uri()))
        assert refusal(place.uri("two")).hint == "the server does not tell which it has"
        assert served(place.uri("one")).size == 10 * MIB


def test_many_exports_and_a_missing_one(tmp_path: Path) -> None:
    folder = tmp_path / "exports"
    folder.mkdir()
    for name in ("a", "b c", "ü"):
        (folder / name).write_bytes(bytes(4096))
    with nbdkit(tmp_path, "file", f"dir={folder}") as place:
        found = connect.offers(parse(place.uri()))
        assert sorted(offer.name for offer in found) == ["a", "b c", "ü"]
        for offer in found:
            assert served(str(parse(place.uri()).at(offer.raw))).size == 4096
        error = refusal(place.uri("none"))
        assert "'b c'" in error.hint
        assert "'ü'" in error.hint


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--oldstyle", "memory", "1M"], "oldstyle"),
        (["--mask-handshake=0", "memory", "1M"], "before it was fixed"),
        (["memory", "0"], "the export is empty"),
        (["memory", "511"], "511 bytes, less than one block"),
        (
            ["--filter=blocksize-policy", "memory", "1M", "blocksize-minimum=64K",
             "blocksize-preferred=64K"],
            "blocks of 65536 bytes",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_a_disk_is_refused(tmp_path: Path, words: list[str], told: str) -> None:
    with nbdkit(tmp_path, *words) as place:
        assert told in refusal(place.uri()).message


def test_the_size_and_the_blocks_that_it_has_are_taken(tmp_path: Path) -> None:
    with nbdkit(tmp_path, "memory", "1000001") as place:
        export = served(place.uri())
        assert (export.disk_size, export.left_out) == (999_936, 65)
    with nbdkit(tmp_path, "memory", str((1 << 63) - 1)) as place:
        assert served(place.uri()).disk_size == (1 << 63) - 512
    policy = ("blocksize-minimum=4K", "blocksize-preferred=64K", "blocksize-maximum=1M")
    with nbdkit(tmp_path, "--filter=blocksize-policy", "memory", "8M", *policy) as place:
        export = served(place.uri())
        assert (export.block, export.preferred, export.maximum) == (4096, 65536, MIB)
    with nbdkit(tmp_path, "-r", "memory", "1M") as place:
        assert served(place.uri()).read_only
    with nbdkit(tmp_path, "--mask-handshake=1", "memory", "1M") as place:  # no NO_ZEROES
        assert served(place.uri()).size == MIB


# --- TLS ------------------------------------------------------------------------------------


def tls_nbdkit(folder: Path, pki: Path, image: Path, verify: bool) -> Server:
    words = [f"--tls-certificates={pki}", "--tls=require"]
    return nbdkit(folder, *words, *["--tls-verify-peer"] * verify, "file", str(image), tcp=True)


def tls_qemu_nbd(folder: Path, pki: Path, image: Path, verify: bool) -> Server:
    peer = "yes" if verify else "no"
    credentials = f"tls-creds-x509,id=t,dir={pki},endpoint=server,verify-peer={peer}"
    return qemu_nbd(folder, "--object", credentials, "--tls-creds", "t", str(image), tcp=True)


Tls = Callable[[Path, Path, Path, bool], Server]


@pytest.mark.parametrize("server", [tls_nbdkit, tls_qemu_nbd])
@pytest.mark.parametrize("verify", [False, True], ids=["any client", "known clients"])
def test_tls_with_a_server_of_others(
    tmp_path: Path, pki: Path, image: Path, server: Tls, verify: bool
) -> None:
    ca = copied(pki, tmp_path, ca_cert="ca-cert")
    ours = copied(
        pki, tmp_path, ca_cert="ca-cert", client_cert="client-cert", client_key="client-key"
    )
    with server(tmp_path, pki, image, verify) as place:
        uri = place.uri(tls=True, query=f"tls-certificates={ours}")
        made = connect.connect(parse(uri))
        with made.socket as sock:
            assert isinstance(sock, ssl.SSLSocket)
            assert made.export.size == 10 * MIB
            sock.send(DISC)
        assert connect.look(parse(uri)) == made.export
        assert [offer.name for offer in connect.offers(parse(uri))] == [""]
        assert "insists on TLS" in refusal(place.uri()).message
        assert "nobody who is trusted" in refusal(place.uri(tls=True)).message
        without = place.uri(tls=True, query=f"tls-certificates={ca}")
        if verify:
            assert "client-cert.pem" in refusal(without).hint
        else:
            assert served(without).size == 10 * MIB


def test_tls_with_nbd_server(tmp_path: Path, pki: Path, image: Path) -> None:
    generic = (
        f"certfile = {pki}/server-cert.pem\nkeyfile = {pki}/server-key.pem\n"
        f"cacertfile = {pki}/ca-cert.pem\nforce_tls = true\n"
    )
    ours = copied(
        pki, tmp_path, ca_cert="ca-cert", client_cert="client-cert", client_key="client-key"
    )
    with nbd_server(tmp_path, f"[x]\nexportname = {image}\n", generic, tcp=True) as place:
        assert served(place.uri("x", tls=True, query=f"tls-certificates={ours}")).size == 10 * MIB
        assert "insists on TLS" in refusal(place.uri("x")).message


def test_tls_against_plain(tmp_path: Path, image: Path) -> None:
    with nbdkit(tmp_path, "memory", "1M", tcp=True) as place:
        assert "does not do TLS" in refusal(place.uri(tls=True)).message
    with qemu_nbd(tmp_path, str(image), tcp=True) as place:
        assert "does not do TLS" in refusal(place.uri(tls=True)).message
    with nbd_server(tmp_path, f"[x]\nexportname = {image}\n", tcp=True) as place:
        assert "does not do TLS" in refusal(place.uri("x", tls=True)).message
