"""NBD URIs, as doc/uri.md has them: parsed, checked, written back. Nothing secret is ever shown."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote_to_bytes

from ublkd.errors import UsageError, printable, quoted, redacted
from ublkd.targets.nbd.wire import MAX_STRING, PORT

Transport = Literal["tcp", "unix", "vsock"]

SCHEMES: dict[str, tuple[Transport, bool]] = {
    "nbd": ("tcp", False),
    "nbds": ("tcp", True),
    "nbd+unix": ("unix", False),
    "nbds+unix": ("unix", True),
    "nbd+vsock": ("vsock", False),
}
"""Transport, and whether TLS is a must."""

PARAMETERS = ("socket", "tls-certificates", "tls-hostname", "tls-type", "tls-verify-peer")
FORMS = "nbd://HOST/EXPORT, nbd+unix:///EXPORT?socket=PATH, nbd+vsock://CID/EXPORT; nbds for TLS"
SHAPE = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^?#]*)(?:\?([^#]*))?", re.DOTALL)
HOST = re.compile(r"[^\x00-\x20\x7f/?#@:\[\]%\\'\"<>]{1,255}")
ZONE = re.compile(r"[A-Za-z0-9._~-]{1,64}", re.ASCII)
YES_NO = {"1": True, "true": True, "0": False, "false": False}

MAX_SOCKET_PATH = 107  # bytes: sun_path without its NUL
CID_HOST = 2  # the hypervisor's: VMADDR_CID_HOST
CID_ANY = 0xFFFFFFFF


@dataclass(frozen=True, kw_only=True)
class Uri:
    """Where an export is. ``str()`` writes it in its one canonical form, without anything secret.

    ``host`` is a name, an address, or the CID of a vsock.
    """

    transport: Transport
    tls: bool
    host: str = ""
    port: int = PORT
    socket: str = ""  # a path, absolute; one that begins with a NUL is an abstract name
    export: str = ""  # bytes that are not UTF-8 are lone surrogates, as in a path
    certificates: str | None = None  # a folder, absolute
    tls_hostname: str | None = None  # what the certificate must be for; None: the host
    verify: bool = True

    @property
    def export_bytes(self) -> bytes:
        """The name of the export as it goes over the wire."""
        return _raw(self.export)

    def at(self, export: bytes) -> Uri:
        """The same place, another export."""
        return replace(self, export=export.decode("utf-8", "surrogateescape"))

    @property
    def scheme(self) -> str:
        """The part before ``://``."""
        return next(name for name, kind in SCHEMES.items() if kind == (self.transport, self.tls))

    def __str__(self) -> str:
        authority = ""
        if self.transport != "unix":
            authority = f"[{_zone(self.host)}]" if ":" in self.host else _quoted(self.host)
            authority += "" if self.port == PORT else f":{self.port}"
        query = {
            "socket": self.socket or None,
            "tls-certificates": self.certificates,
            "tls-hostname": self.tls_hostname,
            "tls-verify-peer": None if self.verify else "0",
        }
        given = "&".join(f"{key}={_quoted(value)}" for key, value in query.items() if value)
        path = f"/{_quoted(self.export)}" if self.export or not authority or given else ""
        return f"{self.scheme}://{authority}{path}" + (f"?{given}" if given else "")


def parse(text: str) -> Uri:
    """The URI. Relative paths in it become absolute. Raises UsageError, which shows no secret."""
    try:
        return _parse(text)
    except _Wrong as wrong:
        shown = _redacted(text)
        raise UsageError(f"URI {quoted(shown)}: {wrong.message}", hint=wrong.hint) from None


class _Wrong(UsageError):
    """What is wrong with it, without the text itself."""


def _redacted(text: str) -> str:
    """A text that may not even be a URI; what may be a password or its like is left out."""
    if "://" not in text:
        text = text.rpartition("@")[2]
    shown, question, _ = redacted(text).partition("?")
    return printable(shown[:256] + ("?..." if question else ""))


