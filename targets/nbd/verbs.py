"""``ublkd nbd list`` and ``ublkd nbd info``: what a server has, without making a device of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ublkd import target
from ublkd.errors import printable
from ublkd.target import Option, OptionValue, Verb
from ublkd.targets.nbd import connect
from ublkd.targets.nbd.export import Export
from ublkd.targets.nbd.uri import FORMS, Uri, parse
from ublkd.targets.nbd.wire import ExportFlag

URI = Option(name="uri", help="where the server is: nbd://HOST/EXPORT", required=True)
TLS_CERTIFICATES = Option(
    name="tls-certificates",
    kind="path",
    help="folder with ca-cert.pem, and client-cert.pem and client-key.pem if the server wants them",
)
OPEN_TIMEOUT = replace(
    target.OPEN_TIMEOUT,
    help=f"the most that connecting and the handshake may take (default {connect.OPEN_SECONDS:g})",
    default=connect.OPEN_SECONDS,
)


def _uri(values: Mapping[str, OptionValue]) -> tuple[Uri, float]:
    folder, seconds = values["tls_certificates"], values["open_timeout"]
    assert isinstance(seconds, float)
    uri = parse(str(values["uri"]))
    return connect.with_certificates(uri, None if folder is None else str(folder)), seconds


def offers(values: Mapping[str, OptionValue]) -> Sequence[Mapping[str, Any]]:
    """Every export that the server lists, with the URI to reach it."""
    uri, seconds = _uri(values)
    return [
        {
            "name": offer.name,
            "description": offer.description,
            "uri": printable(str(uri.at(offer.raw))),
        }
        for offer in connect.offers(uri, seconds)
    ]


def info(values: Mapping[str, OptionValue]) -> Mapping[str, Any]:
    """What the server says of one export, and what would become of it as a disk."""
    uri, seconds = _uri(values)
    return {"uri": printable(str(uri)), "tls": _security(uri)} | described(
        connect.look(uri, seconds)
    )


def _security(uri: Uri) -> str:
    if not uri.tls:
        return "none"
    return "verified" if uri.verify else "not verified"


def described(export: Export) -> dict[str, Any]:
    """An export in words and numbers; sizes in bytes."""
    flags = [str(flag.name).lower() for flag in ExportFlag if flag in export.flags]
    sizes = export.sizes
    return {
        "name": export.name,
        "description": export.description,
        "size": export.size,
        "left_out": export.left_out,
        "read_only": export.read_only,
        "flags": flags,
        "block_sizes": None if sizes is None else {
            "minimum": sizes.minimum, "preferred": sizes.preferred, "maximum": sizes.maximum,
        },
        "logical_block": export.block,
        "max_request": export.maximum,
    }  # fmt: skip


VERBS = (
    Verb(
        name="list",
        help=f"List the exports that a server offers.\n\nURI is {FORMS}.",
        argument=URI,
        options=(TLS_CERTIFICATES, OPEN_TIMEOUT),
        run=offers,
        columns=("name", "description"),
    ),
    Verb(
        name="info",
        help=f"Show what a server says of one export.\n\nURI is {FORMS}.",
        argument=URI,
        options=(TLS_CERTIFICATES, OPEN_TIMEOUT),
        run=info,
    ),
)
"""What the entry point of the group ``ublkd.verbs`` names."""
