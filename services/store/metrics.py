"""What the store says of its commits and reads, under the names of the earlier bridge. No label grows with the data."""

from __future__ import annotations

import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram

from services.store.domain import Committed, Conflict, Duplicate


class CommitMetrics:
    """Commits by what became of them, and how long their callers waited."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._commits = Counter("canonical_store_state_commits", "States committed.", registry=registry)
        self._conflicts = Counter(
            "canonical_store_state_conflicts", "Commits that met another version than they expected.", registry=registry
        )
        self._duplicates = Counter(
            "action_dedup_hits", "Commits of an action that was committed before.", registry=registry
        )
        self._milliseconds = Histogram(
            "canonical_store_commit_latency_ms",
            "From a call's arrival to its outcome; a batch counts once.",
            buckets=(1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000),
            registry=registry,
        )

    def ended(self, began: float, outcomes: Iterable[object]) -> None:
        """Counts a call that began at `began`, by time.perf_counter, and ended now."""
        for outcome in outcomes:
            match outcome:
                case Committed():
                    self._commits.inc()
                case Conflict():
                    self._conflicts.inc()
                case Duplicate():
                    self._duplicates.inc()
        self._milliseconds.observe((time.perf_counter() - began) * 1000)


class StateMetrics:
    """Reads of states."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.reads = Counter("canonical_store_get_state", "States asked for.", registry=registry)
