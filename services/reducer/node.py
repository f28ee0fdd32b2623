"""The reducer node as a process: settings, channel to the store, folder, servicer, serve."""

from __future__ import annotations

import os
import random
import uuid
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop

from omninode.bridge.reducer.v1 import reducer_pb2, reducer_pb2_grpc
from omninode.bridge.store.v1.store_pb2_grpc import StoreServiceStub
from services.chassis import contracts, settings
from services.chassis.client import connect
from services.chassis.contracts import Contract, ContractError, SubcontractKind
from services.chassis.partitions import PartitionSettings
from services.chassis.server import Server, ServerSettings
from services.chassis.telemetry import configure_logging, new_registry
from services.reducer import fsm
from services.reducer.aggregation import contract as aggregation
from services.reducer.aggregation.composition import composed
from services.reducer.aggregation.contract import AggregationContractError, Terms
from services.reducer.aggregation.fold import Folds
from services.reducer.aggregation.follower import PaneFeedSettings, ReadingSettings
from services.reducer.aggregation.sessions import AggregationSettings
from services.reducer.domain import Limits, Reducers
from services.reducer.entry_point import folds, registered
from services.reducer.folding import Folder, FoldingMetrics, FoldingSettings
from services.reducer.machine import Machine
from services.reducer.servicer import ReducerServicer
from services.reducer.store import Store, StoreSettings

CONTRACT = Path(__file__).with_name("contract.yaml")
SERVICE = reducer_pb2.DESCRIPTOR.services_by_name["ReducerService"]


class ReducerSettings(settings.NodeSettings):
    """What an operator tunes of this node."""

    server: ServerSettings
    store: StoreSettings
    folding: FoldingSettings
    limits: Limits
    aggregation: AggregationSettings
    reading: ReadingSettings
    feed: PaneFeedSettings
    partitions: PartitionSettings


def machine_of(contract: Contract) -> Machine:
    """The contract's state machine. Raises ContractError."""
    found = contract.subcontracts
    for kind in (SubcontractKind.FSM, SubcontractKind.STATE_MANAGEMENT):
        if kind not in found:
            raise ContractError(contract.place(), f"{kind}: must be there")
    try:
        return fsm.read(found[SubcontractKind.FSM], found[SubcontractKind.STATE_MANAGEMENT])
    except fsm.MachineError as error:
        raise ContractError(contract.place(*error.location), str(error)) from error


def terms_of(contract: Contract) -> Terms:
    """What the contract says of aggregation. Raises ContractError."""
    found = contract.subcontracts
    for kind in (SubcontractKind.AGGREGATION, SubcontractKind.CACHING):
        if kind not in found:
            raise ContractError(contract.place(), f"{kind}: must be there")
    sessions = found[SubcontractKind.STATE_MANAGEMENT].get("sessions", {})
    try:
        return aggregation.read(found[SubcontractKind.AGGREGATION], sessions, found[SubcontractKind.CACHING])
    except AggregationContractError as error:
        raise ContractError(contract.place(*error.location), str(error)) from error


async def serve(tuned: ReducerSettings, reducers: Reducers, folds: Folds, terms: Terms) -> None:
    """Serves until SIGTERM; then ends calls, folds and commits in this order, so that nothing that waits is lost."""
    registry = new_registry()
    async with AsyncExitStack() as ending:
        channel = await ending.enter_async_context(connect(tuned.store.target, tuned.store))
        stub = StoreServiceStub(channel)
        store = Store(stub, tuned.folding.waiting_actions)
        ending.push_async_callback(store.aclose)
        folder = Folder(
            reducers, store, tuned.folding, FoldingMetrics(registry), owner=uuid.uuid4().hex, draw=random.random
        )
        ending.push_async_callback(folder.aclose)
        sessions, follower = await ending.enter_async_context(
            composed(
                stub,
                terms,
                folds,
                tuned.aggregation,
                reading=tuned.reading,
                feed=tuned.feed,
                partitions=tuned.partitions,
                registry=registry,
            )
        )
        server = Server(tuned.server, registry)
        servicer = ReducerServicer(reducers, folder, tuned.limits, sessions=sessions, follower=follower)
        server.add(reducer_pb2_grpc.add_ReducerServiceServicer_to_server, servicer, SERVICE)
        server.on_stop(sessions.drain)
        await server.run()


def main() -> int:
    """Runs the node in this process. Raises ContractError, SettingsError, EntryPointError, PortInUse, InvalidTarget."""
    contract = contracts.load(CONTRACT)
    tuned = settings.load(ReducerSettings, node="reducer", contract=contract, environ=os.environ)
    reducers, custom, terms = registered([machine_of(contract)]), folds(), terms_of(contract)
    configure_logging("reducer", tuned.server.log_level)
    uvloop.run(serve(tuned, reducers, custom, terms))
    return 0
