"""The lines that guest and host exchange on the control port. No I/O."""

import dataclasses
import enum


class Word(enum.Enum):
    """What the guest says; the host says only `deadline` and `size ROWS COLUMNS`."""

    INIT = "init"  # process 1 runs
    FAIL = "fail"  # it cannot go on: the reason follows
    JOB = "job"  # the job starts
    EXIT = "exit"  # the job ended: its status follows
    DRAINED = "drained"  # and all of its output is out
    DUMPED = "dumped"  # the tasks are in the kernel's log


@dataclasses.dataclass(frozen=True)
class Message:
    """One line from the guest."""

    word: Word
    text: str = ""

    @property
    def status(self) -> int:
        """The job's exit status; only EXIT has one."""
        return int(self.text)


def parse(line: str) -> Message | None:
    """Parse one line; None for anything that is not of the protocol."""
    word, _, text = line.strip().partition(" ")
    try:
        message = Message(Word(word), text)
    except ValueError:
        return None
    if message.word is Word.EXIT and not (text.isascii() and text.isdigit()):
        return None
    return message


class Reader:
    """Cut what comes from the port into messages."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Message]:
        """Return the messages that ``data`` completes."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        parsed = (parse(line.decode(errors="replace")) for line in lines)
        return [message for message in parsed if message]
