"""What a sweep would take now: counted by its rules, without a change and without a lock.

Of each partition the counting looks at what would go and at little else, so it costs about as much as the sweep reads; each
statement ends at the node's statement_timeout.
"""

from __future__ import annotations

from datetime import timedelta

from services.chassis.postgres import Database
from services.store.repository.retention.log import LogRetention
from services.store.retention import RetentionCount, RetentionKind, RetentionSettings

_PARTITIONS = "SELECT partition FROM store_partitions ORDER BY partition"
# $2 and $3 are the floors as the sweep would leave them.
_COUNT_ACTIONS = """
WITH candidate AS (
    SELECT commit_offset, action_index, key, committed_at, transient
    FROM workflow_commits
    WHERE partition = $1 AND commit_offset < $2
      AND commit_offset >= (SELECT first_offset FROM store_partitions WHERE store_partitions.partition = $1)
    UNION
    SELECT commit_offset, action_index, key, committed_at, transient
    FROM workflow_commits
    WHERE partition = $1 AND commit_offset < least($2, $3)
      AND commit_offset >= (SELECT first_event_offset FROM store_partitions WHERE store_partitions.partition = $1)
    UNION
    SELECT logged.*
    FROM (
        SELECT key FROM workflow_state WHERE partition = $1 AND ended_at < now() - $4::interval AND NOT forgotten
        UNION ALL
        SELECT key FROM workflow_state WHERE partition = $1 AND ended_at < now() - $5::interval AND forgotten
    ) AS ended
    CROSS JOIN LATERAL (
        SELECT commit_offset, action_index, key, committed_at, transient FROM workflow_commits
        WHERE key = ended.key AND commit_offset < $2
        OFFSET 0
    ) AS logged
)
SELECT count(*)
FROM candidate
LEFT JOIN LATERAL (
    SELECT coalesce(ended_at < now() - $4::interval, false) AS is_over FROM workflow_state WHERE key = candidate.key LIMIT 1
) AS state ON true
WHERE candidate.commit_offset < least($2, $3)
  AND CASE WHEN candidate.key IS NULL OR candidate.transient THEN candidate.committed_at < now() - $4::interval
           ELSE coalesce(state.is_over, true) END
"""
_COUNT_EVENTS = """
SELECT count(DISTINCT commit_offset) FROM workflow_commits
WHERE partition = $1 AND commit_offset >= $2 AND commit_offset < $3 AND events IS NOT NULL
"""
_COUNT_KEYS = """
SELECT count(*)
FROM (
    SELECT key FROM workflow_state WHERE partition = $1 AND ended_at < now() - $3::interval AND NOT forgotten
    UNION ALL
    SELECT key FROM workflow_state WHERE partition = $1 AND ended_at < now() - $3::interval AND forgotten
) AS ended
LEFT JOIN LATERAL (
    SELECT true AS found FROM workflow_commits WHERE key = ended.key AND commit_offset >= $2 LIMIT 1
) AS logged ON true
WHERE logged.found IS NULL
"""
# Old ones, and released ones of any age. A key that would go refers to nothing. $3 are the partitions' floors, from partition 0 on.
_COUNT_BLOBS = """
SELECT count(*)
FROM (
    SELECT digest FROM blobs WHERE created_at < now() - $1::interval
    UNION ALL
    SELECT digest FROM blobs WHERE released AND created_at >= now() - $1::interval
) AS due
LEFT JOIN LATERAL (
    SELECT true AS found
    FROM blob_references AS reference
    LEFT JOIN LATERAL (
        SELECT true AS found FROM workflow_state AS state
        WHERE state.key = reference.key AND state.ended_at < now() - $2::interval
          AND NOT EXISTS (
              SELECT FROM workflow_commits WHERE key = state.key AND commit_offset >= ($3::bigint[])[state.partition + 1] OFFSET 0
          )
        LIMIT 1
    ) AS finished ON true
    WHERE reference.digest = due.digest AND finished.found IS NULL
    LIMIT 1
) AS used ON true
WHERE used.found IS NULL
"""
_COUNT_UPLOADS = """
SELECT count(*)
FROM (SELECT DISTINCT upload_id FROM blob_chunks WHERE created_at < now() - $1::interval) AS held
LEFT JOIN LATERAL (SELECT true AS found FROM blobs WHERE blobs.upload_id = held.upload_id LIMIT 1) AS whole ON true
CROSS JOIN LATERAL (
    SELECT created_at FROM blob_chunks WHERE blob_chunks.upload_id = held.upload_id ORDER BY position DESC LIMIT 1
) AS last
WHERE whole.found IS NULL AND last.created_at < now() - $1::interval
"""


class RetentionPreview:
    """Counts what a sweep of all partitions would take."""

    def __init__(self, database: Database, log: LogRetention) -> None:
        self._database = database
        self._log = log

    async def count(self, settings: RetentionSettings) -> list[RetentionCount]:
        """Each kind, in order. Raises StatementTimeout where there is too much to count."""
        counts = dict.fromkeys(RetentionKind, 0)
        held = dict.fromkeys(RetentionKind, 0)
        targets: list[int] = []
        for (partition,) in await self._database.fetch(_PARTITIONS):
            log, outbox = await self._log.floors(partition, settings)
            targets.append(log.target)
            counts[RetentionKind.COMMITS] += log.target - log.first
            held[RetentionKind.COMMITS] += log.held
            counts[RetentionKind.EVENTS] += await self._events(partition, outbox.first, outbox.target)
            held[RetentionKind.EVENTS] += await self._events(partition, outbox.target, outbox.aged)
            counts[RetentionKind.DEDUP] += await self._database.fetchval(
                _COUNT_ACTIONS, partition, log.target, outbox.target, settings.dedup, settings.finished
            )
            counts[RetentionKind.KEYS] += await self._database.fetchval(
                _COUNT_KEYS, partition, log.target, settings.finished
            )
        counts[RetentionKind.BLOBS] += await self._database.fetchval(
            _COUNT_BLOBS, settings.blob, settings.finished, targets
        )
        counts[RetentionKind.BLOBS] += await self._database.fetchval(_COUNT_UPLOADS, settings.blob)
        retentions: dict[RetentionKind, timedelta] = {
            RetentionKind.DEDUP: settings.dedup,
            RetentionKind.COMMITS: settings.commit_log,
            RetentionKind.KEYS: settings.finished,
            RetentionKind.EVENTS: settings.outbox,
            RetentionKind.BLOBS: settings.blob,
        }
        return [RetentionCount(kind, retentions[kind], counts[kind], held[kind]) for kind in RetentionKind]

    async def _events(self, partition: int, begin: int, end: int) -> int:
        count: int = await self._database.fetchval(_COUNT_EVENTS, partition, begin, end)
        return count
