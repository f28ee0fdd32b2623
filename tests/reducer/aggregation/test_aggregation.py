"""Counting by windows: what is late, when panes are told, where cells are kept; the laws of order, of batches and of restarts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.reducer.aggregation.aggregation import Aggregation, Change
from services.reducer.aggregation.config import Config, Gap, Hopping, Strategy, Tumbling
from services.reducer.aggregation.durable import Delta, Progress, Record, pack_from_bytes, pack_to_bytes
from services.reducer.aggregation.item import Late
from services.reducer.aggregation.pane import Pane, Timing
from tests.reducer.aggregation.stream import CONFIG, Item, columns, configs, content, item, items, made, shown

EARLY, ON_TIME, REVISED = Timing


def add(aggregation: Aggregation, *times: int, namespace: str = "") -> list[Late]:
    return aggregation.add(columns([item(time, namespace) for time in times]))


def told(panes: Iterable[Pane]) -> list[tuple[int, int, int, Timing, bool, int]]:
    return [(pane.cell[1], pane.cell[2], pane.item_count, pane.timing, pane.final, pane.revision) for pane in panes]


def panes(change: Change) -> list[tuple[int, int, int, Timing, bool, int]]:
    return told(change.delta.panes)


def test_a_pane_is_on_time_then_revised_then_final() -> None:
    aggregation = made(replace(CONFIG, allowed_lateness=5))
    add(aggregation, 1, 9)
    assert panes(aggregation.take()) == []
    add(aggregation, 10)
    assert panes(aggregation.take()) == [(0, 10, 2, ON_TIME, False, 2)]
    assert not aggregation.take().delta
    add(aggregation, 3)
    assert panes(aggregation.take()) == [(0, 10, 3, REVISED, False, 3)]
    add(aggregation, 15)
    assert panes(aggregation.take()) == [(0, 10, 3, REVISED, True, 4)]
    assert add(aggregation, 9) == [Late(0, 15, counted=False)]
    assert aggregation.progress == Progress(watermark=15, item_count=5, late_count=1, open_windows=1)


def test_without_lateness_the_first_pane_is_the_final_one() -> None:
    aggregation = made(CONFIG)
    add(aggregation, 1, 25)
    assert panes(aggregation.take()) == [(0, 10, 1, ON_TIME, True, 1)]


def test_each_item_is_judged_by_the_watermark_before_it() -> None:
    aggregation = made(replace(CONFIG, watermark_delay=5))
    assert add(aggregation, 1, 15, 2, 11, 16) == [Late(2, 10, counted=False)]
    assert aggregation.progress.item_count == 4


def test_an_item_late_for_some_of_its_windows_is_counted_in_the_others() -> None:
    aggregation = made(replace(CONFIG, window=Hopping(10, 5)))
    assert add(aggregation, 7, 10, 8) == [Late(2, 10, counted=True)]
    aggregation.finish()
    assert panes(aggregation.take()) == [
        (0, 10, 1, ON_TIME, True, 1),
        (5, 15, 3, ON_TIME, True, 1),
        (10, 20, 1, ON_TIME, True, 1),
    ]


def test_an_item_is_in_no_window_that_ended_before_it() -> None:
    aggregation = made(replace(CONFIG, window=Hopping(10, 4)))
    assert add(aggregation, 10) == []
    aggregation.finish()
    assert [pane[:3] for pane in panes(aggregation.take())] == [(4, 14, 1), (8, 18, 1)]


def test_a_heartbeat_moves_the_watermark_and_never_back() -> None:
    aggregation = made(CONFIG)
    assert aggregation.progress.watermark is None
    add(aggregation, 1)
    aggregation.advance(10)
    aggregation.advance(4)
    assert panes(aggregation.take()) == [(0, 10, 1, ON_TIME, True, 1)]
    assert aggregation.progress.watermark == 10


def test_finishing_makes_everything_final_and_the_watermark_says_so() -> None:
    aggregation = made(replace(CONFIG, allowed_lateness=5))
    add(aggregation, 1, 11)
    aggregation.finish()
    assert panes(aggregation.take()) == [(0, 10, 1, ON_TIME, True, 1), (10, 20, 1, ON_TIME, True, 1)]
    assert aggregation.progress == Progress(watermark=25, item_count=2)


def test_early_panes_are_of_open_cells_that_changed_since_the_last() -> None:
    aggregation = made(replace(CONFIG, early_period=1))
    add(aggregation, 1)
    aggregation.take()
    add(aggregation, 2)
    assert told(aggregation.take(early=True).early) == [(0, 10, 2, EARLY, False, 2)]
    assert aggregation.take(early=True).early == []
    add(aggregation, 3, 10)
    assert told(aggregation.take(early=True).early) == [(10, 20, 1, EARLY, False, 1)]


class TestSessionWindows:
    CONFIG = replace(CONFIG, window=Gap(10), allowed_lateness=100)

    @pytest.mark.parametrize("times", [(1, 10, 20, 40), (40, 20, 10, 1), (20, 1, 40, 10)], ids=str)
    def test_items_within_the_gap_are_together_and_those_exactly_apart_are_not(self, times: tuple[int, ...]) -> None:
        aggregation = made(self.CONFIG)
        add(aggregation, *times)
        aggregation.finish()
        assert panes(aggregation.take()) == [
            (1, 20, 2, ON_TIME, True, 1),
            (20, 30, 1, ON_TIME, True, 1),
            (40, 50, 1, ON_TIME, True, 1),
        ]

    def test_an_item_between_two_windows_makes_them_one(self) -> None:
        aggregation = made(replace(self.CONFIG, watermark_delay=100))
        add(aggregation, 1, 16)
        aggregation.take()
        add(aggregation, 8)
        assert aggregation.progress.open_windows == 1
        delta = aggregation.take().delta
        assert sorted(cell[1:3] for cell in delta.removed) == [(1, 11), (16, 26)]
        assert [tuple(record[1:3]) for record in delta.records] == [(1, 26)]

    def test_a_window_that_grew_is_told_anew_in_full(self) -> None:
        aggregation, copy = made(self.CONFIG), made(self.CONFIG)
        for time, workflow in ((1, "w1"), (5, "w2")):
            aggregation.add(columns([item(time, workflow_id=workflow)]))
            delta = aggregation.take().delta
            copy.apply(delta.records, delta.removed)
        copy.finish()
        assert [pane.workflows.number for pane in copy.take().delta.panes] == [2]

    def test_a_window_that_grew_has_one_early_pane(self) -> None:
        aggregation = made(replace(self.CONFIG, early_period=1))
        add(aggregation, 1)
        aggregation.take()
        add(aggregation, 5)
        assert told(aggregation.take(early=True).early) == [(1, 15, 2, EARLY, False, 2)]

    def test_a_window_that_grows_after_its_end_is_open_again(self) -> None:
        aggregation = made(self.CONFIG)
        add(aggregation, 1)
        aggregation.advance(12)
        assert panes(aggregation.take()) == [(1, 11, 1, ON_TIME, False, 1)]
        add(aggregation, 9)
        assert panes(aggregation.take()) == []
        aggregation.advance(19)
        assert panes(aggregation.take()) == [(1, 19, 2, ON_TIME, False, 3)]

    def test_a_window_that_grows_and_has_still_passed_is_revised(self) -> None:
        aggregation = made(self.CONFIG)
        add(aggregation, 1)
        aggregation.advance(50)
        aggregation.take()
        add(aggregation, 9)
        assert panes(aggregation.take()) == [(1, 19, 2, REVISED, False, 2)]

    def test_a_window_that_has_passed_and_merges_with_one_that_was_shown_is_revised(self) -> None:
        aggregation = made(self.CONFIG)
        add(aggregation, 20)
        aggregation.advance(50)
        aggregation.take()
        add(aggregation, 5, 12)
        assert panes(aggregation.take()) == [(5, 30, 3, REVISED, False, 2)]

    def test_a_window_whose_lateness_has_passed_takes_part_in_nothing(self) -> None:
        aggregation = made(replace(self.CONFIG, allowed_lateness=0))
        add(aggregation, 1)
        aggregation.advance(11)
        assert add(aggregation, 1, 2) == [Late(0, 11, counted=False)]
        aggregation.finish()
        assert [pane[:3] for pane in panes(aggregation.take())] == [(1, 11, 1), (2, 12, 1)]

    def test_an_item_is_not_late_where_its_merged_window_is_not(self) -> None:
        aggregation = made(replace(self.CONFIG, allowed_lateness=5))
        add(aggregation, 20)
        aggregation.advance(28)
        assert add(aggregation, 9) == [Late(0, 28, counted=False)]
        assert add(aggregation, 12, 9) == []


class Store:
    """What a writer keeps of an aggregation: shelves of a checkpoint as packs, and the deltas since."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.aggregation = made(config)
        self.packs: dict[str, bytes] = {}
        self.deadlines: dict[str, int | None] = {}
        self.deltas: list[Delta] = []
        self.progress = Progress()
        self.final: list[Pane] = []

    def add(self, batch: Sequence[Item]) -> None:
        self.load(self.aggregation.shelves_of(columns(batch)))
        self.aggregation.add(columns(batch))

    def take(self, limit: int = 1000) -> bool:
        """Whether all that is due is taken."""
        self.load(self.aggregation.due_shelves())
        change = self.aggregation.take(limit=limit)
        self.deltas += map(Delta.from_bytes, change.delta.to_blobs())
        self.final += [pane for pane in change.delta.panes if pane.final]
        self.progress = self.aggregation.progress
        return not change.is_part

    def checkpoint(self) -> None:
        dirty = self.aggregation.dirty
        self.deadlines = self.aggregation.shelves()
        self.packs = {name: pack for name, pack in self.packs.items() if name in self.deadlines}
        for name in dirty:
            self.packs[name] = pack_to_bytes({name: list(self.aggregation.records_of(name))})
        self.aggregation.checkpointed(dirty)
        assert self.packs.keys() == self.deadlines.keys()
        self.deltas = []

    def evict(self, every: int) -> None:
        for name in list(self.aggregation.coldest())[::every]:
            self.aggregation.evict(name)

    def restart(self) -> None:
        self.aggregation = made(self.config, self.progress, self.deadlines)
        for delta in self.deltas:
            self.load(self.aggregation.shelves_of_records(delta.records, delta.removed))
            self.aggregation.apply(delta.records, delta.removed)
        # A window whose last cells became final is closed at the next take; one that is built anew is closed already.
        closed = self.aggregation.progress._replace(open_windows=self.progress.open_windows)
        assert closed == self.progress

    def load(self, names: Iterable[str]) -> None:
        for name in names:
            self.aggregation.put(name, pack_from_bytes(self.packs[name])[name])

    def records(self) -> list[Record]:
        """Of all cells, in memory or not."""
        records: list[Record] = []
        for name in self.aggregation.shelves():
            try:
                records += self.aggregation.records_of(name)
            except KeyError:
                records += pack_from_bytes(self.packs[name])[name]
        return records


