"""Projections: made from the states and the log's order, and read.

A partition's log is applied by one statement a round: it locks the watermark, takes the next commits of the log, shows the states
of their keys, and moves the watermark behind them. What is shown is the state as it is, not as it was at a commit; a version never
goes back, so a commit applied twice changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

from asyncpg import Record

from services.chassis.coalesce import Coalescer
from services.chassis.identity import partition_of
from services.chassis.postgres import Database
from services.store.projection import (
    MAX_GROUPS,
    Count,
    CountQuery,
    Group,
    Lag,
    Page,
    Place,
    ProjectionFilter,
    ProjectionQuery,
    Reading,
    Round,
    ShownProjection,
    Watermark,
    total_lag,
)
from services.store.repository.partition import PartitionRepository

PROJECTION_LOCK = 0x6F6D6E69_70726F6A
"""The advisory lock between who deletes keys, exclusive, and who makes projections of keys outside the log's order, shared.

Taken by a statement of its own, before the one whose snapshot must not be older than the lock.
"""
PROJECTED_CHANNEL = "store_projections"
"""Told of the partitions that were projected further, such as `3,7`."""

INPUT = """
key, partition, version, last_action, created_at, updated_at, final, coalesce(projection, '["", "", {}, "{}"]')::jsonb AS given
"""
"""What a projection is made of, as columns of workflow_state; `given` has tag, namespace, indices and extras."""
SHOW = """
    INSERT INTO workflow_projection AS stored (generation, key, partition, version, tag, last_action, namespace, created_at,
                                               updated_at, final, indices, extras)
    SELECT generation, key, partition, version, given ->> 0, last_action, given ->> 1, created_at, updated_at, final, given -> 2,
           given ->> 3
    FROM input ORDER BY key
    ON CONFLICT ON CONSTRAINT workflow_projection_pkey DO UPDATE
    SET version = excluded.version, tag = excluded.tag, last_action = excluded.last_action, namespace = excluded.namespace,
        created_at = excluded.created_at, updated_at = excluded.updated_at, final = excluded.final, indices = excluded.indices,
        extras = excluded.extras
    WHERE stored.version < excluded.version
