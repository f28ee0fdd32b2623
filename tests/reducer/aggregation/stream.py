"""Streams of items to count, and configurations to count them by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from services.reducer.aggregation.aggregation import Aggregation
from services.reducer.aggregation.cell import Cell, Counting
from services.reducer.aggregation.config import Config, Gap, Hopping, Strategy, Tumbling
from services.reducer.aggregation.durable import Record
from services.reducer.aggregation.fold import SizeHistogram
from services.reducer.aggregation.item import Columns
from services.reducer.aggregation.pane import Pane, Timing

HISTOGRAM = SizeHistogram()
CONFIG = Config(
    strategies=(Strategy.NAMESPACE_GROUPING,),
    by_namespace=False,
    window=Tumbling(10),
    watermark_delay=0,
    allowed_lateness=0,
    early_period=0,
    retention=1000,
    max_wait=0,
    size_bounds=(1024, 10240),
    custom_fold="",
    exact_distinct=100,
)
ALL = replace(CONFIG, strategies=tuple(Strategy), custom_fold=HISTOGRAM.name)
Item = tuple[int, int, str, str, str, str, str]
"""Time, size, namespace, file type, workflow, state, payload."""


def columns(items: Sequence[Item]) -> Columns:
    """Items as columns."""
    return Columns(*zip(*items, strict=True)) if items else Columns(*[()] * 7)


def item(time: int, namespace: str = "", size: int = 1, **parts: str) -> Item:
    """An item of this time."""
    names = ("file_type", "workflow_id", "workflow_state", "payload")
    file_type, workflow_id, workflow_state, payload = (parts.get(name, "") for name in names)
    return (time, size, namespace, file_type, workflow_id, workflow_state, payload)


def items(most: int = 24, latest: int = 70) -> st.SearchStrategy[list[Item]]:
    """Streams in any order of time, with few different values."""
    return st.lists(
        st.tuples(
            st.integers(1, latest),
            st.sampled_from([0, 5, 1024, 99999]),
            st.sampled_from(["", "a", "b"]),
            st.sampled_from(["", "t/x", "t/y", "t/z"]),
            st.sampled_from(["", "w1", "w2", "w3", "w4"]),
            st.sampled_from(["", "DONE", "FAILED"]),
            st.just(""),
        ),
        min_size=most // 3,
        max_size=most,
    )


WINDOWS: Sequence[Any] = (Tumbling(10), Hopping(10, 4), Gap(6), Gap(12))


@st.composite
def configs(draw: st.DrawFn, /, **fixed: Any) -> Config:
    """Configurations with small windows and all strategies."""
    config = replace(
        ALL,
        by_namespace=draw(st.booleans()),
        window=draw(st.sampled_from(WINDOWS)),
        watermark_delay=draw(st.sampled_from([0, 5, 30])),
        allowed_lateness=draw(st.sampled_from([0, 7, 30])),
        exact_distinct=draw(st.sampled_from([0, 2, 100])),
    )
    return replace(config, **fixed)


def made(config: Config, *more: Any) -> Aggregation:
    """An aggregation by this configuration, with the fold that it names."""
    return Aggregation(config, HISTOGRAM if config.custom_fold else None, *more)


def content(pane: Pane) -> Pane:
    """A pane without what depends on when it was told."""
    return pane._replace(revision=0, timing=Timing.REVISED)


def shown(records: Iterable[Record], config: Config) -> list[tuple[int, Pane]]:
    """What records say, in a form that is the same for equal cells."""
    counting = Counting(config.exact_distinct, HISTOGRAM if config.custom_fold else None)
    cells = [Cell.of(record, counting) for record in records]
    return sorted(((cell.stage, cell.pane(Timing.REVISED, final=False)) for cell in cells), key=lambda it: it[1].cell)