def _parse(text: str) -> Uri:
    scheme, authority, path, query = _split(text)
    user, at, place = authority.rpartition("@")
    if at:
        raise _Wrong(
            "it has a password" if ":" in user else "it has a user name",
            hint="leave out what stands before the '@': NBD servers know certificates only",
        )
    given = _parameters(query)
    where = _where(scheme, place, given.pop("socket", None))
    uri = replace(where, export=_export(path[1:]))
    return _with_tls(uri, given) if given else uri


def _split(text: str) -> tuple[str, str, str, str]:
    """Scheme, authority, path, query."""
    if any(c < " " or c == "\x7f" for c in text):
        raise _Wrong("it has control characters", hint="write them as %XX")
    if "#" in text:
        raise _Wrong("it has a '#'", hint="write '#' as %23")
    match = SHAPE.fullmatch(text)
    if not match:
        raise _Wrong("it is not a URI", hint=FORMS)
    scheme = match[1].lower()
    if scheme not in SCHEMES:
        raise _Wrong(f"its scheme is not one of NBD's: {', '.join(SCHEMES)}", hint=FORMS)
    return scheme, match[2], match[3], match[4] or ""


def _where(scheme: str, place: str, socket: str | None) -> Uri:
    transport, tls = SCHEMES[scheme]
    if transport == "unix":
        return Uri(transport=transport, tls=tls, socket=_unix(scheme, place, socket))
    if socket is not None:
        raise _Wrong(f"{scheme} has no socket", hint=FORMS)
    host, port = _vsock(place) if transport == "vsock" else _tcp(place)
    return Uri(transport=transport, tls=tls, host=host, port=port)


def _unix(scheme: str, place: str, socket: str | None) -> str:
    form = f"{scheme}:///EXPORT?socket=PATH"
    if place:
        raise _Wrong(f"{scheme} has no host", hint=f"three slashes: {form}")
    if not socket:
        raise _Wrong(f"{scheme} needs a socket", hint=form)
    path = socket if socket.startswith("\0") else _absolute(socket, "socket")
    if len(_raw(path)) > MAX_SOCKET_PATH:
        raise _Wrong(
            f"its socket has a path of more than {MAX_SOCKET_PATH} bytes",
            hint="Linux takes no longer one: go by a link in a folder with a shorter path",
        )
    return path


def _tcp(place: str) -> tuple[str, int]:
    match = re.fullmatch(r"(?:\[([^\[\]]*)\]|([^:\[\]]*))(?::(.*))?", place)
    if not match:
        raise _Wrong("its host makes no sense", hint="an IPv6 address stands in brackets: [::1]")
    port = _number(match[3], PORT, 65535, "port", low=1)
    if match[1] is not None:
        return _ipv6(match[1]), port
    host = _text(match[2], "host")
    if not host:
        raise _Wrong("it has no host", hint=FORMS)
    if not HOST.fullmatch(host):
        raise _Wrong("its host is neither a name nor an address", hint=FORMS)
    return host, port


def _ipv6(text: str) -> str:
    address, percent, zone = text.replace("%25", "%", 1).partition("%")
    try:
        found = str(ipaddress.IPv6Address(address))
    except ValueError:
        found = ""
    if not found or (percent and not ZONE.fullmatch(zone)):
        raise _Wrong("what stands in brackets is no IPv6 address", hint="like [::1]")
    return found + percent + zone


def _vsock(place: str) -> tuple[str, int]:
    cid, _, port = place.partition(":")
    return (
        str(_number(cid, CID_HOST, CID_ANY - 1, "CID")),
        _number(port, PORT, CID_ANY - 1, "port"),
    )


def _number(text: str | None, default: int, most: int, what: str, low: int = 0) -> int:
    if not text:
        return default
    if not re.fullmatch(r"[0-9]{1,10}", text, re.ASCII) or not low <= int(text) <= most:
        raise _Wrong(f"its {what} is no number from {low} to {most}", hint=FORMS)
    return int(text)


