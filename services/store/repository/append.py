"""Events that are appended to the log without a state."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from blake3 import blake3

from services.chassis.identity import event_id, op_id, partition_of
from services.chassis.postgres import Database
from services.chassis.postgres_error import ConstraintViolated
from services.store.domain import Append, Appended, Event, RequestIdReused
from services.store.repository.partition import PartitionRepository
from services.store.repository.row import ACTION_KEY
from services.store.stored import events_text

_TAKE_PARTITIONS = (
    "SELECT partition, next_offset FROM store_partitions WHERE partition = ANY($1) ORDER BY partition FOR UPDATE"
)
_KNOWN_APPENDS = (
    "SELECT action_id, fingerprint, partition, commit_offset FROM workflow_commits WHERE action_id = ANY($1)"
)
_COUNT_ON = """
WITH counted AS (
    UPDATE store_partitions SET next_offset = next_offset + 1 WHERE partition = ANY($1) RETURNING partition
)
SELECT pg_notify('store_commits', string_agg(partition::text, ',')) FROM counted
"""
_APPEND = """
INSERT INTO workflow_commits (partition, commit_offset, action_index, action_id, fingerprint, action_type, provenance, events,
                              version, committed_at)
SELECT partition, commit_offset, 0, action_id, $4, 'append', '{}', events, 0, clock_timestamp()
FROM unnest($1::smallint[], $2::bigint[], $3::uuid[], $5::text[]) AS given (partition, commit_offset, action_id, events)
"""


class AppendRepository:
    """The events of one database's log that belong to no key."""

    def __init__(self, database: Database, partitions: PartitionRepository) -> None:
        self._database = database
        self._partitions = partitions

    async def add(self, append: Append) -> list[Appended]:
        """Appends events to the log; the same request again gets the same answer. Raises RequestIdReused."""
        try:
            return await self._add(append)
        except ConstraintViolated as error:
            if error.constraint != ACTION_KEY:
                raise
        # Another replica appended other events by this request_id to other partitions meanwhile: now they are seen.
        return await self._add(append)

    async def _add(self, append: Append) -> list[Appended]:
        parts = _parts(append, await self._partitions.count())
        numbers = sorted(part.partition for part in parts)
        fingerprint = _fingerprint(append.events)
        async with self._database.transaction() as connection:
            offsets = {
                row["partition"]: row["next_offset"] for row in await connection.fetch(_TAKE_PARTITIONS, numbers)
            }
            # A statement of its own: only after the partitions are taken does a snapshot show what others appended before.
            known = await connection.fetch(_KNOWN_APPENDS, [part.action_id for part in parts])
            if any(row["fingerprint"] != fingerprint for row in known):
                raise RequestIdReused(metadata={"request_id": append.request_id})
            if known:
                offsets = {row["partition"]: row["commit_offset"] for row in known}
            else:
                await connection.execute(_COUNT_ON, numbers)
                await connection.execute(
                    _APPEND,
                    [part.partition for part in parts],
                    [offsets[part.partition] for part in parts],
                    [part.action_id for part in parts],
                    fingerprint,
                    [events_text(part.events, "") for part in parts],
                )
        appended = {
            place: Appended(event_id(part.action_id, index), part.partition, offsets[part.partition])
            for part in parts
            for index, place in enumerate(part.places)
        }
        return [appended[place] for place in range(len(append.events))]


@dataclass(frozen=True, slots=True)
class _Part:
    """What of a request's events goes to one partition."""

    partition: int
    action_id: uuid.UUID
    places: list[int] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)


def _parts(append: Append, partition_count: int) -> list[_Part]:
    parts: dict[int, _Part] = {}
    for place, event in enumerate(append.events):
        partition = partition_of(event.partition_key, partition_count)
        # The first part bears the request's own id: it is there whatever else the request holds.
        name = f"events\0{append.request_id}\0{partition}" if parts else f"events\0{append.request_id}"
        part = parts.setdefault(partition, _Part(partition, op_id(name)))
        part.places.append(place)
        part.events.append(event)
    return list(parts.values())


def _fingerprint(events: Sequence[Event]) -> bytes:
    return blake3((events_text(events, "") or "").encode()).digest()
