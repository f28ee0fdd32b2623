"""Connections to PostgreSQL and the translation of its errors: the one place of both.

Every statement of a node passes here: breaker, then a slot of the pool, then the connection, then the translation of what went
wrong. SQL lives in each node's repository, which also turns a `ConstraintViolated` into its domain's word. The breaker's own rules
are in `breaker`.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Annotated, Any, TypeAlias

import asyncpg
from asyncpg.pool import PoolConnectionProxy
from prometheus_client import CollectorRegistry, Counter, Gauge
from pydantic import BaseModel, ConfigDict, Field

from services.chassis.breaker import Breaker, BreakerState
from services.chassis.postgres_error import (
    ConstraintViolated,
    DatabaseUnavailable,
    PoolExhausted,
    StatementTimeout,
    TransactionConflict,
    is_outage,
)
from services.chassis.settings import SharedVariable

Record: TypeAlias = asyncpg.Record
Connection: TypeAlias = "PoolConnectionProxy[asyncpg.Record]"

logger = logging.getLogger(__name__)


class PostgresSettings(BaseModel):
    """How a node meets PostgreSQL. Times in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    url: Annotated[str, SharedVariable("DATABASE_URL")] = Field(pattern=r"^postgres(ql)?://", repr=False)
    """As libpq reads it; a unix socket by `?host=/folder`. Kept out of every repr: it may hold a password."""
    application_name: str = "omnibridge"
    """What pg_stat_activity shows; a node puts its own name here."""
    pool_max: int = Field(default=8, gt=0)
    """Connections of one process. Coalesced writes need one or two, reads the rest; the pools of the seven nodes, 56 in all, leave
    room for listeners, probes and migrations below PostgreSQL's default of 100."""
    acquire_timeout: float = Field(default=5.0, gt=0)
    """How long a call waits for a connection while all are busy: below the usual deadline, so that its caller still hears why."""
    connect_timeout: float = Field(default=5.0, gt=0)
    """For making a connection, and for the answer to a cancellation. On a local network it takes milliseconds; more means that
    nobody is there."""
    statement_timeout: float = Field(default=10.0, gt=0)
    """PostgreSQL ends a statement after it. The largest batch takes tens of milliseconds; what runs longer waits on a lock."""
    close_timeout: float = Field(default=5.0, gt=0)
    """How long a stop waits for connections in use before it cuts them."""
    warn_ratio: float = Field(default=0.9, gt=0, le=1)
    """The share of the pool in use that counts as near exhaustion."""
    warn_interval: float = Field(default=60.0, ge=0)
    """At most one log line of near exhaustion in this time; the counter counts every one."""
    breaker_threshold: int = Field(default=5, gt=0)
    """Connection-class errors in a row that open the breaker. Fewer would open it when a proxy's restart cuts a few connections;
    more would only make more callers wait for a server that is away."""
    probe_initial: float = Field(default=0.5, gt=0)
    """From the opening to the first probe: about the time that PostgreSQL's restart takes."""
    probe_max: float = Field(default=60.0, gt=0)
    """Probes back off up to this: a database that is away for long is not asked more often than once a minute."""


def _is_lost(connection: Connection) -> bool:
    try:
        return connection.is_closed()
    except asyncpg.InterfaceError:  # taken back by the pool already, which it does when the connection breaks
        return True


async def _keep_session(_connection: object) -> None:
    """Instead of asyncpg's reset, a round trip of RESET ALL, UNLISTEN and unlocking at every release.

    Nothing here leaves a session different from how it was found: settings are SET LOCAL, advisory locks are the transaction's,
    listeners have connections of their own. asyncpg itself still rolls back a transaction that was left open.
    """


