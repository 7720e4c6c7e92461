"""The verbs that targets bring: ``ublkd TARGET VERB ARGUMENT``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from ublkd.cli.common import HELP, Command, Group, click_option, json_option
from ublkd.cli.output import emit, emit_json, lines, table
from ublkd.config import parse_options
from ublkd.errors import printable
from ublkd.registry import verbs
from ublkd.target import Verb

WIDEST = 256
"""Characters of a cell: one long text of a stranger shall not fill the screen."""


def verbs_of(target: str) -> click.Group | None:
    """What ``ublkd TARGET`` is; None if it brings no verbs. Raises as the registry does."""
    brought = verbs(target)
    if brought is None:
        return None
    return Group(
        target,
        commands=[_command(target, verb) for verb in brought],
        context_settings=HELP,
        help=f"What can be asked of the target {target} without a device.",
    )


def _command(target: str, verb: Verb) -> click.Command:
    taken = [verb.argument, *verb.options]

    def run(as_json: bool, **words: Any) -> None:
        raw = {option.name: words[f"target_{option.key}"] for option in taken}
        told = verb.run(parse_options(target, {option.name: option for option in taken}, raw))
        if as_json:
            emit_json(told)
        else:
            emit(_text(verb, told))

    argument = click.Argument([f"target_{verb.argument.key}"], metavar=verb.argument.name.upper())
    command = Command(
        verb.name,
        callback=run,
        params=[argument, *map(click_option, verb.options)],
        help=verb.help,
        context_settings=HELP,
    )
    return json_option(command)


def _text(verb: Verb, told: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> str:
    if isinstance(told, Mapping):
        return "\n".join(lines(dict(told)))
    heading = [column.upper() for column in verb.columns]
    return table([heading, *([_cell(row[column]) for column in verb.columns] for row in told)])


def _cell(value: Any) -> str:
    text = printable(str(value))
    return (text if len(text) <= WIDEST else text[: WIDEST - 3] + "...") or "-"
