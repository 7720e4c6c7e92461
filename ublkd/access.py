"""Who may open a disk's node: owner, group and mode, from words and onto the node."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import re
from collections.abc import Callable, Mapping

from ublkd.errors import UblkdError, UsageError, quoted

MAX_NUMBER = (1 << 32) - 2  # the one above means "leave it" to chown(2)

Access = Mapping[str, str]
"""``owner`` and ``group``, whole numbers, and ``mode``, octal, as udev takes them; those that were
asked for.
"""


def parse_owner(text: str) -> str:
    """A user by name or number, as a number. Raises UblkdError for one that is not known here."""
    return _number("owner", text, lambda name: pwd.getpwnam(name).pw_uid)


def parse_group(text: str) -> str:
    """A group by name or number, as a number. Raises UblkdError for one that is not known here."""
    return _number("group", text, lambda name: grp.getgrnam(name).gr_gid)


def parse_mode(text: str) -> str:
    """Octal permissions. Raises UsageError."""
    if not re.fullmatch("0?[0-7]{3}", text, re.ASCII):
        raise UsageError(f"--mode {quoted(text)} is no mode", hint="three octal digits, like 0660")
    return f"{int(text, 8):04o}"


def _number(option: str, text: str, look_up: Callable[[str], int]) -> str:
    if re.fullmatch("[0-9]{1,10}", text, re.ASCII) and int(text) <= MAX_NUMBER:
        return str(int(text))
    with contextlib.suppress(KeyError, ValueError):
        return str(look_up(text))
    kind = "user" if option == "owner" else option
    raise UblkdError(
        f"--{option}: there is no {kind} {quoted(text)} on this machine",
        hint=f"a name that 'getent {'passwd' if kind == 'user' else kind}' shows, or a number",
    )


def sound(access: Access) -> bool:
    """Whether it is what ``parse`` returns: it may come from a file."""
    return isinstance(access, dict) and all(
        key in ("owner", "group", "mode")
        and isinstance(value, str)
        and re.fullmatch("[0-9]+", value)
        for key, value in access.items()
    )


def is_given(node: str, access: Access) -> bool:
    """Whether the node has them. Raises OSError."""
    found = os.stat(node)
    has = {"owner": str(found.st_uid), "group": str(found.st_gid),
           "mode": f"{found.st_mode & 0o7777:04o}"}  # fmt: skip
    return all(has[key] == value for key, value in access.items())


def give(node: str, access: Access) -> None:
    """Have the node have them. Raises OSError."""
    os.chown(node, int(access.get("owner", -1)), int(access.get("group", -1)))
    if "mode" in access:
        os.chmod(node, int(access["mode"], 8))
