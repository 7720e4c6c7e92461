"""The nbd target: an export of an NBD server as a disk. Decides here; transmission.c serves."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

from ublkd._core import lib
from ublkd.errors import UblkdError, UsageError, printable
from ublkd.target import API_VERSION, FOLLOW_SIZE, Native, Option, OptionValue, Params
from ublkd.targets.nbd import tls
from ublkd.targets.nbd.connect import Connection, connect, with_certificates
from ublkd.targets.nbd.dial import addresses_of
from ublkd.targets.nbd.export import PAGE, Export, worse
from ublkd.targets.nbd.keeper import Dial, Keeper
from ublkd.targets.nbd.settings import Settings, gathered
from ublkd.targets.nbd.stream import Patience
from ublkd.targets.nbd.uri import FORMS, Uri, parse
from ublkd.targets.nbd.verbs import OPEN_TIMEOUT, TLS_CERTIFICATES

MOST_ZEROES = 32 << 20
"""Bytes of the longest request without data."""
MOST_IO = 1 << 20
"""Bytes of the largest request with data: servers differ in what they take beyond."""
MEMBERS = 3
"""Of one request: a WRITE's header, its bytes, and their way into the journal."""

WINDOW, REQUEST_TIMEOUT = 30.0, 60.0


class NbdTarget:
    """See docs/architecture.md for the life of a connection."""

    api_version: ClassVar[int] = API_VERSION
    has_connections: ClassVar[bool] = True  # so no other target can stand before it
    options: ClassVar[Sequence[Option]] = (
        Option(
            name="uri",
            help=f"where the export is: {FORMS}",
            required=True,
            kept=lambda text: str(parse(text)),
            exclusive=True,  # NBD has no locks
        ),
        Option(
            name="connections",
            help="so many, each with a queue of its own, if the server allows it (default 1)",
            kind="number",
            default=1,
            minimum=1,
            maximum=64,
        ),
        Option(
            name="reconnect-window",
            help="how long requests wait for a lost server before they fail, 0 or inf "
            f"(default {WINDOW:g})",
            kind="wait",
            live=True,
            default=WINDOW,
        ),
        Option(
            name="request-timeout",
            help="a connection on which a request is not answered in this time is given up, inf "
            f"for never (default {REQUEST_TIMEOUT:g})",
            kind="wait",
            live=True,
            default=REQUEST_TIMEOUT,
        ),
        OPEN_TIMEOUT,
        Option(
            name="after-reconnect",
            help="writes that no flush has covered may be lost with a server: replay (they are "
            "written again; default), strict (the next flush fails), trust (they are not lost)",
            kind="choice",
            choices=("replay", "strict", "trust"),
            default="replay",
        ),
        TLS_CERTIFICATES,
        Option(name="read-only", help="never write", kind="flag", default=False),
        FOLLOW_SIZE,
    )

    def __init__(
        self,
        settings: Settings,
        connections: Sequence[Connection],
        *,
        dial: Dial,
        read_only: bool = False,
        warnings: Sequence[str] = (),
    ) -> None:
        """Takes the connections over, to close them; ``dial`` makes others."""
        self._settings = settings
        self._export = connections[0].export
        self._warnings = list(warnings)
        if self._export.left_out:
            self._warnings.append(
                f"the last {self._export.left_out} bytes are not a whole block and are left out"
            )
        self.params = _params(self._export, settings.connections, read_only=read_only)
        for other in connections[1:]:
            if why := worse(other.export, self._export, self.params, len(connections)):
                raise UblkdError(
                    f"{printable(str(settings.uri))}: its connections lead to two exports: {why}",
                    hint="one name for several machines? Name one of them",
                )
        if self.params.read_only or not self._export.flush:  # nothing can be lost
            settings = self._settings = replace(settings, after_reconnect="trust")
        self._keeper = Keeper(settings, connections, params=self.params, dial=dial)

    @classmethod
    def check_options(cls, options: Mapping[str, OptionValue]) -> None:
        """What can be said without the server. Raises UsageError."""
        _uri(options)
        _request_timeout(options)

    @classmethod
    def from_options(cls, options: Mapping[str, OptionValue]) -> Self:
        """The options above, by key. Raises UblkdError with the cause."""
        uri = _uri(options)
        timeout = _request_timeout(options)
        asked, seconds = options["connections"], options["open_timeout"]
        assert isinstance(asked, int)
        assert isinstance(seconds, float)
        patience = Patience(seconds)
        dial = _dialler(uri, patience)
        made = [dial(patience.left, None)]
        try:
            number, warnings = _connections(asked, made[0].export)
            while len(made) < number:
                made.append(dial(patience.left, None))
            settings = Settings(
                uri=uri,
                connections=number,
                open_timeout=seconds,
                timeout=timeout,
                window=_seconds(options["reconnect_window"]),
                after_reconnect=str(options["after_reconnect"]),
                follow=bool(options[FOLLOW_SIZE.key]),
            )
            read_only = bool(options["read_only"])
            return cls(settings, made, dial=dial, read_only=read_only, warnings=warnings)
        except BaseException:
            for connection in made:
                connection.socket.close()
            raise

    def files(self) -> Sequence[int]:
        """The journal of writes, if there is one; connections come and go."""
        journal = self._keeper.journal
        return (journal.fd,) if journal else ()

    def native(self) -> Native:
        """See transmission.c."""
        return Native(lib.nbd_ops(), self._keeper.links, keep=self._keeper)

    def describe(self) -> Mapping[str, OptionValue]:
        """The export, and how its bytes travel."""
        uri, export = self._settings.uri, self._export
        told: dict[str, OptionValue] = {
            "backing": printable(str(uri)),
            "export": export.description or None,
            "tls": ("verified" if uri.verify else "not verified") if uri.tls else "none",
            "connections": self._settings.connections,
            "read_only": self.params.read_only,
            "after_reconnect": self._settings.after_reconnect,
            "payloads": _payloads(uri),
            "small_writes": f"up to {gathered(self._settings) >> 10} KiB: copied behind their "
            "headers, and what comes together is sent at once",
        }
        if self._warnings:
            told["warning"] = "; ".join(self._warnings)
        return told

    def recovered(self, counters: Sequence[Mapping[str, Any]]) -> None:
        """What a server has acknowledged to the daemon before, it may have lost since."""
        if counters:
            acked = max(queue["acked_writes"] for queue in counters)
            flushed = max(queue["flushed_writes"] for queue in counters)
        else:
            acked, flushed = 1, 0  # nobody knows
        self._keeper.recovered(acked, flushed)

    def size_now(self) -> int:
        """Of the export as its server told it when it was connected to last."""
        size = self._keeper.export.disk_size
        return size - size % self.params.logical_block

    def resizing(self, size: int) -> None:
        """What the server tells a client of the size may hold for that client for ever."""
        self._keeper.resizing(size)

    def changed(self, options: Mapping[str, OptionValue]) -> None:
        """The times, and whether the disk follows its export. Raises UsageError."""
        seconds = options["open_timeout"]
        assert isinstance(seconds, float)
        self._settings = replace(
            self._settings,
            open_timeout=seconds,
            timeout=_request_timeout(options),
            window=_seconds(options["reconnect_window"]),
            follow=bool(options[FOLLOW_SIZE.key]),
        )
        self._keeper.changed(self._settings)

    def stopping(self) -> None:
        """Nothing waits for a lost server any more."""
        self._keeper.stopping()

    def close(self) -> None:
        """Let go of the connections."""
        self._keeper.close()


