"""Puts aggregation together: storage, writers, readers, and the intake of the mesh's own session."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

from prometheus_client import CollectorRegistry

from omninode.bridge.store.v1 import store_pb2_grpc
from services.chassis.feed import FeedMetrics, FeedSettings
from services.chassis.partitions import Partitions, PartitionSettings
from services.reducer.aggregation.contract import Terms
from services.reducer.aggregation.fold import Folds
from services.reducer.aggregation.follower import Follower, ReadingSettings
from services.reducer.aggregation.intake import ROLE, WORK, Intake
from services.reducer.aggregation.metrics import AggregationMetrics
from services.reducer.aggregation.sessions import AggregationSettings, Sessions
from services.reducer.aggregation.storage import Storage


class Aggregating(NamedTuple):
    """What the servicer calls."""

    sessions: Sessions
    follower: Follower


@asynccontextmanager
async def composed(
    stub: store_pb2_grpc.StoreServiceStub,
    terms: Terms,
    folds: Folds,
    settings: AggregationSettings,
    *,
    reading: ReadingSettings,
    feed: FeedSettings,
    partitions: PartitionSettings,
    registry: CollectorRegistry,
) -> AsyncIterator[Aggregating]:
    """Aggregation over a store, with its workers running; ends them in the order in which they need each other."""
    metrics = AggregationMetrics(registry)
    now = asyncio.get_running_loop().time
    async with AsyncExitStack() as ending:
        follower = Follower(stub, folds, reading, feed, FeedMetrics(registry))
        storage = Storage(follower.reader, stub, new_id=uuid.uuid4)
        sessions = Sessions(
            storage,
            folds,
            terms,
            settings,
            metrics,
            subscribe=follower.subscribe,
            new_id=_new_id,
            now=now,
            wall=time.time,
        )
        ending.push_async_callback(sessions.aclose)
        intake = Intake(sessions, storage, stub, terms.workflows, metrics, now=now)
        ending.push_async_callback(intake.aclose)
        owned = Partitions(
            stub,
            role=ROLE,
            work=WORK,
            owner=_new_id(),
            settings=partitions,
            on_acquired=intake.acquire,
            on_lost=intake.lose,
        )
        for worker in (follower, owned):
            worker.start()
            ending.push_async_callback(worker.aclose)
        yield Aggregating(sessions, follower)


def _new_id() -> str:
    return uuid.uuid4().hex
