"""The load is the same from wherever it is resumed, and its totals are what they are said to be."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from omninode.bridge.reducer.v1 import aggregation_pb2 as pb
from tests.aggregation_load.load import BATCH, SECOND, Fate, Item, Load, to_columns
from tests.aggregation_load.total import Cell, Total, totals_of

MIXED = Load(seed=7, count=3 * BATCH + 17, late_share=0.02, invalid_share=0.02)


def all_items(load: Load, first: int = 1) -> list[Item]:
    return [item for batch in load.items(first) for item in batch]


@given(st.integers(1, MIXED.count + 1))
@example(MIXED.count + 1)
@settings(max_examples=20)
def test_a_load_goes_on_from_any_offset_with_the_same_items(first: int) -> None:
    whole = all_items(MIXED)
    assert [item.offset for item in whole] == list(range(1, MIXED.count + 1))
    assert all_items(MIXED, first) == whole[first - 1 :]
    assert all(MIXED.items(first))


def test_another_seed_makes_other_items() -> None:
    assert all_items(Load(seed=1, count=BATCH)) != all_items(Load(seed=2, count=BATCH))


def test_only_late_items_are_late_and_they_are_so_for_certain() -> None:
    newest, fates = 0, set()
    for item in all_items(MIXED):
        fates.add(item.fate)
        end = item.time // MIXED.window * MIXED.window + MIXED.window
        if item.fate is Fate.LATE:
            # As of long before: a node may move its watermark once a message, or more seldom.
            assert end + MIXED.lateness + MIXED.window < all_items(MIXED)[0].time
        else:
            assert end + MIXED.lateness > newest
            newest = max(newest, item.time)
    assert fates == set(Fate)


def test_items_come_out_of_order() -> None:
    times = [item.time for item in all_items(MIXED) if item.fate is Fate.COUNTED]
    assert times != sorted(times)


def test_columns_hold_the_items() -> None:
    batch = next(MIXED.items(3))
    columns = to_columns(batch)
    assert columns.first_offset == 3
    held = zip(
        columns.event_times_us,
        columns.sizes_bytes,
        *(
            [columns.texts[place] for place in places]
            for places in (columns.namespaces, columns.file_types, columns.workflow_ids, columns.workflow_states)
        ),
        strict=True,
    )
    assert list(held) == [item[1:7] for item in batch]


def test_each_item_is_in_every_window_of_its_time_once_a_strategy() -> None:
    load = Load(
        seed=3,
        count=BATCH,
        hop=2 * SECOND,
        strategies=(
            pb.AGGREGATION_STRATEGY_NAMESPACE_GROUPING,
            pb.AGGREGATION_STRATEGY_TIME_WINDOW,
            pb.AGGREGATION_STRATEGY_FILE_TYPE_GROUPING,
            pb.AGGREGATION_STRATEGY_SIZE_BUCKETS,
            pb.AGGREGATION_STRATEGY_WORKFLOW_GROUPING,
        ),
    )
    totals = totals_of(load)
    assert {cell.start % load.hop for cell in totals.cells} == {0}
    assert {cell.end - cell.start for cell in totals.cells} == {load.window}
    wanted = sum((item.time // load.hop) - (item.time - load.window) // load.hop for item in all_items(load))
    for strategy in load.strategies:
        assert sum(total.count for cell, total in totals.cells.items() if cell.strategy == strategy) == wanted
    assert {cell.key for cell in totals.cells if cell.strategy == pb.AGGREGATION_STRATEGY_SIZE_BUCKETS} == {
        "0-1023",
        "1024-1048575",
        "1048576-",
    }


def test_a_size_is_in_the_range_that_holds_it() -> None:
    load = Load(seed=1, count=2 * BATCH, strategies=(pb.AGGREGATION_STRATEGY_SIZE_BUCKETS,), size_bounds=(10, 600))
    totals = totals_of(load)
    for cell, total in totals.cells.items():
        least, _, most = cell.key.partition("-")
        assert int(least) <= total.min_bytes <= total.max_bytes <= int(most or total.max_bytes)
    assert {cell.key for cell in totals.cells} == {"0-9", "10-599", "600-"}


def test_a_total_holds_what_was_added() -> None:
    total = Total()
    for size, state in ((5, "DONE"), (3, ""), (9, "DONE")):
        total.add(Item(1, 1, size, "n", f"t{size}", "w", state, Fate.COUNTED))
    assert (total.count, total.total_bytes, total.min_bytes, total.max_bytes) == (3, 17, 3, 9)
    assert (len(total.file_types), len(total.workflows), total.states) == (3, 1, {"DONE": 2})


def test_what_is_late_or_malformed_is_in_no_total() -> None:
    totals = totals_of(MIXED)
    assert totals.late
    assert totals.invalid
    assert not totals.late & totals.invalid
    by_strategy: dict[int, int] = {}
    for cell, total in totals.cells.items():
        assert isinstance(cell, Cell)
        by_strategy[cell.strategy] = by_strategy.get(cell.strategy, 0) + total.count
    assert set(by_strategy.values()) == {totals.item_count}
