"""The command line: parses and prints, decides nothing."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import click

from ublkd.cli import add, change, complete, files, life, look, service, stats, verbs  # noqa: F401 - they join the group
from ublkd.cli.common import cli
from ublkd.cli.output import complain, known, silence, unheard
from ublkd.errors import UblkdError, UsageError, internal, valid_text

OUTPUT_LOST = (errno.EBADF, errno.EIO, errno.ENOSPC, errno.EPIPE)


def _usage(error: click.UsageError) -> UblkdError:
    command = error.ctx.command_path if error.ctx else "ublkd"
    text = valid_text(error.format_message()).rstrip(".")
    return UsageError(text[:1].lower() + text[1:], hint=f"see '{command} --help'")


def _keep_standard_fds() -> None:
    """Without 0, 1 and 2 the next file opened would become one of them."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDONLY if fd == 1 else os.O_RDWR)
    if sys.stdout is None:  # it was closed: what is printed must fail, help as well
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without UTF-8


def _guarded(run: Callable[[], Any]) -> int:
    try:
        result = run()
    except UblkdError as error:
        complain(error)
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return error.exit_code
    except click.UsageError as error:
        usage = _usage(error)
        complain(usage)
        return usage.exit_code
    except click.ClickException as error:
        complain(UblkdError(error.format_message(), hint="see 'ublkd --help'"))
        return 1
    except (KeyboardInterrupt, click.Abort):
        complain(UblkdError("interrupted"))
        return 130
    except SystemExit as left:  # click's own: a shell's completion, a broken pipe under its help
        if not left.code:
            return 0
        complain(unheard())
        return 1
    except OSError as error:
        lost = unheard()
        output = error.filename is None and error.errno in OUTPUT_LOST
        complain(lost if output else known(error))
        return 1
    except Exception as error:  # the last resort
        complain(internal(error))
        return 1
    return result if isinstance(result, int) else 0


def main() -> NoReturn:
    """Entry point: exit codes are 0 done, 1 failed, 2 usage, 3 not possible on this machine."""
    _keep_standard_fds()
    if complete.is_asked():
        silence(2)  # it would stand in the middle of what is being typed
        complete.know_bash()
    sys.exit(_guarded(lambda: cli.main(prog_name="ublkd", standalone_mode=False)))
