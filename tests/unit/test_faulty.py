"""What faulty passes on to the target behind it."""

from __future__ import annotations

from ublkd.targets.faulty import FaultyTarget


def test_every_hook_is_passed_on() -> None:
    """A mirror has to know which files the daemon before did without, for one."""
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
