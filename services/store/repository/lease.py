"""Leases: who holds what, until when, by the database's clock."""

from __future__ import annotations

from asyncpg import Record

from services.chassis.feed import Bounds, Page, Position
from services.chassis.postgres import Database
from services.store.domain import Lease, LeaseEvent, LeaseQuery, LeaseRelease, LeaseRequest, Renewal

# The clock is read when the row is held, not when the transaction began: it may have waited for a commit that depends on the lease.
# What happens is noted in the statement that does it, and numbered as commits are: see docs/commit-log.md.
_NOTED = """
), number AS (
    UPDATE lease_log SET next_offset = next_offset + (SELECT count(*) FROM noted) WHERE EXISTS (SELECT FROM noted)
    RETURNING next_offset - (SELECT count(*) FROM noted) AS first_offset
), event AS (
    INSERT INTO lease_events (event_offset, kind, name, owner, epoch, occurred_at)
    SELECT first_offset + row_number() OVER (ORDER BY name) - 1, kind, name, owner, epoch, clock_timestamp()
    FROM noted CROSS JOIN number
    RETURNING event_offset
), told AS MATERIALIZED (
    SELECT pg_notify('store_leases', '0') FROM number
)
"""
# A lease that ended is taken only when its end is noted, so that it is shown before the next taking.
_ACQUIRE = f"""
WITH taken AS (
    INSERT INTO leases AS stored (name, owner, epoch, expires_at)
    VALUES ($1, $2, 1, clock_timestamp() + $3)
    ON CONFLICT ON CONSTRAINT leases_pkey DO UPDATE
    SET owner = excluded.owner, expires_at = clock_timestamp() + $3, epoch = stored.epoch + stored.end_noted::integer,
        renewed = NOT stored.end_noted, end_noted = false
    WHERE CASE WHEN stored.expires_at > clock_timestamp() THEN stored.owner = excluded.owner ELSE stored.end_noted END
    RETURNING name, owner, epoch, expires_at, renewed
), noted AS (
    SELECT 'acquired' AS kind, name, owner, epoch FROM taken WHERE NOT renewed
{_NOTED}
SELECT name, owner, epoch, expires_at FROM taken WHERE (SELECT count(*) FROM told) >= 0
"""
_FIND = "SELECT name, owner, epoch, expires_at, expires_at > clock_timestamp() AS is_held FROM leases WHERE name = $1"
_RENEW = """
WITH wanted AS (
    SELECT name, epoch, position FROM unnest($1::text[], $2::bigint[]) WITH ORDINALITY AS given (name, epoch, position)
), taken AS (
    SELECT stored.name FROM leases AS stored WHERE stored.name = ANY ($1) ORDER BY stored.name FOR UPDATE
), renewed AS (
    UPDATE leases AS stored SET expires_at = clock_timestamp() + $4
    FROM wanted JOIN taken USING (name)
    WHERE stored.name = wanted.name AND stored.epoch = wanted.epoch AND stored.owner = $3
      AND stored.expires_at > clock_timestamp() AND NOT stored.end_noted
    RETURNING stored.name, stored.owner, stored.epoch, stored.expires_at
)
SELECT wanted.position, renewed.name IS NOT NULL AS held, coalesce(renewed.name, stored.name) AS name,
       coalesce(renewed.owner, stored.owner) AS owner, coalesce(renewed.epoch, stored.epoch) AS epoch,
       coalesce(renewed.expires_at, stored.expires_at) AS expires_at
FROM wanted
LEFT JOIN renewed USING (name, epoch)
LEFT JOIN LATERAL (SELECT name, owner, epoch, expires_at FROM leases WHERE leases.name = wanted.name LIMIT 1) AS stored ON true
ORDER BY wanted.position
"""
_RELEASE = f"""
WITH noted AS (
    UPDATE leases SET expires_at = clock_timestamp(), end_noted = true
    WHERE name = $1 AND owner = $2 AND epoch = $3 AND expires_at > clock_timestamp()
    RETURNING 'released' AS kind, name, owner, epoch
{_NOTED}
SELECT name FROM noted WHERE (SELECT count(*) FROM told) > 0
"""
_NOTED_ENDS = f"""
), noted AS (
    UPDATE leases AS stored SET end_noted = true FROM ended WHERE stored.name = ended.name
    RETURNING 'expired' AS kind, stored.name, stored.owner, stored.epoch
{_NOTED}
SELECT count(*) FROM noted WHERE (SELECT count(*) FROM told) >= 0
"""
_NOTE_ENDS = f"""
WITH ended AS (
    SELECT name FROM leases WHERE NOT end_noted AND expires_at <= clock_timestamp()
    ORDER BY name LIMIT $1 FOR UPDATE SKIP LOCKED
{_NOTED_ENDS}
"""
_NOTE_END = f"""
WITH ended AS (
    SELECT name FROM leases WHERE NOT end_noted AND expires_at <= clock_timestamp() AND name = $1 FOR UPDATE SKIP LOCKED
{_NOTED_ENDS}
"""
_LIST = """
SELECT name, owner, epoch, expires_at FROM leases
WHERE name > $1 COLLATE "C" AND name >= $2 COLLATE "C" AND starts_with(name, $2) AND expires_at > clock_timestamp()
ORDER BY name LIMIT $3
"""
_BOUNDS = "SELECT first_offset, next_offset FROM lease_log"
_READ = """
SELECT event_offset, kind, name, owner, epoch, occurred_at FROM lease_events
WHERE event_offset >= $1 AND event_offset < $2 ORDER BY event_offset LIMIT $3
"""
_NO_END = 2**63 - 1


