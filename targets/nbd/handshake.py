"""The fixed newstyle negotiation: bytes in, bytes out, no I/O.

Everything before the first request. Whatever the server sends and however its bytes are cut, the
end is an ``Export``, a list of ``Offer``, or a ``Refusal``. What is kept is bounded by the limits
below and never by a number that the server names. Source: doc/proto.md, "Negotiation".
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from enum import Enum, auto

from ublkd.targets.nbd import greeting
from ublkd.targets.nbd.export import BlockSizes, Export, Refusal, checked, shown
from ublkd.targets.nbd.refusals import SERVER_AT_FAULT, TOO_MUCH, missing, refused
from ublkd.targets.nbd.wire import (
    BLOCK_SIZES,
    CLIENT_FLAGS,
    EXPORT,
    EXPORT_NAME_PADDING,
    INFO,
    LENGTH,
    MAGIC,
    MAX_STRING,
    REP_ERROR,
    REPLY,
    REPLY_MAGIC,
    SERVER_FLAGS,
    Command,
    ExportFlag,
    HandshakeFlag,
    Info,
    Opt,
    Rep,
    pack_export,
    pack_option,
    pack_request,
)

MAX_REPLY = 64 << 10
"""Bytes: the data of one answer to an option."""
MAX_INFOS = 64
MAX_OFFERS = 10_000
MAX_TOTAL = 4 << 20
"""Bytes: all that a server may say before the first request."""

WANTED = (Info.DESCRIPTION, Info.BLOCK_SIZE)

Steps = Generator[int, bytes, "Export | list[Offer]"]
"""A negotiation: it yields how many bytes it needs next, and gets them."""


class Goal(Enum):
    """What a connection is for."""

    SERVE = auto()  # to send requests
    LOOK = auto()  # to see one export
    LIST = auto()  # to see what there is


class Phase(Enum):
    """How far a negotiation is."""

    GREETING = auto()
    OPTIONS = auto()
    TLS = auto()  # nothing more is taken before tls_started()
    TRANSMISSION = auto()  # the next byte that we send is a request's
    OVER = auto()  # the next thing to do is to close


@dataclass(frozen=True)
class Offer:
    """One line of a server's list."""

    raw: bytes  # the name as the server has it
    description: str = ""

    @property
    def name(self) -> str:
        """The name, for people."""
        return shown(self.raw, MAX_STRING)


class _Answer(Exception):
    """An option was refused."""

    def __init__(self, kind: int, text: bytes) -> None:
        super().__init__()
        self.kind = kind
        self.text = text


