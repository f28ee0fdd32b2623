"""The orchestrator node as a process: settings, channels, peer, runner, partitions, servicer, serve."""

from __future__ import annotations

import os
import time
import uuid
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop
from pydantic import Field, ValidationError

from omninode.bridge.orchestrator.v1 import orchestrator_pb2, orchestrator_pb2_grpc
from omninode.bridge.reducer.v1.reducer_pb2_grpc import ReducerServiceStub
from omninode.bridge.stamping.v1.stamping_pb2_grpc import StampingServiceStub
from omninode.bridge.store.v1.store_pb2_grpc import StoreServiceStub
from services.chassis import contracts, settings
from services.chassis.client import ClientSettings, connect
from services.chassis.contracts import Contract, ContractError, SubcontractKind
from services.chassis.partitions import Partitions, PartitionSettings
from services.chassis.routing import routed
from services.chassis.server import Server, ServerSettings
from services.chassis.telemetry import configure_logging, new_registry
from services.orchestrator.domain import Coordination, Limits
from services.orchestrator.peer import MessageSettings, Peer, ReducerReplica
from services.orchestrator.runner import ROLE, WORK, Runner, RunnerSettings
from services.orchestrator.servicer import OrchestratorServicer

CONTRACT = Path(__file__).with_name("contract.yaml")
SERVICE = orchestrator_pb2.DESCRIPTOR.services_by_name["OrchestratorService"]


class PeerNode(ClientSettings):
    """Where another node is, and how it is called."""

    target: str = Field(min_length=1)
    """One `host:port` or `dns:///name:port`, or several IP addresses with ports, separated by commas. Of several reducers each key
    has its own while it is there; to other nodes calls go round robin."""


class OrchestratorSettings(settings.NodeSettings):
    """What an operator tunes of this node."""

    server: ServerSettings
    stamping: PeerNode
    reducer: PeerNode
    store: PeerNode
    limits: Limits
    messages: MessageSettings
    runner: RunnerSettings
    partitions: PartitionSettings


async def serve(tuned: OrchestratorSettings, coordination: Coordination) -> None:
    """Serves until SIGTERM; then ends calls, leases, runs and channels in this order: what is left is another replica's."""
    registry = new_registry()
    owner = str(uuid.uuid4())
    async with AsyncExitStack() as ending:
        stamping, store_channel = [
            await ending.enter_async_context(connect(node.target, node)) for node in (tuned.stamping, tuned.store)
        ]
        reducers = await ending.enter_async_context(
            routed(
                tuned.reducer.target,
                tuned.reducer,
                lambda channel: ReducerReplica(ReducerServiceStub(channel), tuned.messages),
            )
        )
        store = StoreServiceStub(store_channel)
        peer = Peer(
            stamping=StampingServiceStub(stamping),
            reducers=reducers,
            store=store,
            settings=tuned.messages,
            actor=f"{ROLE}/{owner}",
            now=time.time_ns,
        )
        ending.push_async_callback(peer.aclose)
        runner = Runner(peer, coordination, tuned.runner)
        ending.push_async_callback(runner.aclose)
        partitions = Partitions(
            store,
            role=ROLE,
            work=WORK,
            owner=owner,
            settings=tuned.partitions,
            on_acquired=runner.acquire,
            on_lost=runner.lose,
        )
        ending.push_async_callback(partitions.aclose)
        server = Server(tuned.server, registry)
        servicer = OrchestratorServicer(peer, runner, tuned.limits)
        server.add(orchestrator_pb2_grpc.add_OrchestratorServiceServicer_to_server, servicer, SERVICE)
        runner.start()
        partitions.start()
        await server.run()


def coordination_of(contract: Contract) -> Coordination:
    """The contract's workflow_coordination subcontract. Raises ContractError."""
    kind = SubcontractKind.WORKFLOW_COORDINATION
    try:
        return Coordination.model_validate(contract.subcontracts.get(kind, {}))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        location = (kind, *first["loc"])
        raise ContractError(contract.place(*location), f"{'.'.join(map(str, location))}: {first['msg']}") from None


def main() -> int:
    """Runs the node in this process. Raises ContractError, SettingsError, InvalidTarget, PortInUse."""
    contract = contracts.load(CONTRACT)
    tuned = settings.load(OrchestratorSettings, node="orchestrator", contract=contract, environ=os.environ)
    coordination = coordination_of(contract)
    configure_logging("orchestrator", tuned.server.log_level)
    uvloop.run(serve(tuned, coordination))
    return 0
