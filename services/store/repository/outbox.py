"""The consumers of the outbox: who has acknowledged what."""

from __future__ import annotations

from collections.abc import Sequence

from services.chassis.errors import invalid_field
from services.chassis.postgres import Database
from services.store.domain import (
    Acknowledgement,
    Condition,
    Consumer,
    ConsumerNotFound,
    ConsumerPartition,
    Fenced,
    TooManyConsumers,
)

_REGISTERED = """
SELECT EXISTS (SELECT FROM outbox_consumers WHERE consumer = $1) AS is_registered,
       (SELECT count(DISTINCT consumer) FROM outbox_consumers) AS number
"""
# The partitions are held, so that no sweep moves their beginning past a consumer that it does not see yet.
_REGISTER = """
WITH held AS (
    SELECT partition, first_event_offset, next_offset FROM store_partitions ORDER BY partition FOR SHARE
)
INSERT INTO outbox_consumers (consumer, partition, next_offset, registered_at)
SELECT $1, partition, CASE WHEN $2 THEN first_event_offset ELSE next_offset END, now() FROM held
ON CONFLICT ON CONSTRAINT outbox_consumers_pkey DO NOTHING
"""
_FIND = "SELECT next_offset FROM outbox_consumers WHERE consumer = $1 AND partition = $2"
# The lease is locked, so that nobody takes it over between this check and the end of the statement.
_ACKNOWLEDGE = """
WITH lease AS (
    SELECT epoch, expires_at FROM leases WHERE name = $4 FOR SHARE
), judged AS (
    SELECT coalesce((SELECT epoch FROM lease), 0) AS current_epoch,
           $6::boolean IS NULL
           OR $6::boolean = coalesce((SELECT epoch = $5 AND expires_at > clock_timestamp() FROM lease), false) AS is_held
), log AS (
    SELECT next_offset FROM store_partitions WHERE partition = $2
), done AS (
    UPDATE outbox_consumers SET next_offset = greatest(next_offset, $3 + 1), acknowledged_at = clock_timestamp()
    WHERE consumer = $1 AND partition = $2 AND (SELECT is_held FROM judged) AND $3 < (SELECT next_offset FROM log)
    RETURNING next_offset
)
SELECT (SELECT next_offset FROM done) AS acknowledged, is_held, current_epoch, (SELECT next_offset FROM log) AS log_end,
       EXISTS (SELECT FROM outbox_consumers WHERE consumer = $1) AS is_registered
FROM judged
"""
_LIST = """
SELECT registered.consumer, min(registered.registered_at) AS registered_at,
       array_agg(registered.partition ORDER BY registered.partition) AS partitions,
       array_agg(registered.next_offset ORDER BY registered.partition) AS next_offsets,
       array_agg(log.next_offset - registered.next_offset ORDER BY registered.partition) AS lags,
       array_agg(registered.acknowledged_at ORDER BY registered.partition) AS acknowledged
FROM (
    SELECT DISTINCT consumer FROM outbox_consumers WHERE consumer > $1 COLLATE "C" ORDER BY consumer LIMIT $2
) AS listed
JOIN outbox_consumers AS registered USING (consumer)
JOIN store_partitions AS log USING (partition)
GROUP BY registered.consumer ORDER BY registered.consumer
"""
_DELETE = "DELETE FROM outbox_consumers WHERE consumer = $1 RETURNING partition"


class OutboxRepository:
    """The consumers of one database's outbox."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def register(self, consumer: str, *, from_beginning: bool, limit: int) -> None:
        """Registers a consumer for all partitions, from the oldest events or from now on; one that is registered stays as it is.

        Raises TooManyConsumers where `limit` others are registered; of many at once a few more may come in.
        """
        row = await self._database.fetchrow(_REGISTERED, consumer)
        assert row is not None
        if row["is_registered"]:
            return
        if row["number"] >= limit:
            raise TooManyConsumers(metadata={"limit": str(limit)})
        await self._database.execute(_REGISTER, consumer, from_beginning)

    async def get(self, consumer: str, partition: int) -> int:
        """The first offset of the partition that the consumer has not acknowledged. Raises ConsumerNotFound."""
        offset: int | None = await self._database.fetchval(_FIND, consumer, partition)
        if offset is None:
            raise ConsumerNotFound(metadata={"consumer": consumer})
        return offset

    async def acknowledge(self, acknowledgement: Acknowledgement) -> int | Fenced:
        """The first offset that is not acknowledged then. Raises ConsumerNotFound, and InvalidArgument for what is not there."""
        guard = acknowledgement.guard
        row = await self._database.fetchrow(
            _ACKNOWLEDGE,
            acknowledgement.consumer,
            acknowledgement.partition,
            acknowledgement.offset,
            guard.lease if guard else "",
            guard.epoch if guard else 0,
            guard.condition is Condition.HELD if guard else None,
        )
        assert row is not None
        if not row["is_registered"]:
            raise ConsumerNotFound(metadata={"consumer": acknowledgement.consumer})
        if row["log_end"] is None:
            raise invalid_field("partition", "must be a partition of the log", value=str(acknowledgement.partition))
        if not row["is_held"]:
            assert guard is not None
            return Fenced(guard.lease, row["current_epoch"])
        if row["acknowledged"] is None:
            raise invalid_field("offset", f"must be below {row['log_end']}, the end of the log")
        acknowledged: int = row["acknowledged"]
        return acknowledged

    async def list(self, after: str, size: int) -> Sequence[Consumer]:
        """Up to `size` consumers by name, from behind `after` on."""
        return [
            Consumer(
                row["consumer"],
                row["registered_at"],
                [
                    ConsumerPartition(*figures)
                    for figures in zip(
                        row["partitions"], row["next_offsets"], row["lags"], row["acknowledged"], strict=True
                    )
                ],
            )
            for row in await self._database.fetch(_LIST, after, size)
        ]

    async def delete(self, consumer: str) -> None:
        """Forgets a consumer. Raises ConsumerNotFound."""
        if not await self._database.fetch(_DELETE, consumer):
            raise ConsumerNotFound(metadata={"consumer": consumer})
