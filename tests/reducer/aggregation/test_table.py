"""A session's panes in memory: merged over parts, and a log of which every reader sees the newest of what changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.chassis.feed.log import Position
from services.reducer.aggregation.cell import Stage
from services.reducer.aggregation.fold import Folds
from services.reducer.aggregation.pane import CellId, Count, Pane, Timing
from services.reducer.aggregation.table import SLICES, Deltas, PaneRow, Table
from tests.reducer.aggregation.scripted import CONFIG, LATENESS, SIZE, ScriptedPart, cell_id

PARTS = 3
WHOLE = 100
"""Rows of a page that no test's changes fill."""


class Watcher:
    """What somebody has been shown who reads the log in pages."""

    def __init__(self) -> None:
        self.position: dict[int, int] = {}
        self.shown: dict[CellId, Pane] = {}

    def read(self, table: Table, rows: int = WHOLE) -> list[Pane]:
        """Everything that is new; fails where a pane comes twice and need not."""
        bounds = table.bounds()
        place = {number: self.position.get(number, 0) for number in bounds}
        news: list[Pane] = []
        while behind := {number: offset for number, offset in place.items() if offset < bounds[number].next}:
            page = table.read(behind, None, rows, 1 << 20)
            _check_page(page.rows, behind, rows)
            news += [row.pane for row in page.rows if row.pane]
            place |= {row.partition: row.offset + 1 for row in page.rows}
        if rows == WHOLE or len(bounds) == 1:
            assert len({pane.cell for pane in news}) == len(news)
        self.position = place
        self.shown |= {pane.cell: pane for pane in news}
        return news


def _check_page(rows: Sequence[PaneRow], begin: Position, limit: int) -> None:
    for number in begin:
        offsets = [row.offset for row in rows if row.partition == number]
        assert offsets, "a partition that has more holds one offset at least"
        assert offsets == sorted(offsets)
        assert begin[number] <= offsets[0]
        assert len(set(offsets[:-2])) <= limit


def all_panes(table: Table) -> dict[CellId, Pane]:
    return {cell: table.pane(cell) for cell in table.newest()}


def _untimed(pane: Pane) -> Pane:
    return pane._replace(timing=Timing.ON_TIME)


def bring(table: Table, number: int, part: ScriptedPart) -> None:
    known = table.version(number)
    apply(table, number, part, [(version, delta) for version, delta in part.deltas if version > known])


def apply(table: Table, number: int, part: ScriptedPart, deltas: Deltas) -> None:
    for _ in table.apply(number, part.part, deltas):
        pass


ITEMS = st.lists(st.tuples(st.integers(0, 6), st.sampled_from("ab"), st.integers(0, 99)), max_size=4)
COMMITS = st.lists(st.tuples(st.integers(0, PARTS - 1), ITEMS, st.integers(0, 40), st.booleans()), max_size=14)


@settings(max_examples=60)
@given(commits=COMMITS, single=st.booleans(), rows=st.sampled_from([1, 2, WHOLE]))
def test_whoever_reads_from_where_it_was_sees_the_newest_of_what_changed_and_that_alone(
    commits: list[tuple[int, list[tuple[int, str, int]], int, bool]], single: bool, rows: int
) -> None:
    """Law: after any commits, in any pages, what a watcher was shown is what there is, and nothing was shown that it knew."""
    count = 1 if single else PARTS
    parts = [ScriptedPart() for _ in range(count)]
    table, watcher = Table(count, Folds()), Watcher()
    for number, items, watermark, reads in commits:
        part = parts[number % count]
        part.commit([(cell_id(window, key), size) for window, key, size in items], watermark or None)
        bring(table, number % count, part)
        if reads:
            before = dict(watcher.shown)
            news = watcher.read(table, rows)
            # In pages that are cut a pane of several parts may come again.
            assert rows != WHOLE or all(pane != before.get(pane.cell) for pane in news)
            assert {cell: watcher.shown[cell] for cell in table.newest()} == all_panes(table)


