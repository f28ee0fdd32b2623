"""Stamps: claims recorded, stamps found and listed. Rows in and out; no rule of stamping is made here."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TypeAlias

from asyncpg import Record

from services.chassis.coalesce import Coalescer
from services.chassis.errors import BridgeError
from services.chassis.postgres import Database
from services.chassis.postgres_error import ConstraintViolated, TransactionConflict
from services.stamping.domain import (
    Claim,
    Recorded,
    RequestIdReused,
    Stamp,
    StampNotFound,
    StampQuery,
    StampRequestRevoked,
)
from services.stamping.repository.row import COLUMNS, to_stamp

Position: TypeAlias = uuid.UUID
"""Where a page of a list ends: the last stamp's id; ids are in the order of their making."""

_ROUNDS = 5
"""A claim is tried anew when another replica's came first; each round sees what that one committed."""

# One statement, so one transaction and one round trip, for all claims of a batch. A claim whose digest another replica stamped
# after this statement's snapshot was taken comes back without a row and is tried again; one whose request_id was taken meanwhile
# breaks stamp_requests_pkey and undoes the statement. The stamp that a claim finds is locked, so that it is not revoked before the
# claim on it is there; where its revocation came first, the lock returns the row as that left it, and a new version is made.
# Locks are taken in one order, here and by revocations, so that two replicas wait for each other and do not deadlock: stamps that
# stand, then rows written in the order of their keys, and last the numbers of the events, for which `counted` reads `claimed` to
# its end. Who holds the numbers waits for nobody. Every look-up is a LATERAL with LIMIT 1: it goes by the index whatever the
# planner believes of the tables' sizes, where a plain join may read a whole table for a batch.
_RECORD = """
WITH input AS (
    SELECT namespace, request_id, fingerprint, digest, encode(stamp_id, 'hex')::uuid AS stamp_id,
           encode(op_id, 'hex')::uuid AS op_id, content_type, size_bytes::bigint AS size_bytes, file_path, intelligence_data, item
    FROM unnest($1::text[], $2::text[], $3::bytea[], $4::bytea[], $5::bytea[], $6::bytea[], $7::text[], $8::text[], $9::text[],
                $10::text[])
    WITH ORDINALITY AS claim (namespace, request_id, fingerprint, digest, stamp_id, op_id, content_type, size_bytes, file_path,
                              intelligence_data, item)
), known AS (
    SELECT input.item, input.namespace, coalesce(request.fingerprint = input.fingerprint, true) AS same, request.stamp_id,
           request.created, request.released_at IS NOT NULL AS released
    FROM input
    CROSS JOIN LATERAL (
        SELECT fingerprint, stamp_id, created, released_at FROM stamp_requests
        WHERE stamp_requests.namespace = input.namespace AND stamp_requests.request_id = input.request_id
        LIMIT 1
    ) AS request
), fresh AS (
    SELECT input.*, latest.stamp_id AS latest_id, latest.version AS latest_version, latest.revoked_at AS latest_revoked_at
    FROM input
    LEFT JOIN LATERAL (
        SELECT stamp_id, version, revoked_at FROM stamps
        WHERE stamps.digest = input.digest AND stamps.namespace = input.namespace
        ORDER BY version DESC LIMIT 1
        FOR KEY SHARE
    ) AS latest ON true
    WHERE NOT EXISTS (SELECT FROM known WHERE known.item = input.item)
), made AS (
    INSERT INTO stamps (namespace, stamp_id, digest, version, op_id, content_type, size_bytes, file_path, intelligence_data,
                        created_at)
    SELECT DISTINCT ON (digest, namespace)
        namespace, stamp_id, digest, coalesce(latest_version, 0) + 1, op_id, content_type, size_bytes, file_path,
        intelligence_data::jsonb, now()
    FROM fresh WHERE latest_id IS NULL OR latest_revoked_at IS NOT NULL
    ORDER BY digest, namespace, item
    ON CONFLICT ON CONSTRAINT stamps_version_key DO NOTHING
    RETURNING namespace, digest, stamp_id, version
), resolved AS (
    SELECT fresh.item, fresh.namespace, fresh.request_id, fresh.fingerprint, fresh.stamp_id = made.stamp_id AS created,
           CASE WHEN fresh.latest_revoked_at IS NULL THEN coalesce(fresh.latest_id, made.stamp_id) ELSE made.stamp_id END
               AS stamp_id,
           made.version
    FROM fresh LEFT JOIN made USING (namespace, digest)
), claimed AS (
    INSERT INTO stamp_requests (namespace, request_id, fingerprint, stamp_id, created)
    SELECT namespace, request_id, fingerprint, stamp_id, coalesce(created, false)
    FROM resolved WHERE stamp_id IS NOT NULL ORDER BY namespace, request_id
    RETURNING true AS written
), counted AS (
    UPDATE stamp_log AS stored SET next_offset = stored.next_offset + stamped.number
    FROM (SELECT count(*) AS number FROM made) AS stamped, (SELECT count(*) FROM claimed) AS written
    WHERE stored.only_row AND stamped.number > 0
    RETURNING stored.next_offset - stamped.number AS first_offset, pg_notify('stamp_events', '0')
), noted AS (
    INSERT INTO stamp_events (event_offset, namespace, stamp_id, kind, occurred_at)
    SELECT counted.first_offset + row_number() OVER (ORDER BY made.stamp_id) - 1, made.namespace, made.stamp_id, 'created', now()
    FROM made CROSS JOIN counted
), answered AS (
    SELECT item, namespace, stamp_id, coalesce(created, false) AS created, true AS same, false AS released, version FROM resolved
    UNION ALL
    SELECT item, namespace, stamp_id, created, same, released, NULL FROM known
)
SELECT answered.item, answered.created, answered.same, answered.released, answered.stamp_id, answered.version AS made_version,
       now() AS made_at, stamp.*
FROM answered
LEFT JOIN LATERAL (
    SELECT digest, namespace, op_id, version, content_type, size_bytes, file_path, intelligence_data::text AS intelligence_data,
           created_at, revoked_at
    FROM stamps
    WHERE answered.version IS NULL AND stamps.namespace = answered.namespace AND stamps.stamp_id = answered.stamp_id
    LIMIT 1
) AS stamp ON true
WHERE answered.stamp_id IS NOT NULL OR answered.released
"""

