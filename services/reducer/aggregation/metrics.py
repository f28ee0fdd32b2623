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
        self._rejected = Counter(
            "aggregation_late_items",
            "Items that were not counted, or not in all their windows.",
            ["reason"],
            registry=registry,
        )
        self._lag = Gauge(
            "aggregation_watermark_lag_seconds", "The clock less the watermark committed last.", registry=registry
        )
        self._sessions = Gauge("aggregation_sessions", "Sessions with a writer on this node.", registry=registry)
        self._windows = Gauge("aggregation_open_windows", "Windows of these that are not final.", registry=registry)
        self._bytes = Gauge("aggregation_session_bytes", "About what their open cells take.", registry=registry)

    def taken_in(self, items: int) -> None:
        """Counts items that came and were counted in memory."""
        self._items.inc(items)

    def committed(self, committed: Committed) -> None:
        """Counts what a commit answered."""
        for pane in (*committed.panes, *committed.early):
            self._count(pane)
        for item in committed.rejected:
            late = "partly_late" if item.counted else "late"
            self._rejected.labels("invalid" if item.watermark is None else late).inc()
        if committed.watermark is not None:
            self._lag.set(time.time() - committed.watermark / SECOND)

    def observe(self, writers: Callable[[], Collection[Writer]]) -> None:
        """Has the gauges of what the node holds ask `writers` at each scrape."""
        self._sessions.set_function(lambda: len(writers()))
        self._windows.set_function(lambda: sum(writer.progress.open_windows for writer in writers()))
        self._bytes.set_function(lambda: sum(writer.size_bytes for writer in writers()))

    def _count(self, pane: Pane) -> None:
        self._panes.labels(_TIMINGS[pane.timing]).inc()
