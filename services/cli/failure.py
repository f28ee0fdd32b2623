"""How the command says no: one line on stderr, and an exit status. Nothing here knows what went wrong.

Exit statuses: 1 for a failure, 2 for wrong usage, 130 after Ctrl-C.
"""

from __future__ import annotations

import errno
import sys
from dataclasses import dataclass

PROGRAM = "omnibridge"
FAILURE, USAGE, INTERRUPTED = 1, 2, 130


class CommandError(Exception):
    """The command cannot go on; the message is the one line that says why."""

    def __init__(self, message: str, exit_code: int = FAILURE) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class Failed:
    """One path that failed while the others go on."""

    path: str
    reason: str
    """A node's error reason, or an errno's name."""
    message: str

    @classmethod
    def of(cls, path: str, error: OSError) -> Failed:
        """The failure of a path that could not be read or written."""
        return cls(path, errno.errorcode.get(error.errno or 0, "IO_ERROR"), error.strerror or str(error))

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}: {self.message}"

    def as_json(self) -> dict[str, object]:
        """The record that stands for the path among a command's JSON lines."""
        return {"path": self.path, "error": {"reason": self.reason, "message": self.message}}


def complain(message: object) -> None:
    """Write one line to stderr, whatever the message holds."""
    print(f"{PROGRAM}: {shown(str(message))}", file=sys.stderr, flush=True)


def shown(text: str) -> str:
    """`text` as one line can show it: what is not UTF-8 as U+FFFD, what is not printable escaped.

    A file's name may hold newlines and a terminal's escape sequences; shown as they are, they would forge lines.
    """
    readable = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in readable)
