"""What the final panes of a load must be, from its items alone and not by the node's own fold. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from omninode.bridge.reducer.v1 import aggregation_pb2 as pb
from tests.aggregation_load.load import SECOND, Fate, Item, Load


class Cell(NamedTuple):
    """What a pane is of; times are microseconds."""

    strategy: int
    start: int
    end: int
    namespace: str
    key: str


@dataclass(slots=True)
class Total:
    """What the items of a cell make."""

    count: int = 0
    total_bytes: int = 0
    min_bytes: int = 0
    max_bytes: int = 0
    file_types: set[str] = field(default_factory=set)
    workflows: set[str] = field(default_factory=set)
    states: Counter[str] = field(default_factory=Counter)

    def add(self, item: Item) -> None:
        """Counts an item."""
        self.min_bytes = item.size if not self.count else min(self.min_bytes, item.size)
        self.max_bytes = max(self.max_bytes, item.size)
        self.count += 1
        self.total_bytes += item.size
        self.file_types.add(item.file_type)
        self.workflows.add(item.workflow_id)
        if item.workflow_state:
            self.states[item.workflow_state] += 1


class Totals(NamedTuple):
    """What a load must come to."""

    load: Load
    cells: dict[Cell, Total]
    late: set[int]
    """Offsets."""
    invalid: set[int]
    """Offsets."""

    @property
    def item_count(self) -> int:
        """Items that are counted."""
        return self.load.count - len(self.late) - len(self.invalid)


def totals_of(load: Load) -> Totals:
    """What must become of every item of the load."""
    totals = Totals(load, {}, set(), set())
    for batch in load.items():
        for item in batch:
            match item.fate:
                case Fate.LATE:
                    totals.late.add(item.offset)
                case Fate.INVALID:
                    totals.invalid.add(item.offset)
                case Fate.COUNTED:
                    for cell in cells_of(load, item):
                        totals.cells.setdefault(cell, Total()).add(item)
    return totals


def cells_of(load: Load, item: Item) -> Iterator[Cell]:
    """Every cell in which an item is counted: windows begin at multiples of their distance since 1970."""
    hop = load.hop or load.window
    for strategy in load.strategies:
        namespace, key = _key(load, strategy, item)
        start = item.time // hop * hop
        while start > item.time - load.window:
            yield Cell(strategy, start, start + load.window, namespace, key)
            start -= hop


def cell_of(pane: pb.Pane) -> Cell:
    """What a pane is of."""
    start, end = pane.window_start_time, pane.window_end_time
    return Cell(
        pane.strategy,
        start.seconds * SECOND + start.nanos // 1000,
        end.seconds * SECOND + end.nanos // 1000,
        pane.namespace,
        pane.key,
    )


def _key(load: Load, strategy: int, item: Item) -> tuple[str, str]:
    match strategy:
        case pb.AGGREGATION_STRATEGY_NAMESPACE_GROUPING:
            return item.namespace, item.namespace
        case pb.AGGREGATION_STRATEGY_TIME_WINDOW:
            return "", ""
        case pb.AGGREGATION_STRATEGY_FILE_TYPE_GROUPING:
            return "", item.file_type
        case pb.AGGREGATION_STRATEGY_SIZE_BUCKETS:
            bounds = (0, *load.size_bounds)
            place = bisect_right(bounds, item.size) - 1
            return "", f"{bounds[place]}-{bounds[place + 1] - 1 if place + 1 < len(bounds) else ''}"
        case pb.AGGREGATION_STRATEGY_WORKFLOW_GROUPING:
            return "", item.workflow_id
        case _:
            raise AssertionError(f"no total of strategy {strategy}")
