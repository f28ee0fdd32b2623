"""The stamps' events: a log that is read in the order in which it became visible, and what is noted in it beside the stamps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from asyncpg import Record

from services.chassis.feed import Bounds, Page, Position
from services.chassis.postgres import Database
from services.stamping.event import EventKind, Note, StampEvent
from services.stamping.repository.row import COLUMNS, to_stamp

CHANNEL = "stamp_events"
"""Every statement that writes events notifies it of partition 0, where it takes their numbers."""
_STEP_ROWS = 200
"""Events of one statement of a read; with 64 KiB of metadata each they are as much as a message."""
_END = 2**63 - 1

_BOUNDS = "SELECT first_offset, next_offset FROM stamp_log WHERE only_row"
_READ = f"""
SELECT event.event_offset, event.kind, event.namespace AS of_namespace, event.occurred_at, event.reason, event.stamped_count,
       event.refused_count, stamp.*
FROM stamp_events AS event
LEFT JOIN LATERAL (
    SELECT {COLUMNS} FROM stamps WHERE stamps.namespace = event.namespace AND stamps.stamp_id = event.stamp_id LIMIT 1
) AS stamp ON true
WHERE event.event_offset >= $1 AND event.event_offset < $2
ORDER BY event.event_offset LIMIT $3
"""
_ADD = """
WITH given AS (
    SELECT kind, namespace, encode(stamp_id, 'hex')::uuid AS stamp_id, stamped_count, refused_count, place
    FROM unnest($1::text[], $2::text[], $3::bytea[], $4::integer[], $5::integer[])
    WITH ORDINALITY AS note (kind, namespace, stamp_id, stamped_count, refused_count, place)
), counted AS (
    UPDATE stamp_log SET next_offset = next_offset + cardinality($1::text[]) WHERE only_row
    RETURNING next_offset - cardinality($1::text[]) AS first_offset, pg_notify('stamp_events', '0')
)
INSERT INTO stamp_events (event_offset, namespace, stamp_id, kind, occurred_at, stamped_count, refused_count)
SELECT first_offset + place - 1, namespace, stamp_id, kind, clock_timestamp(), stamped_count, refused_count
FROM given CROSS JOIN counted
"""


class EventRepository:
    """The events of one ledger. Their numbers come from the row of stamp_log, which a writer holds until they are durable: who
    has read up to an offset has seen everything before it; see docs/commit-log.md."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add_many(self, notes: Sequence[Note]) -> None:
        """Writes events that belong to no stamp's transaction, all or none."""
        await self._database.execute(
            _ADD,
            [note.kind.value for note in notes],
            [note.namespace for note in notes],
            [note.stamp_id.bytes if note.stamp_id else None for note in notes],
            [note.stamped_count for note in notes],
            [note.refused_count for note in notes],
        )

    async def bounds(self) -> Mapping[int, Bounds]:
        """Of the one sequence, as partition 0. Nothing takes events away."""
        row = await self._database.fetchrow(_BOUNDS)
        assert row is not None, "a migration makes the row"
        return {0: Bounds(row["first_offset"], row["next_offset"])}

    async def read(self, begin: Position, end: Position | None, rows: int, size_bytes: int) -> Page[StampEvent]:
        """The events from `begin` on, up to `end`, `rows` and about `size_bytes`."""
        found: list[StampEvent] = []
        if 0 not in begin:
            return Page(found, ())
        first, behind, size = begin[0], _END if end is None else end[0], 0
        while True:
            step = min(_STEP_ROWS, rows - len(found))
            events = [_to_event(row) for row in await self._database.fetch(_READ, first, behind, step)]
            for event in events:
                found.append(event)
                size += event.size_bytes
                if len(found) >= rows or size >= size_bytes:
                    return Page(found, (0,))
            if len(events) < step:
                return Page(found, ())
            first = events[-1].offset + 1


def _to_event(row: Record) -> StampEvent:
    return StampEvent(
        offset=row["event_offset"],
        kind=EventKind(row["kind"]),
        namespace=row["of_namespace"],
        stamp=to_stamp(row) if row["stamp_id"] is not None else None,
        occurred_at=row["occurred_at"],
        reason=row["reason"] or "",
        stamped_count=row["stamped_count"] or 0,
        refused_count=row["refused_count"] or 0,
    )
