"""The store's feeds together: commits, the outbox, leases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from prometheus_client import CollectorRegistry

from services.chassis.feed import Feed, FeedMetrics, FeedSettings
from services.store.domain import LeaseEvent, LoggedAction
from services.store.repository import Repositories
from services.store.view import mark_outbox


@dataclass(frozen=True, slots=True)
class Feeds:
    """What the store shows to who watches. The outbox is the same log as the commits, with a beginning of its own."""

    commits: Feed[LoggedAction]
    outbox: Feed[LoggedAction]
    leases: Feed[LeaseEvent]

    @classmethod
    def of(cls, repositories: Repositories, settings: FeedSettings, registry: CollectorRegistry) -> Self:
        """The feeds of one database."""
        metrics = FeedMetrics(registry)
        return cls(
            Feed("commits", repositories.log, settings, metrics),
            Feed("outbox", repositories.outbox_log, settings, metrics, mark=mark_outbox),
            Feed("leases", repositories.lease_log, settings, metrics),
        )

    def start(self) -> None:
        """Begins to follow."""
        for feed in (self.commits, self.outbox, self.leases):
            feed.start()

    async def aclose(self) -> None:
        """Stops following."""
        for feed in (self.commits, self.outbox, self.leases):
            await feed.aclose()
