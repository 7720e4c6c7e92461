"""The verbs that only look: ``doctor``."""

from __future__ import annotations

from dataclasses import asdict

from ublkd.cli.common import HELP, cli, json_option
from ublkd.cli.output import emit, emit_json
from ublkd.errors import NotPossibleError


@cli.command(context_settings=HELP)
@json_option
def doctor(as_json: bool) -> int:
    """Look at everything on this machine that devices need, and say what to do about the rest.

    Changes nothing. Exit status 3 if a device cannot work here.
    """
    from ublkd.doctor import Verdict, examine
    from ublkd.machine import look

    found = [(name, finding) for name, all_ in examine(look()).items() for finding in all_]
    works = not any(finding.verdict is Verdict.CANNOT for _, finding in found)
    if as_json:
        told = [
            {"check": name} | asdict(finding) | {"verdict": finding.verdict.value}
            for name, finding in found
        ]
        emit_json({"works": works, "checks": told})
    else:
        for name, finding in found:
            emit(f"{finding.verdict.value:<8} {name}: {finding.seen}")
            if finding.fix:
                emit(f"{'':<8} fix: {finding.fix}")
    return 0 if works else NotPossibleError.exit_code