def _uri(options: Mapping[str, OptionValue]) -> Uri:
    """With the folder of certificates. Raises UsageError."""
    folder = options["tls_certificates"]
    return with_certificates(parse(str(options["uri"])), None if folder is None else str(folder))


def _request_timeout(options: Mapping[str, OptionValue]) -> float:
    """In seconds. Raises UsageError."""
    if (timeout := _seconds(options["request_timeout"])) == 0:
        raise UsageError("--request-timeout 0 leaves no time for an answer", hint="seconds, or inf")
    return timeout


def _seconds(value: OptionValue) -> float:
    """What an option of the kind ``wait`` means."""
    if value == "inf":
        return math.inf
    assert isinstance(value, float)
    return value


def _dialler(uri: Uri, patience: Patience) -> Dial:
    """What connects, as often as it is asked.

    Names are looked up and certificates read once: later their files may be on the disk itself.
    """
    try:
        addresses = addresses_of(uri, patience)
        context = tls.context(uri) if uri.tls else None
    except UblkdError as error:
        raise type(error)(f"{printable(str(uri))}: {error.message}", hint=error.hint) from error
    return lambda left, stop: connect(uri, left, stop=stop, addresses=addresses, context=context)


def _connections(asked: int, export: Export) -> tuple[int, list[str]]:
    """How many, and why not more."""
    cpus = os.cpu_count() or 1
    if asked > 1 and not export.multi_conn:
        return 1, [f"{asked} connections were asked for, 1 made: the server does not say that a "
                   "flush on one of them covers the writes of all"]  # fmt: skip
    if asked > cpus:
        return cpus, [f"{asked} connections were asked for, {cpus} made: each has a queue of its "
                      "own, and a disk has one per CPU at most"]  # fmt: skip
    return asked, []


def _params(export: Export, connections: int, *, read_only: bool) -> Params:
    read_only = read_only or export.read_only
    # without data a request may be longer, but a server may take too long for it
    most = min(export.maximum, MOST_ZEROES)
    most_io = min(export.maximum, MOST_IO) // PAGE * PAGE
    if not most_io:
        raise UblkdError(
            f"the server takes {export.maximum} bytes at once, and a disk needs {PAGE}",
            hint="serve it with a larger maximum block size",
        )
    best = min(export.preferred, MOST_IO)
    return Params(
        size=export.disk_size,
        logical_block=export.block,
        physical_block=max(export.block, min(best, PAGE)),
        io_min=best,
        io_opt=best,
        read_only=read_only,
        rotational=export.rotational,
        volatile_cache=export.flush and not read_only,
        fua=export.fua and not read_only,
        discard_granularity=0 if read_only else best,  # of zeroes as well
        max_discard=most if export.trim and not read_only else 0,
        max_write_zeroes=most if export.write_zeroes and not read_only else 0,
        max_members=MEMBERS,
        max_io=most_io,
        queues=connections,
        streams=1,
        recovery="queue",  # the server may still be at what the dead daemon sent
    )


def _payloads(uri: Uri) -> str:
    """How they travel where pages are lent."""
    if uri.tls:
        return "through the relay that encrypts them: in TLS nothing can go from the pages"
    if lib.lane_probe() == 1:
        return "SEND and RECV with the lent pages"
    return (
        "WRITE_FIXED and READ_FIXED on the socket with the lent pages: SEND and RECV of this "
        "kernel take no registered buffers"
    )
