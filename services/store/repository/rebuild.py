"""Generations of projections: one is live, one may be under construction, and what else there is is dropped.

Each step of a rebuild is a transaction that takes PROJECTION_LOCK first, so that no key is deleted between the snapshot that shows
its state and the projection made of it, and then holds the rebuild's lease, so that a rebuild that lost it changes nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import NamedTuple

from services.chassis.postgres import Connection, Database
from services.chassis.postgres_error import TransactionConflict
from services.store.domain import Lease
from services.store.projection import REBUILD_LEASE, RebuildRunning
from services.store.repository.projection import INPUT, PROJECTED_CHANNEL, PROJECTION_LOCK, SHOW

_LOCK = "SELECT pg_advisory_xact_lock_shared($1)"
_HOLD = """
SELECT epoch FROM leases WHERE name = $1 AND owner = $2 AND epoch = $3 AND expires_at > clock_timestamp() FOR SHARE
"""
_HOLDER = "SELECT owner FROM leases WHERE name = $1"
_NEXT_GENERATION = """
SELECT greatest((SELECT max(generation) FROM workflow_projection), (SELECT max(generation) FROM projection_watermarks), 0) + 1
"""
_ENDS = "SELECT partition, next_offset FROM store_partitions ORDER BY partition"
_COUNT_KEYS = "SELECT count(*) FROM (SELECT FROM workflow_state WHERE key > '' LIMIT $1) AS bounded"
_BUILD = f"""
WITH input AS (
    SELECT $1::integer AS generation, state.*
    FROM (SELECT {INPUT} FROM workflow_state WHERE key > $2 COLLATE "C" ORDER BY key LIMIT $3) AS state
), shown AS (
    {SHOW}
)
SELECT count(*) AS done, max(key) AS last FROM input
"""
_FOLLOW = f"""
WITH span AS (
    SELECT given.partition, given.begin, least(given.begin + $4, log.next_offset) AS behind, log.next_offset
    FROM unnest($2::smallint[], $3::bigint[]) AS given (partition, begin)
    JOIN store_partitions AS log ON log.partition = given.partition AND log.next_offset > given.begin
), entry AS (
    SELECT logged.key
    FROM span
    CROSS JOIN LATERAL (
        SELECT key FROM workflow_commits
        WHERE workflow_commits.partition = span.partition AND commit_offset >= span.begin AND commit_offset < span.behind
        OFFSET 0
    ) AS logged
), changed AS (
    SELECT DISTINCT key FROM entry WHERE key IS NOT NULL
), input AS (
    SELECT $1::integer AS generation, state.*
    FROM changed
    CROSS JOIN LATERAL (SELECT {INPUT} FROM workflow_state WHERE workflow_state.key = changed.key LIMIT 1) AS state
), shown AS (
    {SHOW}
)
SELECT partition, behind, behind < next_offset AS is_long FROM span
"""
# A partition that nobody materialized yet may be begun at any moment, with the generation that is live then.
_COMPLETE_WATERMARKS = """
INSERT INTO projection_watermarks (partition, generation)
SELECT partition, (SELECT coalesce(max(generation), 0) FROM projection_watermarks) FROM store_partitions ORDER BY partition
ON CONFLICT ON CONSTRAINT projection_watermarks_pkey DO NOTHING
"""
_HOLD_WATERMARKS = "SELECT partition FROM projection_watermarks ORDER BY partition FOR UPDATE"
_IS_CUT = """
SELECT bool_or(first_offset > given.behind)
FROM unnest($1::smallint[], $2::bigint[]) AS given (partition, behind) JOIN store_partitions USING (partition)
"""
_SWAP = """
UPDATE projection_watermarks AS stored SET generation = $1, watermark = greatest(stored.watermark, given.behind)
FROM unnest($2::smallint[], $3::bigint[]) AS given (partition, behind)
WHERE stored.partition = given.partition
"""
_TELL = f"SELECT pg_notify('{PROJECTED_CHANNEL}', string_agg(partition::text, ',')) FROM projection_watermarks"
# Two ranges: of `<>` no index makes use.
_DROP = """
WITH live AS (SELECT coalesce(max(generation), 0) AS generation FROM projection_watermarks), dead AS (
    (SELECT stored.ctid FROM workflow_projection AS stored WHERE stored.generation < (SELECT generation FROM live)
     ORDER BY stored.generation, stored.key LIMIT $1)
    UNION ALL
    (SELECT stored.ctid FROM workflow_projection AS stored WHERE stored.generation > (SELECT generation FROM live)
     ORDER BY stored.generation, stored.key LIMIT $1)
    LIMIT $1
)
DELETE FROM workflow_projection WHERE ctid = ANY (ARRAY(SELECT ctid FROM dead))
"""
# No row where a rebuild is under way, in one of its steps, or never was. Who has the row keeps others from beginning.
_BAR = """
SELECT epoch FROM leases WHERE name = $1 AND expires_at <= clock_timestamp() FOR UPDATE SKIP LOCKED
"""

_COUNTED = 1_000_000
"""Keys are counted up to here, which takes a tenth of a second: enough for a bar of progress."""


class Tail(NamedTuple):
    """The next offset to apply of each partition, and whether more was there than one round takes."""

    begin: Mapping[int, int]
    is_long: bool


class RebuildRepository:
    """The generations of one database's projections."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def new_generation(self, lease: Lease) -> int:
        """A generation that nothing is shown of yet. Raises RebuildRunning, as all that takes a lease, where it is lost."""
        async with self._step(lease) as connection:
            generation: int = await connection.fetchval(_NEXT_GENERATION)
            return generation

    async def ends(self) -> dict[int, int]:
        """The next offset of each partition: what is committed before is in the states that are read from now on."""
        return {row["partition"]: row["next_offset"] for row in await self._database.fetch(_ENDS)}

    async def count_keys(self) -> int:
        """How many keys have a state; a million where there are more."""
        count: int = await self._database.fetchval(_COUNT_KEYS, _COUNTED)
        return count

    async def build(self, lease: Lease, generation: int, after: str, size: int) -> tuple[int, str]:
        """Shows `size` keys from behind `after` on; how many there were, and the last one."""
        async with self._step(lease) as connection:
            row = await connection.fetchrow(_BUILD, generation, after, size)
            assert row is not None
            return row["done"], row["last"] or after

    async def follow(self, lease: Lease, generation: int, begin: Mapping[int, int], limit: int) -> Tail:
        """Shows the keys of the log's next commits, `limit` a partition."""
        async with self._step(lease) as connection:
            return await _follow(connection, generation, begin, limit)

    async def swap(self, lease: Lease, generation: int, begin: Mapping[int, int], limit: int) -> None:
        """Applies the rest of the log and makes the generation live: for every reader at the same moment, of every partition.

        Watermarks never go back. Materializers wait meanwhile, commits do not.
        """
        async with self._step(lease) as connection:
            await connection.execute(_COMPLETE_WATERMARKS)
            await connection.execute(_HOLD_WATERMARKS)
            if await connection.fetchval(_IS_CUT, list(begin), list(begin.values())):
                raise TransactionConflict("retention has taken a part of the log that the rebuild needed; begin again")
            # Statements of their own, so with snapshots that show everything that is projected.
            tail = await _follow(connection, generation, begin, limit)
            while tail.is_long:
                tail = await _follow(connection, generation, tail.begin, limit)
            await connection.execute(_SWAP, generation, list(tail.begin), list(tail.begin.values()))
            await connection.execute(_TELL)

    async def drop(self, lease: Lease, limit: int) -> int:
        """Drops up to `limit` projections that are not live, for the holder of the lease; how many."""
        async with self._step(lease) as connection:
            return await _drop(connection, limit)

    async def drop_dead_generations(self, limit: int) -> int:
        """Drops up to `limit` projections that a rebuild left which broke off; how many. None while a rebuild is under way."""
        async with self._database.transaction() as connection:
            await connection.execute(_LOCK, PROJECTION_LOCK)
            if await connection.fetchval(_BAR, REBUILD_LEASE) is None:
                return 0
            return await _drop(connection, limit)

    @asynccontextmanager
    async def _step(self, lease: Lease) -> AsyncIterator[Connection]:
        async with self._database.transaction() as connection:
            await connection.execute(_LOCK, PROJECTION_LOCK)
            if await connection.fetchval(_HOLD, lease.name, lease.owner, lease.epoch) is None:
                holder = await connection.fetchval(_HOLDER, lease.name)
                raise RebuildRunning("the rebuild lost its lease", metadata={"owner": holder or ""})
            yield connection


async def _follow(connection: Connection, generation: int, begin: Mapping[int, int], limit: int) -> Tail:
    rows = await connection.fetch(_FOLLOW, generation, list(begin), list(begin.values()), limit)
    applied = {row["partition"]: row["behind"] for row in rows}
    return Tail({**begin, **applied}, any(row["is_long"] for row in rows))


async def _drop(connection: Connection, limit: int) -> int:
    status = await connection.execute(_DROP, limit)
    return int(status.removeprefix("DELETE "))
