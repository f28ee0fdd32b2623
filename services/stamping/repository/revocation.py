"""Revocations: claims released, stamps revoked, tombstones left. Rows in and out; no rule of stamping is made here."""

from __future__ import annotations

from services.chassis.postgres import Connection, Database
from services.chassis.postgres_error import ConstraintViolated, TransactionConflict
from services.stamping.domain import Release, RequestIdReused, Revocation, Stamp
from services.stamping.repository.row import COLUMNS, to_stamp

_ROUNDS = 5
"""A revocation is tried anew when its claim, or another one of the same id, came first."""

# A revocation is a transaction of a few statements, each with a snapshot of its own (READ COMMITTED): what it counts, it sees as
# it is once the locks are held. The claim first, then its stamp, last the event's number: see the order in repository.stamp.
_LOCK_CLAIM = """
SELECT stamp_id, released_at IS NOT NULL AS released FROM stamp_requests WHERE namespace = $1 AND request_id = $2 FOR UPDATE
"""
_FIND = """
SELECT creation_request_id, reason, revoked, remaining_claims FROM stamp_revocations WHERE namespace = $1 AND request_id = $2
"""
# A create that finds the stamp takes a lock that waits for this one.
_LOCK_STAMP = f"SELECT {COLUMNS} FROM stamps WHERE namespace = $1 AND stamp_id = $2 FOR UPDATE"

# Returns no row where the request came meanwhile.
_LEAVE_TOMBSTONE = """
WITH tombstone AS (
    INSERT INTO stamp_requests (namespace, request_id, created, released_at) VALUES ($1, $2, false, clock_timestamp())
    ON CONFLICT ON CONSTRAINT stamp_requests_pkey DO NOTHING
    RETURNING namespace, request_id
)
INSERT INTO stamp_revocations (namespace, request_id, creation_request_id, reason, revoked, remaining_claims)
SELECT namespace, $3, request_id, $4, false, 0 FROM tombstone
RETURNING request_id
"""
_RECORD = """
INSERT INTO stamp_revocations (namespace, request_id, creation_request_id, reason, revoked, remaining_claims)
VALUES ($1, $3, $2, $4, false, 0)
"""
# `counted` reads `recorded` to its end, for who holds the numbers waits for nobody, not for another revocation of the same id.
_RELEASE = """
WITH moment AS (
    -- Read when the locks are held: no stamp is revoked before it was made.
    SELECT clock_timestamp() AS released_at
), remaining AS (
    -- By the index alone: $6 is the claim itself, which this statement's snapshot sees unreleased.
    SELECT count(*) - $6::integer AS number FROM stamp_requests WHERE namespace = $1 AND stamp_id = $5 AND released_at IS NULL
), released AS (
    UPDATE stamp_requests AS stored SET released_at = moment.released_at
    FROM moment WHERE stored.namespace = $1 AND stored.request_id = $2 AND stored.released_at IS NULL
), revoked AS (
    UPDATE stamps AS stored SET revoked_at = moment.released_at
    FROM moment, remaining
    WHERE stored.namespace = $1 AND stored.stamp_id = $5 AND stored.revoked_at IS NULL AND remaining.number = 0
    RETURNING stored.revoked_at
), recorded AS (
    INSERT INTO stamp_revocations (namespace, request_id, creation_request_id, reason, revoked, remaining_claims)
    SELECT $1, $3, $2, $4, EXISTS (SELECT FROM revoked), number FROM remaining
    RETURNING true AS written
), counted AS (
    UPDATE stamp_log AS stored SET next_offset = stored.next_offset + 1
    FROM revoked, (SELECT count(*) FROM recorded) AS written
    WHERE stored.only_row
    RETURNING stored.next_offset - 1 AS event_offset, revoked.revoked_at, pg_notify('stamp_events', '0')
), noted AS (
    INSERT INTO stamp_events (event_offset, namespace, stamp_id, kind, occurred_at, reason)
    SELECT event_offset, $1, $5, 'revoked', revoked_at, $4 FROM counted
)
SELECT remaining.number AS remaining_claims, revoked.revoked_at FROM remaining LEFT JOIN revoked ON true
"""


class RevocationRepository:
    """The revocations of one ledger."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, revocation: Revocation) -> Release:
        """Releases the claim, or leaves a tombstone; the same revocation again gets the same answer. Raises RequestIdReused."""
        for _ in range(_ROUNDS):
            try:
                async with self._database.transaction() as connection:
                    release = await _add(connection, revocation)
            except ConstraintViolated as error:
                if error.constraint != "stamp_revocations_pkey":
                    raise
                continue
            if release is not None:
                return release
        raise TransactionConflict(f"others came first {_ROUNDS} times in a row")


async def _add(connection: Connection, revocation: Revocation) -> Release | None:
    """What became of the claim; None where its request came while a tombstone was made for it."""
    namespace, claim_id, reason = revocation.namespace, revocation.creation_request_id, revocation.reason
    claim = await connection.fetchrow(_LOCK_CLAIM, namespace, claim_id)
    # Behind the claim's lock: of equal revocations at once the later ones find the first.
    known = await connection.fetchrow(_FIND, namespace, revocation.request_id)
    if known and (known["creation_request_id"], known["reason"]) != (claim_id, reason):
        raise RequestIdReused(metadata={"request_id": revocation.request_id, "namespace": namespace})
    if claim is None:
        left = await connection.fetchval(_LEAVE_TOMBSTONE, namespace, claim_id, revocation.request_id, reason)
        return Release(None, revoked=False, remaining_claims=0) if left else None
    if claim["stamp_id"] is None:
        if not known:
            await connection.execute(_RECORD, namespace, claim_id, revocation.request_id, reason)
        return Release(None, revoked=False, remaining_claims=0)
    stamp = await _locked(connection, namespace, claim["stamp_id"])
    if known:
        return Release.of(stamp, revoked=known["revoked"], remaining_claims=known["remaining_claims"])
    done = await connection.fetchrow(
        _RELEASE,
        namespace,
        claim_id,
        revocation.request_id,
        reason,
        stamp.stamp_id,
        0 if claim["released"] else 1,
    )
    assert done is not None, "a count is always one row"
    revoked_at = done["revoked_at"]
    return Release.of(
        stamp._replace(revoked_at=revoked_at) if revoked_at else stamp,
        revoked=revoked_at is not None,
        remaining_claims=done["remaining_claims"],
    )


async def _locked(connection: Connection, namespace: str, stamp_id: object) -> Stamp:
    row = await connection.fetchrow(_LOCK_STAMP, namespace, stamp_id)
    assert row is not None, "a claim's stamp is never deleted"
    return to_stamp(row)
