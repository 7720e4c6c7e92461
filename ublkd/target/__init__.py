"""The plug-in protocol: all that a target of your own needs to import.

A target is a class, found through the entry point group ``ublkd.targets``. It says what a disk
looks like (``params``), which files its requests need (``files``), and serves them in one of three
ways: ``submit`` in Python turns each request into members of its group, ``native()`` names C
functions that do, and a ``BytesTarget`` reads and writes bytes.
"""

from ublkd.target.bytes_target import BytesTarget
from ublkd.target.group import Group, Held, IoDesc
from ublkd.target.protocol import (
    API_VERSION,
    BLOCK_SIZE,
    FOLLOW_SIZE,
    OPEN_TIMEOUT,
    Native,
    NativeTarget,
    Option,
    OptionValue,
    Params,
    Target,
)
from ublkd.target.verb import Verb
from ublkd.uapi import Op

__all__ = [
    "API_VERSION",
    "BLOCK_SIZE",
    "FOLLOW_SIZE",
    "OPEN_TIMEOUT",
    "BytesTarget",
    "Group",
    "Held",
    "IoDesc",
    "Native",
    "NativeTarget",
    "Op",
    "Option",
    "OptionValue",
    "Params",
    "Target",
    "Verb",
]