"""
"""Shows what a common table expression `input` holds: `generation` and the columns of INPUT, each key once."""

_BEGIN = """
INSERT INTO projection_watermarks AS stored (partition, epoch, generation)
SELECT partition, epoch, (SELECT coalesce(max(generation), 0) FROM projection_watermarks)
FROM unnest($1::smallint[], $2::bigint[]) AS given (partition, epoch) ORDER BY partition
ON CONFLICT ON CONSTRAINT projection_watermarks_pkey DO UPDATE SET epoch = excluded.epoch WHERE stored.epoch < excluded.epoch
"""
# The watermark is locked and read as it is now, the log and the states as the statement's snapshot shows them: a state in it is at
# least as new as any row of the log in it, so what is shown is never older than the watermark says. Partitions with nothing to
# apply are not locked, which would be a write. An owner whose partition another has begun finds another epoch, and nothing.
# Bounds of offsets and not LIMIT: whatever the planner believes of the log's size, it reads no more of it.
_ADVANCE = f"""
WITH owned AS (
    SELECT partition, epoch FROM unnest($1::smallint[], $2::bigint[]) AS given (partition, epoch)
), taken AS (
    SELECT stored.partition, stored.watermark, stored.generation, log.next_offset
    FROM owned
    JOIN projection_watermarks AS stored ON stored.partition = owned.partition AND stored.epoch = owned.epoch
    JOIN store_partitions AS log ON log.partition = owned.partition AND log.next_offset > stored.watermark
    ORDER BY stored.partition FOR UPDATE OF stored
), span AS (
    -- Empty where another round came first: its watermark may be beyond the end of the log in this snapshot.
    SELECT partition, generation, watermark, least(watermark + $3, next_offset) AS behind FROM taken WHERE next_offset > watermark
), entry AS (
    SELECT span.partition, span.generation, logged.key, logged.committed_at
    FROM span
    CROSS JOIN LATERAL (
        SELECT key, committed_at FROM workflow_commits
        WHERE workflow_commits.partition = span.partition AND commit_offset >= span.watermark AND commit_offset < span.behind
        OFFSET 0
    ) AS logged
), changed AS (
    SELECT DISTINCT generation, key FROM entry WHERE key IS NOT NULL
), input AS (
    SELECT changed.generation, state.*
    FROM changed
    CROSS JOIN LATERAL (SELECT {INPUT} FROM workflow_state WHERE workflow_state.key = changed.key LIMIT 1) AS state
), shown AS (
    {SHOW}
    RETURNING stored.partition
), passed AS (
    SELECT partition, count(*) AS entries, clock_timestamp() - min(committed_at) AS lag FROM entry GROUP BY partition
), advanced AS (
    UPDATE projection_watermarks AS stored SET watermark = span.behind
    FROM span WHERE stored.partition = span.partition
    RETURNING stored.partition, span.watermark AS before, stored.watermark
), told AS MATERIALIZED (
    SELECT pg_notify('{PROJECTED_CHANNEL}', string_agg(partition::text, ',')) FROM advanced HAVING count(*) > 0
)
SELECT partition, before, watermark, coalesce(entries, 0) AS entries, coalesce(lag, '0') AS lag, coalesce(projected, 0) AS projected
FROM advanced
LEFT JOIN passed USING (partition)
LEFT JOIN (SELECT partition, count(*) AS projected FROM shown GROUP BY partition) AS counted USING (partition)
CROSS JOIN told
ORDER BY partition
"""

_NAMES = "key, version, tag, last_action, namespace, created_at, updated_at, indices, extras, final"
# The oldest commit that is not projected is looked for only where there is one.
_LAG = """
CROSS JOIN LATERAL (SELECT coalesce(mark.watermark, 0) AS watermark) AS projected
LEFT JOIN LATERAL (
    SELECT committed_at FROM workflow_commits
    WHERE log.next_offset > projected.watermark
      AND workflow_commits.partition = log.partition AND commit_offset = projected.watermark
    LIMIT 1
) AS oldest ON true
"""
_BEHIND = (
    "greatest(log.next_offset - projected.watermark, 0) AS behind,"
    " greatest(coalesce(clock_timestamp() - oldest.committed_at, '0'), '0') AS lag"
)
_FIND = f"""
SELECT shown.*, {_BEHIND}
FROM unnest($1::text[], $2::smallint[]) WITH ORDINALITY AS asked (name, partition, position)
JOIN store_partitions AS log ON log.partition = asked.partition
LEFT JOIN projection_watermarks AS mark ON mark.partition = asked.partition
LEFT JOIN LATERAL (
    SELECT {_NAMES} FROM workflow_projection
    WHERE workflow_projection.generation = mark.generation AND workflow_projection.key = asked.name
    LIMIT 1
) AS shown ON true
{_LAG}
ORDER BY asked.position
"""
_FIND_CANONICAL = f"""
SELECT state.key, state.version, state.given ->> 0 AS tag, state.last_action, state.given ->> 1 AS namespace, state.created_at,
       state.updated_at, state.given -> 2 AS indices, state.given ->> 3 AS extras, state.final, {_BEHIND}
