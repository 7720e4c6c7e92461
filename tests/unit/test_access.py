from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.helpers import any_texts, is_one_line
from ublkd import access
from ublkd.errors import UblkdError, UsageError


def test_users_and_groups_have_names_or_numbers() -> None:
    user, group = pwd.getpwuid(os.getuid()), grp.getgrgid(os.getgid())
    assert access.parse_owner(user.pw_name) == str(user.pw_uid)
    assert access.parse_group(group.gr_name) == str(group.gr_gid)
    for text, number in (("0", "0"), ("0012345", "12345"), ("4294967294", "4294967294")):
        assert access.parse_owner(text) == number
        assert access.parse_group(text) == number


@pytest.mark.parametrize("parse", [access.parse_owner, access.parse_group])
@pytest.mark.parametrize("text", ["", "nobody at all", "-1", "4294967295", "a\0b", "\udcff", "٣"])
def test_whom_nobody_knows_is_told_in_a_line(parse: Callable[[str], str], text: str) -> None:
    with pytest.raises(UblkdError, match=r"there is no (user|group)") as caught:
        parse(text)
    assert is_one_line(caught.value.message)
    assert "getent" in caught.value.hint


@pytest.mark.parametrize(("text", "mode"), [("0660", "0660"), ("660", "0660"), ("000", "0000")])
def test_a_mode_is_octal(text: str, mode: str) -> None:
    assert access.parse_mode(text) == mode


@given(any_texts | st.from_regex("[0-9]{1,5}"))
def test_any_other_mode_is_refused_and_a_good_one_is_sound(text: str) -> None:
    try:
        mode = access.parse_mode(text)
    except UsageError as error:
        assert is_one_line(error.message)
    else:
        assert len(text) in (3, 4)
        assert access.sound({"mode": mode})
        assert int(mode, 8) == int(text, 8)


@pytest.mark.parametrize("value", [[], {"mode": 432}, {"mode": "0660\n"}, {"owner": "me"},
                                   {"more": "1"}, {"mode": ""}])  # fmt: skip
def test_what_came_from_a_file_is_looked_at(value: object) -> None:
    assert not access.sound(value)  # type: ignore[arg-type]


def test_a_node_gets_what_was_asked_for_and_keeps_the_rest(tmp_path: Path) -> None:
    node = tmp_path / "node"
    node.touch(mode=0o600)
    access.give(str(node), {"mode": "0640"})
    assert node.stat().st_mode & 0o7777 == 0o640
    mine = {"owner": str(os.getuid()), "group": str(os.getgid())}
    access.give(str(node), mine)
    assert access.is_given(str(node), {**mine, "mode": "0640"})
    assert not access.is_given(str(node), {"mode": "0660"})
    assert not access.is_given(str(node), {"owner": str(os.getuid() + 1)})
