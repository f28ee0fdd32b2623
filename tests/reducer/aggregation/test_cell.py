"""One cell: its records make it again, and cells merge to the same in any order."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_core import from_json, to_json

from services.reducer.aggregation.cell import SHOWN_STATES, Cell, Counting, Stage, id_of, stage_of
from services.reducer.aggregation.config import Strategy
from services.reducer.aggregation.fold import FoldItem
from services.reducer.aggregation.pane import Count, Pane, Timing
from tests.reducer.aggregation.stream import HISTOGRAM, Item, item, items

ID = (int(Strategy.CUSTOM), 0, 10, "docs", "a")
LIMITS = st.sampled_from([0, 2, 100])


def counted(stream: list[Item], limit: int, cell: Cell | None = None) -> Cell:
    cell = cell or Cell(ID, Counting(limit, HISTOGRAM))
    for _, size, namespace, file_type, workflow, state, _ in stream:
        cell.add(size, file_type, workflow, state, FoldItem(size, namespace, file_type, workflow, state, {}))
    cell.weigh()
    return cell


def pane(cell: Cell) -> Pane:
    return cell.pane(Timing.ON_TIME, final=False)


def read(record: Any) -> Any:
    """A record as it comes back from a blob."""
    return from_json(to_json(record))


def test_a_pane_shows_what_was_counted() -> None:
    stream = [
        item(1, "docs", 5, file_type="t/x", workflow_id="w1", workflow_state="DONE"),
        item(2, "docs", 1024, file_type="t/x", workflow_id="w2", workflow_state="DONE"),
        item(3, "docs", 7, workflow_state="FAILED"),
    ]
    cell = counted(stream, 1)
    cell.revision = 4
    assert pane(cell) == Pane(
        cell=ID,
        item_count=3,
        total_bytes=1036,
        min_bytes=5,
        max_bytes=1024,
        file_types=Count(1, estimated=False),
        workflows=Count(2, estimated=True),
        workflow_states={"DONE": 2, "FAILED": 1},
        custom_json='{"2048":1,"8":2}',
        revision=4,
        timing=Timing.ON_TIME,
        final=False,
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(items(8), min_size=1, max_size=4), LIMITS)
def test_deltas_in_order_and_the_full_record_make_the_same_cell(parts: list[list[Item]], limit: int) -> None:
    cell = Cell(ID, Counting(limit, HISTOGRAM))
    copy = Cell(ID, Counting(limit, HISTOGRAM))
    for part in parts:
        counted(part, limit, cell)
        cell.revision += 1
        cell.stage = Stage.ON_TIME
        delta = read(cell.delta())
        assert (id_of(delta), stage_of(delta)) == (ID, Stage.ON_TIME)
        copy.apply(delta)
        whole = Cell.of(read(cell.record()), Counting(limit, HISTOGRAM))
        assert pane(copy) == pane(whole) == pane(cell)
        assert copy.size_bytes == whole.size_bytes == cell.size_bytes
        assert copy.stage == whole.stage == Stage.ON_TIME


@settings(max_examples=60, deadline=None)
@given(items(8), items(8), items(8), LIMITS)
def test_merging_is_associative_and_commutative(a: list[Item], b: list[Item], c: list[Item], limit: int) -> None:
    def merged(*cells: Cell) -> Cell:
        whole, *others = cells
        for other in others:
            whole.merge(other)
        return whole

    def each() -> list[Cell]:
        return [counted(part, limit) for part in (a, b, c)]

    x, y, z = each()
    left = merged(merged(x, y), z)
    x, y, z = each()
    right = merged(z, merged(y, x))
    assert pane(left) == pane(right) == pane(counted(a + b + c, limit))


def test_a_merged_cell_has_the_sum_of_revisions() -> None:
    a, b = counted([item(1)], 2), counted([item(2)], 2)
    a.revision, b.revision = 3, 4
    a.merge(b)
    assert a.revision == 7


def test_a_record_does_not_change_with_its_cell() -> None:
    cell = counted([item(1, file_type="t/x", workflow_state="DONE")], 100)
    delta, before = cell.delta(), read(cell.delta())
    counted([item(2, file_type="t/y", workflow_state="DONE")], 100, cell)
    assert read(delta)[:11] == before[:11]
    assert read(delta)[11] == {"DONE": 1}


@settings(max_examples=50, deadline=None)
@given(items(), LIMITS)
def test_its_size_is_what_it_grew_by(stream: list[Item], limit: int) -> None:
    cell = Cell(ID, Counting(limit, HISTOGRAM))
    size = cell.size_bytes
    for _, bytes_, _, file_type, workflow, state, _ in stream:
        size += cell.add(bytes_, file_type, workflow, state)
    assert size == cell.size_bytes


def test_a_pane_shows_the_most_frequent_states_whatever_the_order() -> None:
    stream = [item(1, "docs", 1, workflow_state=f"s{number:03}") for number in range(SHOWN_STATES + 20)] * 2
    stream += [item(1, "docs", 1, workflow_state="s119")]
    shown = pane(counted(stream, 10)).workflow_states
    assert shown == pane(counted(stream[::-1], 10)).workflow_states
    assert len(shown) == SHOWN_STATES
    assert shown["s119"] == 3


def test_a_final_cell_that_is_sealed_shows_the_same_and_takes_less_memory() -> None:
    cell = Cell(ID, Counting(100, HISTOGRAM))
    counted([item(second, "docs", 5, file_type="t/x", workflow_id=f"w{second}") for second in range(60)], 100, cell)
    cell.stage = Stage.FINAL
    kept, sealed = (Cell.of(cell.record(), Counting(100, HISTOGRAM, seals=seals)) for seals in (False, True))
    assert pane(sealed) == pane(kept) == pane(cell)
    assert sealed.size_bytes < kept.size_bytes / 3
