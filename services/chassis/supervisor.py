"""Runs a mesh on one machine: PostgreSQL and the nodes' processes, started, watched, started again, stopped.

Which nodes there are and how each is called is the caller's. It serves no requests and keeps no state but the data folder's lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIG_IGN, SIGHUP, SIGINT, SIGTERM, getsignal
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.chassis import child
from services.chassis.child import GUARDED, Child
from services.chassis.embedded import EmbeddedPostgres, PostgresBusy, neighbours
from services.chassis.embedded import Report as ReportLine
from services.chassis.folder import DataFolder, Log, MeshError
from services.chassis.keeper import Keeper, Process, Progress, Report, Timing, quoted
from services.chassis.port import LOOPBACK, PortRefused, check_free

T = TypeVar("T")
POSTGRES = "postgres"
CHECK_SECONDS = 1.0
"""Of one health check: a node that hangs is asked anew."""
POLL_SECONDS = 0.05
"""Between two health checks of a node that is up and not serving yet."""
CHANNEL_OPTIONS = (
    # A node that has not bound its port yet is asked again at once, not after gRPC's usual second.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
    # A proxy set for the outside is not asked for this machine.
    ("grpc.enable_http_proxy", 0),
    # Otherwise a channel to the same address elsewhere in this process would share its back-off.
    ("grpc.use_local_subchannel_pool", 1),
)


class NodeFailed(MeshError):
    """A node did not come up."""


class StopAsked(MeshError):
    """A stop was asked for before the mesh was up."""


@dataclass(frozen=True, slots=True)
class NodeProcess:
    """A node's process: `argv` starts with an absolute path, `env` is put over this process's environment."""

    name: str
    argv: tuple[str, ...]
    port: int
    metrics_port: int | None = None
    host: str = LOOPBACK
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        return tuple((self.host, port) for port in (self.port, self.metrics_port) if port is not None)


class Supervisor:
    """`async with` starts everything and leaves when all is healthy; at its end it stops everything, the nodes last started first.

    Raises MeshError when it cannot start: FolderInUse, PortRefused, PostgresFailed, NodeFailed with its last log lines, StopAsked.
    It is to be used in the main thread and takes over SIGINT, SIGTERM and SIGHUP, unless they are ignored: the first asks for a
    stop, the second hastens it.
    """

    def __init__(
        self,
        nodes: Sequence[NodeProcess],
        data: Path,
        *,
        postgres: EmbeddedPostgres | None = None,
        on_database: Callable[[str], Awaitable[None]] | None = None,
        timing: Timing | None = None,
        report: Report = lambda event: None,
        logs_to_terminal: bool = False,
        guarded: bool = GUARDED,
    ) -> None:
        """`postgres`, of the same data folder, is started before the nodes, and they get its DATABASE_URL.

        `on_database` is awaited with that URL once PostgreSQL answers and before any node starts.
        """
        self._nodes, self._folder = tuple(nodes), DataFolder(data)
        self._postgres, self._on_database = postgres, on_database
        self._timing, self._report = timing or Timing(), report
        self._logs_to_terminal, self._guarded = logs_to_terminal, guarded
        addresses = [address for node in nodes for address in node.addresses]
        if postgres is not None and postgres.folder.path != self._folder.path:
            raise ValueError("the supervisor and its PostgreSQL share one data folder")
        if len(set(addresses)) < len(addresses) or len({node.name for node in nodes}) < len(nodes):
            raise ValueError("nodes have different names and ports")
        self._addresses = addresses
        self._keepers: dict[str, Keeper] = {}
        self._keeping: list[asyncio.Task[None]] = []
        self._stop_asked = asyncio.Event()
        self._held = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as undo:
            undo.enter_context(self._folder.lock([port for _, port in self._addresses]))
            self._check_ports()
            undo.enter_context(self._signals())
            undo.push_async_callback(self._stop)
            await self._start_unless_stopped()
            self._keeping = [asyncio.create_task(keeper.keep(), name=name) for name, keeper in self._keepers.items()]
            self._held = undo.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._held.aclose()

    async def wait(self) -> None:
        """Until a signal asks for a stop."""
        async with _task(self._stop_asked.wait()) as asked:
            done, _ = await asyncio.wait({asked, *self._keeping}, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    def pid_of(self, name: str) -> int | None:
        """The pid of a node's process, or of POSTGRES; None between its death and its next start. KeyError for no such name."""
        return self._keepers[name].pid

    def _check_ports(self) -> None:
        try:
            check_free(self._addresses)
        except PortRefused as error:
            for folder in neighbours():
                holder = folder.holder()
                if holder is not None and holder.is_another() and error.port in holder.ports:
                    raise PortRefused(error.host, error.port, f"in use by {holder} of {folder.path}") from error
            raise

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        taken = [number for number in (SIGINT, SIGTERM, SIGHUP) if getsignal(number) != SIG_IGN]
        for number in taken:
            loop.add_signal_handler(number, self._on_signal)
        try:
            yield
        finally:
            for number in taken:
                loop.remove_signal_handler(number)

    def _on_signal(self) -> None:
        if self._stop_asked.is_set():
            for keeper in self._keepers.values():
                keeper.hasten()
        self._stop_asked.set()

    async def _start_unless_stopped(self) -> None:
        async with _task(self._stop_asked.wait()) as asked, _task(self._start()) as start:
            await asyncio.wait({asked, start}, return_when=asyncio.FIRST_COMPLETED)
            if not start.done():
                raise StopAsked("stopped before the mesh was up")
            start.result()

    async def _start(self) -> None:
        if self._postgres is not None:
            await self._start_postgres(self._postgres)
        keepers = {node.name: self._keeper(node) for node in self._nodes}
        self._keepers.update(keepers)
        try:
            async with asyncio.TaskGroup() as group:
                for keeper in keepers.values():
                    group.create_task(keeper.start())
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _stop(self) -> None:
        for task in self._keeping:
            task.cancel()
        await asyncio.gather(*self._keeping, return_exceptions=True)
        for keeper in reversed(self._keepers.values()):
            await keeper.stop()
        if self._postgres is not None:
            await asyncio.to_thread(self._postgres.stop)

    async def _start_postgres(self, postgres: EmbeddedPostgres) -> None:
        await self._in_thread(postgres, postgres.prepare)
        process = Process(
            POSTGRES,
            postgres.spawn,
            lambda _: self._in_thread(postgres, postgres.wait_ready),
            postgres.stop_steps,
            postgres.log,
        )
        keeper = self._keepers[POSTGRES] = Keeper(process, self._timing, self._report)
        while True:
            try:
                await keeper.start()
                break
            except PostgresBusy as error:
                self._report(Progress(POSTGRES, str(error)))
                await asyncio.sleep(self._timing.first_backoff)
        if self._on_database is not None:
            await self._on_database(postgres.url)

    async def _in_thread(self, postgres: EmbeddedPostgres, call: Callable[[ReportLine], None]) -> None:
        """A blocking step of PostgreSQL's; when this is cancelled, the step is made to end first."""
        loop = asyncio.get_running_loop()

        def report(line: str) -> None:
            loop.call_soon_threadsafe(self._report, Progress(POSTGRES, line))

        running = loop.run_in_executor(None, call, report)
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            postgres.halt()
            await asyncio.wait({running})
            # The stop is what ends this start; what the step ended with is of no interest any more, and counts as seen.
            if not running.cancelled():
                running.exception()
            raise

    def _keeper(self, node: NodeProcess) -> Keeper:
        log = self._folder.log(node.name)
        process = Process(
            node.name,
            lambda: self._spawn(node, log),
            lambda running: _ready(node, running, log, self._timing.healthy),
            ((SIGTERM, self._timing.stop),),
            log,
        )
        return Keeper(process, self._timing, self._report)

    def _spawn(self, node: NodeProcess, log: Log) -> Child:
        database = {} if self._postgres is None else {"DATABASE_URL": self._postgres.url}
        with contextlib.ExitStack() as opened:
            return child.spawn(
                node.argv,
                env={**os.environ, **database, **node.env},
                output=None if self._logs_to_terminal else opened.enter_context(log.open()),
                guarded=self._guarded,
            )


async def _ready(node: NodeProcess, running: Child, log: Log, seconds: float) -> None:
    """Wait for the node's first healthy answer; NodeFailed when it ends before that, or `seconds` are over."""
    async with _task(running.ended()) as ended, _task(_serving(f"{node.host}:{node.port}")) as serving:
        await asyncio.wait({ended, serving}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            raise NodeFailed(
                f"{node.name} ended with {child.describe(ended.result())} before it was healthy{quoted(log.last_lines())}"
            )
        if not serving.done():
            raise NodeFailed(
                f"{node.name} was not healthy on port {node.port} within {seconds:g} s{quoted(log.last_lines())}"
            )
        serving.result()


async def _serving(address: str) -> None:
    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]  # its stubs leave the methods out
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                answer = await check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=CHECK_SECONDS)
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return
            await asyncio.sleep(POLL_SECONDS)


@contextlib.asynccontextmanager
async def _task(work: Coroutine[Any, Any, T]) -> AsyncIterator[asyncio.Task[T]]:
    """A task that ends with the block, cancelled if need be."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            # Whoever cares has it by now; an unseen failure would be logged when the task is collected.
            task.exception()
