"""The checker finds each kind of violation, one by one, in a run that is faultless but for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from omninode.bridge.reducer.v1 import aggregation_pb2 as pb
from tests.aggregation_load.checker import Kind, Violation, check_answers, check_listed, check_session
from tests.aggregation_load.journal import Bug, Journal
from tests.aggregation_load.load import BATCH, SECOND, Load
from tests.aggregation_load.total import Cell, Total, totals_of

LOAD = Load(seed=1, count=2 * BATCH, keys=3, late_share=0.01, invalid_share=0.01, exact_distinct=30)
TOTALS = totals_of(LOAD)
Entries: TypeAlias = "list[pb.AggregateResponse | Bug]"


def kinds(violations: list[Violation]) -> set[Kind]:
    return {violation.kind for violation in violations}


def timestamp(microseconds: int) -> Timestamp:
    return Timestamp(seconds=microseconds // SECOND, nanos=microseconds % SECOND * 1000)


def distinct(number: int) -> pb.DistinctCount:
    estimated = number > LOAD.exact_distinct
    return pb.DistinctCount(count=number + estimated, estimated=estimated)


def final(cell: Cell, total: Total) -> pb.Pane:
    return pb.Pane(
        strategy=pb.AggregationStrategy.ValueType(cell.strategy),
        window_start_time=timestamp(cell.start),
        window_end_time=timestamp(cell.end),
        namespace=cell.namespace,
        key=cell.key,
        count=total.count,
        total_bytes=total.total_bytes,
        min_bytes=total.min_bytes,
        max_bytes=total.max_bytes,
        mean_bytes=total.total_bytes / total.count,
        distinct_file_types=distinct(len(total.file_types)),
        distinct_workflows=distinct(len(total.workflows)),
        workflow_states=total.states,
        revision=3,
        timing=pb.PANE_TIMING_REVISED,
        is_final=True,
    )


def on_time(pane: pb.Pane) -> pb.Pane:
    before = pb.Pane()
    before.CopyFrom(pane)
    before.revision, before.timing, before.is_final = 2, pb.PANE_TIMING_ON_TIME, False
    before.count -= 1
    return before


def group(offset: int, panes: list[pb.Pane], offsets: range) -> pb.AggregateResponse:
    rejected = [
        pb.RejectedItem(offset=each, rejection=pb.REJECTION_LATE if each in TOTALS.late else pb.REJECTION_INVALID)
        for each in offsets
        if each in TOTALS.late | TOTALS.invalid
    ]
    last = offset == LOAD.count
    return pb.AggregateResponse(
        panes=panes, rejected=rejected, acknowledgement=pb.Acknowledgement(offset=offset, finished=last)
    )


def opened(next_offset: int, repeated_from: int) -> pb.AggregateResponse:
    return pb.AggregateResponse(opened=pb.Opened(next_offset=next_offset, repeated_from_offset=repeated_from))


@pytest.fixture
def panes() -> list[pb.Pane]:
    """As GetAggregates lists them."""
    cells = sorted(TOTALS.cells, key=lambda cell: (-cell.start, cell.strategy, cell.namespace, cell.key))
    return [final(cell, TOTALS.cells[cell]) for cell in cells]


@pytest.fixture
def entries(panes: list[pb.Pane]) -> Entries:
    """Of a writer that was cut off after it had seen, and not taken, what came of the first half; which was counted."""
    first = group(BATCH, [on_time(pane) for pane in panes], range(1, BATCH + 1))
    seen = pb.AggregateResponse(panes=first.panes[:2], rejected=first.rejected[:2])
    last = group(LOAD.count, panes, range(BATCH + 1, LOAD.count + 1))
    return [opened(1, 1), seen, opened(BATCH + 1, 1), first, last]


def answer(entries: Entries, place: int) -> pb.AggregateResponse:
    entry = entries[place]
    assert isinstance(entry, pb.AggregateResponse)
    return entry


def test_a_faultless_run_has_no_violation(entries: Entries) -> None:
    assert check_answers(TOTALS, entries) == []
    # All kinds of counts are in it.
    counts = [pane.distinct_workflows.estimated for pane in answer(entries, 4).panes]
    assert {True, False} == set(counts)


def wrong(name: str, change: object) -> Callable[[Entries], None]:
    def harm(entries: Entries) -> None:
        pane = answer(entries, 4).panes[0]
        setattr(pane, name, getattr(pane, name) + change)

    harm.__name__ = f"wrong {name}"
    return harm


def wrong_states(entries: Entries) -> None:
    answer(entries, 4).panes[0].workflow_states["FAILED"] += 1


def wrong_distinct(entries: Entries) -> None:
    answer(entries, 4).panes[0].distinct_file_types.count += 1


def estimated_needlessly(entries: Entries) -> None:
    answer(entries, 4).panes[0].distinct_file_types.estimated = True


def wrong_where_nothing_was_taken(entries: Entries) -> None:
    pane = answer(entries, 1).panes[0]
    pane.is_final, pane.count = True, 1


def overcounted(entries: Entries) -> None:
    answer(entries, 3).panes[0].count += 2


def strange(entries: Entries) -> None:
    answer(entries, 3).panes[0].key = "nobody"


def missing(entries: Entries) -> None:
    del answer(entries, 4).panes[0]


def only_seen(entries: Entries) -> None:
    answer(entries, 1).panes.append(answer(entries, 4).panes.pop())


def taken_twice(entries: Entries) -> None:
    entries.insert(4, answer(entries, 3))


def final_twice(entries: Entries) -> None:
    last = answer(entries, 4)
    last.panes.append(last.panes[0])


def after_final(entries: Entries) -> None:
    last = answer(entries, 4)
    last.panes.append(last.panes[0])
    last.panes[-1].revision += 1


def revision_back(entries: Entries) -> None:
    answer(entries, 4).panes[0].revision = 1


def not_rejected(entries: Entries) -> None:
    del answer(entries, 4).rejected[0]


def wrongly_rejected(entries: Entries) -> None:
    counted = next(offset for offset in range(1, BATCH) if offset not in TOTALS.late | TOTALS.invalid)
    answer(entries, 3).rejected.add(offset=counted, rejection=pb.REJECTION_LATE)


def rejected_otherwise(entries: Entries) -> None:
    answer(entries, 4).rejected[0].rejection = pb.REJECTION_PARTLY_LATE


def rejected_twice(entries: Entries) -> None:
    last = answer(entries, 4)
    last.rejected.append(last.rejected[0])


def acknowledged_back(entries: Entries) -> None:
    entries.insert(4, pb.AggregateResponse(acknowledgement=pb.Acknowledgement(offset=BATCH - 1)))


def acknowledged_unsent(entries: Entries) -> None:
    answer(entries, 4).acknowledgement.offset += 1


def counted_back(entries: Entries) -> None:
    entries.insert(4, opened(BATCH, BATCH + 1))


def counted_back_from_what_was_said(entries: Entries) -> None:
    entries.insert(3, opened(BATCH, 1))


def not_repeated(entries: Entries) -> None:
    answer(entries, 2).opened.repeated_from_offset += 1


def not_finished(entries: Entries) -> None:
    answer(entries, 4).acknowledgement.finished = False


def unexplained(entries: Entries) -> None:
    entries.append(Bug("INTERNAL"))


@pytest.mark.parametrize(
    ("harm", "kind"),
    [
        (wrong("count", 1), Kind.WRONG),
        (wrong("count", -1), Kind.WRONG),
        (wrong("total_bytes", 1), Kind.WRONG),
        (wrong("min_bytes", 1), Kind.WRONG),
        (wrong("max_bytes", 1), Kind.WRONG),
        (wrong("mean_bytes", 0.1), Kind.WRONG),
        (wrong_states, Kind.WRONG),
        (wrong_distinct, Kind.WRONG),
        (estimated_needlessly, Kind.WRONG),
        (wrong_where_nothing_was_taken, Kind.WRONG),
        (overcounted, Kind.OVERCOUNTED),
        (strange, Kind.STRANGE),
        (missing, Kind.MISSING),
        (only_seen, Kind.MISSING),
        (taken_twice, Kind.TWICE),
        (final_twice, Kind.TWICE),
        (after_final, Kind.AFTER_FINAL),
        (revision_back, Kind.REVISION_BACK),
        (not_rejected, Kind.NOT_REJECTED),
        (wrongly_rejected, Kind.WRONGLY_REJECTED),
        (rejected_otherwise, Kind.WRONGLY_REJECTED),
        (rejected_twice, Kind.REJECTED_TWICE),
        (acknowledged_back, Kind.ACKNOWLEDGED_BACK),
        (acknowledged_unsent, Kind.ACKNOWLEDGED_UNSENT),
        (counted_back, Kind.COUNTED_BACK),
        (counted_back_from_what_was_said, Kind.COUNTED_BACK),
        (not_repeated, Kind.NOT_REPEATED),
        (not_finished, Kind.NOT_FINISHED),
        (unexplained, Kind.UNEXPLAINED),
    ],
    ids=lambda value: value.__name__.replace("_", " ") if callable(value) else value.name,
)
def test_what_is_wrong_with_a_writers_answers_is_found(
    entries: Entries, harm: Callable[[Entries], None], kind: Kind
) -> None:
    harm(entries)
    assert kind in kinds(check_answers(TOTALS, entries))


def another_pane(panes: list[pb.Pane]) -> None:
    panes[0].key = "nobody"


def listed_twice(panes: list[pb.Pane]) -> None:
    panes.insert(0, panes[0])


def not_listed(panes: list[pb.Pane]) -> None:
    del panes[0]


def not_final(panes: list[pb.Pane]) -> None:
    panes[0].is_final = False


def listed_wrong(panes: list[pb.Pane]) -> None:
    panes[0].count += 1


def listed_in_disorder(panes: list[pb.Pane]) -> None:
    panes.append(panes.pop(0))


@pytest.mark.parametrize(
    ("harm", "kind"),
    [
        (another_pane, Kind.STRANGE),
        (listed_twice, Kind.TWICE),
        (not_listed, Kind.MISSING),
        (not_final, Kind.MISSING),
        (listed_wrong, Kind.WRONG),
        (listed_in_disorder, Kind.DISORDER),
    ],
    ids=lambda value: value.__name__.replace("_", " ") if callable(value) else value.name,
)
def test_what_is_wrong_with_a_list_is_found(
    panes: list[pb.Pane], harm: Callable[[list[pb.Pane]], None], kind: Kind
) -> None:
    assert check_listed(TOTALS, panes) == []
    harm(panes)
    assert kind in kinds(check_listed(TOTALS, panes))


@pytest.mark.parametrize(
    "name", ["finished", "offset", "item_count", "late_count", "invalid_count", "open_window_count"]
)
def test_a_session_that_counts_otherwise_is_found(name: str) -> None:
    session = pb.Session(
        finished=True,
        offset=LOAD.count,
        item_count=TOTALS.item_count,
        late_count=len(TOTALS.late),
        invalid_count=len(TOTALS.invalid),
    )
    assert check_session(TOTALS, session) == []
    setattr(session, name, not getattr(session, name) if name == "finished" else getattr(session, name) + 1)
    assert kinds(check_session(TOTALS, session)) == {Kind.MISCOUNTED}


def test_a_journal_that_was_torn_goes_on_behind_its_last_whole_line(tmp_path: Path, entries: Entries) -> None:
    journal, reader = Journal(tmp_path / "journal"), Journal(tmp_path / "journal")
    for entry in entries[:4]:
        journal.append(answer([entry], 0))
    with (tmp_path / "journal").open("ab") as file:
        file.write(b"half a li")
    assert list(reader.new()) == entries[:4]
    journal.mend()
    assert journal.acknowledged() == BATCH
    journal.complain("a\nb")
    journal.append(answer(entries, 4))
    assert list(reader.new()) == [Bug("a b"), entries[4]]
    assert list(reader.new()) == []