class Database:
    """A node's connections to one PostgreSQL.

    It opens without PostgreSQL: connections are made when they are needed, kept while they are used, and none is held in reserve
    (asyncpg would retry to restore that reserve on its own, past the breaker).

    Errors that leave `connection`, `transaction` or a short-cut:
    DatabaseUnavailable (`breaker` in the metadata; while it is open the client is told not to retry by itself), PoolExhausted
    (`pool_size`), StatementTimeout, TransactionConflict, ConstraintViolated. Everything else is a bug and passes unchanged. Inside
    the scope asyncpg's own exceptions are seen. A TimeoutError that leaves the scope counts as PostgreSQL's silence: a caller's
    own `asyncio.timeout` belongs around the scope.

    The breaker counts each scope once, by what left it; a scope that ended on a live connection was answered. A cancelled caller
    counts neither way, unless PostgreSQL did not even confirm that it stopped the statement.
    """

    def __init__(
        self,
        settings: PostgresSettings,
        registry: CollectorRegistry,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._sleep = sleep
        self._connect_arguments: dict[str, Any] = {
            "dsn": settings.url,
            "timeout": settings.connect_timeout,
            "command_timeout": settings.statement_timeout + settings.connect_timeout,
            "server_settings": {
                "application_name": settings.application_name,
                # A statement is planned once and for all: planning a commit takes twice as long as doing it. Its tables are small
                # then, and a small table is best read whole; that plan would read a grown one whole for every call. Every
                # statement of a node has an index to go by.
                "plan_cache_mode": "force_generic_plan",
                "enable_seqscan": "off",
                "statement_timeout": str(math.ceil(settings.statement_timeout * 1000)),
            },
        }
        self._pool = asyncpg.create_pool(
            min_size=0, max_size=settings.pool_max, reset=_keep_session, **self._connect_arguments
        )
        # asyncpg would wait for a connection and make one under one timeout; who waits here first never waits there.
        self._slots = asyncio.Semaphore(settings.pool_max)
        self._in_use = 0
        self._waiting = 0
        # Rounded first: 0.7 * 10 is 7.000000000000001.
        self._warn_at = math.ceil(round(settings.warn_ratio * settings.pool_max, 6))
        self._near_exhaustion = False
        self._warned_at = -math.inf
        self._breaker = Breaker(
            threshold=settings.breaker_threshold,
            probe_initial=settings.probe_initial,
            probe_max=settings.probe_max,
            clock=clock,
            on_change=self._breaker_changed,
        )
        self._probing: asyncio.Task[None] | None = None
        self._closing = False
        self._warnings = Counter(
            "pool_exhaustion_warnings", "Times that the pool came near exhaustion.", registry=registry
        )
        self._transitions = Counter(
            "postgres_breaker_transitions", "The breaker's new states.", ["state"], registry=registry
        )
        self._errors = Counter(
            "postgres_errors", "Uses of a connection that failed, by what failed.", ["kind"], registry=registry
        )
        self._publish_gauges(registry)

    @classmethod
    async def open(
        cls,
        settings: PostgresSettings,
        registry: CollectorRegistry,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> Database:
        """A pool over `settings.url`, with its figures in `registry`. PostgreSQL need not be up."""
        database = cls(settings, registry, clock, sleep)
        await database._pool
        return database

    async def close(self) -> None:
        """Wait for the connections in use, for `close_timeout` at most, and close all."""
        self._closing = True
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.wait([self._probing])
        try:
            async with asyncio.timeout(self._settings.close_timeout):
                await self._pool.close()
        except TimeoutError:
            logger.warning("connections still in use were cut at the stop", extra={"in_use": self._in_use})

    def connection(self) -> ConnectionScope:
        """`async with`: a connection of the pool, for several statements."""
        return ConnectionScope(self)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A connection in a transaction (READ COMMITTED): committed at the end, rolled back on an exception."""
        async with self.connection() as connection, connection.transaction():
            yield connection

    async def fetch(self, query: str, *args: object) -> list[Record]:
        """One statement, all its rows."""
        async with self.connection() as connection:
            return await connection.fetch(query, *args)

    async def fetchrow(self, query: str, *args: object) -> Record | None:
        """One statement, its first row or None."""
        async with self.connection() as connection:
            return await connection.fetchrow(query, *args)

    async def fetchval(self, query: str, *args: object) -> Any:
        """One statement, the first column of its first row, or None."""
        async with self.connection() as connection:
            return await connection.fetchval(query, *args)

    async def execute(self, query: str, *args: object) -> str:
        """One statement, its status, such as `INSERT 0 1`."""
        async with self.connection() as connection:
            return await connection.execute(query, *args)

    async def _acquire(self) -> tuple[int, Connection]:
        if not self._breaker.admits:
            raise self._refused()
        await self._take_slot()
        permit = self._breaker.admit()
        if permit is None:
            self._free_slot()
            raise self._refused()
        try:
            connection: Connection = await self._pool.acquire()
        except Exception as error:
            self._free_slot()
            translated = self._judge(permit, error, lost=True)
            if translated is error:
                raise
            raise translated from error
        except BaseException:
            self._free_slot()
            self._breaker.abandoned(permit)
            raise
        return permit, connection

    async def _release(self, permit: int, connection: Connection, error: BaseException | None) -> None:
        """Give the connection back; raises what `error` means to the caller, where that is not `error` itself."""
        translated: BaseException | None = error
        if error is None:
            self._breaker.succeeded(permit)
        elif isinstance(error, Exception):
            translated = self._judge(permit, error, lost=_is_lost(connection))
        silent = False
        try:
            # Where the caller went away in mid-statement, this waits for PostgreSQL to confirm the statement's cancellation.
            await self._pool.release(connection, timeout=self._settings.connect_timeout)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as failure:
            # What the caller did is done and answered; asyncpg has thrown this connection away and makes another.
            silent = isinstance(failure, TimeoutError)
            logger.debug("a connection could not be given back", exc_info=True)
        finally:
            self._free_slot()
            if error is not None and not isinstance(error, Exception):
                self._left(permit, silent=silent)
        if translated is not None and translated is not error:
            raise translated from error

    def _left(self, permit: int, *, silent: bool) -> None:
        """The caller went away: no blame, unless nobody confirmed its statement's end; else short deadlines would hide an outage.

        On a live server a cancellation can overtake its statement and be lost, but the next success takes that blame away.
        """
        if silent:
            self._errors.labels("unavailable").inc()
            self._breaker.failed(permit)
        else:
            self._breaker.abandoned(permit)

    async def _take_slot(self) -> None:
        if self._slots.locked():
            self._waiting += 1
            try:
                async with asyncio.timeout(self._settings.acquire_timeout):
                    await self._slots.acquire()
            except TimeoutError:
                self._errors.labels("pool_exhausted").inc()
                raise self._exhausted() from None
            finally:
                self._waiting -= 1
        else:
            await self._slots.acquire()
        self._in_use += 1
        if self._in_use >= self._warn_at and not self._near_exhaustion:
            self._warn()

    def _free_slot(self) -> None:
        self._in_use -= 1
        # Well below the mark, not at it: a busy pool would cross that at every statement.
        if self._in_use * 2 <= self._warn_at:
            self._near_exhaustion = False
        self._slots.release()

    def _warn(self) -> None:
        self._near_exhaustion = True
        self._warnings.inc()
        now = self._clock()
        if now - self._warned_at >= self._settings.warn_interval:
            self._warned_at = now
            logger.warning(
                "the connection pool is near exhaustion",
                extra={"in_use": self._in_use, "pool_size": self._settings.pool_max, "waiting": self._waiting},
            )

    def _judge(self, permit: int, error: Exception, *, lost: bool) -> Exception:
        """Tell the breaker how the use ended, and return what the caller is to see: a translation or `error` itself."""
        if is_outage(error, lost=lost):
            self._breaker.failed(permit)
            self._errors.labels("unavailable").inc()
            return self._unavailable()
        if isinstance(error, asyncpg.PostgresError) or not lost:
            self._breaker.succeeded(permit)
        else:
            self._breaker.abandoned(permit)
        return self._translate(error)

    def _translate(self, error: Exception) -> Exception:
        translated: Exception
        match error:
            case (
                asyncpg.UniqueViolationError()
                | asyncpg.CheckViolationError()
                | asyncpg.ForeignKeyViolationError()
                | asyncpg.ExclusionViolationError()
            ):
                kind, translated = "constraint", ConstraintViolated(error.constraint_name or "")
            case asyncpg.DeadlockDetectedError() | asyncpg.SerializationError():
                kind, translated = "conflict", TransactionConflict()
            case asyncpg.QueryCanceledError():
                kind, translated = "statement_timeout", StatementTimeout()
            case asyncpg.TooManyConnectionsError():
                # Overload and not outage: the server answered, so the breaker stays, and waiting a little is what helps.
                kind, translated = "pool_exhausted", self._exhausted()
            case asyncpg.PostgresError() | asyncpg.InterfaceError() | asyncpg.InternalClientError():
                kind, translated = "other", error
            case _:
                return error
        self._errors.labels(kind).inc()
        return translated

    def _exhausted(self) -> PoolExhausted:
        return PoolExhausted(metadata={"pool_size": str(self._settings.pool_max)})

    def _refused(self) -> DatabaseUnavailable:
        self._errors.labels("refused").inc()
        return self._unavailable()

    def _unavailable(self) -> DatabaseUnavailable:
        closed = self._breaker.state is BreakerState.CLOSED
        error = DatabaseUnavailable(
            metadata={"breaker": "closed" if closed else "open"}, retry_delay=self._breaker.retry_delay
        )
        error.client_may_retry = closed
        return error

    def _breaker_changed(self, state: BreakerState) -> None:
        self._transitions.labels(state.name.lower()).inc()
        level = logging.WARNING if state is BreakerState.OPEN else logging.INFO
        logger.log(level, "the database breaker is %s", state.name.lower().replace("_", " "))
        if state is BreakerState.OPEN and not self._closing:
            self._probing = asyncio.get_running_loop().create_task(self._probe(), context=contextvars.Context())

    async def _probe(self) -> None:
        """Ask PostgreSQL until it answers, beside the pool, at the times that the breaker sets."""
        # Idle connections may lead to a server that is gone without a word; the trial is to meet the one that answered.
        await self._pool.expire_connections()
        while True:
            await self._sleep(self._breaker.probe_delay)
            try:
                await self._ask()
            except Exception as error:
                self._breaker.probe_failed()
                logger.info(
                    "PostgreSQL does not answer", extra={"error": str(error), "next_s": self._breaker.probe_delay}
                )
            else:
                self._breaker.probe_answered()
                return

    async def _ask(self) -> None:
        connection = await asyncpg.connect(**self._connect_arguments)
        try:
            await connection.fetchval("SELECT 1", timeout=self._settings.connect_timeout)
        finally:
            connection.terminate()

    def _publish_gauges(self, registry: CollectorRegistry) -> None:
        # Read at the scrape, from its thread: the hot path pays two integer additions.
        def gauge(name: str, documentation: str, figure: Callable[[], float]) -> None:
            Gauge(name, documentation, registry=registry).set_function(figure)

        gauge("postgres_pool_max", "Connections that the pool may have.", lambda: self._settings.pool_max)
        gauge("postgres_pool_size", "Connections that the pool has.", self._pool.get_size)
        gauge("postgres_pool_idle", "Connections that nobody uses.", self._pool.get_idle_size)
        gauge("postgres_pool_in_use", "Connections in use or in the making.", lambda: self._in_use)
        gauge("postgres_pool_waiting", "Calls that wait for a connection.", lambda: self._waiting)
        gauge(
            "postgres_pool_utilisation_ratio", "In use, of the maximum.", lambda: self._in_use / self._settings.pool_max
        )
        gauge("postgres_breaker_state", "0 closed, 1 half open, 2 open.", lambda: self._breaker.state)


class ConnectionScope:
    """One guarded use of a connection; a class, because a generator would cost more than the guard."""

    __slots__ = ("_connection", "_database", "_permit")

    def __init__(self, database: Database) -> None:
        self._database = database

    async def __aenter__(self) -> Connection:
        self._permit, self._connection = await self._database._acquire()
        return self._connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._database._release(self._permit, self._connection, error)
