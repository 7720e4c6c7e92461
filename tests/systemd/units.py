"""What the tests of units share: devices described in files, and what systemd says of them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tools import run, sparse, ublkd_json, wait_until

MIB = 1 << 20
ETC = Path("/etc/ublkd")
DROP_INS = Path("/run/systemd/system")
SOON = 60


def unit(name: str) -> str:
    return f"ublkd@{name}.service"


def systemctl(verb: str, *names: str, check: bool = True) -> int:
    """Of the units of these devices."""
    return run("systemctl", verb, *map(unit, names), check=check).returncode


def shown(name: str, *properties: str) -> dict[str, str]:
    """Properties of the unit."""
    words = run("systemctl", "show", unit(name), f"--property={','.join(properties)}").stdout
    return dict(line.split("=", 1) for line in words.splitlines())


def pid_of(name: str) -> int:
    """The daemon's; 0 if there is none."""
    return int(shown(name, "MainPID")["MainPID"])


def served_by_another_than(pid: int, name: str) -> int:
    """Wait for the next daemon to be ready: its process."""
    new = pid

    def there() -> bool:
        nonlocal new
        told = shown(name, "MainPID", "SubState")
        new = int(told["MainPID"])
        return told["SubState"] == "running" and new not in (0, pid)

    wait_until(there, SOON, f"{unit(name)} with a new daemon")
    return new


def device(name: str) -> dict[str, object]:
    """What `ublkd list` says of it; nothing if it is not there."""
    return next((d for d in ublkd_json("list") if d["name"] == name), {})


def journal() -> str:
    """The last that was said."""
    words = ("journalctl", "--no-pager", "--lines=60", "--output=short-monotonic")
    return run(*words, check=False).stdout


def said(name: str) -> str:
    """What the daemons of a device have said."""
    words = ("journalctl", "--no-pager", "--output=cat", "--unit", unit(name))
    run("journalctl", "--sync")
    return run(*words).stdout


def warnings(name: str) -> list[str]:
    """What they have warned of, but for a udev that took its time."""
    return [line for line in said(name).splitlines()
            if "warning" in line and "udev has not made" not in line]  # fmt: skip


class Describe:
    """Writes the files of devices, and remembers them."""

    def __init__(self) -> None:
        self._names: list[str] = []

    def __call__(self, name: str, text: str, *, drop_in: str = "") -> str:
        """``drop_in`` are lines for the unit. Returns the name."""
        self._names.append(name)
        (ETC / f"{name}.toml").write_text(text)
        if drop_in:
            folder = DROP_INS / f"{unit(name)}.d"
            folder.mkdir(parents=True)
            (folder / "test.conf").write_text(drop_in)
            run("systemctl", "daemon-reload")
        return name

    def remove(self) -> None:
        systemctl("stop", *self._names, check=False)
        for name in self._names:
            if told := device(name):
                run("ublkd", "del", "--force", str(told["id"]), check=False)
            (ETC / f"{name}.toml").unlink()
            shutil.rmtree(DROP_INS / f"{unit(name)}.d", ignore_errors=True)
        run("systemctl", "daemon-reload")
        run("systemctl", "reset-failed")


def image(name: str) -> Path:
    """A new file of 32 MiB."""
    return sparse(Path("/srv", f"{name}.img"), 32 * MIB)


def loop(name: str, *more: str) -> str:
    """The file of a device over one of them."""
    return "\n".join(['target = "loop"', f'file = "{image(name)}"', *more, ""])


def node(name: str) -> str:
    """The disk's."""
    return str(device(name)["node"])


def thorough() -> bool:
    """Whether it may take long."""
    return "THOROUGH" in os.environ