class LeaseRepository:
    """The leases of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def acquire(self, request: LeaseRequest) -> Lease:
        """The lease as it is now: the asker's own, if nobody else holds it."""
        while True:
            row = await self._database.fetchrow(_ACQUIRE, request.name, request.owner, request.ttl)
            if row is not None:
                return _from_row(row)
            row = await self._database.fetchrow(_FIND, request.name)
            if row is not None and row["is_held"]:
                return _from_row(row)
            await self._database.fetchval(_NOTE_END, request.name)

    async def renew(self, renewal: Renewal) -> list[tuple[bool, Lease | None]]:
        """Whether each lease is held on, and the lease as it is now; None for one that never existed."""
        rows = await self._database.fetch(
            _RENEW,
            [lease.name for lease in renewal.leases],
            [lease.epoch for lease in renewal.leases],
            renewal.owner,
            renewal.ttl,
        )
        return [(row["held"], _from_row(row) if row["name"] else None) for row in rows]

    async def release(self, release: LeaseRelease) -> bool:
        """Ends the lease; whether the owner held it with this epoch."""
        return await self._database.fetchrow(_RELEASE, release.name, release.owner, release.epoch) is not None

    async def note_ends(self, limit: int) -> int:
        """Notes up to `limit` leases that ended by themselves, as events; how many they were."""
        count: int = await self._database.fetchval(_NOTE_ENDS, limit)
        return count

    async def list(self, query: LeaseQuery, after: str, size: int) -> list[Lease]:
        """Up to `size` leases that are held now, from behind `after` on."""
        return [_from_row(row) for row in await self._database.fetch(_LIST, after, query.prefix, size)]


class LeaseLog:
    """What happened to the leases of one database: the log of a feed."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def bounds(self) -> dict[int, Bounds]:
        """The log's one sequence is partition 0."""
        row = await self._database.fetchrow(_BOUNDS)
        assert row is not None, "the migration makes the row"
        return {0: Bounds(row["first_offset"], row["next_offset"])}

    async def read(self, begin: Position, end: Position | None, rows: int, size_bytes: int) -> Page[LeaseEvent]:
        """As the feed asks; events are small, so `size_bytes` does not bind."""
        found = await self._database.fetch(_READ, begin[0], end[0] if end else _NO_END, rows + 1)
        events = [
            LeaseEvent(row["event_offset"], row["kind"], row["name"], row["owner"], row["epoch"], row["occurred_at"])
            for row in found
        ]
        return Page(events[:rows], (0,) if len(events) > rows else ())


def _from_row(row: Record) -> Lease:
    return Lease(row["name"], row["owner"], row["epoch"], row["expires_at"])
