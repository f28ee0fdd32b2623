"""What a use of PostgreSQL can end with: the refusals that callers see, and which of asyncpg's errors mean an outage."""

from __future__ import annotations

import asyncpg

from omninode.bridge.errors.v1 import errors_pb2
from services.chassis.errors import Aborted, DeadlineExceeded, ResourceExhausted, Unavailable


class DatabaseUnavailable(Unavailable):
    """PostgreSQL cannot be reached now; whether a write that was under way took effect is not known."""

    reason = errors_pb2.ERROR_REASON_DATABASE_UNAVAILABLE


class PoolExhausted(ResourceExhausted):
    """Every database connection is busy."""

    reason = errors_pb2.ERROR_REASON_POOL_EXHAUSTED


class StatementTimeout(DeadlineExceeded):
    """A statement ran longer than the node allows, and took no effect."""

    reason = errors_pb2.ERROR_REASON_STATEMENT_TIMEOUT


class TransactionConflict(Aborted):
    """PostgreSQL ended the transaction in favour of another one; the same call may succeed."""

    reason = errors_pb2.ERROR_REASON_TRANSACTION_CONFLICT


class ConstraintViolated(Exception):
    """A unique, check, foreign key or exclusion constraint refused the row. Left uncaught, it is a bug."""

    def __init__(self, constraint: str) -> None:
        super().__init__(constraint)
        self.constraint = constraint


# What says by itself that no server was met. TimeoutError is the client's own bound of a statement or a connect: a server that
# does not even keep its own statement_timeout is as good as away.
_OUTAGES = (
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.DatabaseDroppedError,
    asyncpg.IdleSessionTimeoutError,
    asyncpg.TargetServerAttributeNotMatched,
)
_OUTAGES_WHERE_LOST = (asyncpg.InterfaceError, asyncpg.InternalClientError)


def is_outage(error: Exception, *, lost: bool) -> bool:
    """Whether the error is connection-class; `lost` says that there is no connection, or none any more.

    asyncpg reports the second statement on a lost connection, a transaction's end among them, as a bare InterfaceError, and one
    that crosses the server's farewell as a bare InternalClientError: the classes that misuse and asyncpg's own bugs have too. Only
    the connection's state tells them apart.
    """
    if isinstance(error, _OUTAGES):
        return True
    return lost and (isinstance(error, OSError) or type(error) in _OUTAGES_WHERE_LOST)
