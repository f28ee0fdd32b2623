"""Reads sessions from the store: their heads and their blobs. What they mean is `durable`'s, who writes them `storage`'s."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.store.v1 import store_pb2, store_pb2_grpc
from services.chassis import timestamp
from services.chassis.errors import BridgeError, from_message
from services.reducer.aggregation.durable import COLLECTION, Head, session_of
from services.reducer.aggregation.session import Part, keys_of

_BATCH_KEYS = 500
"""The store's bound."""
_CONCURRENT_BLOBS = 8
"""Reads of blobs at once; the store's pool has other uses."""


class SessionReader:
    """The store, for readers of sessions. Its methods raise the kinds of services.chassis.errors."""

    def __init__(self, stub: store_pb2_grpc.StoreServiceStub) -> None:
        self._stub = stub
        self._blobs = asyncio.Semaphore(_CONCURRENT_BLOBS)
        self._partition_count = 0

    async def keys(self, session: str) -> list[str]:
        """The keys of a session, whether or not they are there."""
        if not self._partition_count:
            answer = await self._stub.DescribeStore(store_pb2.DescribeStoreRequest())
            self._partition_count = answer.partition_count
        return keys_of(session, self._partition_count)

    async def parts(self, keys: Sequence[str]) -> list[Part | None]:
        """What is committed of each key before the call."""
        parts: list[Part | None] = []
        for start in range(0, len(keys), _BATCH_KEYS):
            request = store_pb2.BatchGetStatesRequest(keys=keys[start : start + _BATCH_KEYS])
            response = await self._stub.BatchGetStates(request)
            parts += [await self._part(result) for result in response.results]
        return parts

    async def blob(self, digest: str) -> bytes:
        """Stored bytes."""
        async with self._blobs:
            responses = self._stub.GetBlob(store_pb2.GetBlobRequest(digest=digest))
            return b"".join([response.chunk async for response in responses])

    async def names(self, page_token: str, page_size: int) -> tuple[list[str], str]:
        """A page of the sessions' names in the order of their keys, and the token of the next page."""
        answer = await self._stub.ListProjections(
            store_pb2.ListProjectionsRequest(
                filter=store_pb2.ProjectionFilter(collection=COLLECTION),
                order=store_pb2.PROJECTION_ORDER_KEY,
                page_size=page_size,
                page_token=page_token,
            )
        )
        return [session_of(projection.key) for projection in answer.projections], answer.next_page_token

    async def _part(self, result: store_pb2.BatchGetStatesResult) -> Part | None:
        if result.HasField("error"):
            if result.error.reason == errors_pb2.ERROR_REASON_STATE_NOT_FOUND:
                return None
            raise from_message(result.error)
        state = result.state
        if state.state_omitted:
            try:
                state = (await self._stub.GetState(store_pb2.GetStateRequest(key=state.key))).state
            except BridgeError as error:
                if error.reason == errors_pb2.ERROR_REASON_STATE_NOT_FOUND:
                    return None
                raise
        return part_of(state)


def part_of(state: store_pb2.State) -> Part:
    """What a state says of its session."""
    return Part(state.version, Head.from_json(state.state_json), timestamp.to_time(state.update_time))