FROM unnest($1::text[], $2::smallint[]) WITH ORDINALITY AS asked (name, partition, position)
JOIN store_partitions AS log ON log.partition = asked.partition
LEFT JOIN projection_watermarks AS mark ON mark.partition = asked.partition
LEFT JOIN LATERAL (SELECT {INPUT} FROM workflow_state WHERE workflow_state.key = asked.name LIMIT 1) AS state ON true
{_LAG}
ORDER BY asked.position
"""
_WATERMARKS = f"""
SELECT log.partition, log.next_offset, log.first_offset, log.first_event_offset, projected.watermark, {_BEHIND}
FROM store_partitions AS log
LEFT JOIN projection_watermarks AS mark ON mark.partition = log.partition
{_LAG}
ORDER BY log.partition
"""
_LIVE = "generation = (SELECT max(generation) FROM projection_watermarks)"
_GROUPS: Mapping[Group, str] = {
    Group.TAG: "tag",
    Group.NAMESPACE: "namespace",
    Group.COLLECTION: "split_part(key, '/', 1)",
}

_READ_BATCH = 100
"""Readers that share a statement: each may get 64 KiB of extras."""


class _Asked(NamedTuple):
    key: str
    partition: int


class ProjectionRepository:
    """The projections of one database. Concurrent readers of keys share one statement."""

    def __init__(self, database: Database, partitions: PartitionRepository) -> None:
        self._database = database
        self._partitions = partitions
        # By identity: readers of one key need not take turns.
        self._projections: Coalescer[_Asked, Reading] = Coalescer(
            partial(self._read, _FIND), key=id, max_batch=_READ_BATCH
        )
        self._canonical: Coalescer[_Asked, Reading] = Coalescer(
            partial(self._read, _FIND_CANONICAL), key=id, max_batch=_READ_BATCH
        )

    async def close(self) -> None:
        """Ends when every reader has its answer."""
        await self._projections.aclose()
        await self._canonical.aclose()

    async def begin(self, epochs: Mapping[int, int]) -> None:
        """Fences all earlier owners of these partitions: what they still apply changes nothing."""
        await self._database.execute(_BEGIN, list(epochs), list(epochs.values()))

    async def advance(self, epochs: Mapping[int, int], limit: int) -> list[Round]:
        """Applies the next commits of the log, `limit` a partition, and tells who listens.

        Only for those of the partitions that `begin` gave this epoch and nobody a higher one since. Says nothing of a partition in
        which there was nothing to apply.
        """
        rows = await self._database.fetch(_ADVANCE, list(epochs), list(epochs.values()), limit)
        return [
            Round(row["partition"], row["before"], row["watermark"], row["entries"], row["projected"], row["lag"])
            for row in rows
        ]

    async def partition_of(self, key: str) -> int:
        """The key's partition."""
        return partition_of(key, await self._partitions.count())

    async def find(self, key: str) -> Reading:
        """What is shown of the key."""
        return await self._projections.submit(_Asked(key, await self.partition_of(key)))

    async def find_canonical(self, key: str) -> Reading:
        """What would be shown of the key if its state were projected now."""
        return await self._canonical.submit(_Asked(key, await self.partition_of(key)))

    async def watermarks(self) -> list[Watermark]:
        """How far each partition is, all as of one moment."""
        await self._partitions.count()
        return [
            Watermark(
                row["partition"],
                row["next_offset"],
                row["first_offset"],
                row["first_event_offset"],
                row["watermark"],
                Lag(row["behind"], row["lag"]),
            )
            for row in await self._database.fetch(_WATERMARKS)
        ]

    async def list(self, query: ProjectionQuery, after: Place | None, size: int, extras_bytes: int) -> Page:
        """Up to `size` projections from behind `after` on.

        The page ends earlier where its extras and indices would be more than `extras_bytes`; it holds one at least.
        """
        # First, so that the projections are at least as new as the lag says.
        lag = await self._lag()
        statement, args = _list_statement(query, after, size, extras_bytes)
        rows = await self._database.fetch(statement, *args)
        shown = [_from_row(row) for row in rows]
        return Page(shown, not rows or rows[0]["found"] == len(rows), lag)

    async def count(self, query: CountQuery) -> Count:
        """How many projections there are, with the largest groups."""
        lag = await self._lag()
        statement, args = _count_statement(query)
        rows = await self._database.fetch(statement, *args)
        total = rows[0]["total"] if rows else 0
        if query.group_by is Group.UNSPECIFIED:
            return Count(total, (), False, lag)
        groups = [(row["value"], row["number"]) for row in rows[:MAX_GROUPS]]
        return Count(total, groups, len(rows) > MAX_GROUPS, lag)

    async def _lag(self) -> Lag:
        return total_lag(watermark.lag for watermark in await self.watermarks())

    async def _read(self, statement: str, asked: Sequence[_Asked]) -> Sequence[Reading]:
        rows = await self._database.fetch(statement, [one.key for one in asked], [one.partition for one in asked])
        return [
            Reading(_from_row(row) if row["key"] is not None else None, Lag(row["behind"], row["lag"])) for row in rows
        ]


