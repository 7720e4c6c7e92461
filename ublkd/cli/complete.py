"""What a shell offers behind TAB. What cannot be read, by whomever, offers nothing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import click

from ublkd.errors import UblkdError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from ublkd.target import Option

ASKED = "_UBLKD_COMPLETE"
"""The environment variable by which a shell asks, as click calls it."""

Offer = Callable[[click.Context, click.Parameter, str], "list[CompletionItem]"]


def is_asked() -> bool:
    """Whether a shell asks for completions: then nothing but they may come to the terminal."""
    return os.environ.get(ASKED, "").endswith("_complete")


def know_bash() -> None:
    """bash makes three words of ``--option=value``, and click knows of two."""
    from click.shell_completion import BashComplete, add_completion_class

    class Bash(BashComplete):
        def get_completion_args(self) -> tuple[list[str], str]:
            args, incomplete = super().get_completion_args()
            return [word for word in args if word != "="], incomplete.removeprefix("=")

    add_completion_class(Bash)


def value_of(option: Option) -> Offer | None:
    """What the value of a target's option, or a general one, can be; None: nobody can tell."""
    if option.kind == "path":
        return files
    if option.kind == "target":
        return targets
    if option.kind == "choice":
        return _of(lambda _: option.choices)
    return None


def files(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Whatever the shell finds."""
    return _left_to_the_shell(incomplete, "file")


def folders(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The same without files."""
    return _left_to_the_shell(incomplete, "dir")


def _left_to_the_shell(incomplete: str, kind: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type=kind)]


def devices(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Numbers and names of ublkd's devices, or a path."""
    if incomplete.startswith("/"):
        return files(ctx, param, incomplete)
    return _beginning(incomplete, _known)


def with_verbs(incomplete: str) -> list[CompletionItem]:
    """The targets that bring verbs."""
    from ublkd import registry

    return _beginning(incomplete, lambda: registry.names(registry.VERBS))


def _of(words: Callable[[click.Context], Iterable[str]]) -> Offer:
    def offer(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return _beginning(incomplete, lambda: words(ctx))

    return offer


def _beginning(incomplete: str, words: Callable[[], Iterable[str]]) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    with contextlib.suppress(UblkdError, OSError):
        return [CompletionItem(word) for word in words() if word.startswith(incomplete)]
    return []


def _known() -> Iterator[str]:
    """By what stands in the folder of state; the driver is not asked."""
    from ublkd.state import StateDir

    states = StateDir()
    for dev_id in states.ids():
        yield str(dev_id)
        if (state := states.read(dev_id)) and state.name:
            yield state.name


def _targets(_: click.Context) -> Iterable[str]:
    from ublkd import registry

    return registry.names()


def _named(ctx: click.Context) -> Iterable[str]:
    from pathlib import Path

    from ublkd import devicefiles

    folder = ctx.params.get("folder") or devicefiles.FOLDER
    return devicefiles.names(Path(folder))


targets = _of(_targets)
"""The names of targets."""
device_files = _of(_named)
"""The devices that have files, in the folder that ``--config`` says."""
