"""The mesh's own session: intents of a real store's outbox, counted once each, whoever holds their partition."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from omninode.bridge.reducer.v1 import aggregation_pb2 as pb
from omninode.bridge.store.v1 import store_pb2
from omninode.bridge.store.v1.store_pb2_grpc import StoreServiceStub
from services.chassis.partitions import PartitionSettings
from services.reducer.aggregation.composition import composed
from services.reducer.aggregation.fold import Folds
from services.reducer.aggregation.follower import Follower, PaneFeedSettings, ReadingSettings
from services.reducer.aggregation.intake import CONSUMER
from services.reducer.aggregation.sessions import AggregationSettings
from services.reducer.aggregation.view import to_view
from tests.reducer.aggregation.writing import terms_of
from tests.store.node import store_stub

IN_ALL = pb.PaneFilter(strategies=[pb.AGGREGATION_STRATEGY_TIME_WINDOW])


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[StoreServiceStub]:
    async with store_stub(database_url) as stub:
        yield stub


@asynccontextmanager
async def reducer(store: StoreServiceStub) -> AsyncIterator[Follower]:
    """A reducer's aggregation that counts at once, and the readers of it."""
    terms = terms_of()
    async with composed(
        store,
        replace(terms, workflows=replace(terms.workflows, max_wait=0, retention=10**15)),
        Folds(),
        AggregationSettings(),
        reading=ReadingSettings(),
        feed=PaneFeedSettings(),
        partitions=PartitionSettings(ttl_seconds=1.5, margin_seconds=0.3, retry_seconds=0.1),
        registry=CollectorRegistry(),
    ) as (_, follower):
        yield follower


async def end(store: StoreServiceStub, request_id: str, *payloads: dict[str, Any]) -> None:
    """Appends the intents of workflows that have ended, spread over the partitions."""
    events = [
        store_pb2.Event(
            kind=store_pb2.EVENT_KIND_INTENT,
            event_type="update_aggregate",
            topic="aggregate",
            partition_key=f"{request_id}-{number}",
            payload_json=json.dumps(payload),
        )
        for number, payload in enumerate(payloads)
    ]
    await store.AppendEvents(store_pb2.AppendEventsRequest(request_id=request_id, events=events))


async def counted(follower: Follower, wanted: int) -> dict[str, int]:
    """Waits until so many workflows are counted in all; by namespace."""
    counts: dict[tuple[int, str], int] = {}
    async with asyncio.timeout(20):
        async for raw in follower.watch(to_view("workflows", IN_ALL), "", from_beginning=False):
            for pane in pb.WatchAggregatesResponse.FromString(raw).items:
                counts[pane.window_start_time.seconds, pane.namespace] = pane.count
            if sum(counts.values()) >= wanted:
                break
    by_namespace: dict[str, int] = {}
    for (_, namespace), count in counts.items():
        by_namespace[namespace] = by_namespace.get(namespace, 0) + count
    return by_namespace


async def test_workflows_are_counted_once_by_whichever_reducers_there_are(store: StoreServiceStub) -> None:
    docs = {"namespace": "docs", "size_bytes": "7", "content_type": "text/plain", "state": "COMPLETED"}
    await end(store, "before", *[docs] * 30)
    async with reducer(store) as follower:
        assert await counted(follower, 30) == {"docs": 30}
        async with reducer(store):
            await end(store, "meanwhile", *[docs | {"namespace": "code"}] * 30)
            assert await counted(follower, 60) == {"docs": 30, "code": 30}
    async with reducer(store) as follower:
        await end(store, "after", docs)
        assert await counted(follower, 61) == {"docs": 31, "code": 30}
        table = await follower.current("workflows")
        assert table.session is not None
        assert table.session.progress.item_count == 61


async def test_an_intent_that_says_nothing_of_use_is_counted_and_stops_nobody(store: StoreServiceStub) -> None:
    async with reducer(store) as follower:
        await end(store, "odd", {}, {"namespace": 5, "size_bytes": -3}, {"size_bytes": "9" * 40, "state": ["x"]})
        assert await counted(follower, 3) == {"": 3}


async def test_what_is_counted_is_acknowledged(store: StoreServiceStub) -> None:
    async with reducer(store) as follower:
        await end(store, "some", *[{"namespace": "docs"}] * 30)
        await counted(follower, 30)
        async with asyncio.timeout(10):
            while True:
                (consumer,) = (await store.ListConsumers(store_pb2.ListConsumersRequest())).consumers
                if not consumer.lag:
                    break
        assert consumer.consumer == CONSUMER