STEPS = st.lists(st.sampled_from(["take", "checkpoint", "evict", "evict some", "restart"]), max_size=4)


@settings(max_examples=50, deadline=None)
@given(configs(), st.lists(st.tuples(items(8, 40), STEPS), min_size=2, max_size=4), st.sampled_from([1, 3, 1000]))
def test_a_session_that_was_stopped_goes_on_as_if_it_had_not_been(
    config: Config, parts: list[tuple[list[Item], list[str]]], limit: int
) -> None:
    steady, stopped = Store(config), Store(config)
    for number, (part, steps) in enumerate(parts):
        # The stream gets later, so that some of its windows pass.
        batch = [(it[0] + 15 * number, *it[1:]) for it in part]
        steady.add(batch)
        stopped.add(batch)
        if "restart" in steps:
            stopped.restart()
            stopped.add(batch)
        steady.take()
        stopped.take(limit)
        for step in steps:
            match step:
                case "checkpoint":
                    stopped.checkpoint()
                case "evict":
                    stopped.evict(1)
                case "evict some":
                    stopped.evict(2)
                case "restart":
                    stopped.restart()
    for store in (steady, stopped):
        store.aggregation.finish()
        while not store.take(limit):
            pass
    assert sorted(map(content, stopped.final)) == sorted(map(content, steady.final))
    ours, theirs = shown(stopped.records(), config), shown(steady.records(), config)
    if limit == 1000:
        assert ours == theirs
    else:
        # Told in parts, a cell may be told at another time, and more often.
        assert [(stage, content(pane)) for stage, pane in ours] == [(stage, content(pane)) for stage, pane in theirs]
    assert stopped.aggregation.progress == steady.aggregation.progress


