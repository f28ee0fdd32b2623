"""Blobs by their digest. What refers to them is written with the commits."""

from __future__ import annotations

import uuid

from services.chassis.postgres import Database
from services.chassis.postgres_error import TransactionConflict
from services.store.domain import BlobNotFound

_FIND = "SELECT size_bytes, content, upload_id FROM blobs WHERE digest = $1"
# A blob that is put again is kept from then on, whoever releases it. A row that was not there before has no xmax.
_AGAIN = """
ON CONFLICT ON CONSTRAINT blobs_pkey DO UPDATE SET created_at = excluded.created_at, released = false
RETURNING xmax = 0 AS is_new
"""
_ADD = f"INSERT INTO blobs (digest, size_bytes, content, created_at) VALUES ($1, $2, $3, now()) {_AGAIN}"
# The first chunk is held, so that a sweep which takes the upload for a dead one comes before, and is seen, or after.
_ADD_UPLOAD = f"""
WITH held AS (
    SELECT FROM blob_chunks WHERE upload_id = $3 AND position = 0 FOR KEY SHARE
)
INSERT INTO blobs (digest, size_bytes, upload_id, created_at) SELECT $1, $2, $3, now() FROM held {_AGAIN}
"""
_ADD_CHUNK = "INSERT INTO blob_chunks (upload_id, position, content, created_at) VALUES ($1, $2, $3, now())"
_FIND_CHUNK = "SELECT content FROM blob_chunks WHERE upload_id = $1 AND position = $2"
_DROP_UPLOAD = "DELETE FROM blob_chunks WHERE upload_id = $1"


class BlobRepository:
    """The blobs of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, digest: str, content: bytes) -> bool:
        """Keeps a small blob; whether it is new."""
        is_new: bool = await self._database.fetchval(_ADD, bytes.fromhex(digest), len(content), content)
        return is_new

    async def add_chunk(self, upload_id: uuid.UUID, position: int, content: bytes) -> None:
        """Keeps a part of a large blob, which `add_upload` will make whole; nobody sees it until then."""
        await self._database.execute(_ADD_CHUNK, upload_id, position, content)

    async def add_upload(self, digest: str, size: int, upload_id: uuid.UUID) -> bool:
        """Makes a blob of an upload's chunks; whether it is new. The chunks of one that is not are dropped.

        Raises TransactionConflict where the upload rested so long that a sweep has taken it away.
        """
        is_new: bool | None = await self._database.fetchval(_ADD_UPLOAD, bytes.fromhex(digest), size, upload_id)
        if is_new is None:
            raise TransactionConflict("the upload rested so long that its chunks were deleted; upload it again")
        if not is_new:
            await self.drop_upload(upload_id)
        return is_new

    async def drop_upload(self, upload_id: uuid.UUID) -> None:
        """Drops the chunks of an upload that did not end well."""
        await self._database.execute(_DROP_UPLOAD, upload_id)

    async def get(self, digest: str) -> tuple[int, bytes | uuid.UUID]:
        """The size of a blob, and its bytes or the upload whose chunks hold them. Raises BlobNotFound."""
        row = await self._database.fetchrow(_FIND, bytes.fromhex(digest))
        if row is None:
            raise BlobNotFound(metadata={"digest": digest})
        return row["size_bytes"], row["upload_id"] or row["content"]

    async def find_chunk(self, upload_id: uuid.UUID, position: int) -> bytes | None:
        """A chunk of an upload; None behind the last."""
        content: bytes | None = await self._database.fetchval(_FIND_CHUNK, upload_id, position)
        return content
