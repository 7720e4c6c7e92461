"""What a target is, and what it tells the kernel about its disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, Self

API_VERSION = 1
"""The protocol's number: a target with another one is refused with both numbers named."""

PAGE = 4096

OptionValue = str | int | float | bool | tuple[str, ...] | None
"""A parsed option: text and paths as str, sizes in bytes as int, seconds as float, flags as bool,
and a tuple of texts or paths where the option may be given many times."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option of a target, ``--name`` on the command line.

    ``kind`` says how it is parsed: ``path`` becomes absolute, ``size`` takes suffixes and becomes
    bytes, ``number`` is a count, ``seconds`` may have a fraction and are more than 0, ``wait`` is
    the same or 0 or the text ``inf``, ``flag`` takes no value, ``target`` names another target,
    whose options join these.
    ``minimum`` and ``maximum`` are for sizes, in bytes, and for numbers; of an option that is
    ``multiple`` they say how often it is given.
    """

    name: str
    help: str
    kind: Literal[
        "text", "path", "size", "number", "seconds", "wait", "flag", "choice", "target"
    ] = "text"
    required: bool = False
    multiple: bool = False  # of kind text or path only
    default: OptionValue = None
    choices: tuple[str, ...] = ()
    minimum: int = 0
    maximum: int = (1 << 63) - 1
    power_of_two: bool = False
    multiple_of: int = 1
    exclusive: bool = False
    """Of a path: what is there belongs to one device, unless each has the flag ``share``, or of a
    file that each only reads. Of a text: whatever it names, by the text as it is kept."""
    live: bool = False  # `ublkd set` may change it while the disk is there: see ``changed``
    is_size: bool = False  # of kind size: it bounds the disk, and `ublkd resize` may change it
    kept: Callable[[str], str] | None = None
    """Of a text: makes it what is kept and shown, in the folder where it was given, or raises
    UsageError."""

    @property
    def key(self) -> str:
        """Its key in the mapping that ``from_options`` gets."""
        return self.name.replace("-", "_")


BLOCK_SIZE = Option(
    name="block-size",
    help="bytes of a logical block of the disk, 512 to 4096",
    kind="size",
    minimum=512,
    maximum=4096,
    power_of_two=True,
)
"""The option that every target with a choice of logical block offers under this name."""


FOLLOW_SIZE = Option(
    name="follow-size",
    help="let the disk grow whenever what stands behind it has grown (Linux 6.16)",
    kind="flag",
    default=False,
    live=True,
)
"""The option of every target that can: the daemon asks its ``size_now`` once a second."""

OPEN_TIMEOUT = Option(
    name="open-timeout",
    help="the most that opening what stands behind the disk may take (default 30)",
    kind="seconds",
    default=30.0,
    live=True,
)
"""The option of every target whose ``from_options`` may have to wait, and so long at most: systemd
gives the start so much more time."""


@dataclass(frozen=True, kw_only=True)
class Params:
    """What the kernel is told about the disk. All sizes are bytes.

    A capability that is not stated is never asked for: without ``volatile_cache`` no flush
    arrives, with ``max_discard`` 0 no discard. Source: ``struct ublk_params``.
    """

    size: int
    logical_block: int = 512
    physical_block: int = 512
    io_min: int = 512
    io_opt: int = 512
    dma_align: int = 4  # of the addresses and lengths of a request's pages
    io_align: int = 1  # that a member's offset in its file must keep to: direct I/O
    read_only: bool = False
    rotational: bool = False
    volatile_cache: bool = False
    fua: bool = False
    discard_granularity: int = 0
    max_discard: int = 0
    max_write_zeroes: int = 0
    max_members: int = 1  # that one request may need
    queues: int = 0  # 0: as many as are asked for; else so many, whatever is asked for
    max_queues: int = 0  # 0: any number; 1 for one with a socket, which no two queues may share
    max_io: int = 0  # bytes that one request may have; 0: any number
    streams: int = 0  # fixed files behind files() that native code fills with sockets
    zero_copy_sends: bool = False  # it uses them; each takes two completions
    in_memory: bool = False  # requests' bytes must be in the daemon's memory: nothing is lent
    recovery: Literal["none", "queue", "reissue", "fail"] = "none"
    """What shall become of the device when the daemon dies, if the user does not say: ``none`` for
    a disk whose bytes die with it, ``reissue`` where the same request may be carried out twice,
    ``queue`` where it may not: what was under way fails, and later requests wait."""

    def __post_init__(self) -> None:
        """Check what would reach the driver as another number. Raises ValueError."""
        for name in ("logical_block", "physical_block"):
            value = getattr(self, name)
            if value < 512 or value & (value - 1):
                raise ValueError(f"{name} {value} is no power of two from 512 on")
        if self.recovery not in ("none", "queue", "reissue", "fail"):
            raise ValueError(f"recovery {self.recovery!r} is none, queue, reissue or fail")
        if self.logical_block > PAGE:
            raise ValueError(f"logical_block {self.logical_block} is more than a page")
        if self.size < self.logical_block or self.size % self.logical_block:
            raise ValueError(f"size {self.size} is not whole blocks of {self.logical_block} bytes")


@dataclass(frozen=True)
class Native:
    """A target served by C: ``ops`` is a ``const struct ublkd_target_ops *`` and ``handle`` the
    ``void *`` that its functions get (core/target.h). The target keeps the handle alive.
    """

    ops: Any
    handle: Any
    keep: Any = None  # whatever else has to live as long


class Target(Protocol):
    """A plug-in. Everything it holds is let go by ``close``, which is called exactly once.

    Beside these it has ``native(self) -> Native``, or ``submit(self, io: IoDesc, group: Group)``,
    which adds members to the group, answers or holds it, and never waits.

    And it may have these, each called in the daemon's main thread and never in a queue's, but for
    ``size_now``, which has a thread of its own: ``stopping()``, ``recovered(counters)``,
    ``size_now() -> int``: the bytes that a disk over what stands behind it could have at this
    moment; ``resizing(size)``: the disk is about to have so many; ``changed(options)``: some that
    are ``live`` have other values. docs/targets.md has them.

    And the class may have ``check_options(options)``, a class method that gets what
    ``from_options`` will get and raises UsageError for what makes no sense together, whatever the
    machine. It opens nothing and asks nobody: ``ublkd config check`` calls it, as does ``add``.
    """

    api_version: ClassVar[int]
    options: ClassVar[Sequence[Option]]

    @property
    def params(self) -> Params:
        """What the kernel shall know of the disk."""
        ...

    @classmethod
    def from_options(cls, options: Mapping[str, OptionValue]) -> Self:
        """Open what the options name. Raises UblkdError; OSError means the same less clearly."""
        ...

    def files(self) -> Sequence[int]:
        """The descriptors that members use; they become fixed files 1, 2, ..."""
        ...

    def describe(self) -> Mapping[str, OptionValue]:
        """What ``list`` and ``show`` tell about it: its backing, and choices with their reasons."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


class NativeTarget(Target, Protocol):
    """One that is served by C functions of its own."""

    def native(self) -> Native:
        """The functions, and the handle that they get."""
        ...
