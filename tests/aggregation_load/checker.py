"""Compares what a writer was answered, and what readers are shown at the end, with what the items make. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import NamedTuple

from omninode.bridge.reducer.v1 import aggregation_pb2 as pb
from tests.aggregation_load.journal import Bug
from tests.aggregation_load.total import Cell, Total, Totals, cell_of

_ESTIMATE = 0.1
"""How far an estimate may be off: six standard errors."""


class Kind(Enum):
    """What can be wrong."""

    WRONG = "a final pane does not hold what its items make"
    OVERCOUNTED = "a pane that is not final holds more than its items make"
    STRANGE = "a pane is of no item"
    MISSING = "a pane never became final"
    TWICE = "a pane was taken twice"
    AFTER_FINAL = "a pane was shown after it was final"
    REVISION_BACK = "a pane's revisions went back"
    NOT_REJECTED = "an item was not refused"
    WRONGLY_REJECTED = "an item was refused that should not have been, or otherwise"
    REJECTED_TWICE = "an item's refusal was taken twice"
    ACKNOWLEDGED_BACK = "acknowledgements went back"
    ACKNOWLEDGED_UNSENT = "more was acknowledged than there is"
    COUNTED_BACK = "a session that was resumed had lost input that was acknowledged"
    NOT_REPEATED = "a writer that resumed was not answered again what it had not taken"
    NOT_FINISHED = "the session's end was not acknowledged, or not with all input"
    MISCOUNTED = "the session's counts do not add up"
    DISORDER = "panes were listed out of order"
    UNEXPLAINED = "the writer was refused, and no fault explains it"


class Violation(NamedTuple):
    """Something that no fault may bring about."""

    kind: Kind
    what: str

    def __str__(self) -> str:
        return f"{self.kind.value}: {self.what}"


def check_answers(totals: Totals, entries: Iterable[pb.AggregateResponse | Bug]) -> list[Violation]:
    """Everything in a writer's journal that contradicts the items or itself."""
    return list(_Answers(totals).check(entries))


def check_listed(totals: Totals, panes: Sequence[pb.Pane]) -> list[Violation]:
    """What GetAggregates lists of a session that has ended, all pages together."""
    violations = [violation for pane in panes for violation in _check_pane(totals, pane)]
    counted = Counter(cell_of(pane) for pane in panes)
    violations += [
        Violation(Kind.TWICE, f"listed {count} times: {cell}") for cell, count in counted.items() if count > 1
    ]
    final = {cell_of(pane) for pane in panes if pane.is_final}
    violations += [Violation(Kind.MISSING, f"listed: {cell}") for cell in totals.cells if cell not in final]
    places = [(-cell.start, -cell.end, *cell[:1], *cell[3:]) for cell in map(cell_of, panes)]
    if places != sorted(places):
        violations.append(Violation(Kind.DISORDER, "the newest windows first, then strategy, namespace and key"))
    return violations


def check_session(totals: Totals, session: pb.Session) -> list[Violation]:
    """What a session that has ended says of itself."""
    wanted = {
        "finished": True,
        "offset": totals.load.count,
        "item_count": totals.item_count,
        "late_count": len(totals.late),
        "invalid_count": len(totals.invalid),
        "open_window_count": 0,
    }
    shown = {name: getattr(session, name) for name in wanted}
    return [Violation(Kind.MISCOUNTED, f"{shown} for {wanted}")] if shown != wanted else []


