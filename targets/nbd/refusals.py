"""What a server's refusal of an option means, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ublkd.errors import quoted
from ublkd.targets.nbd.export import Refusal, shown
from ublkd.targets.nbd.wire import Rep

SERVER_AT_FAULT = "its answer makes no sense: the server is at fault"
TOO_MUCH = "no honest server needs that much: it is refused before it fills the memory"
NAMED = 10
"""How many of a server's exports a hint names."""


class Named(Protocol):
    """Something with a name."""

    @property
    def name(self) -> str:
        """For people."""
        ...


MEANINGS: dict[int, tuple[str, str]] = {
    Rep.ERR_UNSUP: ("the server does not know how to give {what}", "a newer server may"),
    Rep.ERR_POLICY: ("the server's policy refuses {what}", "its configuration and its log say why"),
    Rep.ERR_INVALID: ("the server finds our question for {what} invalid", "its log may say why"),
    Rep.ERR_PLATFORM: ("the server's platform cannot give {what}", "its log may say why"),
    Rep.ERR_TLS_REQD: ("the server insists on TLS", "use nbds:// or nbds+unix://"),
    Rep.ERR_UNKNOWN: ("the server does not know {what}", "see 'ublkd nbd list URI'"),
    Rep.ERR_SHUTDOWN: ("the server is shutting down", "try again when it is back"),
    Rep.ERR_BLOCK_SIZE_REQD: (
        "the server insists on block sizes that we asked for already",
        SERVER_AT_FAULT,
    ),
    Rep.ERR_TOO_BIG: ("the server finds our question for {what} too long", "is the name right?"),
    Rep.ERR_EXT_HEADER_REQD: (
        "the server insists on extended headers, which ublkd does not speak",
        "configure it for clients without them",
    ),
}
NO_TLS = (Rep.ERR_UNSUP, Rep.ERR_POLICY, Rep.ERR_INVALID, Rep.ERR_PLATFORM)


def refused(what: str, kind: int, text: bytes) -> Refusal:
    """The refusal for an option that asked for ``what``; ``text`` is the server's own word."""
    message, hint = MEANINGS.get(
        kind, (f"the server refuses {{what}} with error {kind & 0x7FFFFFFF}", "its log may say why")
    )
    if what == "TLS" and kind in NO_TLS:
        message = "the server does not do TLS"
        hint = "start it with TLS; or use nbd:// or nbd+unix://, which anybody on the way can read"
    said = f": {shown(text)}" if text else ""
    return Refusal(message.format(what=what) + said, hint=hint)


def missing(name: bytes, offers: Sequence[Named] | None) -> Refusal:
    """The refusal for an export that is not there; ``offers`` is the server's list, if it told."""
    message = f"the server has no export {quoted(shown(name))}"
    if offers is None:
        return Refusal(message, hint="the server does not tell which it has")
    if not offers:
        return Refusal(message, hint="the server's list of exports is empty")
    names = ", ".join(repr(offer.name) for offer in offers[:NAMED])
    more = f" and {len(offers) - NAMED} more" if len(offers) > NAMED else ""
    return Refusal(message, hint=f"it offers {names}{more}")
