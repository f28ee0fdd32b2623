"""The faults: each does its harm at a moment when commits are under way, and mends it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import TypeAlias

from omninode.bridge.store.v1 import store_pb2 as pb
from omninode.bridge.store.v1.store_pb2_grpc import StoreServiceStub
from services.chassis.errors import Aborted, DeadlineExceeded, FailedPrecondition, Unavailable
from tests.chaos.history import History, Outcome
from tests.chaos.server import Servers, Store

PAUSE_SECONDS = 7.0
"""Longer than any lease that a store process takes for its own work (5 s), and than those of the writers."""
STATEMENT_BYTES = 8_000
"""Where a connection is cut: somewhere in the next few statements."""

FELT_SECONDS = 5.0
"""How long a fault waits for a writer that is hurt by it: there is none where all their calls go another way."""

RETRY_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Scene:
    """What a fault has to do with."""

    servers: Servers
    stub: StoreServiceStub
    history: History
    random: Random

    def store(self) -> Store:
        """Any."""
        return self.random.choice(self.servers.stores)


Fault: TypeAlias = Callable[[Scene], Awaitable[None]]


async def kill_store(scene: Scene) -> None:
    """kill -9 of one store process."""
    store = scene.store()
    await store.kill()
    await store.start()


async def kill_every_store(scene: Scene) -> None:
    """kill -9 of all store processes at once."""
    await asyncio.gather(*(store.kill() for store in scene.servers.stores))
    await asyncio.gather(*(store.start() for store in scene.servers.stores))


async def stop_postgres_at_once(scene: Scene) -> None:
    """PostgreSQL's immediate shutdown: no checkpoint, recovery at the next start."""
    await scene.servers.postgres.kill(signal.SIGQUIT)
    await scene.servers.postgres.start()


async def kill_postgres(scene: Scene) -> None:
    """kill -9 of the postmaster."""
    await scene.servers.postgres.kill(signal.SIGKILL)
    await scene.servers.postgres.start()


async def cut_statement(scene: Scene) -> None:
    """The connection from a store to PostgreSQL is cut in mid-statement."""
    await scene.store().database.cut_after(scene.random.randint(1, STATEMENT_BYTES))


async def cut_call(scene: Scene) -> None:
    """The connection from the writers to a store is cut in mid-call."""
    await scene.store().calls.cut_after(scene.random.randint(1, STATEMENT_BYTES))


async def cut_everything(scene: Scene) -> None:
    """All connections are cut at once."""
    for store in scene.servers.stores:
        store.database.cut()
        store.calls.cut()


async def swallow_statement(scene: Scene) -> None:
    """PostgreSQL commits and its answers are lost, until a writer gives one up."""
    async with scene.store().database.swallowing() as lost:
        await lost.wait()
        await _felt(scene)


async def swallow_answer(scene: Scene) -> None:
    """A store commits and its answers are lost, until a writer gives one up."""
    async with scene.store().calls.swallowing() as lost:
        await lost.wait()
        await _felt(scene)


async def stall_statement(scene: Scene) -> None:
    """Nothing passes between a store and PostgreSQL until a writer gives up, and then all that waited."""
    async with scene.store().database.stalled():
        await _felt(scene)


async def stall_call(scene: Scene) -> None:
    """Nothing passes between the writers and a store until one gives up, and then all that waited."""
    async with scene.store().calls.stalled():
        await _felt(scene)


async def pause_store(scene: Scene) -> None:
    """A store process stands still beyond its leases, and goes on."""
    store = scene.store()
    store.pause()
    try:
        # What ends meanwhile ends by the database's clock: there is nothing else to wait for.
        await asyncio.sleep(PAUSE_SECONDS)
    finally:
        store.resume()


async def rebuild_projections(scene: Scene) -> None:
    """All projections are built anew, a store is killed meanwhile, and they are built anew to the end."""
    building = asyncio.ensure_future(_rebuild(scene.stub))
    await kill_store(scene)
    while not await building:
        building = asyncio.ensure_future(_rebuild(scene.stub))


async def _rebuild(stub: StoreServiceStub) -> bool:
    """Whether it came to its end."""
    phase = pb.REBUILD_PHASE_UNSPECIFIED
    try:
        async for progress in stub.RebuildProjection(pb.RebuildProjectionRequest()):
            phase = progress.phase
    except (Aborted, FailedPrecondition, Unavailable, DeadlineExceeded):
        # The store was killed, or the lease of the rebuild that ended with it has not ended yet.
        await asyncio.sleep(RETRY_SECONDS)
    return phase == pb.REBUILD_PHASE_DONE


async def _felt(scene: Scene) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(FELT_SECONDS):
            await scene.history.more(Outcome.UNKNOWN, 1)
