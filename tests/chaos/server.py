"""The servers that are harmed: PostgreSQL with its data on disk, and store processes, each between two proxies."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.chassis import child
from services.chassis.child import Child
from services.chassis.cluster import SUPERUSER
from services.chassis.embedded import DATABASE, EmbeddedPostgres, PostgresBusy
from services.chassis.folder import last_lines
from services.chassis.migration import upgrade
from services.chassis.port import LOOPBACK, free_ports
from services.cli.mesh import NodeAddress
from tests.chaos.proxy import Proxy, proxy, to_port, to_socket

START_SECONDS = 60.0
STATEMENT_SECONDS = 2
"""Of the stores under test, for statements and connections: short, so that an answer that was swallowed is soon given up."""
FEED_BYTES = 16 * 1024
"""What a store keeps of the log for its feeds: some thirty commits, so that slow watchers fall behind and read the database."""
POLL_SECONDS = 0.02


class Postgres:
    """PostgreSQL, with fsync on, on the same data over every crash."""

    def __init__(self, folder: Path) -> None:
        self._embedded = EmbeddedPostgres(folder, durable=True)
        self._child: Child | None = None

    @property
    def url(self) -> str:
        """Past every proxy."""
        return self._embedded.url

    @property
    def socket(self) -> str:
        """The path of its unix socket."""
        (folder,), (port,) = (parse_qs(urlsplit(self.url).query)[name] for name in ("host", "port"))
        return f"{folder}/.s.PGSQL.{port}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Started and migrated; stopped at the end."""
        with self._embedded.folder.lock():
            try:
                await asyncio.to_thread(self._embedded.prepare)
                await self.start()
                await asyncio.to_thread(upgrade, self.url)
                yield
            finally:
                await asyncio.to_thread(self._embedded.stop)

    async def start(self) -> None:
        """Returns when it answers, its recovery done."""
        while True:
            self._child = self._embedded.spawn()
            try:
                return await asyncio.to_thread(self._embedded.wait_ready)
            except PostgresBusy:
                await asyncio.sleep(POLL_SECONDS)

    async def kill(self, number: signal.Signals) -> None:
        """SIGQUIT is an immediate shutdown, without a last checkpoint; SIGKILL ends the postmaster alone, its children follow."""
        pid = self._embedded.pid
        assert pid is not None
        assert self._child is not None
        os.kill(pid, number)
        await self._child.ended()


class Store:
    """A store process, at one address over all its lives. Writers reach it through `calls`, it reaches PostgreSQL by `database`."""

    def __init__(self, address: NodeAddress, calls: Proxy, database: Proxy, log: Path) -> None:
        self.calls, self.database = calls, database
        self.target = f"{LOOPBACK}:{calls.port}"
        self._address, self._log = address, log
        self._child: Child | None = None

    async def start(self) -> None:
        """Returns when it serves."""
        with self._log.open("ab") as output:
            self._child = child.spawn(self._address.argv, env={**os.environ, **self._environment}, output=output)
        async with asyncio.timeout(START_SECONDS):
            if not await serving(self._address.target, self._child):
                raise AssertionError(f"the store ended before it served: {last_lines(self._log.read_text())}")

    async def kill(self) -> None:
        """kill -9."""
        self._signal(signal.SIGKILL)
        await self._running.ended()

    def pause(self) -> None:
        """It stands still, its connections open."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """It goes on as if no time had passed."""
        self._signal(signal.SIGCONT)

    async def stop(self) -> int:
        """Its exit status after SIGTERM."""
        return await asyncio.to_thread(self._running.stop, ((signal.SIGTERM, 40.0),))

    @property
    def _environment(self) -> dict[str, str]:
        return {
            **self._address.env,
            "DATABASE_URL": f"postgresql://{SUPERUSER}@{LOOPBACK}:{self.database.port}/{DATABASE}?sslmode=disable",
            "OMNIBRIDGE_STORE__DATABASE__STATEMENT_TIMEOUT": str(STATEMENT_SECONDS),
            "OMNIBRIDGE_STORE__DATABASE__CONNECT_TIMEOUT": str(STATEMENT_SECONDS),
            "OMNIBRIDGE_STORE__DATABASE__PROBE_MAX": "1",
            "OMNIBRIDGE_STORE__FEED__MEMORY_BYTES": str(FEED_BYTES),
        }

    @property
    def _running(self) -> Child:
        assert self._child is not None, "start comes first"
        return self._child

    def _signal(self, number: signal.Signals) -> None:
        self._running.signal(number)


@dataclass(frozen=True, slots=True)
class Servers:
    """All that is harmed."""

    postgres: Postgres
    stores: list[Store]

    @property
    def targets(self) -> str:
        """All stores as one target."""
        return ",".join(store.target for store in self.stores)

    async def connect(self) -> asyncpg.Connection[asyncpg.Record]:
        """A session past every proxy."""
        return await asyncpg.connect(self.postgres.url)


@asynccontextmanager
async def servers(folder: Path, replicas: int) -> AsyncIterator[Servers]:
    """PostgreSQL and stores that serve; stopped at the end, and each store's end is to be clean."""
    ports = iter(free_ports(2 * replicas))
    addresses = [NodeAddress("store", next(ports), next(ports)) for _ in range(replicas)]
    async with AsyncExitStack() as ending:
        postgres = Postgres(folder / "data")
        await ending.enter_async_context(postgres.running())
        stores = []
        for number, address in enumerate(addresses):
            database = await ending.enter_async_context(proxy(to_socket(postgres.socket)))
            calls = await ending.enter_async_context(proxy(to_port(address.port)))
            stores.append(Store(address, calls, database, folder / f"store-{number}.log"))
        await asyncio.gather(*(store.start() for store in stores))
        for store in stores:
            ending.push_async_callback(store.stop)
        yield Servers(postgres, stores)


async def serving(address: str, process: Child) -> bool:
    """True when it serves; False when it has ended."""
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 200))
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]  # its stubs leave the methods out
        while process.status is None:
            try:
                answer = await check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=1)
            except grpc.aio.AioRpcError:
                continue
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return True
            await asyncio.sleep(POLL_SECONDS)
    return False
