"""What takes rows away that have outlived their retention, a module for each kind; and what counts them beforehand.

Nothing here depends on being alone, or on a lease: each statement looks again, in its own snapshot or under the rows' locks, at
what it takes. Rows that somebody else has locked are passed over: they are in use, and the next sweep comes. So no sweep waits
for a commit, and none can deadlock with one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from services.chassis.postgres import Database
from services.store.repository.retention.blob import BlobRetention
from services.store.repository.retention.key import KeyRetention
from services.store.repository.retention.lease import LeaseEventRetention
from services.store.repository.retention.log import LogRetention
from services.store.repository.retention.preview import RetentionPreview

__all__ = ["RetentionRepository"]


@dataclass(frozen=True, slots=True)
class RetentionRepository:
    """Everything of one database that has a retention."""

    log: LogRetention
    keys: KeyRetention
    blobs: BlobRetention
    lease_events: LeaseEventRetention
    previews: RetentionPreview

    @classmethod
    def of(cls, database: Database) -> Self:
        """The retention of a database."""
        log = LogRetention(database)
        return cls(
            log,
            KeyRetention(database),
            BlobRetention(database),
            LeaseEventRetention(database),
            RetentionPreview(database, log),
        )
