"""The pool, its breaker and its translation against a real PostgreSQL that is killed, restarted, cut off and kept silent."""

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit, urlunsplit

import asyncpg
import pytest
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

from omninode.bridge.errors.v1 import errors_pb2
from services.chassis.embedded import EmbeddedPostgres, PostgresBusy
from services.chassis.postgres import Database, PostgresSettings
from services.chassis.postgres_error import (
    ConstraintViolated,
    DatabaseUnavailable,
    PoolExhausted,
    StatementTimeout,
    TransactionConflict,
)

BOUND = 20.0
"""Seconds after which a wait has failed."""
SOCKET = ".s.PGSQL.5432"


class Server:
    """An embedded PostgreSQL that a test may kill and start again."""

    def __init__(self, data: Path) -> None:
        self._postgres = EmbeddedPostgres(data, durable=False)

    def __enter__(self) -> "Server":
        with contextlib.ExitStack() as undo:
            undo.enter_context(self._postgres.folder.lock())
            undo.callback(self._postgres.stop)
            self._postgres.prepare()
            self.start()
            self._held = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    @property
    def url(self) -> str:
        return self._postgres.url

    @property
    def socket(self) -> str:
        return str(Path(parse_qs(urlsplit(self.url).query)["host"][0]) / SOCKET)

    @property
    def runs(self) -> bool:
        return self._child.status is None

    def start(self) -> None:
        deadline = time.monotonic() + BOUND
        while True:
            self._child = self._postgres.spawn()
            try:
                return self._postgres.wait_ready()
            except PostgresBusy:
                assert time.monotonic() < deadline

    async def end(self, number: signal.Signals) -> None:
        pid = self._postgres.pid
        assert pid is not None
        os.kill(pid, number)
        await asyncio.wait_for(self._child.ended(), BOUND)


@pytest.fixture(scope="module")
def started_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server") / "data") as server:
        yield server


@pytest.fixture
def server(started_server: Server) -> Iterator[Server]:
    """A server of this module's own, up at the start of each test."""
    yield started_server
    if not started_server.runs:
        started_server.start()


@pytest.fixture
def postgres_url(started_server: Server) -> str:
    return started_server.url


class Line:
    """A unix socket before PostgreSQL's: up, down (refuses and cuts what is open), or mute (takes everything, passes nothing)."""

    def __init__(self, target: str, folder: Path, url: str) -> None:
        self._target = target
        self._path = str(folder / SOCKET)
        parts = urlsplit(url)
        self.url = urlunsplit(parts._replace(query=f"host={folder}"))
        self._server: asyncio.Server | None = None
        self._near: set[asyncio.StreamWriter] = set()
        self._far: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._open = asyncio.Event()
        self._open.set()

    async def up(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self._path)

    async def down(self) -> None:
        assert self._server is not None
        self._server.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)  # noqa: PTH108 (an asyncio server of this Python leaves its socket, and unlinking blocks nobody)
        for writer in self._near | self._far:
            writer.transport.abort()
        for pump in self._pumps:
            pump.cancel()
        if self._pumps:
            await asyncio.wait(self._pumps)

    def say_farewell(self) -> None:
        """What a server says before it cuts an idle connection, without the cut that follows."""
        fields = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection due to administrator command\0\0"
        for writer in self._near:
            writer.write(b"E" + (len(fields) + 4).to_bytes(4) + fields)

    def mute(self) -> None:
        """From now on nothing passes on the connections that are there, nor on any new one."""
        self._open.clear()

    def heal(self) -> None:
        """New connections pass again; those that were muted stay so, like a flow that a firewall has forgotten."""
        self._open = asyncio.Event()
        self._open.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_unix_connection(self._target)
        except OSError:
            writer.transport.abort()
            return
        self._near.add(writer)
        self._far.add(far_writer)
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            pump = asyncio.create_task(self._pump(source, sink, self._open))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, opened: asyncio.Event) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                await opened.wait()
                sink.write(data)
        sink.transport.abort()


