"""The first bytes of a server: whether it is one for NBD, and what it is if not."""

from __future__ import annotations

from ublkd.errors import quoted
from ublkd.targets.nbd.export import Refusal, shown
from ublkd.targets.nbd.wire import IHAVEOPT, MAGIC, NBDMAGIC, OLDSTYLE

OTHERS = (
    (b"SSH-", "SSH"),
    (b"HTTP/", "HTTP"),
    (b"<!DOC", "HTTP"),
    (b"<html", "HTTP"),
    (b"\x15\x03", "TLS"),  # an alert: it waited for a TLS client
    (b"220", "SMTP or FTP"),
    (b"* OK", "IMAP"),
    (b"+OK", "POP3"),
    (b"RFB 0", "VNC"),
)


def not_nbd(start: bytes) -> Refusal | None:
    """The refusal for a greeting that cannot become one of NBD."""
    if MAGIC.pack(NBDMAGIC).startswith(start[: MAGIC.size]):
        return None
    for begin, protocol in OTHERS:
        if start.startswith(begin):
            return Refusal(
                f"the server speaks {protocol}, not NBD",
                hint="see which port the NBD server listens on; the default is 10809",
            )
    return Refusal(
        f"the server does not speak NBD: it begins with {quoted(shown(start[: MAGIC.size]))}",
        hint="see which port the NBD server listens on; the default is 10809",
    )


def first(magic: bytes) -> None:
    """Raises Refusal unless an NBD server begins so."""
    if refusal := not_nbd(magic):
        raise refusal


def second(magic: bytes) -> None:
    """Raises Refusal unless the newstyle negotiation follows."""
    number = MAGIC.unpack(magic)[0]
    if number == OLDSTYLE:
        raise Refusal(
            "the server speaks the oldstyle negotiation, which names no export and has no TLS",
            hint="it must speak the fixed newstyle; nbdkit does without --oldstyle",
        )
    if number != IHAVEOPT:
        raise Refusal(
            f"the server speaks no negotiation of NBD that is known ({number:#x})",
            hint="it must speak the fixed newstyle",
        )


def not_fixed() -> Refusal:
    """The refusal for a server that cannot refuse an option without closing the connection."""
    return Refusal(
        "the server speaks the newstyle negotiation of before it was fixed",
        hint="it must speak the fixed newstyle; a newer server does",
    )