class _Answers:
    """One pass over a journal."""

    def __init__(self, totals: Totals) -> None:
        self._totals = totals
        self._acknowledged = 0
        self._counted = 0
        """Up to here the session had counted, by what it said or acknowledged."""
        self._finished = False
        self._final: set[Cell] = set()
        self._taken: set[tuple[Cell, int, int, bool]] = set()
        self._revisions: dict[Cell, int] = {}
        self._rejected: Counter[int] = Counter()

    def check(self, entries: Iterable[pb.AggregateResponse | Bug]) -> Iterator[Violation]:
        for entry in entries:
            if isinstance(entry, Bug):
                yield Violation(Kind.UNEXPLAINED, entry.what)
                continue
            if entry.HasField("opened"):
                yield from self._open(entry.opened)
            for pane in entry.panes:
                yield from _check_pane(self._totals, pane)
            for rejected in entry.rejected:
                yield from self._check_rejected(rejected)
            if entry.HasField("acknowledgement"):
                yield from self._take(entry)
        yield from self._end()

    def _open(self, opened: pb.Opened) -> Iterator[Violation]:
        if opened.next_offset <= self._counted:
            yield Violation(Kind.COUNTED_BACK, f"goes on at {opened.next_offset} after {self._counted}")
        if opened.repeated_from_offset > self._acknowledged + 1:
            yield Violation(Kind.NOT_REPEATED, f"from {opened.repeated_from_offset}, taken up to {self._acknowledged}")
        self._counted = max(self._counted, opened.next_offset - 1)

    def _take(self, group: pb.AggregateResponse) -> Iterator[Violation]:
        offset = group.acknowledgement.offset
        if offset < self._acknowledged:
            yield Violation(Kind.ACKNOWLEDGED_BACK, f"{offset} after {self._acknowledged}")
        if offset > self._totals.load.count:
            yield Violation(Kind.ACKNOWLEDGED_UNSENT, f"{offset} of {self._totals.load.count}")
        self._acknowledged = offset
        self._counted = max(self._counted, offset)
        self._finished |= group.acknowledgement.finished
        for pane in group.panes:
            yield from self._take_pane(pane)
        self._rejected.update(rejected.offset for rejected in group.rejected)

    def _take_pane(self, pane: pb.Pane) -> Iterator[Violation]:
        cell = cell_of(pane)
        shown = (cell, pane.revision, pane.timing, pane.is_final)
        if shown in self._taken:
            yield Violation(Kind.TWICE, f"{shown}")
        elif cell in self._final:
            yield Violation(Kind.AFTER_FINAL, f"{shown}")
        elif pane.revision < self._revisions.get(cell, 1):
            yield Violation(Kind.REVISION_BACK, f"{shown} after {self._revisions.get(cell)}")
        self._taken.add(shown)
        self._revisions[cell] = pane.revision
        if pane.is_final:
            self._final.add(cell)

    def _check_rejected(self, rejected: pb.RejectedItem) -> Iterator[Violation]:
        wanted = {pb.REJECTION_LATE: self._totals.late, pb.REJECTION_INVALID: self._totals.invalid}
        if rejected.offset not in wanted.get(rejected.rejection, ()):
            name = pb.Rejection.Name(rejected.rejection)
            yield Violation(Kind.WRONGLY_REJECTED, f"{rejected.offset} as {name}")

    def _end(self) -> Iterator[Violation]:
        if not self._finished or self._acknowledged != self._totals.load.count:
            yield Violation(Kind.NOT_FINISHED, f"acknowledged up to {self._acknowledged} of {self._totals.load.count}")
        for cell in self._totals.cells:
            if cell not in self._final:
                yield Violation(Kind.MISSING, f"{cell}")
        for offset in sorted(self._totals.late | self._totals.invalid):
            if self._rejected[offset] != 1:
                kind = Kind.REJECTED_TWICE if self._rejected[offset] else Kind.NOT_REJECTED
                yield Violation(kind, f"{offset}")


def _check_pane(totals: Totals, pane: pb.Pane) -> Iterator[Violation]:
    cell = cell_of(pane)
    total = totals.cells.get(cell)
    if total is None:
        yield Violation(Kind.STRANGE, f"{cell}: {pane.count} items")
    elif not pane.is_final:
        if pane.count > total.count or pane.total_bytes > total.total_bytes:
            yield Violation(Kind.OVERCOUNTED, f"{cell}: {pane.count} items of {total.count}")
    elif differences := _differences(totals.load.exact_distinct, pane, total):
        yield Violation(Kind.WRONG, f"{cell}: {differences}")


def _differences(exact_distinct: int, pane: pb.Pane, total: Total) -> Mapping[str, object]:
    """What of a final pane differs, with what it should be."""
    wanted: dict[str, tuple[object, object]] = {
        "count": (pane.count, total.count),
        "total_bytes": (pane.total_bytes, total.total_bytes),
        "min_bytes": (pane.min_bytes, total.min_bytes),
        "max_bytes": (pane.max_bytes, total.max_bytes),
        "mean_bytes": (pane.mean_bytes, total.total_bytes / total.count),
        "workflow_states": (dict(pane.workflow_states), dict(total.states)),
    }
    different: dict[str, object] = {name: pair for name, pair in wanted.items() if pair[0] != pair[1]}
    for name, count, number in (
        ("distinct_file_types", pane.distinct_file_types, len(total.file_types)),
        ("distinct_workflows", pane.distinct_workflows, len(total.workflows)),
    ):
        off = abs(count.count - number)
        if count.estimated != (number > exact_distinct) or off > (number * _ESTIMATE if count.estimated else 0):
            different[name] = (count.count, count.estimated, number)
    return different
