"""By what each strategy puts items together. Pure.

Within a window a cell is found by its slot: its key, or its namespace and key where both tell cells apart. A slot is no more than
is needed, because there is one for each cell.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise, repeat
from typing import TypeAlias

from pydantic_core import from_json

from services.reducer.aggregation.config import Config, Strategy
from services.reducer.aggregation.fold import CustomFold, FoldItem
from services.reducer.aggregation.item import Columns

Slot: TypeAlias = str | tuple[str, str]


class Grouping:
    """One strategy of a session."""

    def __init__(self, strategy: Strategy, config: Config, fold: CustomFold | None) -> None:
        assert (strategy is Strategy.CUSTOM) <= (fold is not None), "CUSTOM names a fold"
        self.strategy = int(strategy)
        self._by_namespace = config.by_namespace and strategy is not Strategy.NAMESPACE_GROUPING
        self._bounds = config.size_bounds
        self._labels = size_labels(config.size_bounds)
        self._fold = fold if strategy is Strategy.CUSTOM else None

    def slots(self, items: Columns, custom: Sequence[FoldItem]) -> Iterable[Slot]:
        """The slot of each item; `custom` is what `fold_items` says, if this is CUSTOM."""
        keys = self._keys(items, custom)
        return zip(items.namespaces, keys, strict=False) if self._by_namespace else keys

    def fold_items(self, items: Columns) -> Sequence[FoldItem]:
        """What the custom fold sees; nothing where none is at work."""
        if self._fold is None:
            return ()
        payloads = (from_json(payload) if payload else {} for payload in items.payloads)
        columns = (items.sizes, items.namespaces, items.file_types, items.workflow_ids, items.workflow_states, payloads)
        return [FoldItem(*item) for item in zip(*columns, strict=True)]

    def slot(self, namespace: str, key: str) -> Slot:
        """The slot of a cell."""
        return (namespace, key) if self._by_namespace else key

    def parts(self, slot: Slot) -> tuple[str, str]:
        """Namespace and key of a slot's cell."""
        if isinstance(slot, tuple):
            return slot
        return (slot if self.strategy == Strategy.NAMESPACE_GROUPING else "", slot)

    def _keys(self, items: Columns, custom: Sequence[FoldItem]) -> Iterable[str]:
        match self.strategy:
            case Strategy.NAMESPACE_GROUPING:
                return items.namespaces
            case Strategy.FILE_TYPE_GROUPING:
                return items.file_types
            case Strategy.WORKFLOW_GROUPING:
                return items.workflow_ids
            case Strategy.SIZE_BUCKETS:
                return [self._labels[bisect_right(self._bounds, size)] for size in items.sizes]
            case Strategy.CUSTOM:
                assert self._fold is not None
                return map(self._fold.key, custom)
            case _:
                return repeat("", len(items.times))


def size_labels(bounds: Sequence[int]) -> list[str]:
    """The keys of the size ranges that rising bounds make: `0-1023`, `1024-10239`, `10240-`."""
    begins = [0, *bounds]
    return [f"{begin}-{end - 1}" for begin, end in pairwise(begins)] + [f"{begins[-1]}-"]
