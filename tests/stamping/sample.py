"""Requests of the stamping contract, valid but for what a test gives; watches; and what the ledger holds."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from google.protobuf.struct_pb2 import Struct

from omninode.bridge.stamping.v1 import stamping_pb2 as pb
from omninode.bridge.stamping.v1.stamping_pb2_grpc import StampingServiceStub

SOURCE = b"def answer():\n    return 42\n"
PATIENCE = 30.0
"""Seconds that a test waits for what must come; only a failing test waits them out."""


def creation(content: bytes = SOURCE, **fields: Any) -> pb.CreateStampRequest:
    """A valid request, but for what a test gives."""
    return pb.CreateStampRequest(
        **{"request_id": uuid.uuid4().hex, "content": content, "file_path": "answer.py", **fields}
    )


def revocation(creation_request_id: str, **fields: Any) -> pb.RevokeStampRequest:
    """A valid request, but for what a test gives."""
    return pb.RevokeStampRequest(
        **{
            "creation_request_id": creation_request_id,
            "request_id": uuid.uuid4().hex,
            "reason": "a mistake",
            **fields,
        }
    )


def struct(**values: Any) -> Struct:
    """A Struct of the values."""
    result = Struct()
    result.update(values)
    return result


async def rows(database_url: str, query: str) -> list[Any]:
    """What the database holds."""
    connection = await asyncpg.connect(database_url)
    try:
        return await connection.fetch(query)
    finally:
        await connection.close()


class Watch:
    """One WatchStamps, read on demand; notices are kept apart."""

    def __init__(self, stub: StampingServiceStub, **query: Any) -> None:
        self._call = stub.WatchStamps(pb.WatchStampsRequest(**query))
        self._responses = aiter(self._call)
        self.cursor = ""

    async def next(self) -> pb.WatchStampsResponse:
        """The next response, a notice or not."""
        async with asyncio.timeout(PATIENCE):
            response = await anext(self._responses)
        self.cursor = response.cursor or self.cursor
        return response

    async def items(self, number: int) -> list[pb.StampEvent]:
        """The next items, as many as asked for."""
        items: list[pb.StampEvent] = []
        while len(items) < number:
            items += (await self.next()).items
        assert len(items) == number, "more came at once than the test knows of"
        return items

    async def caught_up(self) -> list[pb.StampEvent]:
        """Everything up to the notice that nothing is missing."""
        items: list[pb.StampEvent] = []
        while not (response := await self.next()).HasField("caught_up"):
            items += response.items
        self.cursor = response.caught_up.position
        return items

    def cancel(self) -> None:
        """Leaves."""
        self._call.cancel()


@asynccontextmanager
async def watching(stub: StampingServiceStub, **query: Any) -> AsyncIterator[Watch]:
    """A watch that is left at the block's end."""
    watch = Watch(stub, **query)
    try:
        yield watch
    finally:
        watch.cancel()