@settings(max_examples=60, deadline=None)
@given(configs(), items(), st.data())
def test_how_a_stream_is_cut_and_when_it_is_taken_changes_no_count(
    config: Config, stream: list[Item], data: st.DataObject
) -> None:
    whole, cut = made(config), made(config)
    late = whole.add(columns(stream))
    place, late_in_parts, final = 0, [], []
    while place < len(stream):
        batch = stream[place : place + data.draw(st.integers(1, 8))]
        late_in_parts += [it._replace(place=it.place + place) for it in cut.add(columns(batch))]
        place += len(batch)
        if data.draw(st.booleans()):
            final += [pane for pane in cut.take().delta.panes if pane.final]
    assert late_in_parts == late
    whole.finish()
    cut.finish()
    final += cut.take().delta.panes
    assert sorted(map(content, final)) == sorted(map(content, whole.take().delta.panes))


@settings(max_examples=60, deadline=None)
@given(configs(allowed_lateness=60, watermark_delay=60), items(), st.data())
def test_the_same_items_in_another_order_within_the_lateness_make_the_same_final_panes(
    config: Config, stream: list[Item], data: st.DataObject
) -> None:
    def final(order: list[Item]) -> list[Pane]:
        aggregation = made(config)
        told: list[Pane] = []
        for start in range(0, len(order), 5):
            assert aggregation.add(columns(order[start : start + 5])) == []
            told += aggregation.take().delta.panes
        aggregation.finish()
        told += aggregation.take().delta.panes
        return sorted(content(pane) for pane in told if pane.final)

    assert final(stream) == final(data.draw(st.permutations(stream)))