@settings(max_examples=60)
@given(
    commits=COMMITS, checkpoints=st.sets(st.integers(0, 13)), moves=st.sets(st.integers(0, 13)), keep=st.integers(0, 3)
)
def test_a_replica_that_loads_a_session_anew_shows_a_watcher_from_elsewhere_all_that_it_has_not_seen(
    commits: list[tuple[int, list[tuple[int, str, int]], int, bool]], checkpoints: set[int], moves: set[int], keep: int
) -> None:
    """Law: a cursor of one replica misses nothing on another, whichever checkpoints and deltas that one began with."""
    parts = [ScriptedPart() for _ in range(PARTS)]
    table, watcher = Table(PARTS, Folds()), Watcher()
    for step, (number, items, watermark, reads) in enumerate(commits):
        part = parts[number]
        part.commit([(cell_id(window, key), size) for window, key, size in items], watermark or None)
        bring(table, number, part)
        if step in checkpoints:
            part.checkpoint(keep)
            bring(table, number, part)
        if reads:
            watcher.read(table)
        if step in moves:
            table = Table(PARTS, Folds())
            for other in sorted(range(PARTS), key=lambda other: (other + step) % PARTS):
                if parts[other].head is not None:
                    table.load(other, parts[other].part, parts[other].copies(), parts[other].deltas)
            watcher.read(table)
        if not reads and step not in moves:
            continue
        # Of timings only what the kept deltas tell is known after a load.
        assert {cell: _untimed(watcher.shown[cell]) for cell in table.newest()} == {
            cell: _untimed(pane) for cell, pane in all_panes(table).items()
        }


@settings(max_examples=50)
@given(commits=COMMITS)
def test_the_panes_of_several_parts_are_the_sums_over_their_items(
    commits: list[tuple[int, list[tuple[int, str, int]], int, bool]],
) -> None:
    """Law: merged on reading is as counted together."""
    parts = [ScriptedPart(config=replace(CONFIG, retention=10_000)) for _ in range(PARTS)]
    table = Table(PARTS, Folds())
    sizes: dict[CellId, list[int]] = {}
    for number, items, _, _ in commits:
        counted = [(cell_id(window, key), size) for window, key, size in items]
        for cell, size in counted:
            sizes.setdefault(cell, []).append(size)
        parts[number].commit(counted)
        bring(table, number, parts[number])
    panes = all_panes(table)
    assert panes.keys() == sizes.keys()
    for cell, pane in panes.items():
        assert (pane.item_count, pane.total_bytes) == (len(sizes[cell]), sum(sizes[cell]))
        assert (pane.min_bytes, pane.max_bytes) == (min(sizes[cell]), max(sizes[cell]))
        assert pane.workflow_states == {"COMPLETED": len(sizes[cell])}
        if len(set(sizes[cell])) <= CONFIG.exact_distinct:
            assert pane.workflows == Count(len(set(sizes[cell])), estimated=False)
        assert pane.revision == sum(part.cells[cell].revision for part in parts if cell in part.cells)


def test_a_pane_of_several_parts_is_final_only_when_no_part_can_add_to_it() -> None:
    table, one, other = Table(2, Folds()), ScriptedPart(), ScriptedPart()
    watcher = Watcher()
    cell = cell_id(0, "a")
    one.commit([(cell, 1)], SIZE + LATENESS)
    bring(table, 0, one)
    assert [(pane.final, pane.timing) for pane in watcher.read(table)] == [(False, Timing.ON_TIME)]
    other.commit()
    bring(table, 1, other)
    assert not table.pane(cell).final, "a part without a watermark may yet have items"
    other.commit(watermark=SIZE)
    bring(table, 1, other)
    assert watcher.read(table) == []
    other.commit(watermark=SIZE + LATENESS)
    bring(table, 1, other)
    # The other part's commit did not touch the cell, and is what made it final.
    assert [pane.final for pane in watcher.read(table)] == [True]


def test_the_timing_of_a_pane_is_that_of_its_last_change() -> None:
    table, part, watcher = Table(1, Folds()), ScriptedPart(), Watcher()
    cell = cell_id(0, "a")
    timings = []
    for items, watermark in (([(cell, 1)], None), ((), SIZE), ([(cell, 2)], None), ((), SIZE + LATENESS)):
        part.commit(items, watermark)
        bring(table, 0, part)
        timings += [(pane.timing, pane.final) for pane in watcher.read(table)]
    assert timings == [
        (Timing.EARLY, False),
        (Timing.ON_TIME, False),
        (Timing.REVISED, False),
        (Timing.REVISED, True),
    ]


def test_final_panes_expire_by_the_watermark_and_their_memory_with_them() -> None:
    table, part = Table(1, Folds()), ScriptedPart()
    part.commit([(cell_id(0, "a"), 1), (cell_id(9, "a"), 1)], SIZE + LATENESS)
    bring(table, 0, part)
    size = table.size_bytes
    part.commit(watermark=SIZE + LATENESS + CONFIG.retention - 1)
    bring(table, 0, part)
    assert len(all_panes(table)) == 2
    part.commit(watermark=SIZE + LATENESS + CONFIG.retention)
    bring(table, 0, part)
    assert list(all_panes(table)) == [cell_id(9, "a")]
    assert table.size_bytes < size


