"""How many partitions the database has: fixed when its first store node starts."""

from __future__ import annotations

import asyncio

from omninode.bridge.errors.v1 import errors_pb2
from services.chassis.errors import Unavailable
from services.chassis.postgres import Database

_TAKE = "LOCK TABLE store_partitions IN SHARE ROW EXCLUSIVE MODE"
_COUNT = "SELECT count(*) FROM store_partitions"
_CREATE = "INSERT INTO store_partitions (partition) SELECT generate_series(0, $1::integer - 1)"


_DEFAULT = 16
"""Enough for a dozen replicas to share."""


class PartitionCountDiffers(Unavailable):
    """The database was created with another number of partitions than this node is set to; another replica may serve."""

    reason = errors_pb2.ERROR_REASON_NODE_MISCONFIGURED


class PartitionRepository:
    """The partitions of one database. `wanted` is their number; None takes what it is, 16 where there are none yet."""

    def __init__(self, database: Database, wanted: int | None = None) -> None:
        self._database = database
        self._wanted = wanted
        self._known: int | None = None
        self._asking = asyncio.Lock()

    async def count(self) -> int:
        """The number of partitions. Raises PartitionCountDiffers where the setting contradicts the database."""
        if self._known is None:
            async with self._asking:
                self._known = self._known or await self._ask()
        return self._known

    async def _ask(self) -> int:
        count: int = await self._database.fetchval(_COUNT)
        if count == 0:
            async with self._database.transaction() as connection:
                await connection.execute(_TAKE)
                count = await connection.fetchval(_COUNT)
                if count == 0:
                    count = self._wanted or _DEFAULT
                    await connection.execute(_CREATE, count)
        if self._wanted not in (None, count):
            raise PartitionCountDiffers(
                f"the database has {count} partitions and the setting log.partitions says {self._wanted}",
                metadata={"partition_count": str(count), "setting": str(self._wanted)},
            )
        return count
