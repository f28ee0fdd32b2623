"""All SQL of the store node, a module for each thing that it keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from services.chassis.postgres import Database
from services.store.repository.append import AppendRepository
from services.store.repository.blob import BlobRepository
from services.store.repository.commit import CommitRepository
from services.store.repository.lease import LeaseLog, LeaseRepository
from services.store.repository.log import HistoryRepository, LogRepository
from services.store.repository.outbox import OutboxRepository
from services.store.repository.partition import PartitionRepository
from services.store.repository.projection import ProjectionRepository
from services.store.repository.rebuild import RebuildRepository
from services.store.repository.retention import RetentionRepository
from services.store.repository.state import StateRepository

__all__ = ["Repositories"]


@dataclass(frozen=True, slots=True)
class Repositories:
    """Everything that the store keeps in one database."""

    partitions: PartitionRepository
    commits: CommitRepository
    appends: AppendRepository
    states: StateRepository
    history: HistoryRepository
    log: LogRepository
    outbox: OutboxRepository
    outbox_log: LogRepository
    projections: ProjectionRepository
    rebuilds: RebuildRepository
    retention: RetentionRepository
    blobs: BlobRepository
    leases: LeaseRepository
    lease_log: LeaseLog

    @classmethod
    def of(cls, database: Database, partition_count: int | None = None) -> Self:
        """The repositories of a database; `partition_count` is what the number of its partitions must be, None whatever it is."""
        partitions = PartitionRepository(database, partition_count)
        return cls(
            partitions=partitions,
            commits=CommitRepository(database, partitions),
            appends=AppendRepository(database, partitions),
            states=StateRepository(database),
            history=HistoryRepository(database, partitions),
            log=LogRepository(database, partitions, outbox=False),
            outbox=OutboxRepository(database),
            outbox_log=LogRepository(database, partitions, outbox=True),
            projections=ProjectionRepository(database, partitions),
            rebuilds=RebuildRepository(database),
            retention=RetentionRepository.of(database),
            blobs=BlobRepository(database),
            leases=LeaseRepository(database),
            lease_log=LeaseLog(database),
        )

    async def close(self) -> None:
        """Ends when every commit and every read that was taken has its outcome."""
        await self.commits.close()
        await self.projections.close()
