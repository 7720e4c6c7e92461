"""What was remembered is broken, foreign, or cannot be written; and new code that fails."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from load import await_state, files, kill, pid_of, state_of
from tools import RUN_DIR, device, fio, nothing_left, refused, run, sparse, ublkd, ublkd_json

MIB = 1 << 20

pytestmark = [pytest.mark.deadline(240), pytest.mark.one_kernel]


def changed(**fields: object) -> Callable[[Path], object]:
    def change(file: Path) -> None:
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))

    return change


def linked(file: Path) -> None:
    kept = file.with_name("kept")
    file.rename(kept)
    file.symlink_to(kept)


def made_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


BROKEN: dict[str, Callable[[Path], object]] = {
    "cut": lambda file: os.truncate(file, file.stat().st_size // 2),
    "empty": lambda file: os.truncate(file, 0),
    "not JSON": lambda file: file.write_bytes(os.urandom(4096)),
    "huge": lambda file: os.truncate(file, 1 << 30),
    "of an earlier device": changed(cookie=0x75626B64 << 32),
    "of another number": changed(id=7),
    "of another version": changed(version=99),
    "another user's": lambda file: os.chown(file, 65534, 65534),
    "a link": linked,
    "a folder": made_a_folder,
    "gone": lambda file: file.unlink(),
}


def test_what_was_remembered_wrongly_is_not_believed_and_the_device_can_be_deleted(
    scratch: Path,
) -> None:
    with device("loop", *files(scratch), "--name", "db") as node:
        kill(node)
        await_state(node, "quiesced")
        file = RUN_DIR / "0.json"
        right = file.read_bytes()
        for kind, spoil in BROKEN.items():
            spoil(file)
            said = refused("recover", node)
            assert "what was remembered of /dev/ublkb0 is gone" in said, kind
            (told,) = ublkd_json("list")
            assert (told["ours"], told["target"], told["state"]) == (True, None, "quiesced"), kind
            assert "there is no ublk device 'db'" in refused("show", "db"), kind
            run("rm", "-rf", file, RUN_DIR / "kept")
            file.write_bytes(right)
        changed(target="nosuch")(file)
        assert "unknown target 'nosuch'" in refused("recover", node)
        file.write_bytes(right)
        ublkd("recover", node)
        kill(node)
        linked(file)
        ublkd("del", node)
        (RUN_DIR / "kept").unlink()
    nothing_left()


def test_a_folder_that_others_can_write_is_trusted_in_nothing(scratch: Path) -> None:
    with device("loop", *files(scratch)) as node:
        before = pid_of(node)
        RUN_DIR.chmod(0o777)
        others = ["add", "--target", "null"], ["upgrade", node], ["stop", node], ["del", node]
        for words in others:
            assert "nothing in it can be trusted" in refused(*words), words
        assert (state_of(node), pid_of(node)) == ("live", before)
        kill(node)
        for words in (["recover", node], ["recover", "--all"], ["del", node]):
            assert "nothing in it can be trusted" in refused(*words), words
        await_state(node, "quiesced")
        RUN_DIR.chmod(0o700)
        ublkd("recover", node)
    nothing_left()


@contextlib.contextmanager
def full() -> Iterator[Path]:
    """/run/ublkd is a filesystem of two pages, and has a file that fills it."""
    RUN_DIR.mkdir(mode=0o700, exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", "size=256k,mode=0700", "none", RUN_DIR)
    try:
        yield RUN_DIR / "fill"
    finally:
        run("umount", RUN_DIR)


def fill(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("ab", buffering=0) as f:
        while True:
            f.write(b"x" * 4096)


def test_a_run_that_is_full_is_said_and_costs_no_device(scratch: Path) -> None:
    with full() as filler:
        for left in (0, 4096, 8192):
            fill(filler)
            os.truncate(filler, max(0, filler.stat().st_size - left))
            said = refused("add", "--target", "loop", *files(scratch))
            assert "no space left on device" in said
            assert "is /run full?" in said
            filler.unlink()
            nothing_left()
        node = ublkd("add", "--target", "loop", *files(scratch)).stdout.strip()
        fill(filler)
        fio(node, "--rw=write", "--bs=64k", "--size=1m", "--verify=crc32c")
        before = pid_of(node)
        assert "no space left on device" in refused("upgrade", node)
        assert (state_of(node), pid_of(node)) == ("live", before)
        kill(node)
        assert "no space left on device" in refused("recover", node)
        assert state_of(node) == "quiesced"
        filler.unlink()
        ublkd("recover", node)
        fill(filler)
        ublkd("del", node)
        filler.unlink()
    nothing_left()


def test_new_code_that_fails_at_its_own_start_leaves_the_old_or_a_device_that_waits(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger's target, whose next version does not come up."""
    info = scratch / "moody-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: moody\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ublkd.targets]\nmoody = moody:Moody\n")
    (scratch / "moody.py").write_text(MOODY)
    monkeypatch.setenv("PYTHONPATH", str(scratch))
    monkeypatch.setenv("MOODY", str(scratch / "moods"))
    disk, moods = sparse(scratch / "disk.img", MIB), scratch / "moods"
    moods.write_text("")

    def moody(*words: str | Path) -> str:
        return run("ublkd", *words).stdout.strip()

    def fails(*words: str | Path) -> str:
        done = run("ublkd", *words, check=False)
        assert done.returncode == 1, done
        assert len(done.stderr.splitlines()) == 2, done
        return done.stderr

    node = moody("add", "--target", "moody", "--file", disk, "--recovery", "reissue")
    before = pid_of(node)
    moods.write_text("bad")  # at once: nobody is ended for it
    assert "in a bad mood" in fails("upgrade", node)
    assert (state_of(node), pid_of(node)) == ("live", before)
    moods.write_text("fine bad")  # it looks well, and then is not
    said = fails("upgrade", node)
    assert "is quiesced and its requests wait" in said
    assert "in a bad mood" in said
    assert "ublkd recover 0" in said
    assert state_of(node) == "quiesced"
    moods.write_text("")
    moody("recover", node)
    fio(node, "--rw=write", "--bs=64k", "--size=1m", "--verify=crc32c")
    ublkd("del", node)
    nothing_left()


MOODY = """
import os
from pathlib import Path
from ublkd.errors import UblkdError
from ublkd.targets.loop import LoopTarget


class Moody(LoopTarget):
    @classmethod
    def from_options(cls, options):
        moods = Path(os.environ["MOODY"])
        mood, _, rest = moods.read_text().partition(" ")
        moods.write_text(rest)
        if mood == "bad":
            raise UblkdError("in a bad mood", hint="try later")
        return super().from_options(options)
"""
