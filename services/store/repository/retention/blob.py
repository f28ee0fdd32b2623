"""Blobs that no key refers to, and uploads that no blob has become of.

A commit locks the blobs to which it refers, see `missing` in commit: so it is seen here as a lock or as its reference, or it sees
here that the blob is gone.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from services.chassis.postgres import Connection, Database

_LIST = """
SELECT old.digest, old.created_at, used.found IS NULL AS is_unused
FROM (
    SELECT digest, created_at FROM blobs
    WHERE created_at < now() - $1::interval AND created_at >= $2 AND (created_at, digest) > ($2, $3)
    ORDER BY created_at, digest LIMIT $4
) AS old
LEFT JOIN LATERAL (SELECT true AS found FROM blob_references WHERE blob_references.digest = old.digest LIMIT 1) AS used ON true
ORDER BY old.created_at, old.digest
"""
_LOCK = """
SELECT digest FROM blobs WHERE digest = ANY ($1::bytea[]) AND created_at < now() - $2::interval
ORDER BY digest FOR UPDATE SKIP LOCKED
"""
_LIST_RELEASED = "SELECT digest FROM blobs WHERE released AND digest > $1 ORDER BY digest LIMIT $2"
_LOCK_RELEASED = """
SELECT digest FROM blobs WHERE digest = ANY ($1::bytea[]) AND released ORDER BY digest FOR UPDATE SKIP LOCKED
"""
# To be marked anew when its last key releases it.
_UNMARK = "UPDATE blobs SET released = NULL WHERE digest = ANY ($1::bytea[])"
# A statement of its own, whose snapshot shows every reference that was committed before the lock was taken.
_DROP = """
DELETE FROM blobs WHERE digest = ANY (ARRAY(
    SELECT held.digest
    FROM unnest($1::bytea[]) AS held (digest)
    LEFT JOIN LATERAL (SELECT true AS found FROM blob_references WHERE blob_references.digest = held.digest LIMIT 1) AS used ON true
    WHERE used.found IS NULL
))
RETURNING upload_id
"""
_LIST_CHUNKS = """
SELECT created_at, upload_id, position FROM blob_chunks
WHERE created_at < now() - $1::interval AND created_at >= $2 AND (created_at, upload_id, position) > ($2, $3, $4)
ORDER BY created_at, upload_id, position LIMIT $5
"""
# Its last chunk says whether an upload still goes on.
_LIST_DEAD = """
SELECT held.upload_id
FROM unnest($1::uuid[]) AS held (upload_id)
LEFT JOIN LATERAL (SELECT true AS found FROM blobs WHERE blobs.upload_id = held.upload_id LIMIT 1) AS whole ON true
CROSS JOIN LATERAL (
    SELECT created_at FROM blob_chunks WHERE blob_chunks.upload_id = held.upload_id ORDER BY position DESC LIMIT 1
) AS last
WHERE whole.found IS NULL AND last.created_at < now() - $2::interval
"""
_LOCK_UPLOADS = """
SELECT upload_id FROM blob_chunks WHERE upload_id = ANY ($1::uuid[]) AND position = 0 ORDER BY upload_id FOR UPDATE SKIP LOCKED
"""
_DROP_CHUNKS = "DELETE FROM blob_chunks WHERE upload_id = ANY ($1::uuid[])"
_BEGINNING = datetime(1, 1, 1, tzinfo=UTC)


class BlobPlace(NamedTuple):
    """How far a walk of the blobs has come: behind this one."""

    created_at: datetime = _BEGINNING
    digest: bytes = b""


class ChunkPlace(NamedTuple):
    """How far a walk of the uploads' chunks has come: behind this one."""

    created_at: datetime = _BEGINNING
    upload_id: uuid.UUID = uuid.UUID(int=0)
    position: int = -1


class BlobRetention:
    """Takes blobs and uploads away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_unused(self, retention: timedelta, after: BlobPlace, limit: int) -> tuple[list[bytes], BlobPlace]:
        """Those of the next `limit` older blobs that no key refers to, and the place behind all of them."""
        rows = await self._database.fetch(_LIST, retention, *after, limit)
        unused = [row["digest"] for row in rows if row["is_unused"]]
        return unused, BlobPlace(rows[-1]["created_at"], rows[-1]["digest"]) if rows else after

    async def drop(self, digests: Sequence[bytes], retention: timedelta) -> int:
        """Deletes those of the blobs that are older and that no key refers to, with their chunks; how many they were."""
        async with self._database.transaction() as connection:
            held = [row["digest"] for row in await connection.fetch(_LOCK, digests, retention)]
            return await _drop(connection, held)

    async def list_released(self, after: bytes, limit: int) -> list[bytes]:
        """The next `limit` blobs, in order, that a key has released since they were put."""
        return [row["digest"] for row in await self._database.fetch(_LIST_RELEASED, after, limit)]

    async def drop_released(self, digests: Sequence[bytes]) -> int:
        """Deletes those of the released blobs that no key refers to, with their chunks; how many they were.

        The others are not released any more.
        """
        async with self._database.transaction() as connection:
            held = [row["digest"] for row in await connection.fetch(_LOCK_RELEASED, digests)]
            count = await _drop(connection, held)
            if count < len(held):
                await connection.execute(_UNMARK, held)
        return count

    async def list_uploads(
        self, retention: timedelta, after: ChunkPlace, limit: int
    ) -> tuple[list[uuid.UUID], ChunkPlace]:
        """The uploads of up to `limit` chunks that are older, whole blobs' too, and the place behind them."""
        rows = await self._database.fetch(_LIST_CHUNKS, retention, *after, limit)
        return sorted({row["upload_id"] for row in rows}), ChunkPlace(*rows[-1]) if rows else after

    async def drop_uploads(self, upload_ids: Sequence[uuid.UUID], retention: timedelta) -> int:
        """Deletes those of the uploads that are older as a whole and that no blob has become of; how many they were."""
        async with self._database.transaction() as connection:
            # Held first: who makes a blob of an upload holds its first chunk, and is seen here, or sees that the upload is gone.
            held = [row["upload_id"] for row in await connection.fetch(_LOCK_UPLOADS, upload_ids)]
            dead = [row["upload_id"] for row in await connection.fetch(_LIST_DEAD, held, retention)]
            if dead:
                await connection.execute(_DROP_CHUNKS, dead)
        return len(dead)


async def _drop(connection: Connection, held: Sequence[bytes]) -> int:
    """Deletes those of the blobs that no key refers to; the transaction holds their rows."""
    if not held:
        return 0
    dropped = await connection.fetch(_DROP, held)
    if uploads := [row["upload_id"] for row in dropped if row["upload_id"]]:
        await connection.execute(_DROP_CHUNKS, uploads)
    return len(dropped)
