"""Leases: who holds what, until when, by the database's clock."""

from __future__ import annotations

from asyncpg import Record

from services.chassis.postgres import Database
from services.store.domain import Lease, LeaseQuery, LeaseRelease, LeaseRequest, Renewal

# The clock is read when the row is held, not when the transaction began: it may have waited for a commit that depends on the lease.
_ACQUIRE = """
INSERT INTO leases AS stored (name, owner, epoch, expires_at)
VALUES ($1, $2, 1, clock_timestamp() + $3)
ON CONFLICT ON CONSTRAINT leases_pkey DO UPDATE
SET owner = excluded.owner,
    epoch = stored.epoch + CASE WHEN stored.owner = excluded.owner AND stored.expires_at > clock_timestamp() THEN 0 ELSE 1 END,
    expires_at = clock_timestamp() + $3
WHERE stored.expires_at <= clock_timestamp() OR stored.owner = excluded.owner
RETURNING name, owner, epoch, expires_at
"""
_FIND = "SELECT name, owner, epoch, expires_at FROM leases WHERE name = $1"
_RENEW = """
WITH wanted AS (
    SELECT name, epoch, position FROM unnest($1::text[], $2::bigint[]) WITH ORDINALITY AS given (name, epoch, position)
), taken AS (
    SELECT stored.name FROM leases AS stored WHERE stored.name = ANY ($1) ORDER BY stored.name FOR UPDATE
), renewed AS (
    UPDATE leases AS stored SET expires_at = clock_timestamp() + $4
    FROM wanted JOIN taken USING (name)
    WHERE stored.name = wanted.name AND stored.epoch = wanted.epoch AND stored.owner = $3
      AND stored.expires_at > clock_timestamp()
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
_RELEASE = """
UPDATE leases SET expires_at = clock_timestamp()
WHERE name = $1 AND owner = $2 AND epoch = $3 AND expires_at > clock_timestamp()
RETURNING name
"""
_LIST = """
SELECT name, owner, epoch, expires_at FROM leases
WHERE name > $1 COLLATE "C" AND name >= $2 COLLATE "C" AND starts_with(name, $2) AND expires_at > clock_timestamp()
ORDER BY name LIMIT $3
"""


class LeaseRepository:
    """The leases of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def acquire(self, request: LeaseRequest) -> Lease:
        """The lease as it is now: the asker's own, if nobody else holds it."""
        while True:
            row = await self._database.fetchrow(_ACQUIRE, request.name, request.owner, request.ttl)
            row = row or await self._database.fetchrow(_FIND, request.name)
            if row is not None:
                return _from_row(row)

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

    async def list(self, query: LeaseQuery, after: str, size: int) -> list[Lease]:
        """Up to `size` leases that are held now, from behind `after` on."""
        return [_from_row(row) for row in await self._database.fetch(_LIST, after, query.prefix, size)]


def _from_row(row: Record) -> Lease:
    return Lease(row["name"], row["owner"], row["epoch"], row["expires_at"])
