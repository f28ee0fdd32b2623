"""The store's contract over gRPC: messages to the domain's values, the domain's answers to messages. No SQL, no rules.

A module for each thing that the store keeps; StoreServicer is all of them together.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable

from prometheus_client import CollectorRegistry

from services.store.domain import Limits
from services.store.feeds import Feeds
from services.store.metrics import CommitMetrics, StateMetrics
from services.store.reader import ProjectionReader
from services.store.rebuild import Rebuilder
from services.store.repository import Repositories
from services.store.retention import RetentionSettings
from services.store.servicer.blob import BlobServicer
from services.store.servicer.commit import CommitServicer
from services.store.servicer.lease import LeaseServicer
from services.store.servicer.outbox import OutboxServicer
from services.store.servicer.projection import ProjectionServicer
from services.store.servicer.retention import RetentionServicer
from services.store.servicer.state import StateServicer

__all__ = ["StoreServicer"]


class StoreServicer(
    CommitServicer, StateServicer, ProjectionServicer, OutboxServicer, BlobServicer, LeaseServicer, RetentionServicer
):
    """Answers the store's contract from one database; `new_id` gives the ids of uploads."""

    def __init__(
        self,
        repositories: Repositories,
        *,
        feeds: Feeds,
        reader: ProjectionReader,
        rebuilder: Rebuilder,
        limits: Limits,
        retention: RetentionSettings,
        new_id: Callable[[], uuid.UUID],
        registry: CollectorRegistry,
    ) -> None:
        CommitServicer.__init__(self, repositories.commits, feeds.commits, limits, CommitMetrics(registry))
        StateServicer.__init__(
            self, repositories.states, repositories.history, repositories.partitions, limits, StateMetrics(registry)
        )
        ProjectionServicer.__init__(self, repositories.projections, reader, rebuilder, limits)
        OutboxServicer.__init__(self, repositories.appends, repositories.outbox, feeds.outbox, limits)
        BlobServicer.__init__(self, repositories.blobs, limits, new_id)
        LeaseServicer.__init__(self, repositories.leases, feeds.leases)
        RetentionServicer.__init__(self, repositories.retention.previews, retention)
