"""All SQL of the store node, a module for each thing that it keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from services.chassis.postgres import Database
from services.store.repository.append import AppendRepository
from services.store.repository.blob import BlobRepository
from services.store.repository.commit import CommitRepository
from services.store.repository.lease import LeaseRepository
from services.store.repository.partition import PartitionRepository
from services.store.repository.state import StateRepository

__all__ = ["Repositories"]


@dataclass(frozen=True, slots=True)
class Repositories:
    """Everything that the store keeps in one database."""

    partitions: PartitionRepository
    commits: CommitRepository
    appends: AppendRepository
    states: StateRepository
    blobs: BlobRepository
    leases: LeaseRepository

    @classmethod
    def of(cls, database: Database, partition_count: int | None = None) -> Self:
        """The repositories of a database; `partition_count` is what the number of its partitions must be, None whatever it is."""
        partitions = PartitionRepository(database, partition_count)
        return cls(
            partitions,
            CommitRepository(database, partitions),
            AppendRepository(database, partitions),
            StateRepository(database),
            BlobRepository(database),
            LeaseRepository(database),
        )

    async def close(self) -> None:
        """Ends when every commit taken has its outcome."""
        await self.commits.close()
