"""What ``ublkd doctor`` reads of a machine.

Nothing is changed, nothing is loaded, and what is asked has a deadline.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ublkd import registry
from ublkd.control import Control, DevInfo, TimedOutError
from ublkd.errors import UblkdError
from ublkd.features import groups, ring_error, streams
from ublkd.target import BytesTarget
from ublkd.uapi import Feature


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What was read of a machine; the files are looked for under ``root``."""

    root: Path
    owner: int = 0  # whose the folder of state must be
    ring: int = 0  # the errno with which an io_uring is refused; 0: it is not
    offered: Feature | None = None  # None: the driver could not be asked, because of
    refused: UblkdError | None = None
    groups: bool = False
    streams: bool = False
    devices: Sequence[DevInfo] = ()
    unanswered: int | None = None  # the device about which the driver did not answer
    in_memory: Mapping[str, bool | UblkdError] = field(default_factory=dict)
    """Of each target, whether it works on bytes in memory; or why it cannot be loaded."""

    def at(self, path: str) -> Path:
        """Where that path is."""
        return self.root / path.lstrip("/")

    def read(self, path: str) -> str:
        """A file's text; empty where there is none."""
        try:
            return self.at(path).read_text(errors="replace")
        except OSError:
            return ""

    def found(self, folders: Sequence[str], pattern: str) -> list[str]:
        """The files of that pattern, as paths of the machine."""
        there = (path for folder in folders for path in sorted(self.at(folder).glob(pattern)))
        return [f"/{path.relative_to(self.root)}" for path in there]

    def device_ids(self) -> list[int]:
        """The numbers of all ublk devices, as sysfs has them."""
        nodes = self.at("/sys/class/ublk-char").glob("ublkc*")
        return sorted(int(node.name[5:]) for node in nodes if node.name[5:].isdecimal())

    def may(self, capability: int) -> bool:
        """Whether this process has it: capabilities(7)."""
        held = re.search(r"^CapEff:\s*([0-9a-f]+)", self.read("/proc/self/status"), re.MULTILINE)
        return bool(held and int(held[1], 16) >> capability & 1)


def look(root: Path = Path("/")) -> Machine:
    """Read this machine."""
    offered, refused, unanswered = None, None, None
    devices: list[DevInfo] = []
    try:
        with Control() as control:
            offered = control.get_features()
            for dev_id in Machine(root=root).device_ids():
                try:
                    devices.append(control.get_dev_info(dev_id))
                except TimedOutError:
                    unanswered = dev_id
                    break  # the others would take as long
                except UblkdError:
                    continue  # deleted since it was listed
    except UblkdError as error:
        refused = error
    return Machine(
        root=root, ring=ring_error(), offered=offered, refused=refused, groups=groups(),
        streams=streams(), devices=devices, unanswered=unanswered, in_memory=_targets(),
    )  # fmt: skip


def _targets() -> dict[str, bool | UblkdError]:
    found: dict[str, bool | UblkdError] = {}
    for name in registry.names():
        try:
            found[name] = issubclass(registry.load(name), BytesTarget)
        except UblkdError as error:
            found[name] = error
    return found
