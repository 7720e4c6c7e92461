"""What can be asked of a target without a device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ublkd.target.protocol import Option, OptionValue


@dataclass(frozen=True, kw_only=True)
class Verb:
    """One command, ``ublkd TARGET VERB ARGUMENT``; ublkd adds ``--json`` and prints.

    An entry point of the group ``ublkd.verbs``, called like the target, names a sequence of them.
    ``run`` gets the argument and the options as ``from_options`` would, and returns a mapping to be
    shown as lines, or with ``columns`` a sequence of mappings to be shown as a table. It needs no
    device, no driver and no root, unless it says so. It raises UblkdError.
    """

    name: str
    help: str
    argument: Option
    run: Callable[[Mapping[str, OptionValue]], Mapping[str, Any] | Sequence[Mapping[str, Any]]]
    options: Sequence[Option] = ()
    columns: Sequence[str] = ()