def _list_statement(
    query: ProjectionQuery, after: Place | None, size: int, extras_bytes: int
) -> tuple[str, Sequence[object]]:
    """The statement and its parameters. It has conditions for those filters alone that are set: others would bound no index."""
    args = _Arguments()
    conditions = _conditions(query.filter, args)
    order = "created_at DESC, key DESC" if query.newest_first else "key"
    if after is not None and query.newest_first:
        created_at, key = args.add(after.created_at, "timestamptz"), args.add(after.key, "text")
        conditions.append(f'(created_at, key) < ({created_at}, {key} COLLATE "C")')
    elif after is not None:
        conditions.append(f'key > {args.add(after.key, "text")} COLLATE "C"')
    most = args.add(size + 1, "bigint")
    begin, end = f"SELECT {_NAMES} FROM {_source(query.filter, args)} WHERE", f"ORDER BY {order} LIMIT {most}"
    if len(query.filter.tags) > 1:
        # Each tag by its own walk of an index; a list of tags would be read whole and sorted.
        each = f"{begin} {' AND '.join([*conditions, 'tag = wanted.name'])} {end}"
        tags = args.add(sorted(set(query.filter.tags)), "text[]")
        walked = f"SELECT one.* FROM unnest({tags}) AS wanted (name) CROSS JOIN LATERAL ({each}) AS one {end}"
    else:
        conditions += [f"tag = {args.add(tag, 'text')}" for tag in query.filter.tags]
        walked = f"{begin} {' AND '.join(conditions)} {end}"
    statement = f"""
SELECT {_NAMES}, found FROM (
    SELECT {_NAMES}, count(*) OVER () AS found, row_number() OVER (ORDER BY {order}) AS place,
           sum(octet_length(extras) + octet_length(indices::text)) OVER (ORDER BY {order} ROWS UNBOUNDED PRECEDING) AS bytes
    FROM ({walked}) AS walked
) AS page
WHERE place = 1 OR place < {most} AND bytes <= {args.add(extras_bytes, "bigint")}
ORDER BY place
"""
    return statement, args.values


def _count_statement(query: CountQuery) -> tuple[str, Sequence[object]]:
    args = _Arguments()
    conditions = _conditions(query.filter, args)
    if query.filter.tags:
        conditions.append(f"tag = ANY ({args.add(sorted(set(query.filter.tags)), 'text[]')})")
    rows = f"FROM {_source(query.filter, args)} WHERE {' AND '.join(conditions)}"
    if query.group_by is Group.UNSPECIFIED:
        return f"SELECT count(*) AS total {rows}", args.values
    value = _GROUPS.get(query.group_by) or f"coalesce(indices ->> {args.add(query.group_index, 'text')}, '')"
    statement = f"""
SELECT value, count(*) AS number, (sum(count(*)) OVER ())::bigint AS total
FROM (SELECT {value} COLLATE "C" AS value {rows}) AS valued
GROUP BY value ORDER BY number DESC, value LIMIT {MAX_GROUPS + 1}
"""
    return statement, args.values


class _Arguments:
    """The parameters of a statement that is being made."""

    def __init__(self) -> None:
        self.values: list[object] = []

    def add(self, value: object, type_name: str) -> str:
        """The parameter's place in the statement."""
        self.values.append(value)
        return f"${len(self.values)}::{type_name}"


def _source(wanted: ProjectionFilter, args: _Arguments) -> str:
    """What rows are taken from: those with the indexed fields, where there are any.

    Apart, so that their own index finds them: the planner would rather walk all keys in order until a page is full, which never is
    for a value that few have.
    """
    if not wanted.indices:
        return "workflow_projection"
    indices = args.add(json.dumps(wanted.indices), "jsonb")
    return f"(SELECT generation, {_NAMES} FROM workflow_projection WHERE indices @> {indices} AND {_LIVE} OFFSET 0) AS indexed"


def _conditions(wanted: ProjectionFilter, args: _Arguments) -> list[str]:
    """Of everything but tags and indexed fields."""
    conditions = [_LIVE]
    if wanted.collection:
        # `0` is the character behind `/`.
        begin, end = args.add(f"{wanted.collection}/", "text"), args.add(f"{wanted.collection}0", "text")
        conditions += [f'key >= {begin} COLLATE "C"', f'key < {end} COLLATE "C"']
    if wanted.namespace is not None:
        conditions.append(f"namespace = {args.add(wanted.namespace, 'text')}")
    for column, comparison, moment in (
        ("created_at", ">=", wanted.created_after),
        ("created_at", "<", wanted.created_before),
        ("updated_at", ">=", wanted.updated_after),
        ("updated_at", "<", wanted.updated_before),
    ):
        if moment is not None:
            conditions.append(f"{column} {comparison} {args.add(moment, 'timestamptz')}")
    return conditions


def _from_row(row: Record) -> ShownProjection:
    return ShownProjection(
        row["key"],
        row["version"],
        row["tag"],
        row["last_action"],
        row["namespace"],
        row["created_at"],
        row["updated_at"],
        json.loads(row["indices"]),
        row["extras"],
        row["final"],
    )
