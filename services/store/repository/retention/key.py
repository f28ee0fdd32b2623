"""Keys that have ended: first their actions are forgotten, later all that is shown of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import NamedTuple

from services.chassis.postgres import Database
from services.store.repository.projection import PROJECTION_LOCK

# Locked until the transaction's end: a commit that opens one of them again comes before, and the key is no candidate; or it comes
# after, and marks the key as not forgotten.
_LIST_ENDED = """
SELECT key FROM workflow_state
WHERE partition = $1 AND ended_at < now() - $2::interval AND ended_at IS NOT NULL AND NOT forgotten
ORDER BY ended_at LIMIT $3 FOR NO KEY UPDATE SKIP LOCKED
"""
# Only what is below both floors. What is above goes with them, because the key has ended: see log.
_FORGET_ACTIONS = """
DELETE FROM workflow_commits WHERE key = ANY ($2::text[]) AND ctid = ANY (ARRAY(
    SELECT logged.row_id
    FROM store_partitions AS floor
    CROSS JOIN unnest($2::text[]) AS wanted (name)
    CROSS JOIN LATERAL (
        SELECT ctid AS row_id FROM workflow_commits
        WHERE key = wanted.name AND commit_offset < least(floor.first_offset, floor.first_event_offset)
        LIMIT $3
    ) AS logged
    WHERE floor.partition = $1
    LIMIT $3
))
"""
_MARK = "UPDATE workflow_state SET forgotten = true WHERE key = ANY ($1::text[])"

_LOCK = "SELECT pg_advisory_xact_lock($1)"
# A key goes behind its last commit: then the log, which may be read up to its floor, speaks of no key that is not there, and the
# projection has read that commit, because the floor never passes its watermark.
_LIST_FINISHED = """
SELECT state.key
FROM workflow_state AS state
LEFT JOIN LATERAL (
    SELECT true AS found FROM workflow_commits
    WHERE key = state.key AND commit_offset >= (SELECT first_offset FROM store_partitions WHERE store_partitions.partition = $1)
    LIMIT 1
) AS logged ON true
WHERE state.partition = $1 AND state.ended_at < now() - $2::interval AND state.ended_at IS NOT NULL AND state.forgotten
  AND logged.found IS NULL
ORDER BY state.ended_at LIMIT $3 FOR UPDATE OF state SKIP LOCKED
"""
_DROP_PROJECTIONS = """
DELETE FROM workflow_projection
WHERE key = ANY ($1::text[]) AND generation = ANY (ARRAY(
    SELECT generate_series((SELECT min(generation) FROM workflow_projection), (SELECT max(generation) FROM workflow_projection))
))
"""
_DROP_REFERENCES = "DELETE FROM blob_references WHERE key = ANY ($1::text[]) RETURNING digest"
_DROP_STATES = "DELETE FROM workflow_state WHERE key = ANY ($1::text[])"


class Forgotten(NamedTuple):
    """What a batch of ended keys gave."""

    action_count: int
    """Actions that are not known any more."""
    is_last: bool
    """True if nothing is left to forget now."""


class Finished(NamedTuple):
    """What a batch of finished keys gave."""

    key_count: int
    """Keys that are not there any more."""
    action_count: int
    """Actions that were still known of them."""
    digests: Sequence[bytes]
    """Blobs to which they referred."""


class KeyRetention:
    """Takes away what is known of ended keys."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def forget(self, partition: int, dedup: timedelta, limit: int) -> Forgotten:
        """Forgets up to `limit` actions of keys that ended so long ago."""
        async with self._database.transaction() as connection:
            keys = [row["key"] for row in await connection.fetch(_LIST_ENDED, partition, dedup, _keys(limit))]
            if not keys:
                return Forgotten(0, True)
            count = _count(await connection.execute(_FORGET_ACTIONS, partition, keys, limit))
            if count < limit:
                await connection.execute(_MARK, keys)
        return Forgotten(count, False)

    async def finish(self, partition: int, finished: timedelta, limit: int) -> Finished:
        """Deletes keys that ended so long ago and whose actions are forgotten, up to about `limit` rows; in every generation."""
        async with self._database.transaction() as connection:
            # A statement of its own: what comes after sees all that was projected under the lock.
            await connection.execute(_LOCK, PROJECTION_LOCK)
            keys = [row["key"] for row in await connection.fetch(_LIST_FINISHED, partition, finished, _keys(limit))]
            if not keys:
                return Finished(0, 0, [])
            # Nothing, unless a sweep passed over rows because their key was in use; it is the last time that the key is looked at.
            actions = 0
            while count := _count(await connection.execute(_FORGET_ACTIONS, partition, keys, limit)):
                actions += count
            await connection.execute(_DROP_PROJECTIONS, keys)
            digests = await connection.fetch(_DROP_REFERENCES, keys)
            await connection.execute(_DROP_STATES, keys)
        return Finished(len(keys), actions, sorted({row["digest"] for row in digests}))


def _keys(rows: int) -> int:
    # About as many as a workflow has of each: so few keys are locked, and looked at twice.
    return max(1, rows // 10)


def _count(status: str) -> int:
    """Of a statement's status, such as `DELETE 3`."""
    return int(status.rsplit(" ", 1)[1])
