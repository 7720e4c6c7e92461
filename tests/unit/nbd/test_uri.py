"""URIs: what they mean, that they come back as they went, and that nothing secret is shown."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tests.unit.helpers import any_texts, is_one_line, path_texts
from ublkd.errors import UsageError
from ublkd.targets.nbd.uri import SCHEMES, Uri, parse

TCP = Uri(transport="tcp", tls=False, host="h")


def tcp(host: str = "h", *, tls: bool = False, **more: Any) -> Uri:
    return Uri(transport="tcp", tls=tls, host=host, **more)


def unix(socket: str, *, tls: bool = False, **more: Any) -> Uri:
    return Uri(transport="unix", tls=tls, socket=socket, **more)


def vsock(host: str, **more: Any) -> Uri:
    return Uri(transport="vsock", tls=False, host=host, **more)


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("nbd://h", TCP),
        ("NBD://h/", TCP),
        ("nbd://h:", TCP),
        ("nbd://h:10809/", TCP),
        ("nbd://h:1", tcp(port=1)),
        ("nbd://h/disk", tcp(export="disk")),
        ("nbd://h//disk", tcp(export="/disk")),
        ("nbd://h/a%20b%2Fc", tcp(export="a b/c")),
        ("nbd://h/a b", tcp(export="a b")),
        ("nbd://h/%C3%BC", tcp(export="ü")),
        ("nbd://h/ü", tcp(export="ü")),
        ("nbd://h/%ff", tcp(export="\udcff")),
        ("nbd://h/a+b@c", tcp(export="a+b@c")),
        ("nbd://10.0.0.1:7/x", tcp(host="10.0.0.1", port=7, export="x")),
        ("nbd://[::1]/x", tcp(host="::1", export="x")),
        ("nbd://[0:0::1]:7", tcp(host="::1", port=7)),
        ("nbd://[fe80::1%25eth0]", tcp(host="fe80::1%eth0")),
        ("nbd://[fe80::1%eth0]", tcp(host="fe80::1%eth0")),
        ("nbds://h", tcp(tls=True, host="h")),
        ("nbds://h?tls-verify-peer=0", tcp(tls=True, host="h", verify=False)),
        ("nbds://h?tls-verify-peer=true&tls-type=x509", tcp(tls=True, host="h")),
        (
            "nbds://h/x?tls-certificates=/etc/pki/nbd&tls-hostname=db.example.com",
            tcp(tls=True, host="h", export="x", certificates="/etc/pki/nbd",
                tls_hostname="db.example.com"),
        ),
        ("nbd+unix:///?socket=/s", unix(socket="/s")),
        ("nbd+unix:///x?socket=/a%20b", unix(socket="/a b", export="x")),
        ("nbd+unix:///?socket=/a+b", unix(socket="/a+b")),
        ("nbd+unix:///?socket=%00/abstract", unix(socket="\0/abstract")),
        ("nbds+unix:///x?socket=/s", unix(tls=True, socket="/s", export="x")),
        ("nbd+vsock://3:7/x", vsock(host="3", port=7, export="x")),
        ("nbd+vsock:///x", vsock(host="2", export="x")),
        ("nbd+vsock://1", vsock(host="1")),
    ],
)  # fmt: skip
def test_what_a_uri_means(text: str, uri: Uri) -> None:
    assert parse(text) == uri
    assert parse(str(uri)) == uri


@pytest.mark.parametrize(
    "text",
    [
        "nbd://h",
        "nbd://h:1/x",
        "nbd://[::1]:7/a%20b",
        "nbd://[fe80::1%25eth0]/",
        "nbds://h/x?tls-certificates=/c&tls-hostname=n&tls-verify-peer=0",
        "nbd+unix:///x?socket=/s",
        "nbd+unix:///?socket=%00/abstract",
        "nbd+vsock://3:7/x",
    ],
)
def test_a_canonical_uri_is_written_back_as_it_was(text: str) -> None:
    assert str(parse(text)) == text.removesuffix("/")


def test_relative_paths_become_absolute_with_their_links_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    assert parse("nbd+unix:///?socket=link/s").socket == f"{tmp_path}/link/s"
    assert parse("nbds://h?tls-certificates=pki").certificates == f"{tmp_path}/pki"


def test_the_folder_that_a_relative_path_starts_from_may_be_gone(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    back = os.open(".", os.O_PATH)
    try:
        os.chdir(gone)
        gone.rmdir()
        with pytest.raises(UsageError, match="folder that is gone"):
            parse("nbd+unix:///?socket=s")
    finally:
        os.fchdir(back)
        os.close(back)


WRONG = [
    ("", "not a URI"),
    ("disk.img", "not a URI"),
    ("nbd:h:10809", "not a URI"),
    ("nbd:/h", "not a URI"),
    ("://h", "not a URI"),
    ("http://h", "scheme"),
    ("nbds+vsock://3", "scheme"),
    ("nbd+ssh://h", "scheme"),
    ("nbd://", "no host"),
    ("nbd:///export", "no host"),
    ("nbd://h:0", "port is no number from 1 to 65535"),
    ("nbd://h:65536", "port"),
    ("nbd://h:http", "port"),
    ("nbd://h:-1", "port"),
    ("nbd://h:1:2", "port"),
    ("nbd://::1", "host makes no sense|port"),
    ("nbd://[::1", "host makes no sense"),
    ("nbd://[::1]x", "host makes no sense"),
    ("nbd://[::g]", "no IPv6 address"),
    ("nbd://[]", "no IPv6 address"),
    ("nbd://[::1%25]", "no IPv6 address"),
    ("nbd://[::1%25a b]", "no IPv6 address"),
    ("nbd://a b", "neither a name nor an address"),
    ("nbd://%00", "neither a name nor an address"),
    ("nbd://h%zz", "two hex digits"),
    ("nbd://h/%", "two hex digits"),
    ("nbd://h/%0", "two hex digits"),
    ("nbd://h/%00", "NUL"),
    ("nbd://h/" + "x" * 4097, "more than 4096 bytes"),
    ("nbd://h/a#b", "'#'"),
    ("nbd://h/a\nb", "control characters"),
    ("nbd://h?socket=/s", "has no socket"),
    ("nbd+vsock://3?socket=/s", "has no socket"),
    ("nbd+vsock://4294967295", "CID"),
    ("nbd+vsock://host", "CID"),
    ("nbd+vsock://3:x", "port"),
    ("nbd+unix:///x", "needs a socket"),
    ("nbd+unix:///x?socket=", "socket is empty"),
    ("nbd+unix:///x?socket", "socket is empty"),
    ("nbd+unix://h/x?socket=/s", "has no host"),
    ("nbd+unix:///x?socket=/s&socket=/t", "more than one socket"),
    ("nbd+unix:///x?socket=/a%00b", "NUL"),
    ("nbd+unix:///x?socket=/" + "s" * 107, "more than 107 bytes"),
    ("nbd://h?colour=red", "unknown parameter 'colour'"),
    ("nbd://h?", None),
    ("nbd://h?&", "unknown parameter ''"),
    ("nbd://h?a%0ab=1", "unknown parameter"),
    ("nbds://h?tls-psk-file=/k", "pre-shared keys"),
    ("nbds://h?tls-type=anon", "tls-type"),
    ("nbds://h?tls-verify-peer=maybe", "neither 0 nor 1"),
    ("nbds://h?tls-hostname=a%20b", "tls-hostname is neither"),
    ("nbd://h?tls-verify-peer=0", "nbd does not use TLS"),
    ("nbd+unix:///?socket=/s&tls-certificates=/c", "does not use TLS"),
]


@pytest.mark.parametrize(("text", "told"), WRONG)
def test_a_wrong_uri_is_refused_with_the_reason_and_a_hint(text: str, told: str | None) -> None:
    if told is None:
        assert parse(text) == TCP
        return
    with pytest.raises(UsageError, match=told) as caught:
        parse(text)
    assert is_one_line(caught.value.message)
    assert is_one_line(caught.value.hint)
    assert caught.value.hint


def test_the_known_parameters_are_named_and_the_value_of_an_unknown_one_is_not() -> None:
    with pytest.raises(UsageError) as caught:
        parse("nbd://h?password=secret")
    told = caught.value.message + caught.value.hint
    assert "tls-verify-peer" in told
    assert "secret" not in told


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("sockt", "socket"), ("tls-hostnam", "tls-hostname"), ("tls_type", "tls-type"),
     ("tls-verify", "tls-verify-peer"), ("tls-certificate", "tls-certificates")],
)  # fmt: skip
def test_an_unknown_parameter_is_answered_with_the_nearest_one(wrong: str, right: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(f"nbds://h?{wrong}=1")
    assert caught.value.hint.startswith(f"did you mean {right}? known are socket, ")


# --- properties -----------------------------------------------------------------------------

labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
hosts = st.one_of(
    st.lists(labels, min_size=1, max_size=4).map(".".join),
    st.ip_addresses().map(str),
    st.sampled_from(["bücher.example", "fe80::1%eth0"]),
)
exports = st.binary(max_size=60).filter(lambda raw: b"\0" not in raw)
paths = st.binary(min_size=1, max_size=50).filter(lambda raw: b"\0" not in raw)
absolute = paths.map(lambda raw: str(Path(os.fsdecode(b"/x" + raw))))


@st.composite
def uris(draw: st.DrawFn) -> Uri:
    """Any that can be."""
    transport, tls = draw(st.sampled_from(list(SCHEMES.values())))
    export = draw(exports).decode("utf-8", "surrogateescape")
    port = draw(st.integers(1, 65535))
    uri = Uri(transport=transport, tls=tls, export=export, port=port)
    if transport == "unix":
        uri = Uri(transport=transport, tls=tls, export=export, socket=draw(absolute))
    elif transport == "tcp":
        uri = Uri(transport=transport, tls=tls, export=export, host=draw(hosts), port=port)
    else:
        cid = str(draw(st.integers(0, 0xFFFFFFFE)))
        uri = Uri(transport=transport, tls=tls, export=export, host=cid, port=port)
    if not tls:
        return uri
    return Uri(
        transport=transport, tls=True, export=export, host=uri.host, port=uri.port,
        socket=uri.socket, certificates=draw(st.none() | absolute),
        tls_hostname=draw(st.none() | labels), verify=draw(st.booleans()),
    )  # fmt: skip


@given(uris())
def test_a_uri_is_written_and_read_back_the_same(uri: Uri) -> None:
    text = str(uri)
    assert parse(text) == uri
    assert text.isascii()
    assert is_one_line(text)
    assert str(parse(text)) == text


@given(uris(), exports)
def test_another_export_at_the_same_place(uri: Uri, export: bytes) -> None:
    other = uri.at(export)
    assert other.export_bytes == export
    assert other.at(uri.export_bytes) == uri


secrets = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


@given(st.sampled_from([*SCHEMES, "http", "nbd "]), secrets, hosts)
@example("nbd", "a@b", "h")
@example("nbd", "a/b?c#d", "h")
@example("nbd", "%zz", "h")
@example("nbd", "?", "h")
@example("nbd", "a?b&c=d", "h")
def test_a_password_is_refused_and_never_shown(scheme: str, secret: str, host: str) -> None:
    """Letters that no message of ours has stand around it, so that finding one means a leak."""
    for before in ("user:", ""):
        text = f"{scheme}://{before}ŁŁ{secret}ŁŁ@{host}/x"
        if not before and "/" in secret:
            continue  # a host, and an export with an '@' in its name: nobody can know better
        with pytest.raises(UsageError) as caught:
            parse(text)
        told = caught.value.message + caught.value.hint
        assert "Ł" not in told
        assert is_one_line(told)
        assert host in told or "://" not in text


@given(secrets)
def test_a_password_is_not_shown_where_there_is_no_uri(secret: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(f"nbd:user:ŁŁ{secret}ŁŁ@h")
    assert "Ł" not in caught.value.message


@given(any_texts | path_texts | st.builds("nbd://{}".format, any_texts))
@example("nbd://\ud800")
@example("nbd://h/\ud800")
@example("nbd+unix:///?socket=\ud800")
def test_any_text_is_a_uri_or_refused_in_one_line(text: str) -> None:
    try:
        uri = parse(text)
    except UsageError as refused:
        assert is_one_line(refused.message)
        assert is_one_line(refused.hint)
    else:
        assert parse(str(uri)) == uri


@given(any_texts)
def test_any_query_is_known_or_refused(text: str) -> None:
    assume("#" not in text)
    for scheme in ("nbds://h", "nbd+unix:///"):
        try:
            parse(f"{scheme}?{text}")
        except UsageError as refused:
            assert is_one_line(refused.message)
