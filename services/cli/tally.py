"""Counts and tells what becomes of the lines that are fed into a session. How they get there is feeding.py's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from omninode.bridge.reducer.v1 import aggregation_pb2 as pb
from services.cli import aggregate_report, console, report
from services.cli.failure import CommandError, complain

TOLD = 20
"""Of each kind of complaint so many are told one by one, and the rest is a number."""
_KINDS = {
    pb.REJECTION_LATE: "late",
    pb.REJECTION_PARTLY_LATE: "partly late",
    pb.REJECTION_INVALID: "refused",
}
_MALFORMED = "malformed"


class Tally:
    """What became of one input, as a Listener of its Feeding.

    A complaint is a line on stderr; with `as_json` everything that is told is a JSON line too.
    """

    def __init__(
        self, path: str, *, as_json: bool, show_panes: bool, strict: bool, advance: Callable[[int], None]
    ) -> None:
        """`strict` makes a malformed line the end; `advance` is called with each line up to which all is acknowledged."""
        self._path = path
        self._as_json = as_json
        self._show_panes = show_panes
        self._strict = strict
        self._advance = advance
        self._complaints: Counter[str] = Counter()
        self._begin = 1
        self._committed = 0
        self._uncounted = 0
        self._final_panes = 0
        self.offset = 0
        """The line up to which all is acknowledged; 0 before any."""

    @property
    def is_clean(self) -> bool:
        """Whether nothing was wrong with any line; to be late is no fault of a line."""
        return not (self._complaints[_MALFORMED] or self._complaints["refused"])

    def begun(self, offset: int) -> None:
        self._begin = offset
        self._advance(offset - 1)

    def counted(self, count: int) -> None:
        self._committed += count

    def panes(self, panes: Sequence[pb.Pane]) -> None:
        for pane in panes:
            self._final_panes += pane.is_final
            if self._show_panes and self._as_json:
                console.emit({"pane": console.as_json(pane)})
            elif self._show_panes:
                console.say(aggregate_report.pane(pane))

    def rejected(self, items: Sequence[pb.RejectedItem]) -> None:
        for item in items:
            kind = _KINDS.get(item.rejection, "refused")
            # What an earlier run was answered comes again, where it is not said to be acknowledged.
            if item.offset >= self._begin and item.rejection != pb.REJECTION_PARTLY_LATE:
                self._uncounted += 1
            self._complain(kind, item.offset, aggregate_report.rejection(item))

    def malformed(self, line: int, why: str) -> None:
        if self._strict:
            raise CommandError(f"{self._path}:{line}: {why}")
        self._complain(_MALFORMED, line, why)

    def acknowledged(self, offset: int) -> None:
        self.offset = offset
        self._advance(offset)

    def close(self) -> None:
        """Says how many complaints were not told."""
        for kind, count in self._complaints.items():
            if count > TOLD:
                complain(f"{self._path}: {count - TOLD:,} more lines are {kind}")

    def sum_up(self, *, lines: int, finished: bool, seconds: float) -> None:
        """What it came to, as the last line of results."""
        counted = self._committed - self._uncounted
        passed_over = min(self._begin - 1, lines)
        kinds = (*_KINDS.values(), _MALFORMED)
        if self._as_json:
            figures = {kind.replace(" ", "_"): self._complaints[kind] for kind in kinds}
            summary = {"counted": counted, "passed_over": passed_over, **figures, "final_panes": self._final_panes}
            console.emit({"summary": summary | {"acknowledged": self.offset, "finished": finished, "seconds": seconds}})
            return
        parts = [f"{counted:,} counted"]
        parts += [f"{passed_over:,} passed over"] if passed_over else []
        parts += [f"{self._complaints[kind]:,} {kind}" for kind in kinds if self._complaints[kind]]
        parts += [report.counted(self._final_panes, "final pane")]
        end = "; the session has ended" if finished else ""
        console.say(f"{', '.join(parts)} in {seconds:.1f} s{end}")

    def _complain(self, kind: str, line: int, why: str) -> None:
        self._complaints[kind] += 1
        if self._complaints[kind] <= TOLD:
            complain(f"{self._path}:{line}: {why}")
        if self._as_json:
            console.emit({kind.replace(" ", "_"): {"line": line, "message": why}})
