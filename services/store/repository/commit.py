"""Commits: what writes the states and the log. Rows in and out; no rule of the store is made here.

The log's order: a partition's offsets come from its row in store_partitions, which the committing statement holds locked until it
is durable. So offsets have no gap, and who reads up to an offset has seen everything before it; see docs/commit-log.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from services.chassis.coalesce import Coalescer
from services.chassis.errors import BridgeError
from services.chassis.postgres import Connection, Database
from services.chassis.postgres_error import ConstraintViolated, TransactionConflict
from services.store.domain import Commit, Committed, NotApplied, Outcome
from services.store.repository.partition import PartitionRepository
from services.store.repository.row import ACTION_KEY, to_columns, to_outcomes

_ROUNDS = 5
"""A commit is tried anew when another replica's came first; each round sees what that one committed."""
_CONFLICT_PAUSE = 0.2
"""Seconds in which the transaction that came first may end, doubled each time: it may have hundreds of statements left."""
_WAITING_BYTES = 256 * 1024 * 1024
"""Of commits that wait for their statement; a node's memory has other uses."""
_BATCH_BYTES = 16 * 1024 * 1024
"""States, blobs and events of one statement: as much as one request may hold. More would only make everyone behind it wait."""

# One statement, so one transaction and one round trip, for all commits of a batch, at most one of each key. Its writes are ordered
# so that two replicas wait for each other and do not deadlock: leases by name, partitions by number, states by key. An
# expectation that held by the statement's snapshot and not when the row was written leaves its commit without an outcome, and it
# is tried again; an action that another replica committed meanwhile breaks workflow_commits_action_key and undoes the statement.
# Every look-up is a LATERAL with LIMIT 1, and states are written by their ctid: both whatever the planner believes of the tables'
# sizes. The generate_series beside unnest says that there may be many rows: a plan made for ten joins a batch by nested loops.
_COMMIT = """
WITH item AS (
    SELECT key, partition::smallint AS partition, expected::bigint AS expected, state, schema_version::integer AS schema_version,
           final::boolean AS final, projection, last_action, transient::boolean AS transient, item
    FROM ROWS FROM (
        unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[]),
        generate_series(1, cardinality($1))
    ) AS given (key, partition, expected, state, schema_version, final, projection, last_action, transient, item)
), action AS (
    SELECT item::integer AS item, action_index::smallint AS action_index, encode(action_id, 'hex')::uuid AS action_id, fingerprint,
           action_type, provenance, events
    FROM ROWS FROM (
        unnest($10::text[], $11::text[], $12::bytea[], $13::bytea[], $14::text[], $15::text[], $16::text[]),
        generate_series(1, cardinality($10))
    ) AS given (item, action_index, action_id, fingerprint, action_type, provenance, events, position)
), guard AS (
    SELECT item::integer AS item, lease, epoch::bigint AS epoch, held::boolean AS held, position
    FROM unnest($17::text[], $18::text[], $19::text[], $20::text[]) WITH ORDINALITY AS given (item, lease, epoch, held, position)
), blob AS (
    SELECT item::integer AS item, digest, content
    FROM unnest($21::text[], $22::bytea[], $23::bytea[]) AS given (item, digest, content)
), reference AS (
    SELECT item::integer AS item, digest FROM unnest($24::text[], $25::bytea[]) AS given (item, digest)
), release AS (
    SELECT item::integer AS item, digest FROM unnest($26::text[], $27::bytea[]) AS given (item, digest)
), known AS (
    SELECT action.item, action.action_index, logged.fingerprint = action.fingerprint AS same, action.action_id, logged.version,
           logged.partition, logged.commit_offset, logged.committed_at, logged.events
    FROM action
    CROSS JOIN LATERAL (
        SELECT fingerprint, version, partition, commit_offset, committed_at, events FROM workflow_commits
        WHERE workflow_commits.action_id = action.action_id
        LIMIT 1
    ) AS logged
), lease AS (
    -- Locked, so that nobody takes a lease over between this check and the end of the transaction.
    SELECT name, epoch, expires_at FROM leases WHERE name IN (SELECT lease FROM guard) ORDER BY name FOR SHARE
), fenced AS (
    SELECT DISTINCT ON (guard.item) guard.item, guard.lease, coalesce(lease.epoch, 0) AS epoch
    FROM guard LEFT JOIN lease ON lease.name = guard.lease
    WHERE guard.held <> coalesce(lease.epoch = guard.epoch AND lease.expires_at > clock_timestamp(), false)
    ORDER BY guard.item, guard.position
), missing AS (
    -- What is there is locked, in the digests' order, so that no sweep deletes it before the reference is seen.
    SELECT DISTINCT ON (reference.item) reference.item, reference.digest
    FROM (SELECT item, digest FROM reference ORDER BY digest) AS reference
    LEFT JOIN LATERAL (
        SELECT true AS found FROM blobs WHERE blobs.digest = reference.digest LIMIT 1 FOR KEY SHARE
    ) AS stored ON true
    WHERE stored.found IS NULL
      AND NOT EXISTS (SELECT FROM blob WHERE blob.item = reference.item AND blob.digest = reference.digest)
    ORDER BY reference.item
), candidate AS (
    SELECT item.*, current.row_id, current.version
    FROM item
    LEFT JOIN LATERAL (
        SELECT ctid AS row_id, version FROM workflow_state WHERE workflow_state.key = item.key LIMIT 1
    ) AS current ON true
    WHERE NOT EXISTS (SELECT FROM known WHERE known.item = item.item)
      AND NOT EXISTS (SELECT FROM fenced WHERE fenced.item = item.item)
      AND NOT EXISTS (SELECT FROM missing WHERE missing.item = item.item)
), ready AS (
    SELECT * FROM candidate WHERE expected = -1 OR expected = coalesce(version, 0) ORDER BY key
), taken AS (
    SELECT partition FROM store_partitions WHERE partition IN (SELECT partition FROM ready) ORDER BY partition FOR UPDATE
), moment AS (
    -- The clock is read when the partitions are held, not when the transaction began: times grow with the offsets.
    SELECT clock_timestamp() AS committed_at FROM (SELECT count(*) FROM taken) AS held
), opened AS (
    INSERT INTO workflow_state (key, partition, version, state, schema_version, final, projection, last_action, created_at,
                                updated_at)
    SELECT key, partition, 1, state, schema_version, final, projection, last_action, committed_at, committed_at
    FROM ready CROSS JOIN moment WHERE version IS NULL
    ON CONFLICT ON CONSTRAINT workflow_state_pkey DO NOTHING
    RETURNING key, version
), advanced AS (
    UPDATE workflow_state AS stored
    SET version = stored.version + 1, state = ready.state, schema_version = ready.schema_version, final = ready.final,
        projection = coalesce(ready.projection, stored.projection), last_action = ready.last_action, updated_at = committed_at,
        forgotten = false
    FROM ready CROSS JOIN moment
    WHERE stored.ctid = ANY (ARRAY(SELECT row_id FROM ready WHERE row_id IS NOT NULL))
      AND stored.key = ready.key AND stored.version = ready.version
    RETURNING stored.key, stored.version
), written AS (
    SELECT ready.item, ready.key, ready.partition, ready.state, ready.schema_version, ready.final, ready.transient, done.version,
           row_number() OVER (PARTITION BY ready.partition ORDER BY ready.item) - 1 AS place
    FROM ready JOIN (SELECT * FROM opened UNION ALL SELECT * FROM advanced) AS done USING (key)
), counted AS (
    UPDATE store_partitions AS stored SET next_offset = stored.next_offset + commits.number
    FROM (SELECT partition, count(*) AS number FROM written GROUP BY partition) AS commits
    WHERE stored.partition = commits.partition
    RETURNING stored.partition, stored.next_offset - commits.number AS first_offset
), committed AS (
    SELECT written.*, counted.first_offset + written.place AS commit_offset, moment.committed_at
    FROM written JOIN counted USING (partition) CROSS JOIN moment
), logged AS (
    INSERT INTO workflow_commits (partition, commit_offset, action_index, action_id, fingerprint, action_type, provenance, events,
                                  key, version, state, schema_version, final, committed_at, transient)
    SELECT partition, commit_offset, action_index, action_id, fingerprint, action_type, provenance, events, key, version,
           CASE WHEN action_index = 0 THEN state END, CASE WHEN action_index = 0 THEN schema_version END, final, committed_at,
           transient
    FROM committed JOIN action USING (item)
), kept AS (
    INSERT INTO blobs (digest, size_bytes, content, created_at)
    SELECT DISTINCT ON (digest) digest, octet_length(content), content, now() FROM blob JOIN committed USING (item) ORDER BY digest
    -- It waits for a sweep that deletes it, and is as good as new after.
    ON CONFLICT ON CONSTRAINT blobs_pkey DO UPDATE SET created_at = excluded.created_at, released = false
    RETURNING digest
), referred AS (
    INSERT INTO blob_references (digest, key)
    SELECT digest, key FROM (SELECT item, digest FROM blob UNION SELECT item, digest FROM reference) AS used
    JOIN committed USING (item) ORDER BY digest, key
    ON CONFLICT ON CONSTRAINT blob_references_pkey DO NOTHING
), released AS (
    -- In no order: a key's references are written by whoever holds its state's row.
    DELETE FROM blob_references WHERE ctid = ANY (ARRAY(
        SELECT held.row_id
        FROM release
        JOIN committed USING (item)
        CROSS JOIN LATERAL (
            SELECT ctid AS row_id FROM blob_references
            WHERE blob_references.digest = release.digest AND blob_references.key = committed.key
            LIMIT 1
        ) AS held
    ))
    RETURNING digest
), marked AS (
    -- For the next sweep, but for what was put again: somebody may yet refer to it. After `kept` and without a wait, or two commits
    -- could each want what the other has. What is locked goes by its age.
    UPDATE blobs SET released = true WHERE digest = ANY (ARRAY(
        SELECT sole.digest
        FROM (SELECT digest FROM released EXCEPT SELECT digest FROM kept) AS unused
        CROSS JOIN LATERAL (
            SELECT digest FROM blobs WHERE blobs.digest = unused.digest AND blobs.released IS NULL
            LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
        ) AS sole
    ))
), told AS MATERIALIZED (
    SELECT pg_notify('store_commits', string_agg(partition::text, ',')) FROM counted HAVING count(*) > 0
)
SELECT item, 'committed' AS outcome, NULL::smallint AS action_index, NULL::uuid AS action_id, NULL::boolean AS same, version,
       partition, commit_offset, committed_at AS at, NULL AS text, NULL::bigint AS number, NULL::boolean AS final,
       NULL::bytea AS digest
-- A SELECT among the CTEs is done only if it is asked for.
FROM committed WHERE (SELECT count(*) FROM told) > 0
UNION ALL
SELECT item, 'known', action_index, action_id, same, version, partition, commit_offset, committed_at, events, NULL, NULL, NULL
FROM known
UNION ALL
SELECT item, 'fenced', NULL, NULL, NULL, NULL, NULL, NULL, NULL, lease, epoch, NULL, NULL FROM fenced
UNION ALL
SELECT item, 'missing', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, digest FROM missing
UNION ALL
SELECT candidate.item, 'conflict', NULL, NULL, NULL, candidate.version, candidate.partition, NULL, current.updated_at,
       current.state, current.schema_version, current.final, NULL
FROM candidate
LEFT JOIN LATERAL (
    SELECT state, schema_version, final, updated_at FROM workflow_state
    WHERE workflow_state.ctid = candidate.row_id AND workflow_state.key = candidate.key
    LIMIT 1
) AS current ON true
WHERE candidate.expected <> -1 AND candidate.expected <> coalesce(candidate.version, 0)
ORDER BY item, action_index
"""

