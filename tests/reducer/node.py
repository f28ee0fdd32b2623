"""The reducer node in this process: its real servicer, its real folder, real sockets, and a store that a test gives."""

from __future__ import annotations

import random
import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from prometheus_client import CollectorRegistry

from omninode.bridge.reducer.v1 import reducer_pb2, reducer_pb2_grpc
from omninode.bridge.reducer.v1.reducer_pb2_grpc import ReducerServiceStub
from omninode.bridge.store.v1.store_pb2_grpc import StoreServiceStub
from services.chassis import contracts
from services.chassis.client import ClientSettings, connect
from services.chassis.server import Server, ServerSettings
from services.reducer.domain import Limits, Reducer, Reducers
from services.reducer.folding import Folder, FoldingMetrics, FoldingSettings
from services.reducer.machine import Machine
from services.reducer.node import CONTRACT, machine_of
from services.reducer.servicer import FoldingServicer
from services.reducer.store import Store

SERVICE = reducer_pb2.DESCRIPTOR.services_by_name["ReducerService"]
QUICK = FoldingSettings(attempts=5, backoff_initial=0.001, backoff_max=0.002)
"""Waits that a test need not feel."""


def stamping_workflow() -> Machine:
    """The machine of the node's own contract."""
    return machine_of(contracts.load(CONTRACT))


def folding_servicer(reducers: Reducers, folder: Folder, limits: Limits) -> FoldingServicer:
    """Answers Reduce and BatchReduce alone: aggregation is none of what these tests call, and has tests of its own."""
    return FoldingServicer(reducers, folder, limits)  # type: ignore[abstract]  # the methods that it lacks are UNIMPLEMENTED


@asynccontextmanager
async def folder_over(
    stub: Any,
    settings: FoldingSettings = QUICK,
    registry: CollectorRegistry | None = None,
    reducers: Iterable[Reducer] | None = None,
    **options: Any,
) -> AsyncIterator[Folder]:
    """A folder of the contract's reducers, or of those given, over a stub of the store, or what stands in its way."""
    store = Store(stub, settings.waiting_actions)
    metrics = FoldingMetrics(registry or CollectorRegistry())
    folder = Folder(
        Reducers(reducers or [stamping_workflow()]),
        store,
        settings,
        metrics,
        **{"owner": uuid.uuid4().hex, "draw": random.Random(1).random, **options},
    )
    try:
        yield folder
    finally:
        await folder.aclose()
        await store.aclose()


@asynccontextmanager
async def reducer_node(
    store_target: str, settings: FoldingSettings = QUICK, limits: Limits | None = None
) -> AsyncIterator[str]:
    """A started node over the store; yields its target."""
    async with (
        connect(store_target, ClientSettings(attempts=1)) as channel,
        folder_over(StoreServiceStub(channel), settings) as folder,
    ):
        server = Server(ServerSettings(drain_notice_seconds=0, drain_seconds=5), CollectorRegistry())
        servicer = folding_servicer(Reducers([stamping_workflow()]), folder, limits or Limits())
        server.add(reducer_pb2_grpc.add_ReducerServiceServicer_to_server, servicer, SERVICE)
        await server.start()
        try:
            yield f"127.0.0.1:{server.port}"
        finally:
            await server.stop()


@asynccontextmanager
async def reducer_stub(
    store_target: str, settings: FoldingSettings = QUICK, limits: Limits | None = None
) -> AsyncIterator[ReducerServiceStub]:
    """A stub of a node over the store, through the chassis' own channel."""
    async with (
        reducer_node(store_target, settings, limits) as target,
        connect(target, ClientSettings(attempts=1)) as channel,
    ):
        yield ReducerServiceStub(channel)