class Handshake:
    """One negotiation.

    Send ``data_to_send()`` and call ``receive()`` with what comes, until ``result`` is there. In
    phase TLS start it and call ``tls_started()``. If ``receive()`` or ``end_of_stream()`` raises,
    send what is left and close.
    """

    def __init__(self, goal: Goal, export: bytes, *, tls: bool) -> None:
        """``export`` is the name; a goal of LIST has no use for it."""
        self.phase = Phase.GREETING
        self.result: Export | list[Offer] | None = None
        self.waiting_for = "a greeting"
        """What the server owes us, for a message."""
        self.received = 0
        """Bytes so far, those inside TLS counted as they come out."""
        self._taken = 0
        self._goal = goal
        self._export = export
        self._tls = tls
        self._flags = HandshakeFlag(0)
        self._out = bytearray()
        self._in = bytearray()
        self._steps = self._negotiate()
        self._needed = next(self._steps)

    # --- the caller's side ------------------------------------------------------------------

    def data_to_send(self) -> bytes:
        """What is to be sent now; it is handed over once."""
        data = bytes(self._out)
        self._out.clear()
        return data

    def receive(self, data: bytes) -> None:
        """Go on with what the server sent, cut anywhere. Raises Refusal."""
        if self.phase is Phase.OVER:
            return  # its answer to our leave, and whatever it says after a refusal
        self.received += len(data)
        self._in += data
        try:
            while self._listening and len(self._in) >= self._needed:
                self._step()
            if self._in and self.phase in (Phase.TLS, Phase.TRANSMISSION):
                raise self._unasked()
        except Refusal:
            self._give_up()
            self._in.clear()
            raise

    def tls_started(self) -> None:
        """From here on ``receive()`` gets what came through TLS."""
        assert self.phase is Phase.TLS
        self.phase = Phase.OPTIONS
        self._step()

    def end_of_stream(self) -> Refusal:
        """The refusal that fits a connection which the server ended now."""
        self._out.clear()
        if self.waiting_for == EXPORT_NAME_ANSWER and not self._in:
            return missing(self._export, None)
        if not self.received:
            return Refusal(
                "the server closed the connection without a word",
                hint="is it an NBD server? It may also refuse this client's address",
            )
        if self.received < MAGIC.size and (found := greeting.not_nbd(bytes(self._in))):
            return found
        return Refusal(
            f"the server closed the connection before it had sent {self.waiting_for}",
            hint="its log may say why",
        )

    @property
    def _listening(self) -> bool:
        return self.phase in (Phase.GREETING, Phase.OPTIONS)

    def _step(self) -> None:
        self._taken += self._needed
        if self._taken > MAX_TOTAL:
            raise Refusal(f"the server says more than {MAX_TOTAL} bytes", hint=TOO_MUCH)
        data = bytes(self._in[: self._needed])
        del self._in[: self._needed]
        try:
            self._needed = self._steps.send(data)
        except StopIteration as stop:
            self.result = stop.value

    def _unasked(self) -> Refusal:
        if self.phase is Phase.TLS:
            return Refusal(
                "the server sent plain text where TLS had to begin",
                hint="somebody on the way may be meddling: nothing of it was used",
            )
        self.result = None
        return Refusal("the server sends what nobody asked for", hint=SERVER_AT_FAULT)

    def _give_up(self) -> None:
        """Take leave in the way that this phase has."""
        if self.phase is Phase.OPTIONS:
            self._out += pack_option(Opt.ABORT)
        elif self.phase is Phase.TRANSMISSION:
            self._out += pack_request(Command.DISC)
        self.phase = Phase.OVER

    # --- the negotiation, from the top to the bottom ----------------------------------------

    def _negotiate(self) -> Steps:
        yield from self._greet()
        self.phase = Phase.OPTIONS
        if self._tls:
            yield from self._start_tls()
        if self._goal is Goal.LIST:
            offers = yield from self._list()
            self._give_up()
            return offers
        try:
            export = yield from (self._look() if self._goal is Goal.LOOK else self._ask(Opt.GO))
        except _Answer as answer:
            if answer.kind == Rep.ERR_UNKNOWN:
                raise missing(self._export, (yield from self._offers())) from None
            if answer.kind != Rep.ERR_UNSUP:
                raise refused("the export", answer.kind, answer.text) from None
            export = yield from self._ask_the_old_way()
        checked(export)
        if self._goal is Goal.LOOK:
            self._give_up()
        return export

    def _greet(self) -> Generator[int, bytes, None]:
        greeting.first((yield MAGIC.size))
        greeting.second((yield MAGIC.size))
        offered = HandshakeFlag(SERVER_FLAGS.unpack((yield SERVER_FLAGS.size))[0] & 0b11)
        if HandshakeFlag.FIXED_NEWSTYLE not in offered:
            raise greeting.not_fixed()
        self._flags = offered
        self._out += CLIENT_FLAGS.pack(offered)

    def _start_tls(self) -> Generator[int, bytes, None]:
        try:
            yield from self._simple(Opt.STARTTLS, "an answer to STARTTLS")
        except _Answer as answer:
            raise refused("TLS", answer.kind, answer.text) from None
        self.phase = Phase.TLS
        self.waiting_for = "its part of the TLS handshake"
        yield 0
        self.waiting_for = "an answer"

    def _look(self) -> Generator[int, bytes, Export]:
        """INFO; but nbd-server (seen with 3.24) has not opened its file then, and tells size 0."""
        export = yield from self._ask(Opt.INFO)
        return export if export.size else (yield from self._ask(Opt.GO))

    def _ask(self, option: Opt) -> Generator[int, bytes, Export]:
        """GO or INFO. Raises _Answer if the option was refused."""
        self._send(option, pack_export(self._export, WANTED), "an answer about the export")
        found: dict[int, bytes] = {}
        for _ in range(MAX_INFOS + 1):
            kind, data = yield from self._reply(option)
            if kind == Rep.ACK:
                if option is Opt.GO:
                    self.phase = Phase.TRANSMISSION
                return _export(self._export, found)
            if kind != Rep.INFO or len(data) < INFO.size:
                raise _odd(option, kind)
            about = INFO.unpack_from(data)[0]
            if found.setdefault(about, data[INFO.size :]) != data[INFO.size :]:
                raise Refusal("the server contradicts itself about the export",
                              hint=SERVER_AT_FAULT)  # fmt: skip
        raise Refusal(f"the server says more than {MAX_INFOS} things about the export",
                      hint=TOO_MUCH)  # fmt: skip

    def _ask_the_old_way(self) -> Generator[int, bytes, Export]:
        """EXPORT_NAME, for a server without GO: it closes the connection in place of a no."""
        self._send(Opt.EXPORT_NAME, self._export, EXPORT_NAME_ANSWER)
        size, flags = EXPORT.unpack((yield EXPORT.size))
        if HandshakeFlag.NO_ZEROES not in self._flags:
            yield EXPORT_NAME_PADDING
        self.phase = Phase.TRANSMISSION
        return Export(name=shown(self._export), size=size, flags=ExportFlag(flags))

    def _offers(self) -> Generator[int, bytes, list[Offer] | None]:
        try:
            return (yield from self._listed())
        except _Answer:
            return None

    def _list(self) -> Generator[int, bytes, list[Offer]]:
        try:
            return (yield from self._listed())
        except _Answer as answer:
            raise refused("its list", answer.kind, answer.text) from None

    def _listed(self) -> Generator[int, bytes, list[Offer]]:
        self._send(Opt.LIST, b"", "its list of exports")
        offers: list[Offer] = []
        while True:
            kind, data = yield from self._reply(Opt.LIST)
            if kind == Rep.ACK:
                return offers
            if kind != Rep.SERVER or len(data) < LENGTH.size:
                raise _odd(Opt.LIST, kind)
            if len(offers) == MAX_OFFERS:
                raise Refusal(f"the server lists more than {MAX_OFFERS} exports", hint=TOO_MUCH)
            offers.append(_offer(data))

    # --- one option -------------------------------------------------------------------------

    def _send(self, option: Opt, data: bytes, waiting_for: str) -> None:
        self._out += pack_option(option, data)
        self.waiting_for = waiting_for

    def _simple(self, option: Opt, waiting_for: str) -> Generator[int, bytes, None]:
        """An option without data, whose only good answer is ACK."""
        self._send(option, b"", waiting_for)
        kind, _ = yield from self._reply(option)
        if kind != Rep.ACK:
            raise _odd(option, kind)

    def _reply(self, asked: Opt) -> Generator[int, bytes, tuple[int, bytes]]:
        """One answer. Raises _Answer if it is a refusal."""
        magic, option, kind, length = REPLY.unpack((yield REPLY.size))
        if magic != REPLY_MAGIC:
            raise Refusal(
                f"the server answers {asked.name} with {magic:#x} where a reply begins otherwise",
                hint=SERVER_AT_FAULT,
            )
        if option != asked:
            raise Refusal(f"the server answers option {option}, and was asked {asked.name}",
                          hint=SERVER_AT_FAULT)  # fmt: skip
        if length > MAX_REPLY:
            raise Refusal(f"the server's answer to {asked.name} has {length} bytes", hint=TOO_MUCH)
        data = (yield length) if length else b""
        if kind & REP_ERROR:
            raise _Answer(kind, data[:MAX_STRING])
        return kind, data