def test_a_window_that_was_merged_with_another_is_there_no_more() -> None:
    table, part, watcher = Table(1, Folds()), ScriptedPart(), Watcher()
    part.commit([(cell_id(0, "a"), 1), (cell_id(2, "a"), 1)])
    bring(table, 0, part)
    delta = part.commit([(cell_id(1, "a"), 1)])
    merged = [(part.version, delta._replace(removed=[cell_id(0, "a"), cell_id(2, "a")]))]
    apply(table, 0, part, merged)
    assert list(table.newest()) == [cell_id(1, "a")]
    assert [pane.cell for pane in watcher.read(table)] == [cell_id(1, "a")]


def test_the_newest_windows_come_first_then_strategy_namespace_and_key() -> None:
    table, part = Table(1, Folds()), ScriptedPart()
    ids = [cell_id(window, key) for window in (3, 1, 2) for key in "cab"]
    part.commit([(cell, 1) for cell in ids])
    bring(table, 0, part)
    expected = [cell_id(window, key) for window in (3, 2, 1) for key in "abc"]
    assert list(table.newest()) == expected
    for place, cell in enumerate(expected):
        assert list(table.newest(cell)) == expected[place + 1 :]
    assert list(table.newest(cell_id(2, "bb"))) == expected[5:]


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_a_commit_of_many_panes_is_read_in_pages(rows: int) -> None:
    table, part, watcher = Table(1, Folds()), ScriptedPart(), Watcher()
    part.commit([(cell_id(0, f"key {number}"), 1) for number in range(300)])
    bring(table, 0, part)
    page = table.read({0: 0}, None, rows, 1 << 20)
    assert len(page.rows) <= rows + 5
    assert bool(page.cut) == (rows < 300)
    assert len(watcher.read(table, rows)) == 300
    assert watcher.position == {0: 2 * SLICES}


def test_a_page_is_bounded_by_bytes_too() -> None:
    table, part = Table(1, Folds()), ScriptedPart()
    part.commit([(cell_id(0, f"key {number}"), 1) for number in range(300)])
    bring(table, 0, part)
    assert len(table.read({0: 0}, None, 1000, 10 * 500).rows) <= 15


def test_a_cell_that_did_not_change_keeps_its_place_when_a_session_is_loaded_anew() -> None:
    table, part, watcher = Table(1, Folds()), ScriptedPart(), Watcher()
    part.commit([(cell_id(0, "a"), 1), (cell_id(0, "b"), 1)])
    bring(table, 0, part)
    watcher.read(table)
    part.commit([(cell_id(0, "b"), 1)])
    part.checkpoint(keep=0)
    table.load(0, part.part, part.copies(), part.deltas)
    assert [pane.cell for pane in watcher.read(table)] == [cell_id(0, "b")]
    assert part.cells[cell_id(0, "b")].stage == Stage.OPEN


def test_a_delta_that_was_given_up_half_way_can_be_taken_again() -> None:
    table, part, watcher = Table(1, Folds()), ScriptedPart(), Watcher()
    part.commit([(cell_id(0, f"key {number}"), 1) for number in range(300)])
    next(table.apply(0, part.part, part.deltas))
    assert watcher.read(table) == []
    bring(table, 0, part)
    assert len(watcher.read(table)) == len(all_panes(table)) == 300


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["the cell's part first", "the other part first"])
def test_what_a_part_has_passed_is_shown_whichever_part_is_loaded_first(order: tuple[int, int]) -> None:
    table, parts, watcher = Table(2, Folds()), (ScriptedPart(), ScriptedPart()), Watcher()
    parts[0].commit([(cell_id(0, "a"), 1)], SIZE + LATENESS)
    bring(table, 0, parts[0])
    assert [pane.final for pane in watcher.read(table)] == [False]
    parts[1].commit(watermark=SIZE + LATENESS)
    elsewhere = Table(2, Folds())
    for number in order:
        elsewhere.load(number, parts[number].part, parts[number].copies(), parts[number].deltas)
    # No delta says so: the other part's watermark alone made it final.
    assert [pane.final for pane in watcher.read(elsewhere)] == [True]
