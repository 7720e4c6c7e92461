"""What the verbs share: the group, its options, and the way to the driver."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import click

# Nothing else of ublkd is imported here: `ublkd --help` must not wait for it.
HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(context_settings=HELP)
@click.version_option(package_name="ublkd", prog_name="ublkd")
def cli() -> None:
    """Serve Linux block devices from user space: a file, a block device, or a plug-in of yours
    becomes /dev/ublkbN.

    DEV is a number, a name given with --name, or a path like /dev/ublkb0.
    """


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
force_option = click.option("--force", is_flag=True, help="Even if it is in use.")


@contextlib.contextmanager
def driver() -> Iterator[tuple[Any, Any]]:
    """The driver's control node and the state folder."""
    from ublkd.control import Control
    from ublkd.state import StateDir

    with Control() as control:
        yield control, StateDir()
