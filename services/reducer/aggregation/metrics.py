"""What aggregation says of itself, over all sessions of a node. No label grows with the data."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from prometheus_client import CollectorRegistry, Counter, Gauge

from services.reducer.aggregation.config import SECOND
from services.reducer.aggregation.pane import Pane, Timing
from services.reducer.aggregation.writer import Committed, Writer

_TIMINGS = {Timing.EARLY: "early", Timing.ON_TIME: "on_time", Timing.REVISED: "revised"}


class AggregationMetrics:
    """Items in, panes out, and how far behind the clock event time is."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._items = Counter("aggregation_items", "Items taken in.", registry=registry)
        self._panes = Counter("aggregation_panes", "Panes answered or committed.", ["timing"], registry=registry)
        self._late = Counter(
            "aggregation_late_items",
            "Items that came too late for all their windows, or for some.",
            ["reason"],
            registry=registry,
        )
        self._invalid = Counter("aggregation_invalid_items", "Items that were malformed.", registry=registry)
        self._lag = Gauge(
            "aggregation_watermark_lag_seconds",
            "The clock less the watermark, of the session with a writer that is the farthest behind.",
            registry=registry,
        )
        self._sessions = Gauge("aggregation_sessions", "Sessions with a writer on this node.", registry=registry)
        self._windows = Gauge("aggregation_open_windows", "Windows of these that are not final.", registry=registry)
        self._bytes = Gauge("aggregation_session_bytes", "About what their cells in memory take.", registry=registry)

    def taken_in(self, items: int) -> None:
        """Counts items that came and were counted in memory."""
        self._items.inc(items)

    def committed(self, committed: Committed) -> None:
        """Counts what a commit answered."""
        for pane in (*committed.panes, *committed.early):
            self._count(pane)
        for item in committed.rejected:
            if item.watermark is None:
                self._invalid.inc()
            else:
                self._late.labels("partly_late" if item.counted else "late").inc()

    def observe(self, writers: Callable[[], Collection[Writer]]) -> None:
        """Has the gauges of what the node holds ask `writers` at each scrape."""
        self._lag.set_function(lambda: _lag(writers()))
        self._sessions.set_function(lambda: len(writers()))
        self._windows.set_function(lambda: sum(writer.progress.open_windows for writer in writers()))
        self._bytes.set_function(lambda: sum(writer.size_bytes for writer in writers()))

    def _count(self, pane: Pane) -> None:
        self._panes.labels(_TIMINGS[pane.timing]).inc()


def _lag(writers: Collection[Writer]) -> float:
    marks = [mark for writer in writers if (mark := writer.head.progress.watermark) is not None]
    return time.time() - min(marks) / SECOND if marks else 0.0