@pytest.fixture
async def line(server: Server, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Line]:
    # Short, because a socket's path is bounded to about a hundred bytes.
    line = Line(server.socket, tmp_path_factory.mktemp("l"), server.url)
    await line.up()
    yield line
    await line.down()


class Observer:
    """A connection of the test's own, which sees what the sessions of the database under test do."""

    def __init__(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        self._connection = connection

    async def sees(self, statement: str, sessions: int = 1) -> list[int]:
        """The pids of the sessions that sleep in this statement, once there are that many.

        A session is active from the parsing on, and a cancellation that comes before the sleep is lost.
        """
        query = "SELECT pid FROM pg_stat_activity WHERE query = $1 AND wait_event = 'PgSleep'"
        pids: list[int] = []
        async with asyncio.timeout(BOUND):
            while len(pids) < sessions:
                pids = [row["pid"] for row in await self._connection.fetch(query, statement)]
        return pids

    async def last_statement(self, pid: int) -> str:
        return str(await self._connection.fetchval("SELECT query FROM pg_stat_activity WHERE pid = $1", pid))

    async def terminate(self, pids: list[int]) -> None:
        await self._connection.execute("SELECT pg_terminate_backend(pid) FROM unnest($1::int[]) AS pid", pids)


@pytest.fixture
async def observer(server: Server) -> AsyncIterator[Observer]:
    connection = await asyncpg.connect(server.url)
    yield Observer(connection)
    connection.terminate()


class Wait:
    """The probe's sleep and the clock, in the test's hands: a wait ends when the test says so, and the clock moves by it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.delays: list[float] = []
        self._asked = asyncio.Event()
        self._end = asyncio.Event()

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.delays.append(seconds)
        self._asked.set()
        await self._end.wait()
        self._end.clear()
        self.now += seconds

    async def asked(self) -> None:
        """Until the probe waits."""
        await asyncio.wait_for(self._asked.wait(), BOUND)
        self._asked.clear()

    async def elapse(self) -> None:
        """The wait that is asked for ends now."""
        await self.asked()
        self.end()

    def end(self) -> None:
        self._end.set()


class Rig:
    """A database under test with its figures and its time."""

    def __init__(self, database: Database, registry: CollectorRegistry, wait: Wait) -> None:
        self.database = database
        self.wait = wait
        self._registry = registry

    def figure(self, name: str, **labels: str) -> float:
        return self._registry.get_sample_value(name, labels) or 0.0

    async def reaches(self, name: str, value: float) -> None:
        async with asyncio.timeout(BOUND):
            while self.figure(name) != value:  # noqa: ASYNC110 (a figure has no event)
                await asyncio.sleep(0)

    async def breaker(self, state: int) -> None:
        """Until the breaker is 0 closed, 1 half open, 2 open."""
        await self.reaches("postgres_breaker_state", state)

    async def fail(self, times: int) -> None:
        for _ in range(times):
            with pytest.raises(DatabaseUnavailable):
                await self.database.fetchval("SELECT 1")


Open = Callable[..., Awaitable[Rig]]


@pytest.fixture
async def open_database() -> AsyncIterator[Open]:
    async with contextlib.AsyncExitStack() as stack:

        async def open_one(url: str, **settings: float) -> Rig:
            registry, wait = CollectorRegistry(), Wait()
            configured = PostgresSettings.model_validate({"url": url, **settings})
            database = await Database.open(configured, registry, clock=wait.clock, sleep=wait.sleep)
            stack.push_async_callback(database.close)
            return Rig(database, registry, wait)

        yield open_one


@pytest.fixture(scope="module")
def schema(started_server: Server) -> None:
    async def make() -> None:
        connection = await asyncpg.connect(started_server.url)
        await connection.execute(
            """
            CREATE TABLE parent (id int CONSTRAINT parent_pk PRIMARY KEY);
            CREATE TABLE child (
                id int CONSTRAINT child_unique UNIQUE,
                amount int NOT NULL CONSTRAINT amount_positive CHECK (amount > 0),
                parent int CONSTRAINT child_parent REFERENCES parent,
                span int4range,
                CONSTRAINT span_apart EXCLUDE USING gist (span WITH &&)
            );
            INSERT INTO parent VALUES (1), (2);
            INSERT INTO child VALUES (1, 1, 1, '[1,5)');
            CREATE ROLE narrow LOGIN CONNECTION LIMIT 0;
            """
        )
        await connection.close()

    asyncio.run(make())


@pytest.mark.parametrize(
    ("statement", "constraint"),
    [
        pytest.param("INSERT INTO child VALUES (1, 1, 1, NULL)", "child_unique", id="unique"),
        pytest.param("INSERT INTO child VALUES (2, -1, 1, NULL)", "amount_positive", id="check"),
        pytest.param("INSERT INTO child VALUES (2, 1, 9, NULL)", "child_parent", id="foreign key"),
        pytest.param("INSERT INTO child VALUES (2, 1, 1, '[4,9)')", "span_apart", id="exclusion"),
    ],
)
@pytest.mark.usefixtures("schema")
async def test_a_violated_constraint_is_told_by_its_name(
    postgres_url: str, open_database: Open, statement: str, constraint: str
) -> None:
    rig = await open_database(postgres_url)
    with pytest.raises(ConstraintViolated) as violation:
        await rig.database.execute(statement)
    assert violation.value.constraint == constraint
    assert isinstance(violation.value.__cause__, asyncpg.PostgresError)
    assert rig.figure("postgres_errors_total", kind="constraint") == 1


async def test_a_statement_past_its_time_is_a_typed_refusal(postgres_url: str, open_database: Open) -> None:
    rig = await open_database(postgres_url, statement_timeout=0.05)
    with pytest.raises(StatementTimeout) as refusal:
        await rig.database.execute("SELECT pg_sleep(60)")
    assert refusal.value.reason == errors_pb2.ERROR_REASON_STATEMENT_TIMEOUT
    assert await rig.database.fetchval("SELECT 1") == 1


@pytest.mark.usefixtures("schema")
async def test_a_deadlock_is_a_conflict_for_one_and_nothing_for_the_other(
    postgres_url: str, open_database: Open
) -> None:
    database = (await open_database(postgres_url)).database
    both_hold_one = asyncio.Barrier(2)

    async def cross(first: int, second: int) -> None:
        async with database.transaction() as connection:
            await connection.execute("SELECT FROM parent WHERE id = $1 FOR UPDATE", first)
            await both_hold_one.wait()
            await connection.execute("SELECT FROM parent WHERE id = $1 FOR UPDATE", second)

    async with asyncio.timeout(BOUND):
        outcomes = await asyncio.gather(cross(1, 2), cross(2, 1), return_exceptions=True)
    (conflict,) = [outcome for outcome in outcomes if outcome is not None]
    assert isinstance(conflict, TransactionConflict)
    assert conflict.reason == errors_pb2.ERROR_REASON_TRANSACTION_CONFLICT


@pytest.mark.usefixtures("schema")
async def test_a_serialization_failure_is_a_conflict(postgres_url: str, open_database: Open) -> None:
    database = (await open_database(postgres_url)).database

    async def overtaken() -> None:
        async with database.connection() as connection, connection.transaction(isolation="serializable"):
            await connection.fetchval("SELECT id FROM parent WHERE id = 1")
            await database.execute("UPDATE parent SET id = id WHERE id = 1")
            await connection.execute("UPDATE parent SET id = id WHERE id = 1")

    with pytest.raises(TransactionConflict):
        await overtaken()


@pytest.mark.usefixtures("schema")
async def test_a_full_server_is_overload_and_not_an_outage(postgres_url: str, open_database: Open) -> None:
    parts = urlsplit(postgres_url)
    narrow = urlunsplit(parts._replace(netloc=f"narrow@{parts.hostname or ''}"))
    rig = await open_database(narrow, breaker_threshold=1)
    with pytest.raises(PoolExhausted):
        await rig.database.execute("SELECT 1")
    await rig.breaker(0)


@pytest.mark.parametrize(
    ("statement", "arguments", "error"),
    [
        pytest.param("SELEKT 1", (), asyncpg.PostgresSyntaxError, id="wrong SQL"),
        pytest.param("SELECT * FROM nowhere", (), asyncpg.UndefinedTableError, id="no such table"),
        pytest.param("SELECT $1::int", ("word",), asyncpg.DataError, id="an argument of the wrong type"),
        pytest.param("SELECT 1 / 0", (), asyncpg.DivisionByZeroError, id="wrong arithmetic"),
    ],
)
async def test_a_bug_passes_unchanged(
    postgres_url: str, open_database: Open, statement: str, arguments: tuple[object, ...], error: type[Exception]
) -> None:
    rig = await open_database(postgres_url, breaker_threshold=1)
    with pytest.raises(error):
        await rig.database.fetch(statement, *arguments)
    assert rig.figure("postgres_errors_total", kind="other") == 1
    await rig.breaker(0)


async def test_what_the_caller_raises_in_the_scope_is_its_own(postgres_url: str, open_database: Open) -> None:
    rig = await open_database(postgres_url, breaker_threshold=1)
    with pytest.raises(FileNotFoundError):
        async with rig.database.connection():
            raise FileNotFoundError
    await rig.breaker(0)


async def test_short_cuts_answer_as_asyncpg_does(postgres_url: str, open_database: Open) -> None:
    database = (await open_database(postgres_url)).database
    assert [tuple(row) for row in await database.fetch("SELECT generate_series(1, $1::int)", 2)] == [(1,), (2,)]
    assert await database.fetchrow("SELECT 1 WHERE false") is None
    assert await database.fetchval("SELECT $1::text", "word") == "word"
    assert await database.execute("SELECT 1") == "SELECT 1"


async def test_a_statement_is_planned_once_whatever_its_parameters_are(postgres_url: str, open_database: Open) -> None:
    database = (await open_database(postgres_url, pool_max=1)).database
    for size in (1, 1000, 1):
        await database.fetch("SELECT * FROM unnest($1::int[]) AS given (number)", list(range(size)))
    plans = await database.fetchrow(
        "SELECT generic_plans, custom_plans FROM pg_prepared_statements WHERE statement LIKE '%AS given (number)'"
    )
    assert plans is not None
    assert tuple(plans) == (3, 0)


async def test_a_session_has_its_name_and_its_bound(postgres_url: str, open_database: Open) -> None:
    settings = {"application_name": "omnibridge store", "statement_timeout": 1.5}
    database = (await open_database(postgres_url, **settings)).database
    assert await database.fetchval("SHOW application_name") == "omnibridge store"
    assert await database.fetchval("SHOW statement_timeout") == "1500ms"


@pytest.mark.usefixtures("schema")
async def test_a_transaction_is_whole_or_nothing(postgres_url: str, open_database: Open) -> None:
    database = (await open_database(postgres_url)).database

    async def insert(number: int, then: Exception | None) -> None:
        async with database.transaction() as connection:
            await connection.execute("INSERT INTO parent VALUES ($1)", number)
            if then is not None:
                raise then

    with pytest.raises(KeyError):
        await insert(50, KeyError())
    await insert(51, None)
    assert [row["id"] for row in await database.fetch("SELECT id FROM parent WHERE id >= 50")] == [51]


async def test_giving_a_connection_back_costs_no_statement(
    postgres_url: str, open_database: Open, observer: Observer
) -> None:
    database = (await open_database(postgres_url)).database
    pid = await database.fetchval("SELECT pg_backend_pid()")
    async with database.connection():
        assert await observer.last_statement(pid) == "SELECT pg_backend_pid()"


async def test_all_connections_busy_for_the_acquire_timeout_is_a_typed_refusal(
    postgres_url: str, open_database: Open
) -> None:
    rig = await open_database(postgres_url, pool_max=2, acquire_timeout=0.05)
    async with rig.database.connection(), rig.database.connection():
        with pytest.raises(PoolExhausted) as refusal:
            await rig.database.fetchval("SELECT 1")
    assert refusal.value.reason == errors_pb2.ERROR_REASON_POOL_EXHAUSTED
    assert refusal.value.metadata == {"pool_size": "2"}
    assert refusal.value.retry_delay is not None
    assert rig.figure("postgres_errors_total", kind="pool_exhausted") == 1
    assert await rig.database.fetchval("SELECT 1") == 1


async def test_a_caller_waits_for_a_busy_pool_and_the_figures_show_it(postgres_url: str, open_database: Open) -> None:
    rig = await open_database(postgres_url, pool_max=2)
    async with rig.database.connection(), contextlib.AsyncExitStack() as second:
        await second.enter_async_context(rig.database.connection())
        waiting = asyncio.create_task(rig.database.fetchval("SELECT 1"))
        await rig.reaches("postgres_pool_waiting", 1)
        assert rig.figure("postgres_pool_in_use") == 2
        assert rig.figure("postgres_pool_utilisation_ratio") == 1.0
        await second.aclose()
        assert await asyncio.wait_for(waiting, BOUND) == 1
    figures = {name: rig.figure(f"postgres_pool_{name}") for name in ("max", "size", "idle", "in_use", "waiting")}
    assert figures == {"max": 2, "size": 2, "idle": 2, "in_use": 0, "waiting": 0}


async def test_near_exhaustion_is_counted_on_the_crossing_and_logged_once_in_a_while(
    postgres_url: str, open_database: Open, caplog: pytest.LogCaptureFixture
) -> None:
    rig = await open_database(postgres_url, pool_max=10)

    async def fill(count: int) -> contextlib.AsyncExitStack:
        stack = contextlib.AsyncExitStack()
        for _ in range(count):
            await stack.enter_async_context(rig.database.connection())
        return stack

    def warnings() -> tuple[float, int]:
        logged = [record for record in caplog.records if "near exhaustion" in record.message]
        return rig.figure("pool_exhaustion_warnings_total"), len(logged)

    with caplog.at_level(logging.WARNING):
        async with await fill(4), await fill(4):
            assert warnings() == (0, 0)
            async with await fill(1):
                assert warnings() == (1, 1)
                async with await fill(1):
                    assert warnings() == (1, 1)
            async with await fill(1):
                assert warnings() == (1, 1), "going on at the mark is no new crossing"
        async with await fill(9):
            assert warnings() == (2, 1), "a second one within the interval is counted only"
        rig.wait.now += 60
        async with await fill(9):
            assert warnings() == (3, 2)


async def test_a_cancelled_caller_gives_its_connection_back(
    postgres_url: str, open_database: Open, observer: Observer
) -> None:
    rig = await open_database(postgres_url, pool_max=1, breaker_threshold=1)
    task = asyncio.create_task(rig.database.fetchval("SELECT pg_sleep(60)"))
    await observer.sees("SELECT pg_sleep(60)")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.wait_for(rig.database.fetchval("SELECT 1"), BOUND) == 1
    await rig.breaker(0)
    assert rig.figure("postgres_pool_in_use") == 0


async def test_it_opens_and_refuses_without_a_server(tmp_path: Path, open_database: Open) -> None:
    rig = await open_database(f"postgresql://postgres@/postgres?host={tmp_path}")
    with pytest.raises(DatabaseUnavailable) as refusal:
        await rig.database.fetchval("SELECT 1")
    assert refusal.value.reason == errors_pb2.ERROR_REASON_DATABASE_UNAVAILABLE
    assert refusal.value.metadata == {"breaker": "closed"}
    assert refusal.value.retry_delay == 0.5
    assert refusal.value.client_may_retry
    assert str(tmp_path) not in refusal.value.message
    assert rig.figure("postgres_pool_in_use") == 0


@pytest.mark.parametrize("url", ["", "mysql://here/db", "here"])
def test_a_url_that_is_not_postgresql_is_refused_at_the_start(url: str) -> None:
    with pytest.raises(ValidationError, match="url"):
        PostgresSettings(url=url)


def test_the_password_is_in_no_repr() -> None:
    assert "secret" not in repr(PostgresSettings(url="postgresql://me:secret@here/db"))


@pytest.mark.parametrize("how", ["SIGKILL", "SIGQUIT", "SIGINT", "terminated"])
async def test_a_server_that_goes_away_under_a_statement_is_unavailable_to_all_who_meet_it(
    server: Server, open_database: Open, observer: Observer, how: str
) -> None:
    rig = await open_database(server.url)

    async def statement() -> None:
        await rig.database.execute("SELECT pg_sleep(61)")

    async def transaction() -> None:
        async with rig.database.transaction() as connection:
            await connection.execute("SELECT pg_sleep(61)")

    async def one_more_on_the_lost_connection() -> None:
        async with rig.database.connection() as connection:
            with contextlib.suppress(asyncpg.PostgresError):
                await connection.execute("SELECT pg_sleep(61)")
            await connection.execute("SELECT 1")

    tasks = [asyncio.create_task(use()) for use in (statement, transaction, one_more_on_the_lost_connection)]
    pids = await observer.sees("SELECT pg_sleep(61)", sessions=3)
    if how == "terminated":
        await observer.terminate(pids)
    else:
        await server.end(signal.Signals[how])
    async with asyncio.timeout(BOUND):
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [DatabaseUnavailable] * 3
    assert rig.figure("postgres_errors_total", kind="unavailable") == 3, "each use is counted once"
    assert rig.figure("postgres_pool_in_use") == 0


async def test_after_a_kill_and_a_restart_the_probe_lets_the_work_go_on(server: Server, open_database: Open) -> None:
    rig = await open_database(server.url, breaker_threshold=2)
    assert await rig.database.fetchval("SELECT 1") == 1
    await server.end(signal.SIGKILL)
    # A session outlives its killed server for a moment, and answers in it.
    await rig.reaches("postgres_pool_size", 0)
    await rig.fail(2)
    await rig.breaker(2)
    server.start()
    await rig.wait.elapse()
    await rig.breaker(1)
    assert await rig.database.fetchval("SELECT 1") == 1
    await rig.breaker(0)


async def test_five_in_a_row_open_the_breaker_and_then_it_refuses_at_once(line: Line, open_database: Open) -> None:
    rig = await open_database(line.url)
    await line.down()
    await rig.fail(4)
    await rig.breaker(0)
    with pytest.raises(DatabaseUnavailable) as fifth:
        await rig.database.fetchval("SELECT 1")
    await rig.breaker(2)
    assert fifth.value.metadata == {"breaker": "open"}
    await rig.wait.asked()
    await line.up()
    rig.wait.now += 0.125
    with pytest.raises(DatabaseUnavailable) as refused:
        await rig.database.fetchval("SELECT 1")
    assert refused.value.metadata == {"breaker": "open"}
    assert refused.value.retry_delay == 0.375
    assert not refused.value.client_may_retry
    assert rig.figure("postgres_errors_total", kind="refused") == 1
    assert rig.figure("postgres_breaker_transitions_total", state="open") == 1


async def test_a_caller_that_waits_when_the_breaker_opens_is_refused_and_keeps_no_slot(
    line: Line, open_database: Open
) -> None:
    rig = await open_database(line.url, breaker_threshold=1, pool_max=1)
    held = asyncio.Event()

    async def hold_and_fail() -> None:
        async with rig.database.connection() as connection:
            held.set()
            await rig.reaches("postgres_pool_waiting", 1)
            await line.down()
            await connection.execute("SELECT 1")

    holding = asyncio.create_task(hold_and_fail())
    await asyncio.wait_for(held.wait(), BOUND)
    waiting = asyncio.create_task(rig.database.fetchval("SELECT 1"))
    with pytest.raises(DatabaseUnavailable):
        await asyncio.wait_for(holding, BOUND)
    with pytest.raises(DatabaseUnavailable):
        await asyncio.wait_for(waiting, BOUND)
    assert rig.figure("postgres_errors_total", kind="refused") == 1
    assert rig.figure("postgres_pool_in_use") == 0


async def test_a_statement_that_crosses_the_servers_farewell_is_unavailable(line: Line, open_database: Open) -> None:
    rig = await open_database(line.url, breaker_threshold=1)
    assert await rig.database.fetchval("SELECT 1") == 1
    line.mute()
    line.say_farewell()
    for _ in range(5):  # until it has arrived
        await asyncio.sleep(0)
    with pytest.raises(DatabaseUnavailable) as refusal:
        await rig.database.fetchval("SELECT 1")
    assert isinstance(refusal.value.__cause__, asyncpg.InternalClientError)
    await rig.breaker(2)


async def cut_off(rig: Rig, line: Line) -> None:
    """A transaction whose connection is cut before its first statement."""
    async with rig.database.transaction() as connection:
        await line.down()
        await line.up()
        await connection.execute("SELECT 1")


async def test_a_transaction_that_fails_twice_over_counts_once(line: Line, open_database: Open) -> None:
    rig = await open_database(line.url, breaker_threshold=2)
    for state in (0, 2):
        with pytest.raises(DatabaseUnavailable):
            await cut_off(rig, line)
        await rig.breaker(state)


@pytest.mark.usefixtures("schema")
async def test_an_answer_even_a_refusal_starts_the_count_again(line: Line, open_database: Open) -> None:
    rig = await open_database(line.url, breaker_threshold=3)
    for _ in range(2):
        await line.down()
        await rig.fail(2)
        await line.up()
        with pytest.raises(ConstraintViolated):
            await rig.database.execute("INSERT INTO parent VALUES (1)")
    await rig.breaker(0)


async def test_a_callers_own_error_on_a_lost_connection_is_no_answer(line: Line, open_database: Open) -> None:
    rig = await open_database(line.url, breaker_threshold=2)
    await line.down()
    await rig.fail(1)
    await line.up()

    async def stumble() -> None:
        async with rig.database.connection():
            await line.down()
            await rig.reaches("postgres_pool_size", 0)
            raise KeyError

    with pytest.raises(KeyError):
        await stumble()
    await rig.breaker(0)
    await rig.fail(1)
    await rig.breaker(2)


async def test_probes_back_off_until_the_server_answers_and_one_trial_decides(line: Line, open_database: Open) -> None:
    rig = await open_database(line.url, breaker_threshold=1, pool_max=1)
    await line.down()
    await rig.fail(1)
    for _ in range(3):
        await rig.wait.elapse()
    await rig.wait.asked()
    assert rig.wait.delays == [0.5, 1.0, 2.0, 4.0]
    await line.up()
    rig.wait.end()
    await rig.breaker(1)
    async with rig.database.connection() as trial:
        await rig.fail(1)
        assert await trial.fetchval("SELECT 1") == 1
        await rig.breaker(1)
    await rig.breaker(0)
    assert await rig.database.fetchval("SELECT 1") == 1


async def test_a_trial_that_fails_opens_the_breaker_again_with_a_longer_wait(line: Line, open_database: Open) -> None:
    rig = await open_database(line.url, breaker_threshold=1)
    await line.down()
    await rig.fail(1)
    await line.up()
    await rig.wait.elapse()
    await rig.breaker(1)
    await line.down()
    await rig.fail(1)
    await rig.breaker(2)
    await rig.wait.asked()
    assert rig.wait.delays == [0.5, 1.0]


async def test_a_cancelled_trial_leaves_the_trial_to_the_next_caller(
    line: Line, open_database: Open, observer: Observer
) -> None:
    rig = await open_database(line.url, breaker_threshold=1)
    await line.down()
    await rig.fail(1)
    await line.up()
    await rig.wait.elapse()
    await rig.breaker(1)
    trial = asyncio.create_task(rig.database.execute("SELECT pg_sleep(62)"))
    await observer.sees("SELECT pg_sleep(62)")
    trial.cancel()
    with pytest.raises(asyncio.CancelledError):
        await trial
    await rig.breaker(1)
    assert await rig.database.fetchval("SELECT 1") == 1
    await rig.breaker(0)


async def test_a_trial_cancelled_while_it_connects_leaves_neither_slot_nor_trial_behind(
    line: Line, open_database: Open
) -> None:
    rig = await open_database(line.url, breaker_threshold=1)
    await line.down()
    await rig.fail(1)
    await line.up()
    await rig.wait.elapse()
    await rig.breaker(1)
    line.mute()
    trial = asyncio.create_task(rig.database.fetchval("SELECT 1"))
    await rig.reaches("postgres_pool_in_use", 1)
    trial.cancel()
    with pytest.raises(asyncio.CancelledError):
        await trial
    assert rig.figure("postgres_pool_in_use") == 0
    line.heal()
    assert await rig.database.fetchval("SELECT 1") == 1
    await rig.breaker(0)


async def test_a_silent_server_is_unavailable_and_its_stale_connections_are_not_used_again(
    line: Line, open_database: Open
) -> None:
    # Three stale connections, of which the two failures meet two: the third is the one that the trial must not get.
    rig = await open_database(line.url, breaker_threshold=2, statement_timeout=0.1, connect_timeout=1.0)
    async with rig.database.connection(), rig.database.connection(), rig.database.connection():
        pass
    line.mute()
    await rig.fail(1)
    await rig.breaker(0)
    await rig.fail(1)
    await rig.breaker(2)
    line.heal()
    await rig.wait.elapse()
    await rig.breaker(1)
    assert await rig.database.fetchval("SELECT 1") == 1
    await rig.breaker(0)


async def test_callers_who_give_up_before_a_silent_server_does_still_open_the_breaker(
    line: Line, open_database: Open
) -> None:
    rig = await open_database(line.url, breaker_threshold=2, connect_timeout=0.1)
    async with rig.database.connection(), rig.database.connection():
        pass
    line.mute()
    for state in (0, 2):
        task = asyncio.create_task(rig.database.fetchval("SELECT 1"))
        await rig.reaches("postgres_pool_in_use", 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await rig.breaker(state)
    assert rig.figure("postgres_errors_total", kind="unavailable") == 2


async def test_closing_ends_the_probe(line: Line, open_database: Open) -> None:
    rig = await open_database(line.url, breaker_threshold=1)
    with pytest.raises(DatabaseUnavailable):
        await cut_off(rig, line)
    await rig.wait.asked()
    await asyncio.wait_for(rig.database.close(), BOUND)
    assert rig.wait.delays == [0.5]


async def test_a_breaker_that_opens_during_the_stop_starts_no_probe(line: Line, open_database: Open) -> None:
    rig = await open_database(line.url, breaker_threshold=1)
    held, go_on = asyncio.Event(), asyncio.Event()

    async def hold_and_fail() -> None:
        async with rig.database.connection() as connection:
            held.set()
            await go_on.wait()
            await connection.execute("SELECT 1")

    holding = asyncio.create_task(hold_and_fail())
    await asyncio.wait_for(held.wait(), BOUND)
    closing = asyncio.create_task(rig.database.close())
    await asyncio.sleep(0)
    await line.down()
    await line.up()
    go_on.set()
    with pytest.raises(DatabaseUnavailable):
        await asyncio.wait_for(holding, BOUND)
    await rig.breaker(2)
    await asyncio.wait_for(closing, BOUND)
    await asyncio.sleep(0)
    assert rig.wait.delays == []


async def test_closing_cuts_connections_in_use_after_its_bound(
    postgres_url: str, open_database: Open, observer: Observer
) -> None:
    rig = await open_database(postgres_url, close_timeout=0.05)
    task = asyncio.create_task(rig.database.execute("SELECT pg_sleep(63)"))
    await observer.sees("SELECT pg_sleep(63)")
    await asyncio.wait_for(rig.database.close(), BOUND)
    with pytest.raises(DatabaseUnavailable):
        await asyncio.wait_for(task, BOUND)
