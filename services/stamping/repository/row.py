"""A row of stamps, and the stamp that it is."""

from __future__ import annotations

from asyncpg import Record

from services.stamping.domain import Stamp

COLUMNS = """stamp_id, digest, namespace, op_id, version, content_type, size_bytes, file_path,
       intelligence_data::text AS intelligence_data, created_at, revoked_at"""


def to_stamp(row: Record) -> Stamp:
    """The stamp of a row that has COLUMNS."""
    return Stamp(
        stamp_id=row["stamp_id"],
        digest=row["digest"],
        namespace=row["namespace"],
        op_id=row["op_id"],
        version=row["version"],
        content_type=row["content_type"],
        size_bytes=row["size_bytes"],
        file_path=row["file_path"],
        intelligence_data=row["intelligence_data"],
        created_at=row["created_at"],
        revoked_at=row["revoked_at"],
    )
