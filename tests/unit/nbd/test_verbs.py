"""``ublkd nbd list`` and ``ublkd nbd info``, each in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.helpers import assert_one_line_and_hint, ublkd
from tests.unit.nbd.certificates import copied, serves
from tests.unit.nbd.scripted import Scripted, in_tls, says
from tests.unit.nbd.streams import (
    ACK,
    GIB,
    INFO,
    STARTTLS,
    UNKNOWN,
    export_info,
    greeting,
    listing,
    offer,
    reply,
    sizes_info,
    text_info,
)  # fmt: skip

LISTED = listing(offer(b""), offer(b"a\nb", b"\x1b[2J"), offer(b"\xff c", "ü".encode()))
LOOKED_AT = b"".join(
    [
        greeting(),
        export_info(1_000_001, option=INFO),
        sizes_info(1, 4096, 32 << 20, option=INFO),
        text_info(2, b"a disk", option=INFO),
        reply(INFO, ACK),
    ]
)


def test_list_prints_a_table_that_no_server_can_spoil(tmp_path: Path) -> None:
    with Scripted(says(LISTED), tmp_path) as server:
        ran = ublkd("nbd", "list", server.uri())
    assert (ran.returncode, ran.stderr) == (0, "")
    assert [line.split() for line in ran.stdout.splitlines()] == [
        ["NAME", "DESCRIPTION"],
        ["-", "-"],
        [r"a\nb", r"\x1b[2J"],
        [r"\xff", "c", "ü"],
    ]


def test_list_in_json_has_the_uri_of_every_export(tmp_path: Path) -> None:
    with Scripted(says(LISTED), tmp_path) as server:
        told = json.loads(ublkd("nbd", "list", server.uri("any"), "--json").stdout)
    assert [row["uri"] for row in told] == [
        f"nbd+unix:///{name}?socket={server.path}" for name in ("", "a%0Ab", "%FF%20c")
    ]
    assert told[1]["name"] == r"a\nb"


def test_info_tells_what_the_server_said_and_what_becomes_of_it(tmp_path: Path) -> None:
    with Scripted(says(LOOKED_AT), tmp_path) as server:
        ran = ublkd("nbd", "info", server.uri(), "--json")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert json.loads(ran.stdout) == {
        "uri": server.uri(),
        "tls": "none",
        "name": "disk",
        "description": "a disk",
        "size": 1_000_001,
        "left_out": 65,
        "read_only": False,
        "flags": ["has_flags", "send_flush", "send_fua", "send_trim", "send_write_zeroes",
                  "can_multi_conn"],
        "block_sizes": {"minimum": 1, "preferred": 4096, "maximum": 32 << 20},
        "logical_block": 512,
        "max_request": 32 << 20,
    }  # fmt: skip


def test_info_as_text(tmp_path: Path) -> None:
    with Scripted(says(LOOKED_AT), tmp_path) as server:
        ran = ublkd("nbd", "info", server.uri())
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "size: 1000001\nleft_out: 65\n" in ran.stdout
    assert "block_sizes:\n  minimum: 1\n" in ran.stdout


@pytest.mark.parametrize("verify", [True, False])
def test_info_by_tls_says_how_far_it_can_be_trusted(
    tmp_path: Path, pki: Path, verify: bool
) -> None:
    ready = greeting() + reply(STARTTLS, ACK)
    inside = export_info(option=INFO) + reply(INFO, ACK)
    with Scripted(in_tls(serves(pki, "server"), inside, ready)) as server:
        certificates = copied(pki, tmp_path, ca_cert="ca-cert")
        words = ["--tls-certificates", str(certificates)] if verify else []
        query = "" if verify else "tls-verify-peer=0"
        ran = ublkd("nbd", "info", server.uri(scheme="nbds", query=query), *words, "--json")
    assert (ran.returncode, ran.stderr) == (0, "")
    told = json.loads(ran.stdout)
    assert told["size"] == GIB
    assert told["tls"] == ("verified" if verify else "not verified")


def test_a_relative_folder_and_a_relative_socket(tmp_path: Path, pki: Path) -> None:
    ready = greeting() + reply(STARTTLS, ACK)
    certificates = copied(pki, tmp_path, ca_cert="ca-cert").name
    with Scripted(in_tls(serves(pki, "server"), LISTED[18:], ready), tmp_path):
        uri = "nbds+unix:///?socket=nbd.sock"
        ran = ublkd("nbd", "list", uri, "--tls-certificates", certificates, cwd=tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_failure_is_one_line_and_a_hint(tmp_path: Path) -> None:
    stream = greeting() + reply(INFO, UNKNOWN) + LISTED[18:]
    with Scripted(says(stream), tmp_path) as server:
        ran = ublkd("nbd", "info", server.uri("none"))
    assert (ran.returncode, ran.stdout) == (1, "")
    assert_one_line_and_hint(ran.stderr)
    assert "the server has no export 'none'" in ran.stderr
    assert "it offers '', " in ran.stderr


def test_the_time_is_an_option(tmp_path: Path) -> None:
    with Scripted(says(b""), tmp_path) as server:
        ran = ublkd("nbd", "list", server.uri(), "--open-timeout", "2.5")
    assert ran.returncode == 1
    assert_one_line_and_hint(ran.stderr)
    assert "said nothing for 2.5 seconds" in ran.stderr


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["nbd", "list"], "URI"),
        (["nbd", "list", "disk.img"], "not a URI"),
        (["nbd", "list", b"nbd://\xff"], "unknown"),
        (["nbd", "info", "nbd://h?colour=red"], "colour"),
        (["nbd", "info", "nbd://h", "--tls-certificates", "/x"], "--tls-certificates"),
        (["nbd", "info", "nbd://h", "--open-timeout", "-1"], "--open-timeout"),
        (["nbd", "serve", "nbd://h"], "serve"),
        (["add", "--target", "nbd", "--uri", "disk.img"], "not a URI"),
    ],
)
def test_wrong_words_are_one_line_that_names_them(words: list[str | bytes], named: str) -> None:
    ran = ublkd(*words)
    assert ran.returncode == (1 if named == "unknown" else 2)
    assert_one_line_and_hint(ran.stderr)
    assert named in ran.stderr.splitlines()[0]


ADD = ["add", "--target", "nbd"]


@pytest.mark.parametrize(
    "words",
    [["nbd", "list", "nbd://me:ŁŁsecret@h/x"], ["nbd", "info", "nbd:me:ŁŁsecret@h"],
     ["nbd", "list", "nbd://h", "nbd://me:ŁŁsecret@h"], ["nbd", "nbd://me:ŁŁsecret@h"],
     ["nbd", "info", "nbd://h?password=ŁŁsecret"], ["nbd", "info", "--nbd://ŁŁsecret@h"],
     ["nbds://ŁŁsecret@h"], ["nbd", "info", "nbds://h?tls-psk-file=ŁŁsecret"],
     ["nbd", "info", "nbds://h?tls-type=ŁŁsecret"],
     ["nbd", "info", "nbd://h", "--open-timeout", "nbd://me:ŁŁsecret@h"],
     [*ADD, "--uri", "nbd://me:ŁŁsecret@h/x"], [*ADD, "--uri=nbd://h/x?password=ŁŁsecret"],
     [*ADD, "nbd://me:ŁŁsecret@h/x"], [*ADD, "--nbd://me:ŁŁsecret@h/x"],
     ["add", "--target", "nbd://me:ŁŁsecret@h/x"], ["add", "nbd://me:ŁŁsecret@h/x"],
     [*ADD, "--uri", "nbd://h", "--name", "nbd://me:ŁŁsecret@h/x"],
     [*ADD, "--uri", "nbd://h", "--connections", "nbd://me:ŁŁsecret@h/x"],
     [*ADD, "--uri", "nbd://h", "--after-reconnect", "nbd://me:ŁŁsecret@h/x"],
     [*ADD, "--uri", "nbd://h", "--lease", "nbd://me:ŁŁsecret@h/x"]],
)  # fmt: skip
def test_no_secret_is_shown(words: list[str]) -> None:
    ran = ublkd(*words)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "Ł" not in ran.stderr
    assert "secret" not in ran.stderr
    assert_one_line_and_hint(ran.stderr)
