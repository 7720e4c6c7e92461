"""The project's own C headers, as cffi reads them: so that no layout is written down twice."""

from __future__ import annotations

import re
from pathlib import Path

HEADERS = (
    "ublkd/core/uapi.h",
    "ublkd/core/recorder.h",
    "ublkd/core/stats.h",
    "ublkd/core/lane.h",
    "ublkd/core/lease.h",
    "ublkd/core/target.h",
    "ublkd/core/member.h",
    "ublkd/core/group.h",
    "ublkd/core/own.h",
    "ublkd/core/queue.h",
    "ublkd/core/control.h",
    "targets/backing.h",
    "targets/loop.h",
    "targets/stripe.h",
    "targets/faulty.h",
    "targets/mirror.h",
    "targets/null.h",
    "targets/nbd/journal.h",
    "targets/nbd/links.h",
    "tests/core/harness.h",
)

PRELUDE = """
typedef uint8_t __u8;
typedef uint16_t __u16;
typedef uint32_t __u32;
typedef int32_t __s32;
typedef uint64_t __u64;
struct __kernel_timespec { long long tv_sec; long long tv_nsec; };
int mincore(void *addr, size_t length, unsigned char *vec);
"""

LITERAL = re.compile(r"(0x[0-9a-fA-F]+|\d+)(?:U?L{0,2})$")
SHIFT = re.compile(r"\((\d+)(?:U?L{0,2}) << (\d+)\)$")


def declarations(root: Path) -> str:
    """All that the library has, from the headers under `root`."""
    return PRELUDE + "".join(_declared((root / name).read_text()) for name in HEADERS)


def _declared(text: str) -> str:
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    text = re.sub(r"^static inline .*?^}\n", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^static_assert\(.*?\);\n", "", text, flags=re.DOTALL | re.MULTILINE)
    lines = (_constant(line) if line.startswith("#") else line for line in text.splitlines())
    return "\n".join(line for line in lines if line.strip()) + "\n"


def _constant(line: str) -> str:
    """A #define that cffi can take, or nothing."""
    match line.split(maxsplit=2):
        case ["#define", name, value] if "(" not in name:
            if literal := LITERAL.match(value.strip()):
                return f"#define {name} {int(literal[1], 0)}"
            if shift := SHIFT.match(value.strip()):
                return f"#define {name} {int(shift[1]) << int(shift[2])}"
    return ""
