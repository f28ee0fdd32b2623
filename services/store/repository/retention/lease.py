"""What happened to leases."""

from __future__ import annotations

from datetime import timedelta

from services.chassis.postgres import Database

_FLOOR = """
SELECT max(event_offset) + 1 AS floor FROM (
    SELECT event_offset, occurred_at FROM lease_events
    WHERE event_offset >= (SELECT first_offset FROM lease_log) ORDER BY event_offset LIMIT $2
) AS oldest
WHERE occurred_at < now() - $1::interval
"""
_ADVANCE = "UPDATE lease_log SET first_offset = greatest(first_offset, $1)"
_DROP = "DELETE FROM lease_events WHERE event_offset < $1"


class LeaseEventRetention:
    """Takes the oldest lease events away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def drop(self, retention: timedelta, limit: int) -> int:
        """Deletes up to `limit` events that are older, from the oldest on; how many they were."""
        floor = await self._database.fetchval(_FLOOR, retention, limit)
        if floor is None:
            return 0
        # First, and apart: a reader that sees an event gone sees the floor, too.
        await self._database.execute(_ADVANCE, floor)
        status = await self._database.execute(_DROP, floor)
        return int(status.rsplit(" ", 1)[1])
