"""By what each strategy puts items together."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.reducer.aggregation.config import Strategy
from services.reducer.aggregation.strategy import Grouping, size_labels
from tests.reducer.aggregation.stream import ALL, HISTOGRAM, columns, item

ITEMS = columns(
    [
        item(1, "docs", 1023, file_type="t/x", workflow_id="w1", payload='{"rank": 1}'),
        item(2, "code", 10240, file_type="t/y", workflow_id="w2"),
    ]
)


@pytest.mark.parametrize(
    ("strategy", "keys"),
    [
        (Strategy.NAMESPACE_GROUPING, ["docs", "code"]),
        (Strategy.TIME_WINDOW, ["", ""]),
        (Strategy.FILE_TYPE_GROUPING, ["t/x", "t/y"]),
        (Strategy.SIZE_BUCKETS, ["0-1023", "10240-"]),
        (Strategy.WORKFLOW_GROUPING, ["w1", "w2"]),
        (Strategy.CUSTOM, ["docs", "code"]),
    ],
    ids=lambda it: it.name if isinstance(it, Strategy) else "",
)
@pytest.mark.parametrize("by_namespace", [False, True], ids=["together", "by namespace"])
def test_a_strategy_gives_each_item_its_namespace_and_key(
    strategy: Strategy, keys: list[str], by_namespace: bool
) -> None:
    grouping = Grouping(strategy, replace(ALL, by_namespace=by_namespace), HISTOGRAM)
    shows_namespace = by_namespace or strategy is Strategy.NAMESPACE_GROUPING
    slots = list(grouping.slots(ITEMS, grouping.fold_items(ITEMS)))[:2]
    parts = [grouping.parts(slot) for slot in slots]
    assert parts == list(zip(["docs", "code"] if shows_namespace else ["", ""], keys, strict=True))
    assert [grouping.slot(*part) for part in parts] == slots


def test_a_custom_fold_sees_the_items_with_their_payloads() -> None:
    first, second = Grouping(Strategy.CUSTOM, ALL, HISTOGRAM).fold_items(ITEMS)
    assert first == (1023, "docs", "t/x", "w1", "", {"rank": 1})
    assert second.payload == {}
    assert Grouping(Strategy.TIME_WINDOW, ALL, HISTOGRAM).fold_items(ITEMS) == ()


@pytest.mark.parametrize(
    ("bounds", "labels"),
    [((), ["0-"]), ((1024,), ["0-1023", "1024-"]), ((1024, 10240), ["0-1023", "1024-10239", "10240-"])],
    ids=["none", "one", "two"],
)
def test_size_ranges_are_named_by_their_ends(bounds: tuple[int, ...], labels: list[str]) -> None:
    assert size_labels(bounds) == labels