EXPORT_NAME_ANSWER = "an answer to EXPORT_NAME"


def _odd(asked: Opt, kind: int) -> Refusal:
    return Refusal(
        f"the server answers {asked.name} with a reply of kind {kind} that makes no sense there",
        hint=SERVER_AT_FAULT,
    )


def _offer(data: bytes) -> Offer:
    length = LENGTH.unpack_from(data)[0]
    end = LENGTH.size + length
    if length > MAX_STRING or end > len(data):
        raise Refusal(f"the server lists an export whose name has {length} bytes",
                      hint=SERVER_AT_FAULT)  # fmt: skip
    return Offer(data[LENGTH.size : end], shown(data[end:], MAX_STRING))


def _export(name: bytes, infos: dict[int, bytes]) -> Export:
    told = infos.get(Info.EXPORT)
    if told is None or len(told) != EXPORT.size:
        raise Refusal("the server does not tell the size of the export", hint=SERVER_AT_FAULT)
    size, flags = EXPORT.unpack(told)
    blocks = infos.get(Info.BLOCK_SIZE)
    if blocks is not None and len(blocks) != BLOCK_SIZES.size:
        raise Refusal(f"the server tells block sizes in {len(blocks)} bytes", hint=SERVER_AT_FAULT)
    return Export(
        name=shown(name),
        size=size,
        flags=ExportFlag(flags),
        sizes=None if blocks is None else BlockSizes(*BLOCK_SIZES.unpack(blocks)),
        description=shown(infos.get(Info.DESCRIPTION, b""), MAX_STRING),
    )