def _export(text: str) -> str:
    name = _text(text, "export")
    if "\0" in name:
        raise _Wrong("its export has a NUL in its name", hint="no server can have such an export")
    if len(_raw(name)) > MAX_STRING:
        raise _Wrong(f"its export has a name of more than {MAX_STRING} bytes",
                     hint="no server can have such an export")  # fmt: skip
    return name


def _absolute(path: str, what: str) -> str:
    """With the links kept: what a later start from another folder must find again."""
    if "\0" in path:
        raise _Wrong(f"its {what} has a NUL in its path", hint="only an abstract socket begins so")
    try:
        return str(Path.cwd() / path) if not Path(path).is_absolute() else str(Path(path))
    except OSError:
        raise _Wrong(f"its {what} starts from a folder that is gone",
                     hint="give an absolute path") from None  # fmt: skip


def _parameters(query: str) -> dict[str, str]:
    """By name, decoded. Values are never shown: one of them may be a secret.

    Nor is any name before an ``@``: a sloppy password may have begun in front of the ``?``.
    """
    found: dict[str, str] = {}
    for part in query.split("&") if query else []:
        name, equals, value = part.partition("=")
        if name == "tls-psk-file":
            raise _Wrong("pre-shared keys are not possible", hint="TLS takes certificates only")
        if name not in PARAMETERS:
            raise _unknown(None if "@" in query else name)
        if not equals or not value:
            raise _Wrong(f"its {name} is empty", hint=f"{name}=VALUE")
        if name in found:
            raise _Wrong(f"it has more than one {name}", hint="one is enough")
        found[name] = _text(value, name)
    return found


def _unknown(name: str | None) -> _Wrong:
    """None: one that is not shown."""
    known = f"known are {', '.join(PARAMETERS)}"
    if name is None:
        return _Wrong("unknown parameter", hint=known)
    near = get_close_matches(name, PARAMETERS, 1)
    return _Wrong(f"unknown parameter {quoted(name[:64])}",
                  hint=f"did you mean {near[0]}? {known}" if near else known)  # fmt: skip


def _with_tls(uri: Uri, given: Mapping[str, str]) -> Uri:
    if not uri.tls:
        raise _Wrong(f"{uri.scheme} does not use TLS, and it has {next(iter(given))}",
                     hint="use nbds or nbds+unix")  # fmt: skip
    if given.get("tls-type", "x509") != "x509":
        raise _Wrong("its tls-type cannot be had", hint="TLS takes certificates only: x509")
    verify = YES_NO.get(given.get("tls-verify-peer", "1").lower())
    if verify is None:
        raise _Wrong("its tls-verify-peer is neither 0 nor 1", hint="without it, it is 1")
    name = given.get("tls-hostname")
    if name is not None and not HOST.fullmatch(name.replace(":", "")):
        raise _Wrong(
            "its tls-hostname is neither a name nor an address", hint="like db.example.com"
        )
    folder = given.get("tls-certificates")
    return replace(
        uri,
        tls_hostname=name,
        verify=verify,
        certificates=None if folder is None else _absolute(folder, "tls-certificates"),
    )


# --- percent codes --------------------------------------------------------------------------


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _text(quoted: str, what: str) -> str:
    if re.search(r"%(?![0-9A-Fa-f]{2})", quoted):
        raise _Wrong(f"its {what} has a '%' without two hex digits", hint="write '%' as %25")
    try:
        return unquote_to_bytes(_raw(quoted)).decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise _Wrong(f"its {what} is no text", hint="write odd bytes as %XX") from None


def _quoted(text: str) -> str:
    return quote(_raw(text), safe="/:!$'()*,;~.-_")


def _zone(address: str) -> str:
    return address.replace("%", "%25", 1)
