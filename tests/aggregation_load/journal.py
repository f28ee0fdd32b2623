"""What a writer was answered, kept in a file as a careful consumer would keep it: panes with the acknowledgement that covers them.

A line is one message. A group is all that came up to an acknowledgement, which is its last part: it is kept by one write, so that a
writer that is killed has taken all of it or nothing. What came and was never acknowledged is kept as seen, and not taken.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from omninode.bridge.reducer.v1 import aggregation_pb2 as pb

_MARK = b"!"
"""Before a line that is a text: a refusal that no fault explains."""


class Bug(NamedTuple):
    """What no fault explains."""

    what: str


class Journal:
    """A file of one writer, over all its lives."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def append(self, message: pb.AggregateResponse) -> None:
        """Keeps a message: `opened` alone, a group with its acknowledgement, or what was seen without one."""
        self._write(base64.b64encode(message.SerializeToString()))

    def complain(self, what: str) -> None:
        """Keeps what no fault explains."""
        self._write(_MARK + what.encode().replace(b"\n", b" "))

    def new(self) -> Iterator[pb.AggregateResponse | Bug]:
        """What was kept since this was asked last."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                yield _entry(line)

    def mend(self) -> None:
        """Takes away half a line that a killed writer left."""
        if self._path.exists():
            kept = self._path.read_bytes()
            with self._path.open("r+b") as file:
                file.truncate(kept.rfind(b"\n") + 1)

    def acknowledged(self) -> int:
        """The last offset whose acknowledgement is kept; 0 for none."""
        return last_acknowledged(Journal(self._path).new())

    def _write(self, line: bytes) -> None:
        # Not synced: what kills the writer leaves the machine alone.
        with self._path.open("ab", buffering=0) as file:
            file.write(line + b"\n")


def last_acknowledged(entries: Iterable[pb.AggregateResponse | Bug]) -> int:
    """The last offset that was acknowledged; 0 for none."""
    offset = 0
    for entry in entries:
        if isinstance(entry, pb.AggregateResponse) and entry.HasField("acknowledgement"):
            offset = entry.acknowledgement.offset
    return offset


def _entry(line: bytes) -> pb.AggregateResponse | Bug:
    if line.startswith(_MARK):
        return Bug(line[1:-1].decode())
    return pb.AggregateResponse.FromString(base64.b64decode(line))
