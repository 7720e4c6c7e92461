"""Targets in Python: a stranger's package in a fresh venv, and what its mistakes do."""

from __future__ import annotations

import base64
import errno
import hashlib
import importlib
import mmap
import os
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from tools import counters, fio, leases, mounted, nothing_left, refused, run, ublkd_json

from ublkd import device, stats
from ublkd.config import build
from ublkd.control import Control
from ublkd.features import negotiate
from ublkd.state import StateDir, new_cookie
from ublkd.target import Target
from ublkd.uevent import wait_for_node

TOY = Path(__file__).parent / "toy"
MIB = 1 << 20
VERIFY = ("--rw=randrw", "--bsrange=4k-256k", "--iodepth=16", "--size=8m", "--verify=crc32c",
          "--verify_fatal=1", "--serialize_overlap=1")  # fmt: skip


def wheel(folder: Path) -> Path:
    """The toy as pip installs it, packed by hand: there is no package index in a guest."""
    project = tomllib.loads((TOY / "pyproject.toml").read_text())["project"]
    points = project["entry-points"]["ublkd.targets"]
    info = f"ublkd_toy-{project['version']}.dist-info"
    files = {
        "ublkd_toy.py": (TOY / "ublkd_toy.py").read_text(),
        f"{info}/METADATA": "\n".join(
            ["Metadata-Version: 2.1", "Name: ublkd-toy", f"Version: {project['version']}"]
        ),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "\n".join(
            ["[ublkd.targets]", *(f"{name} = {where}" for name, where in points.items())]
        ),
    }
    rows = [f"{name},{_digest(text)},{len(text.encode())}" for name, text in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,"])
    path = folder / f"ublkd_toy-{project['version']}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def _digest(text: str) -> str:
    raw = hashlib.sha256(text.encode()).digest()
    return "sha256=" + base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh venv that has ublkd, and the toy by pip."""
    scratch = tmp_path_factory.mktemp("toy")
    folder = scratch / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout
    Path(site.strip(), "ublkd.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index",
        "--no-deps", "--no-warn-script-location", wheel(scratch))  # fmt: skip
    return python


def test_a_strangers_package_is_found_and_served(venv: Path, scratch: Path) -> None:
    def ublkd(*words: str) -> str:
        return run(venv, "-P", "-m", "ublkd", *words).stdout.strip()

    assert "toy-memory" in "".join(ublkd("add", "--help").split())  # lines may end in names
    words = (venv, "-P", "-m", "ublkd", "add", "--target", "toy-memory", "--lease", "auto")
    assert run(*words, check=False).returncode == 3, "a lease that lends pages"
    assert "unknown target" in refused("add", "--target", "toy-memory", code=2)
    for target, lease in (("toy-memory", "copy"), ("toy-slow", "user-copy")):
        wish = () if lease == "copy" else ("--lease", lease)
        node = ublkd("add", "--target", target, "--size", "32M", *wish)
        told = ublkd_json("show", node)
        assert told["lease"] == lease
        for better in ("auto", "register", "group"):
            assert "bytes in memory" in told["refused"][better]
        fio(node, *VERIFY)
        if target == "toy-memory":
            run("mkfs.ext4", "-q", node)
            with mounted(node, scratch / "mnt") as mnt:
                run("cp", "-r", TOY, mnt)
                run("fstrim", mnt)
            run("e2fsck", "-fn", node)
        counted = counters(node)
        assert counted["read"]["errors"] == counted["write"]["errors"] == 0
        ublkd("del", node)
    nothing_left()


def test_the_bytes_of_a_disk_behind_a_socket_come_and_go_in_lent_pages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On every lease, by unix socket and by TCP; and where SEND and RECV take no lent pages."""
    monkeypatch.syspath_prepend(str(TOY))
    pair = importlib.import_module("ublkd_toy").PairTarget
    for lease in leases():
        for tcp, fixed in ((False, True), (True, True), (False, False)):
            if not fixed:
                monkeypatch.setattr(device, "streams", lambda: False)
            target = pair(32 * MIB, tcp)
            counted = served_and_verified(target, lease)
            assert counted["read"]["errors"] == counted["write"]["errors"] == 0
            assert counted["fallbacks"] == 0
            monkeypatch.undo()


def served_and_verified(target: Target, lease: str) -> dict[str, Any]:
    """The counters of a device that fio has verified."""
    config = build("null", {}, depth="16", lease=lease)
    states = StateDir()
    with Control() as control:
        features = negotiate(control.get_features(), config.lease)
        made = device.Device(control, config, target, features, states, cookie=new_cookie())
        with made as disk:
            node = f"/dev/ublkb{disk.id}"
            wait_for_node(node, 10)
            fio(node, *VERIFY)
            (counted,) = stats.read(states.counters(disk.id))
    return counted


def outcome(fd: int, area: mmap.mmap, offset: int) -> bytes | int:
    """What a read past the page cache brings, or its errno."""
    try:
        return area[: os.preadv(fd, [area], offset)]
    except OSError as error:
        return error.errno or 0


def test_a_mistake_fails_its_request_and_is_logged_once(venv: Path) -> None:
    words = ["add", "--target", "toy-clumsy", "--size", "8M", "--foreground"]
    daemon = subprocess.Popen(
        [venv, "-P", "-m", "ublkd", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert daemon.stdout
    node = daemon.stdout.readline().strip()
    fd = os.open(node, os.O_RDWR | os.O_DIRECT)
    with mmap.mmap(-1, 4096) as area:
        outcomes = [outcome(fd, area, megabyte * MIB) for megabyte in range(8)]
        written = os.pwritev(fd, [area], MIB)
        os.fsync(fd)
    os.close(fd)
    run(venv, "-P", "-m", "ublkd", "del", node)
    _, said = daemon.communicate(timeout=60)
    assert daemon.returncode == 0, said
    zeroes, eio, full = bytes(4096), errno.EIO, errno.ENOSPC
    assert outcomes == [zeroes, eio, full, eio, eio, zeroes, eio, zeroes]
    assert written == 4096
    assert "Traceback" not in said
    mistakes = [line for line in said.splitlines() if " failed: " in line]
    assert [line.split(" failed: ")[1].split(":")[0] for line in mistakes] == [
        "ZeroDivisionError", "ValueError", "TypeError", "RuntimeError",
    ]  # fmt: skip
    assert f"target toy-clumsy: READ of 4096 bytes at byte {MIB}" in mistakes[0]
    assert "ublkd_toy.py:" in mistakes[0]
    nothing_left()
