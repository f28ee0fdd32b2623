"""States as they are now: reads alone, in sessions of their own from the pool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from asyncpg import Record

from services.chassis.postgres import Database
from services.store.domain import OpenKey, OpenKeysQuery, State, StateNotFound

Position: TypeAlias = tuple[int, str]
"""Where a page of open keys ends: the last one's partition and key."""

_COLUMNS = "key, version, state, schema_version, final, updated_at, partition"
_FIND = f"SELECT {_COLUMNS} FROM workflow_state WHERE key = $1"
_LIST = f"""
SELECT {_COLUMNS}
FROM unnest($1::text[]) AS wanted (name)
CROSS JOIN LATERAL (SELECT {_COLUMNS} FROM workflow_state WHERE workflow_state.key = wanted.name LIMIT 1) AS stored
"""
# The bounds of the key are what makes the index serve: it is sorted by partition, then key, byte by byte.
_LIST_OPEN = """
SELECT open.key, open.version, open.partition, open.updated_at
FROM unnest($1::smallint[]) AS wanted (number)
CROSS JOIN LATERAL (
    SELECT key, version, partition, updated_at FROM workflow_state
    WHERE NOT final AND partition = wanted.number
      AND key >= CASE WHEN wanted.number = $4 THEN $5 ELSE $2 END COLLATE "C" AND key < $3 COLLATE "C"
      AND (wanted.number <> $4 OR key > $5 COLLATE "C")
    ORDER BY key LIMIT $6
) AS open
WHERE wanted.number >= $4
ORDER BY open.partition, open.key LIMIT $6
"""


class StateRepository:
    """The states of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, key: str) -> State:
        """The state of a key. Raises StateNotFound."""
        row = await self._database.fetchrow(_FIND, key)
        if row is None:
            raise StateNotFound(metadata={"key": key})
        return _from_row(row)

    async def find_many(self, keys: Sequence[str]) -> dict[str, State]:
        """The states of those keys that have one, all as of one moment."""
        rows = await self._database.fetch(_LIST, keys)
        return {row["key"]: _from_row(row) for row in rows}

    async def list_open(
        self, query: OpenKeysQuery, partitions: Sequence[int], after: Position | None, size: int
    ) -> list[OpenKey]:
        """Up to `size` open keys of the collection in these partitions, from behind `after` on."""
        number, key = after or (-1, "")
        begin = f"{query.collection}/"
        # `0` is the character behind `/`.
        rows = await self._database.fetch(
            _LIST_OPEN, sorted(set(partitions)), begin, f"{query.collection}0", number, key, size
        )
        return [OpenKey(row["key"], row["version"], row["partition"], row["updated_at"]) for row in rows]


def _from_row(row: Record) -> State:
    return State(
        row["key"],
        row["version"],
        row["state"],
        row["schema_version"],
        row["final"],
        row["updated_at"],
        row["partition"],
    )
