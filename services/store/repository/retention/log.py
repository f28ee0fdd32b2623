"""The rows of the log: each is log entry, outbox entry and dedup entry, and goes when it is none of them any more.

A partition's floors move first, in a short transaction of their own: whoever reads the floors after the rows, or with them,
never takes a range with holes for a whole one, and commits wait no longer than for one another.
"""

from __future__ import annotations

from datetime import timedelta

from services.chassis.postgres import Database
from services.store.retention import Cleared, Floor, Floors, RetentionSettings

# least() passes over NULL: no consumer reads the partition.
_READ = """
least(next_offset, coalesce((SELECT watermark FROM projection_watermarks WHERE projection_watermarks.partition = $1), 0),
      (SELECT min(outbox_consumers.next_offset) FROM outbox_consumers WHERE outbox_consumers.partition = $1))
"""
_FLOORS = f"""
SELECT first_offset, first_event_offset, next_offset, {_READ} AS read_offset FROM store_partitions WHERE partition = $1
"""
# A search by halves, because times have no index of their own and grow with the offsets: what is older than the retention is a
# beginning of the log. A place without a row counts as young: nothing is behind it, or what was is gone.
_AGED = """
WITH RECURSIVE search AS (
    SELECT $2::bigint AS low, $3::bigint AS high
    UNION ALL
    SELECT CASE WHEN is_old THEN middle + 1 ELSE low END, CASE WHEN is_old THEN high ELSE middle END
    FROM search
    CROSS JOIN LATERAL (SELECT (low + high) / 2 AS middle) AS half
    CROSS JOIN LATERAL (
        SELECT coalesce((
            SELECT committed_at < now() - $4::interval FROM workflow_commits
            WHERE partition = $1 AND commit_offset >= middle ORDER BY commit_offset LIMIT 1
        ), false) AS is_old
    ) AS judged
    WHERE low < high
)
SELECT low FROM search WHERE low >= high
"""
# By rows and not by offsets alone: a commit has up to 500 of them.
_STEP = """
SELECT count(*) AS number, max(commit_offset) + 1 AS behind FROM (
    SELECT commit_offset FROM workflow_commits
    WHERE partition = $1 AND commit_offset >= $2 AND commit_offset < $3 ORDER BY commit_offset LIMIT $4
) AS step
"""
# Held before the consumers are looked at: who registers holds it, too, and so is seen here, or sees the new floor.
_TAKE = "SELECT FROM store_partitions WHERE partition = $1 FOR NO KEY UPDATE"
_ADVANCE = f"""
UPDATE store_partitions
SET first_offset = greatest(first_offset, least($2, {_READ})),
    first_event_offset = greatest(first_event_offset, least($3, {_READ}))
WHERE partition = $1
RETURNING first_offset, first_event_offset
"""
# A key that is known to have ended is locked, so that no commit opens it again before its actions are forgotten. Rows go by their
# ctid, whatever the planner believes of the tables' sizes.
_CLEAR = """
WITH passed AS MATERIALIZED (
    SELECT logged.ctid AS row_id, logged.key, logged.committed_at, logged.commit_offset < floor.first_offset AS is_logged_no_more,
           -- Those without events, too: from its floor on, the outbox has each offset, or a reader would take a gap for its end.
           logged.commit_offset < floor.first_event_offset AS is_unsent_no_more,
           CASE WHEN logged.commit_offset < floor.first_event_offset AND logged.events IS NOT NULL THEN logged.commit_offset END
               AS event_offset,
           CASE WHEN logged.commit_offset < floor.first_event_offset THEN json_array_length(logged.events::json) END AS event_count,
           -- The dedup retention of others counts from their key's end.
           logged.key IS NULL OR logged.transient IS TRUE AS is_counted_from_commit
    FROM store_partitions AS floor JOIN workflow_commits AS logged ON logged.partition = floor.partition
    WHERE floor.partition = $1 AND logged.partition = $1 AND logged.commit_offset >= $2 AND logged.commit_offset < $3
), state AS MATERIALIZED (
    SELECT key FROM workflow_state WHERE key = ANY (ARRAY(SELECT DISTINCT key FROM passed WHERE key IS NOT NULL))
), ended AS MATERIALIZED (
    SELECT key FROM workflow_state WHERE key = ANY (ARRAY(SELECT key FROM state)) AND ended_at < now() - $4::interval
    FOR SHARE SKIP LOCKED
), deleted AS (
    DELETE FROM workflow_commits WHERE ctid = ANY (ARRAY(
        SELECT row_id FROM passed
        WHERE is_logged_no_more AND is_unsent_no_more
          AND CASE WHEN is_counted_from_commit THEN committed_at < now() - $4::interval
                   ELSE key IN (SELECT key FROM ended) OR key NOT IN (SELECT key FROM state) END
    ))
    RETURNING action_id
)
SELECT (SELECT count(*) FROM deleted) AS action_count, count(DISTINCT event_offset) AS offset_count,
       coalesce(sum(event_count), 0)::bigint AS event_count
FROM passed
"""
# What is left is kept for its other roles.
_STRIP = """
UPDATE workflow_commits AS logged
SET state = CASE WHEN logged.commit_offset < floor.first_offset THEN NULL ELSE logged.state END,
    events = CASE WHEN logged.commit_offset < floor.first_event_offset THEN NULL ELSE logged.events END
FROM store_partitions AS floor
WHERE floor.partition = $1 AND logged.partition = $1 AND logged.commit_offset >= $2 AND logged.commit_offset < $3
  AND (logged.commit_offset < floor.first_offset AND logged.state IS NOT NULL
       OR logged.commit_offset < floor.first_event_offset AND logged.events IS NOT NULL)
"""


