"""What faulty passes on to the target behind it."""

from __future__ import annotations

from pathlib import Path

from ublkd import registry
from ublkd.targets.faulty import FaultyTarget
from ublkd.targets.mirror import MirrorTarget


def test_a_mirror_behind_it_goes_on_without_the_file_that_failed(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_bytes(bytes(1 << 16))
    known = registry.options_of("faulty", lambda name: "mirror" if name == "over" else None)
    options = {option.key: option.default for option in known.values()}
    options |= {"over": "mirror", "file": (str(tmp_path / "a"), str(tmp_path / "b"))}
    target = registry.opened("faulty", options)
    try:
        assert isinstance(target, FaultyTarget)
        target.recovered([{"failed_files": 2}])  # fixed file 1, the first
        mirror = target._over
        assert isinstance(mirror, MirrorTarget)
        assert mirror._handle.failed == 1
    finally:
        target.close()


def test_every_hook_is_passed_on() -> None:
    told: list[object] = []

    class Below:
        def recovered(self, counters: object) -> None:
            told.append(counters)

        def stopping(self) -> None:
            told.append("stopping")

        def resizing(self, size: int) -> None:
            told.append(size)

        def changed(self, options: object) -> None:
            told.append(options)

        def size_now(self) -> int:
            return 4096

    faulty = FaultyTarget.__new__(FaultyTarget)
    faulty._over = Below()  # type: ignore[assignment]
    faulty.recovered([{"a": 1}])
    faulty.stopping()
    faulty.resizing(8192)
    faulty.changed({"b": 2})
    assert told == [[{"a": 1}], "stopping", 8192, {"b": 2}]
    assert faulty.size_now() == 4096
