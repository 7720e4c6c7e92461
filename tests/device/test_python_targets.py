"""Targets in Python: a stranger's package in a fresh venv, and what its mistakes do."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from tools import counters, fio, leases, mounted, nothing_left, refused, run, ublkd_json

from ublkd import device, stats
from ublkd.config import build
from ublkd.control import Control
from ublkd.features import negotiate
from ublkd.state import StateDir, new_cookie
from ublkd.uevent import wait_for_node

TOY = Path(__file__).parent / "toy"
MIB = 1 << 20
VERIFY = ("--rw=randrw", "--bsrange=4k-256k", "--iodepth=16", "--size=16m", "--verify=crc32c",
          "--verify_fatal=1", "--serialize_overlap=1")  # fmt: skip


def wheel(folder: Path) -> Path:
    """The toy as pip installs it, packed by hand: there is no package index in a guest."""
    import tomllib

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


@pytest.fixture
def venv(scratch: Path) -> Path:
    """A fresh venv that has ublkd, and the toy by pip."""
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

    assert "toy-memory" in ublkd("add", "--help")
    assert "unknown target" in refused("add", "--target", "toy-memory", code=2)
    for target in ("toy-memory", "toy-slow"):
        node = ublkd("add", "--target", target, "--size", "32M")
        told = ublkd_json("show", node)
        assert told["lease"] == "copy"
        for better, why in told["refused"].items():
            assert "bytes in memory" in why, better
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
    import ublkd_toy

    for lease in leases():
        for tcp, fixed in ((False, True), (True, True), (False, False)):
            if not fixed:
                monkeypatch.setattr(device, "streams", lambda: False)
            target = ublkd_toy.PairTarget(32 * MIB, tcp)
            counted = served_and_verified(target, lease)
            assert counted["read"]["errors"] == counted["write"]["errors"] == 0
            assert counted["fallbacks"] == 0
            monkeypatch.undo()
            monkeypatch.syspath_prepend(str(TOY))


def served_and_verified(target: object, lease: str) -> dict[str, object]:
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


def test_a_mistake_fails_its_request_and_is_logged_once(venv: Path) -> None:
    words = ["add", "--target", "toy-clumsy", "--size", "8M", "--foreground"]
    with subprocess.Popen(
        [venv, "-P", "-m", "ublkd", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as daemon:
        assert daemon.stdout and daemon.stderr
        node = daemon.stdout.readline().strip()
        fd = os.open(node, os.O_RDWR)
        assert os.pread(fd, 4096, 0) == bytes(4096)
        for megabyte, number in ((1, 5), (2, 28), (3, 5), (4, 5), (6, 5)):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            with pytest.raises(OSError) as raised:
                os.pread(fd, 4096, megabyte * MIB)
            assert raised.value.errno == number, megabyte
        assert os.pread(fd, 4096, 5 * MIB) == bytes(4096), "in parts, and whole in the end"
        os.pwrite(fd, b"x" * 4096, MIB)
        os.fsync(fd)
        os.close(fd)
        run(venv, "-P", "-m", "ublkd", "del", node)
        said = daemon.stderr.read().splitlines()
        assert daemon.wait(10) == 0
    mistakes = [line for line in said if "failed" in line]
    assert not [line for line in said if "Traceback" in line]
    assert [line.split("failed: ")[1].split(":")[0] for line in mistakes] == [
        "ZeroDivisionError", "ValueError", "TypeError", "TypeError",
    ]  # fmt: skip
    assert f"target toy-clumsy: READ of 4096 bytes at byte {MIB}" in mistakes[0]
    assert "ublkd_toy.py:" in mistakes[0]
    nothing_left()


def test_a_lease_that_lends_is_refused_to_a_target_that_needs_bytes(venv: Path) -> None:
    done = run(
        venv, "-P", "-m", "ublkd", "add", "--target", "toy-memory", "--lease", "auto", check=False
    )
    assert done.returncode == 3
    assert "the target works on bytes in memory" in done.stderr
    nothing_left()