class LogRetention:
    """Takes from the log what has outlived its retention."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def floors(self, partition: int, settings: RetentionSettings) -> Floors:
        """Where the log and the outbox of a partition begin, and where they could by now."""
        row = await self._database.fetchrow(_FLOORS, partition)
        if row is None:
            # The database has not so many partitions yet: none at all.
            nothing = Floor(0, 0, 0)
            return Floors(nothing, nothing)
        first, first_event, end, read = row
        return Floors(
            Floor(first, await self._aged(partition, first, end, settings.commit_log), read),
            Floor(first_event, await self._aged(partition, first_event, end, settings.outbox), read),
        )

    async def step(self, partition: int, begin: int, end: int, limit: int) -> int:
        """How far a batch of about `limit` rows reaches from `begin` on; `end` at most."""
        reach = min(begin + limit, end)
        row = await self._database.fetchrow(_STEP, partition, begin, reach, limit)
        return row["behind"] if row is not None and row["number"] == limit else reach

    async def advance(self, partition: int, first_offset: int, first_event_offset: int) -> tuple[int, int]:
        """Moves the floors up to here, as far as the projection and every consumer have read by now; never back. Returns them."""
        async with self._database.transaction() as connection:
            await connection.execute(_TAKE, partition)
            row = await connection.fetchrow(_ADVANCE, partition, first_offset, first_event_offset)
        return (
            (row["first_offset"], row["first_event_offset"]) if row is not None else (first_offset, first_event_offset)
        )

    async def clear(self, partition: int, begin: int, end: int, dedup: timedelta) -> Cleared:
        """Takes from the rows of these offsets what is below the floors: whole rows, if their actions may be forgotten, too."""
        row = await self._database.fetchrow(_CLEAR, partition, begin, end, dedup)
        await self._database.execute(_STRIP, partition, begin, end)
        return Cleared(*row) if row is not None else Cleared(0, 0, 0)

    async def _aged(self, partition: int, begin: int, end: int, retention: timedelta) -> int:
        aged: int = await self._database.fetchval(_AGED, partition, begin, end, retention)
        return aged