_FIND = f"""
SELECT {COLUMNS} FROM stamps
WHERE digest = $1 AND namespace = $2 AND revoked_at IS NULL
ORDER BY version DESC LIMIT 1
"""

_LIST = f"""
SELECT {COLUMNS} FROM stamps
WHERE namespace = $1
  AND stamp_id < $2
  AND ($3 = '' OR content_type = $3)
  AND ($4 = '' OR starts_with(file_path, $4))
  AND ($5::timestamptz IS NULL OR created_at >= $5)
  AND ($6::timestamptz IS NULL OR created_at < $6)
  AND ($7::boolean IS NULL OR (revoked_at IS NOT NULL) = $7)
ORDER BY stamp_id DESC LIMIT $8
"""

_LAST = uuid.UUID(int=2**128 - 1)
"""Behind every stamp; no UUIDv7 is so large."""


class StampRepository:
    """The ledger of one database. Claims of concurrent callers share one statement."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._claims: Coalescer[Claim, Recorded] = Coalescer(self._record, key=_request_key)

    async def close(self) -> None:
        """Ends when every claim taken has its answer."""
        await self._claims.aclose()

    async def add(self, claim: Claim) -> Recorded:
        """Records one claim; the same claim again gets the same answer. Raises RequestIdReused, StampRequestRevoked."""
        return await self._claims.submit(claim)

    async def add_many(self, claims: Sequence[Claim]) -> list[Recorded | BridgeError]:
        """Records claims, each with its own outcome, in order."""
        outcomes = await self._claims.submit_many(claims)
        return [_raise_bug(outcome) for outcome in outcomes]

    async def find(self, digest: bytes, namespace: str) -> Stamp | None:
        """The unrevoked stamp of a digest, or None."""
        row = await self._database.fetchrow(_FIND, digest, namespace)
        return to_stamp(row) if row else None

    async def get(self, digest: bytes, namespace: str) -> Stamp:
        """The unrevoked stamp of a digest. Raises StampNotFound."""
        stamp = await self.find(digest, namespace)
        if stamp is None:
            raise StampNotFound(metadata={"digest": digest.hex(), "namespace": namespace})
        return stamp

    async def list(self, query: StampQuery, after: Position | None, size: int) -> list[Stamp]:
        """Up to `size` stamps, the newest first, from behind `after` on."""
        rows = await self._database.fetch(
            _LIST,
            query.namespace,
            after or _LAST,
            query.content_type,
            query.file_path_prefix,
            query.created_after,
            query.created_before,
            query.revoked,
            size,
        )
        return [to_stamp(row) for row in rows]

    async def _record(self, claims: Sequence[Claim]) -> Sequence[Recorded | BridgeError]:
        outcomes: dict[int, Recorded | BridgeError] = {}
        makers = {claim.stamp_id: claim for claim in claims}
        waiting = list(range(len(claims)))
        for _ in range(_ROUNDS):
            try:
                rows = await self._database.fetch(_RECORD, *_arguments([claims[index] for index in waiting]))
            except ConstraintViolated as error:
                if error.constraint != "stamp_requests_pkey":
                    raise
                continue
            for row in rows:
                index = waiting[row["item"] - 1]
                outcomes[index] = _outcome(claims[index], row, makers)
            waiting = [index for index in waiting if index not in outcomes]
            if not waiting:
                return [outcomes[index] for index in range(len(claims))]
        raise TransactionConflict(f"other replicas came first {_ROUNDS} times in a row")


def _raise_bug(outcome: Recorded | Exception) -> Recorded | BridgeError:
    if isinstance(outcome, Recorded | BridgeError):
        return outcome
    raise outcome


def _request_key(claim: Claim) -> tuple[str, str]:
    return claim.origin.namespace, claim.origin.request_id


def _arguments(claims: Sequence[Claim]) -> tuple[list[object], ...]:
    return (
        [claim.origin.namespace for claim in claims],
        [claim.origin.request_id for claim in claims],
        [claim.fingerprint for claim in claims],
        [claim.digest for claim in claims],
        # As bytes and text: asyncpg looks twice at each element of an array that is neither, at twice the cost of encoding it.
        [claim.stamp_id.bytes for claim in claims],
        [claim.op_id.bytes for claim in claims],
        [claim.content_type for claim in claims],
        [str(claim.size_bytes) for claim in claims],
        [claim.origin.file_path for claim in claims],
        [claim.intelligence_data for claim in claims],
    )


def _outcome(claim: Claim, row: Record, makers: Mapping[uuid.UUID, Claim]) -> Recorded | BridgeError:
    if row["released"] or not row["same"]:
        refusal = RequestIdReused if not row["same"] else StampRequestRevoked
        return refusal(metadata={"request_id": claim.origin.request_id, "namespace": claim.origin.namespace})
    # A claim of the same batch may have made the stamp: what it gave is recorded, not what this one gave.
    stamp = (
        to_stamp(row)
        if row["digest"] is not None
        else _made(makers[row["stamp_id"]], row["made_version"], row["made_at"])
    )
    return Recorded(stamp, row["created"])


def _made(claim: Claim, version: int, created_at: datetime) -> Stamp:
    """The stamp of a row that the statement wrote itself and so cannot read."""
    return Stamp(
        stamp_id=claim.stamp_id,
        digest=claim.digest,
        namespace=claim.origin.namespace,
        op_id=claim.op_id,
        version=version,
        content_type=claim.content_type,
        size_bytes=claim.size_bytes,
        file_path=claim.origin.file_path,
        intelligence_data=claim.intelligence_data,
        created_at=created_at,
        revoked_at=None,
    )