_BatchOutcome: TypeAlias = Outcome | NotApplied | BridgeError


class _Undone(Exception):
    """Takes an atomic batch back; carries what became of each commit."""

    def __init__(self, outcomes: list[_BatchOutcome]) -> None:
        super().__init__()
        self.outcomes = outcomes


class CommitRepository:
    """The log of one database. Commits of concurrent callers share one statement."""

    def __init__(self, database: Database, partitions: PartitionRepository) -> None:
        self._database = database
        self._partitions = partitions
        self._commits: Coalescer[Commit, Outcome] = Coalescer(
            self._write,
            key=_key,
            order=_key,
            weight=_weight,
            max_weight=_BATCH_BYTES,
            max_waiting_weight=_WAITING_BYTES,
        )

    async def close(self) -> None:
        """Ends when every commit taken has its outcome."""
        await self._commits.aclose()

    async def commit(self, commit: Commit) -> Outcome:
        """Commits a state, or says why not. Raises ActionIdReused, BlobMissing."""
        return await self._commits.submit(commit)

    async def commit_many(self, commits: Sequence[Commit]) -> list[Outcome | BridgeError]:
        """Commits states, each with its own outcome, in order; those of one key one after another."""
        outcomes = await self._commits.submit_many(commits)
        return [_raise_bug(outcome) for outcome in outcomes]

    async def commit_atomically(self, commits: Sequence[Commit], *, whole: bool) -> list[_BatchOutcome]:
        """Commits all states in one transaction, or none. The commits hold no action_id twice.

        Where they are not the `whole` batch, because others of it were refused already, they are only checked.
        """
        for attempt in range(_ROUNDS):
            try:
                async with self._database.transaction() as connection:
                    outcomes = await self._write_in_waves(connection, commits)
                    if not whole or not all(isinstance(outcome, Committed) for outcome in outcomes):
                        raise _Undone(outcomes)
                    return outcomes
            except _Undone as undone:
                if None in undone.outcomes:
                    continue
                return [NotApplied() if isinstance(outcome, Committed) else outcome for outcome in undone.outcomes]
            except ConstraintViolated as error:
                if error.constraint != ACTION_KEY:
                    raise
            except TransactionConflict:
                # Its statements take their rows in order, its waves do not: two such batches may want what the other has. At once
                # it would take again what the other, which goes on now, comes to next.
                await asyncio.sleep(_CONFLICT_PAUSE * 2**attempt)
        raise _lost_every_race()

    async def _write(self, commits: Sequence[Commit]) -> Sequence[Outcome | BridgeError]:
        if len(commits) == 1:
            return [await self._write_alone(commits[0])]
        outcomes = await self._attempt(commits)
        # What another replica came before is tried again alone: a failure there must not undo what is known of the others.
        return [outcome or await self._write_alone(commit) for commit, outcome in zip(commits, outcomes, strict=True)]

    async def _write_alone(self, commit: Commit) -> Outcome | BridgeError:
        for _ in range(_ROUNDS):
            try:
                (outcome,) = await self._attempt([commit])
            except ConstraintViolated as error:
                if error.constraint != ACTION_KEY:
                    raise
                continue
            except BridgeError as error:
                return error
            if outcome is not None:
                return outcome
        return _lost_every_race()

    async def _attempt(self, commits: Sequence[Commit]) -> Sequence[Outcome | BridgeError | None]:
        """What became of each commit; None where another replica came between."""
        rows = await self._database.fetch(_COMMIT, *to_columns(commits, await self._partitions.count()))
        return to_outcomes(commits, rows)

    async def _write_in_waves(self, connection: Connection, commits: Sequence[Commit]) -> list[Any]:
        """Commits of one key in waves, one after another; what follows a commit that is refused is not applied."""
        count = await self._partitions.count()
        outcomes: list[Any] = [NotApplied()] * len(commits)
        failed: set[str] = set()
        for wave in _waves(commits):
            indexes = [index for index in wave if commits[index].key not in failed]
            if not indexes:
                continue
            batch = [commits[index] for index in indexes]
            rows = await connection.fetch(_COMMIT, *to_columns(batch, count))
            for index, outcome in zip(indexes, to_outcomes(batch, rows), strict=True):
                outcomes[index] = outcome
                if not isinstance(outcome, Committed):
                    failed.add(commits[index].key)
        return outcomes


def _key(commit: Commit) -> str:
    return commit.key


def _weight(commit: Commit) -> int:
    events = sum(len(event.payload_json) for action in commit.actions for event in action.events)
    return len(commit.state_json) + sum(len(blob.content) for blob in commit.blobs) + events


def _raise_bug(outcome: Outcome | Exception) -> Outcome | BridgeError:
    if isinstance(outcome, Exception) and not isinstance(outcome, BridgeError):
        raise outcome
    return outcome


def _lost_every_race() -> TransactionConflict:
    return TransactionConflict(f"other replicas came first {_ROUNDS} times in a row")


def _waves(commits: Sequence[Commit]) -> Iterable[list[int]]:
    """Indexes of the commits, so that each wave holds one of a key at most, in order."""
    waves: list[list[int]] = []
    seen: dict[str, int] = {}
    for index, commit in enumerate(commits):
        wave = seen.get(commit.key, 0)
        seen[commit.key] = wave + 1
        if wave == len(waves):
            waves.append([])
        waves[wave].append(index)
    # By key, as in every other statement.
    return [sorted(wave, key=lambda index: commits[index].key) for wave in waves]
