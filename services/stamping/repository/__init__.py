"""All SQL of the stamping node, a module for each thing that the ledger keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from services.chassis.postgres import Database
from services.stamping.repository.event import EventRepository
from services.stamping.repository.revocation import RevocationRepository
from services.stamping.repository.stamp import StampRepository

__all__ = ["Repositories"]


@dataclass(frozen=True, slots=True)
class Repositories:
    """The ledger of one database."""

    stamps: StampRepository
    revocations: RevocationRepository
    events: EventRepository

    @classmethod
    def of(cls, database: Database) -> Self:
        """The repositories of a database."""
        return cls(StampRepository(database), RevocationRepository(database), EventRepository(database))

    async def close(self) -> None:
        """Ends when every claim taken has its answer."""
        await self.stamps.close()
