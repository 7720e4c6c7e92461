"""The command line: `python3 -m tests.lab run -- COMMAND`, shell, fetch, version."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from . import boots, cache, kernels, terminal
from .boots import Options
from .errors import Exit, LabError, complain
from .job import Job, host_environment
from .machine import parse_memory


class Stopped(BaseException):
    """A signal asked the lab to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _stop(number: int, _frame: FrameType | None) -> None:
    for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)  # cleaning up takes no time: let it
    raise Stopped(number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m tests.lab", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="boot, run a command as root, exit with its status")
    shell = verbs.add_parser("shell", help="boot, and give a shell on this terminal")
    fetch = verbs.add_parser("fetch", help="only fetch the kernel")
    version = verbs.add_parser("version", help="print the full version of the kernel fetched")
    for verb in (run, shell, fetch, version):
        verb.add_argument("--kernel", default="7.2", help="like 7.2, 6.12, or host (%(default)s)")
    fetch.add_argument("--refresh", action="store_true", help="look for a newer one")
    for verb in (run, shell):
        verb.add_argument("--cpus", type=int, default=2)
        verb.add_argument("--mem", default="3G", help="(%(default)s)")
        verb.add_argument("--counting", action="store_true", help="the clock counts instructions")
        verb.add_argument("--no-ublk", action="store_true", help="do not load ublk_drv")
        verb.add_argument("--env", action="append", default=[], metavar="NAME", help="pass it on")
        verb.add_argument("--quiet", action="store_true", help="say nothing of booting")
        verb.add_argument("--disk", type=Path, metavar="FILE", help="a raw image, as /dev/vda")
        verb.add_argument("--strict", action="store_true", help="a kernel warning is a failure")
    run.add_argument("--systemd", action="store_true", help="process 1 is systemd")
    run.add_argument("--before", metavar="COMMAND", help="run it, then start systemd")
    run.add_argument("--deadline", type=float, default=1800, help="seconds (%(default)s)")
    run.add_argument("command", nargs="+", help="for sh -c")
    return parser


def _options(arguments: argparse.Namespace) -> Options:
    if arguments.cpus < 1:
        raise LabError("--cpus must be 1 or more", status=Exit.USAGE)
    disk = arguments.disk
    if disk is not None and (not disk.is_file() or "," in str(disk)):
        raise LabError(
            f"no disk image {disk}",
            hint="truncate -s 2G makes one; its name has no comma",
            status=Exit.USAGE,
        )
    return Options(
        kernel=arguments.kernel,
        cpus=arguments.cpus,
        memory=parse_memory(arguments.mem),
        counting=arguments.counting,
        deadline=arguments.deadline if arguments.verb == "run" else None,
        quiet=arguments.quiet,
        strict=arguments.strict,
        disk=disk and disk.resolve(),
    )


def _job(arguments: argparse.Namespace) -> Job:
    project = cache.PROJECT
    environ = host_environment(project, arguments.env)
    ublk = not arguments.no_ublk
    if arguments.verb == "shell":
        return Job(None, project, environ, ublk, terminal.size())
    command, before = " ".join(arguments.command), arguments.before
    if before is None and arguments.systemd:
        before = ":"
    return Job(command, project, environ, ublk, before=before)


def _dispatch(arguments: argparse.Namespace) -> int:
    match arguments.verb:
        case "fetch":
            kernels.get(arguments.kernel, refresh=arguments.refresh)
            return 0
        case "version":
            print(kernels.get(arguments.kernel).version)
            return 0
        case "shell" if not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise LabError("shell needs a terminal", hint="use run", status=Exit.USAGE)
        case _:
            return boots.run(_options(arguments), _job(arguments))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the lab and return the status to exit with."""
    arguments = _parser().parse_args(argv)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    try:
        return _dispatch(arguments)
    except LabError as error:
        return complain(error)
    except BrokenPipeError:
        # Whoever read our output is gone; keep Python from trying to flush to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        return complain(LabError(str(error)))
    except Stopped as stopped:
        return 128 + stopped.number


if __name__ == "__main__":
    sys.exit(main())