@settings(max_examples=30, deadline=None)
@given(configs(), st.lists(items(10), min_size=1, max_size=4))
def test_the_size_is_that_of_the_cells_in_memory(config: Config, batches: list[list[Item]]) -> None:
    aggregation = made(config)
    for batch in batches:
        aggregation.add(columns(batch))
        aggregation.take()
        names = aggregation.shelves()
        restored = made(config, aggregation.progress, names)
        for name in names:
            restored.put(name, aggregation.records_of(name))
        assert restored.size_bytes == aggregation.size_bytes
    aggregation.checkpointed(aggregation.dirty)
    for name in list(aggregation.coldest()):
        aggregation.evict(name)
    assert aggregation.size_bytes == 0
    assert aggregation.shelves() == restored.shelves()


def test_a_shelf_out_of_memory_is_asked_for_before_it_is_touched_and_comes_due_when_it_is_back() -> None:
    aggregation = made(CONFIG)
    add(aggregation, 1, 2)
    aggregation.take()
    records = list(aggregation.records_of("w0"))
    aggregation.checkpointed(["w0"])
    aggregation.evict("w0")
    assert aggregation.shelves_of(columns([item(11)])) == set()
    assert aggregation.shelves_of(columns([item(3)])) == {"w0"}
    with pytest.raises(AssertionError):
        add(aggregation, 3)
    add(aggregation, 12)
    assert aggregation.due_shelves() == {"w0"}
    assert panes(aggregation.take()) == []
    aggregation.put("w0", records)
    assert panes(aggregation.take()) == [(0, 10, 2, ON_TIME, True, 2)]


def test_the_shelf_touched_longest_ago_goes_first() -> None:
    aggregation = made(replace(CONFIG, watermark_delay=100))
    add(aggregation, 1, 11, 21, 2)
    aggregation.take()
    assert list(aggregation.coldest()) == []
    aggregation.checkpointed(aggregation.dirty)
    assert list(aggregation.coldest()) == ["w10", "w20", "w0"]


def test_final_shelves_are_kept_for_their_retention_and_forgotten() -> None:
    aggregation = made(replace(CONFIG, retention=50, allowed_lateness=5))
    add(aggregation, 1, 15)
    aggregation.take()
    assert aggregation.shelves() == {"w10": 20, "c10": None}
    aggregation.advance(64)
    assert aggregation.expired() == []
    aggregation.advance(65)
    assert aggregation.expired() == aggregation.expired() == ["c10"]
    aggregation.forget("c10")
    assert aggregation.expired() == []
    assert aggregation.shelves() == {"w10": 20}


@pytest.mark.parametrize("window", [Tumbling(10), Hopping(20, 10), Gap(10)], ids=["tumbling", "hopping", "session"])
def test_every_strategy_counts_every_item(window: Any) -> None:
    config = replace(CONFIG, window=window, strategies=(Strategy.TIME_WINDOW, Strategy.SIZE_BUCKETS))
    aggregation = made(config)
    aggregation.add(columns([item(1, size=5), item(2, size=5000)]))
    aggregation.finish()
    counts: dict[str, int] = {}
    for pane in aggregation.take().delta.panes:
        counts[pane.cell[4]] = pane.item_count
    assert counts == {"": 2, "0-1023": 1, "1024-10239": 1}
