"""Migrations on a real PostgreSQL: up, down, many runs at once, a killed run, and a schema that is what the dump says."""

from __future__ import annotations

import asyncio
import shutil
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

import migrations
from migrations import schema
from services.chassis import migration
from services.chassis.migration import MigrationError, UnknownRevisionError

FIRST = "0001_stamp_ledger"
PATIENCE = 30.0
"""Seconds that a test waits for what must come; only a failing test waits them out."""


@asynccontextmanager
async def database(server: str) -> AsyncIterator[str]:
    """The URL of an empty database that lives as long as the context."""
    name = f"migration_{uuid.uuid4().hex}"
    connection = await asyncpg.connect(server)
    await connection.execute(f"CREATE DATABASE {name}")
    yield urlsplit(server)._replace(path=f"/{name}").geturl()
    await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await connection.close()


@pytest.fixture
async def url(postgres_server: str) -> AsyncIterator[str]:
    async with database(postgres_server) as url:
        yield url


@pytest.fixture
async def connection(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url)
    yield connection
    await connection.close()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package `migrations`, under a folder whose name needs care."""
    return Path(
        shutil.copytree(
            Path(migrations.__file__).parent,
            tmp_path / "100%(here)s a folder" / "migrations",
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    )


def write(package: Path, revision: str, after: str, statement: str, before: str = "") -> None:
    """Add a migration to the package: Python that runs `before`, then an SQL statement; its way back is nothing."""
    (package / "versions" / f"{revision}.py").write_text(
        f'"""Do {revision}."""\n'
        "from alembic import op\n"
        f"revision, down_revision = {revision!r}, {after!r}\n"
        "def upgrade() -> None:\n"
        f"    {before or 'pass'}\n"
        f"    op.execute({statement!r})\n"
        "def downgrade() -> None:\n"
        "    pass\n"
    )


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await condition():  # noqa: ASYNC110 (PostgreSQL tells nobody of a lock that is waited for)
            await asyncio.sleep(0.01)


async def tables(connection: asyncpg.Connection) -> set[str]:
    rows = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    return {row["tablename"] for row in rows}


async def upgrade(url: str) -> tuple[migration.Migration, ...]:
    return await asyncio.to_thread(migration.upgrade, url)


async def test_an_empty_database_has_every_migration_pending(url: str, connection: asyncpg.Connection) -> None:
    found = await asyncio.to_thread(migration.status, url)

    assert found.current is None
    assert found.pending[0].revision == FIRST
    assert "ledger" in found.pending[0].purpose
    assert found.head == found.pending[-1].revision
    assert await tables(connection) == set()


async def test_upgrading_applies_what_is_pending_and_says_what_it_applied(url: str) -> None:
    pending = (await asyncio.to_thread(migration.status, url)).pending

    assert await upgrade(url) == pending
    found = await asyncio.to_thread(migration.status, url)
    assert (found.current, found.pending) == (found.head, ())


async def test_upgrading_twice_applies_nothing_the_second_time(url: str) -> None:
    await upgrade(url)

    assert await upgrade(url) == ()


async def test_downgrading_to_the_base_leaves_no_table_and_can_be_done_again(
    url: str, connection: asyncpg.Connection
) -> None:
    applied = await upgrade(url)

    assert await asyncio.to_thread(migration.downgrade, url, "base") == applied[::-1]
    assert await tables(connection) == {migration.VERSION_TABLE}
    assert await upgrade(url) == applied


async def test_each_migration_goes_up_and_back_by_itself(url: str) -> None:
    for step in (await asyncio.to_thread(migration.status, url)).pending:
        before = await asyncio.to_thread(schema.dump, url)
        await asyncio.to_thread(migration.upgrade, url, step.revision)
        after = await asyncio.to_thread(schema.dump, url)
        await asyncio.to_thread(migration.downgrade, url, "-1")
        if step.revision != FIRST:
            assert await asyncio.to_thread(schema.dump, url) == before
        await asyncio.to_thread(migration.upgrade, url, step.revision)
        assert await asyncio.to_thread(schema.dump, url) == after


async def test_migrations_from_zero_make_the_committed_schema(url: str) -> None:
    await upgrade(url)

    made = await asyncio.to_thread(schema.dump, url)
    assert made == schema.PATH.read_text(encoding="utf-8"), "run: python -m migrations.schema"


async def test_every_table_says_which_node_owns_it(url: str, connection: asyncpg.Connection) -> None:
    await upgrade(url)

    for table in await tables(connection) - {migration.VERSION_TABLE}:
        comment = await connection.fetchval("SELECT obj_description($1::regclass)", table)
        assert comment is not None, table
        assert comment.startswith("Owned by the "), table


async def test_every_revision_fits_the_version_table_and_names_its_file(url: str) -> None:
    for step in (await asyncio.to_thread(migration.status, url)).pending:
        assert len(step.revision) <= 32
        assert (Path(migrations.__file__).parent / "versions" / f"{step.revision}.py").exists()
        assert "\n" not in step.purpose


@pytest.mark.parametrize(
    ("executor", "runners"),
    [
        pytest.param(ThreadPoolExecutor, 8, id="8 threads"),
        # Fewer, because each process takes a second of a core to import what it needs.
        pytest.param(partial(ProcessPoolExecutor, mp_context=get_context("spawn")), 3, id="3 processes"),
    ],
)
async def test_of_many_runs_at_once_one_applies_the_migrations_and_all_succeed(
    url: str, connection: asyncpg.Connection, executor: Callable[[int], Executor], runners: int
) -> None:
    pending = (await asyncio.to_thread(migration.status, url)).pending
    # The test holds the lock until all of them stand in line, so that they do meet.
    await connection.execute("SELECT pg_advisory_lock($1)", migration.LOCK_ID)

    async def all_wait() -> bool:
        waiting = await connection.fetchval(
            "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database "
            "WHERE locktype = 'advisory' AND NOT granted AND datname = current_database()"
        )
        return bool(waiting == runners)

    with executor(runners) as pool:
        runs = [asyncio.get_running_loop().run_in_executor(pool, migration.upgrade, url) for _ in range(runners)]
        try:
            await until(all_wait)
        finally:
            await connection.execute("SELECT pg_advisory_unlock($1)", migration.LOCK_ID)
        applied = await asyncio.gather(*runs)

    assert sorted(applied, key=len) == [()] * (runners - 1) + [pending]


async def test_one_process_upgrades_several_databases_at_once(postgres_server: str) -> None:
    async with AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(database(postgres_server)) for _ in range(4)]
        pending = (await asyncio.to_thread(migration.status, urls[0])).pending

        assert await asyncio.gather(*map(upgrade, urls)) == [pending] * 4


async def test_a_run_that_is_killed_in_a_statement_frees_the_lock_and_leaves_nothing_behind(
    url: str, connection: asyncpg.Connection, package: Path
) -> None:
    write(package, "0002_slow", (await asyncio.to_thread(migration.status, url)).head, "SELECT pg_sleep(120)")
    program = "import sys; from services.chassis import migration; migration.upgrade(sys.argv[1])"
    slow = await asyncio.create_subprocess_exec(sys.executable, "-c", program, url, cwd=package.parent)
    try:
        await until(
            lambda: connection.fetchval(
                "SELECT true FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
            )
        )
    finally:
        slow.kill()
        await slow.wait()

    async with asyncio.timeout(PATIENCE):
        assert await upgrade(url) == ()
    assert (await asyncio.to_thread(migration.status, url)).pending == ()


async def test_a_failing_migration_is_undone_wholly_and_leaves_those_before_it(
    url: str, connection: asyncpg.Connection, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    applied = await upgrade(url)
    write(package, "0002_good", applied[-1].revision, "CREATE TABLE good ()")
    write(package, "0003_bad", "0002_good", "SELECT 1 / 0", before="op.execute('CREATE TABLE half ()')")
    monkeypatch.setattr(migration, "_SCRIPTS", package)

    with pytest.raises(MigrationError, match=r"^the migration failed: division by zero$"):
        await upgrade(url)

    found = await tables(connection)
    assert "good" in found
    assert "half" not in found
    assert [step.revision for step in (await asyncio.to_thread(migration.status, url)).pending] == ["0003_bad"]


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(migration.status, id="status"),
        pytest.param(migration.upgrade, id="upgrade"),
        pytest.param(lambda url: migration.downgrade(url, "base"), id="downgrade"),
    ],
)
async def test_a_database_of_a_newer_build_is_refused(
    url: str, connection: asyncpg.Connection, run: Callable[[str], object]
) -> None:
    await upgrade(url)
    await connection.execute(f"UPDATE {migration.VERSION_TABLE} SET version_num = '9999_future'")

    with pytest.raises(UnknownRevisionError, match="9999_future") as caught:
        await asyncio.to_thread(run, url)

    assert caught.value.current == "9999_future"
    assert await connection.fetchval(f"SELECT version_num FROM {migration.VERSION_TABLE}") == "9999_future"


@pytest.mark.parametrize("to", ["no_such", "", "a:b", "+99"])
async def test_a_revision_that_does_not_exist_is_refused(url: str, to: str) -> None:
    with pytest.raises(MigrationError):
        await asyncio.to_thread(migration.upgrade, url, to)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        pytest.param("postgresql://me:s3cret@127.0.0.1:1/x", "cannot reach the database", id="nobody listens"),
        pytest.param("postgresql://me:s3cret@/x?host=/no/such/folder", "cannot reach the database", id="no socket"),
        pytest.param("postgresql://me:pa:s3cret@host:s3cret/x", "malformed", id="port is no number"),
        pytest.param("mysql://me:s3cret@host/x", "malformed", id="another scheme"),
    ],
)
def test_a_database_that_cannot_be_reached_is_named_without_its_password(bad: str, reason: str) -> None:
    with pytest.raises(MigrationError, match=reason) as caught:
        migration.status(bad)

    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_a_url_with_every_part_reaches_the_database(url: str) -> None:
    socket = dict(part.split("=", 1) for part in urlsplit(url).query.split("&"))["host"]
    name = urlsplit(url).path

    found = await asyncio.to_thread(migration.status, f"postgres://postgres:p%40ss%3A@{name}?host={socket}&port=5432")

    assert found.current is None
