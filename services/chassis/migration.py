"""Brings a database's schema up and down: which revision it is at, which migrations are pending, and applying them.

Alembic does the work over SQLAlchemy's asyncpg dialect, so no second driver is needed; asyncpg itself reads the URL, so that
it means here what it means to a pool. The migrations are the package `migrations`, found wherever it is installed.

The functions are synchronous and run an event loop of their own: a coroutine calls them by `asyncio.to_thread`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

import migrations

VERSION_TABLE = "schema_migrations"
LOCK_ID = int.from_bytes(b"omnibrdg")
"""The PostgreSQL advisory lock that a run holds from its first look at the revision to its end."""

CONNECT_SECONDS = 10.0
"""A database that does not answer within it is not there; one that starts after a crash refuses at once and is asked again."""
_SCRIPTS = Path(migrations.__file__).parent
_SESSION = {
    "application_name": "omnibridge migrate",
    # A bound set for the database's requests must cut neither a long migration nor the wait for another's.
    "statement_timeout": "0",
    "lock_timeout": "0",
    # PostgreSQL looks for a killed client only between statements unless told otherwise: without this, a run that is
    # killed in a long statement holds the lock until that statement ends.
    "client_connection_check_interval": "1s",
}
# Alembic keeps the running migration in module globals (`op`, `context`): one process runs one at a time.
_ALEMBIC = threading.Lock()

T = TypeVar("T")


class MigrationError(Exception):
    """The schema could not be read or changed; the message is one line and holds no password."""


class UnknownRevisionError(MigrationError):
    """The database is at a revision that this build does not know: a newer build has migrated it."""

    def __init__(self, current: str, head: str) -> None:
        super().__init__(
            f"the database is at revision {current}, which this build (its newest is {head}) does not know: run a newer build"
        )
        self.current = current
        self.head = head


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema: its revision, and its purpose in one line."""

    revision: str
    purpose: str


@dataclass(frozen=True, slots=True)
class Status:
    """Where a database stands: its revision (None before the first), this build's newest, the steps from one to the other."""

    current: str | None
    head: str
    pending: tuple[Migration, ...]


def status(url: str) -> Status:
    """Where the database stands. It changes nothing and waits for no run.

    `url` is as asyncpg takes it: `postgresql://user:password@host:port/name` or `postgresql://user@/name?host=/folder`.
    Raises MigrationError if the database cannot be reached, UnknownRevisionError if a newer build has migrated it.
    """

    def read(connection: Connection) -> Status:
        current, head = _current(connection), _history()[-1].revision
        return Status(current, head, _steps(current, head))

    return _run(url, read)


def upgrade(url: str, to: str = "head") -> tuple[Migration, ...]:
    """Apply the pending migrations up to the revision `to`, a transaction each; returns those that this call applied.

    A call waits, without a bound, for the other runs on the database and then does what they left. A failing migration leaves
    those before it applied. Raises what `status` raises, and MigrationError if `to` is no revision or a migration fails.
    """
    return _run(url, lambda connection: _steps(*_migrate(connection, command.upgrade, to)))


def downgrade(url: str, to: str) -> tuple[Migration, ...]:
    """Undo the migrations after the revision `to` (`base`: all, `-1`: the last); returns those undone, newest first.

    What the dropped tables hold is lost. Waits and raises as `upgrade` does.
    """

    def undo(connection: Connection) -> tuple[Migration, ...]:
        before, after = _migrate(connection, command.downgrade, to)
        return _steps(after, before)[::-1]

    return _run(url, undo)


def _migrate(connection: Connection, run: Callable[[Config, str], None], to: str) -> tuple[str | None, str | None]:
    """Run an alembic command under the advisory lock: the revisions before and after it."""
    if not to:
        raise MigrationError("the revision to go to is empty")
    connection.execute(text("SELECT pg_advisory_lock(:id)"), {"id": LOCK_ID})
    before = _current(connection)
    # The lock is the session's, so it outlasts this transaction and ends with the connection, however that ends.
    connection.commit()
    config = _config()
    config.attributes.update(connection=connection, version_table=VERSION_TABLE)
    with _ALEMBIC:
        run(config, to)
    return before, _current(connection)


def _current(connection: Connection) -> str | None:
    current = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()
    known = [migration.revision for migration in _history()]
    if current is not None and current not in known:
        raise UnknownRevisionError(current, known[-1])
    return current


def _history() -> tuple[Migration, ...]:
    """Every migration of this build, the first one first."""
    newest_first = ScriptDirectory.from_config(_config()).walk_revisions()
    return tuple(Migration(script.revision, script.doc) for script in newest_first)[::-1]


def _steps(after: str | None, through: str | None) -> tuple[Migration, ...]:
    """The migrations that lead from one revision to a later one."""
    position = {None: 0} | {migration.revision: index for index, migration in enumerate(_history(), start=1)}
    return _history()[position[after] : position[through]]


def _config() -> Config:
    config = Config()
    # The option is interpolated as configparser does it.
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    return config


def _run(url: str, work: Callable[[Connection], T]) -> T:
    async def main() -> T:
        engine = create_async_engine("postgresql+asyncpg://", async_creator=lambda: _connect(url), poolclass=NullPool)
        async with engine.connect() as connection:
            return await connection.run_sync(work)

    try:
        return asyncio.run(main())
    except DBAPIError as error:
        reason = error.orig.__cause__ if error.orig else None
        raise MigrationError(f"the migration failed: {_first_line(reason or error)}") from error
    except CommandError as error:
        raise MigrationError(_first_line(error)) from error


async def _connect(url: str) -> asyncpg.Connection:
    try:
        return await asyncpg.connect(url, server_settings=_SESSION, timeout=CONNECT_SECONDS)
    except ValueError:
        # The reason may quote a piece of the URL, and so of a password that was not escaped.
        raise MigrationError("the database's URL is malformed") from None
    except TimeoutError as error:
        raise MigrationError(f"the database did not answer within {CONNECT_SECONDS:g} s") from error
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise MigrationError(f"cannot reach the database: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
