"""The log as its readers see it: the rows of a feed, and the past of a key."""

from __future__ import annotations

from asyncpg import Record

from services.chassis.feed import Bounds, Page, Position
from services.chassis.identity import partition_of
from services.chassis.postgres import Database
from services.store.domain import LoggedAction, State, StateNotFound, VersionExpired
from services.store.repository.partition import PartitionRepository

_BOUNDS = "SELECT partition, first_offset, first_event_offset, next_offset FROM store_partitions"
_COLUMNS = """partition, commit_offset, action_index, action_id, action_type, provenance, events, key, version, state,
       schema_version, final, committed_at"""
# Of each partition the first rows, but no part of an offset: where the row limit cut one, it is left for the next page; one offset
# has 500 rows at most, and the limit is above that. A window that is ordered by the offset takes all rows of one together, so the
# weight at each is that up to the offset's end. octet_length reads no toasted text, it knows its length. The bound of the offsets,
# of which each has a row, is for a log without statistics: by the limit alone its whole tail would be read and sorted.
_READ = """
SELECT partition, commit_offset, action_index, action_id, action_type, provenance, events, key, version, state, schema_version,
       final, committed_at,
       is_cut OR max(commit_offset) OVER partition < last_offset OR last_offset = wanted.first + $4 - 1 AS has_more
FROM unnest($1::smallint[], $2::bigint[], $3::bigint[]) AS wanted (number, first, past)
CROSS JOIN LATERAL (
    SELECT *, count(*) OVER () = $4 AS is_cut, min(commit_offset) OVER () AS first_offset,
           max(commit_offset) OVER () AS last_offset,
           sum(octet_length(coalesce(state, '')) + octet_length(coalesce(events, ''))) OVER (ORDER BY commit_offset) AS weight
    FROM (
        SELECT partition, commit_offset, action_index, action_id, action_type, provenance, events, key, version,
               CASE WHEN $6 THEN state END AS state, schema_version, final, committed_at
        FROM workflow_commits
        WHERE partition = wanted.number AND commit_offset >= wanted.first
          AND commit_offset < least(wanted.past, wanted.first + $4)
        ORDER BY commit_offset, action_index LIMIT $4
    ) AS found
) AS weighed
WHERE (NOT is_cut OR commit_offset < last_offset) AND (weight <= $5 OR commit_offset = first_offset)
WINDOW partition AS (PARTITION BY partition)
ORDER BY partition, commit_offset, action_index
"""
_NO_END = 2**63 - 1
_FIND_PAST = """
SELECT current.version AS current_version, current.partition, logged.version, logged.state, logged.schema_version, logged.final,
       logged.committed_at
FROM workflow_state AS current
LEFT JOIN LATERAL (
    SELECT version, state, schema_version, final, committed_at FROM workflow_commits
    WHERE workflow_commits.key = current.key AND workflow_commits.version = $2 AND action_index = 0 AND state IS NOT NULL
    LIMIT 1
) AS logged ON true
WHERE current.key = $1
"""
# Below the log's beginning rows may be left that only keep their action known.
_LIST = f"""
SELECT {_COLUMNS} FROM workflow_commits
WHERE key = $1 AND (version, action_index) < ($2, $3)
  AND commit_offset >= (SELECT first_offset FROM store_partitions WHERE store_partitions.partition = $4)
ORDER BY version DESC, action_index DESC LIMIT $5
"""
_NEWEST = (_NO_END, 0)


class LogRepository:
    """The log of one database, as a feed reads it: with states, or the outbox, which has a beginning of its own."""

    def __init__(self, database: Database, partitions: PartitionRepository, *, outbox: bool) -> None:
        self._database = database
        self._partitions = partitions
        self._outbox = outbox

    async def bounds(self) -> dict[int, Bounds]:
        """Of every partition."""
        await self._partitions.count()  # makes them, where this is the database's first call
        first = "first_event_offset" if self._outbox else "first_offset"
        return {row["partition"]: Bounds(row[first], row["next_offset"]) for row in await self._database.fetch(_BOUNDS)}

    async def read(self, begin: Position, end: Position | None, rows: int, size_bytes: int) -> Page[LoggedAction]:
        """As the feed asks."""
        found = await self._database.fetch(
            _READ,
            list(begin),
            list(begin.values()),
            [end[partition] if end else _NO_END for partition in begin],
            rows,
            size_bytes // max(1, len(begin)),
            not self._outbox,
        )
        return Page([_from_row(row) for row in found], {row["partition"] for row in found if row["has_more"]})


class HistoryRepository:
    """The past of one database's keys, as far as the log holds it."""

    def __init__(self, database: Database, partitions: PartitionRepository) -> None:
        self._database = database
        self._partitions = partitions

    async def get(self, key: str, at_version: int) -> State | None:
        """The state of a key at a version; None where that is the current one. Raises StateNotFound, VersionExpired."""
        row = await self._database.fetchrow(_FIND_PAST, key, at_version)
        if row is None or at_version > row["current_version"]:
            message = (
                None if row is None else f"the key has no version {at_version} yet, it is at {row['current_version']}"
            )
            raise StateNotFound(message, metadata={"key": key, "at_version": str(at_version)})
        if at_version == row["current_version"]:
            return None
        if row["version"] is None:
            raise VersionExpired(
                metadata={"key": key, "at_version": str(at_version), "version": str(row["current_version"])}
            )
        return State(
            key,
            at_version,
            row["state"],
            row["schema_version"],
            row["final"],
            row["committed_at"],
            row["partition"],
        )

    async def list(self, key: str, before: tuple[int, int] | None, size: int) -> list[LoggedAction]:
        """Up to `size` actions of a key, the newest first, from behind `before`, a version and an index, on."""
        partition = partition_of(key, await self._partitions.count())
        rows = await self._database.fetch(_LIST, key, *(before or _NEWEST), partition, size)
        return [_from_row(row) for row in rows]


def _from_row(row: Record) -> LoggedAction:
    return LoggedAction(
        row["partition"],
        row["commit_offset"],
        row["action_index"],
        row["action_id"],
        row["action_type"],
        row["provenance"],
        row["events"],
        row["key"],
        row["version"],
        row["state"],
        row["schema_version"],
        row["final"],
        row["committed_at"],
    )
