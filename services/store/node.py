"""The store node as a process: settings, pool, repositories, servicer, serve."""

from __future__ import annotations

import logging
import os
import uuid
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop

from omninode.bridge.store.v1 import store_pb2, store_pb2_grpc
from services.chassis import contracts, settings
from services.chassis.postgres import Database, PostgresSettings
from services.chassis.server import Server, ServerSettings
from services.chassis.telemetry import configure_logging, new_registry
from services.store.domain import Limits, LogSettings
from services.store.repository import Repositories
from services.store.repository.partition import PartitionCountDiffers
from services.store.servicer import StoreServicer

CONTRACT = Path(__file__).with_name("contract.yaml")
_log = logging.getLogger(__name__)
SERVICE = store_pb2.DESCRIPTOR.services_by_name["StoreService"]


class StoreSettings(settings.NodeSettings):
    """What an operator tunes of this node."""

    server: ServerSettings
    database: PostgresSettings
    log: LogSettings
    limits: Limits


async def serve(tuned: StoreSettings) -> None:
    """Serves until SIGTERM; then ends calls, commits and pool in this order, so that nothing acknowledged is lost."""
    registry = new_registry()
    async with AsyncExitStack() as ending:
        database = await Database.open(tuned.database, registry)
        ending.push_async_callback(database.close)
        repositories = Repositories.of(database, tuned.log.partitions)
        ending.push_async_callback(repositories.close)
        await _check_partitions(repositories)
        servicer = StoreServicer(repositories, tuned.limits, uuid.uuid4)
        server = Server(tuned.server, registry)
        server.add(store_pb2_grpc.add_StoreServiceServicer_to_server, servicer, SERVICE)
        await server.run()


async def _check_partitions(repositories: Repositories) -> None:
    """Raises PartitionCountDiffers. A database that cannot be asked now is asked at the first call."""
    try:
        await repositories.partitions.count()
    except PartitionCountDiffers:
        raise
    except Exception as error:
        _log.warning("partitions not known yet: %s", error)


def main() -> int:
    """Runs the node in this process. Raises ContractError, SettingsError, PortInUse, PartitionCountDiffers."""
    tuned = settings.load(StoreSettings, node="store", contract=contracts.load(CONTRACT), environ=os.environ)
    configure_logging("store", tuned.server.log_level)
    uvloop.run(serve(tuned))
    return 0
