"""Sessions in the store, for who writes them: their heads under optimistic concurrency, and their blobs.

What they hold is `durable`'s; how they are read, `reader`'s.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

from blake3 import blake3

from omninode.bridge.store.v1 import store_pb2, store_pb2_grpc
from services.chassis import timestamp
from services.chassis.errors import DeadlineExceeded, ResourceExhausted, Unavailable
from services.reducer.aggregation.durable import SCHEMA_VERSION, Head
from services.reducer.aggregation.error import SessionTakenOver
from services.reducer.aggregation.reader import SessionReader
from services.reducer.aggregation.session import Part

T = TypeVar("T")

_log = logging.getLogger(__name__)

_INLINE_BYTES = 1024 * 1024
"""A blob in a commit: the store's bound."""
_INLINE_COUNT = 16
_COMMIT_BYTES = 12 * 1024 * 1024
"""Blobs of a commit in all, so that it stays below the 16 MiB of a message."""
_RELEASES = 100
"""Blobs that one commit releases: the store's bound."""
_CHUNK_BYTES = 256 * 1024
_PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Seconds between tries while the store is away; a restarted one is back in a second or two."""


def digest_of(blob: bytes) -> str:
    """What the store calls these bytes."""
    return blake3(blob).hexdigest()


class Storage:
    """The store, for the writers of one node. Its methods raise the kinds of services.chassis.errors, but wait for a store
    that is away, however long: who needs an answer earlier cancels.
    """

    def __init__(
        self,
        reader: SessionReader,
        stub: store_pb2_grpc.StoreServiceStub,
        *,
        new_id: Callable[[], uuid.UUID],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._reader = reader
        self._stub = stub
        self._new_id = new_id
        self._sleep = sleep

    async def find(self, key: str) -> Part | None:
        """A session's key, if it is there."""
        (part,) = await self.parts([key])
        return part

    async def parts(self, keys: Sequence[str]) -> list[Part | None]:
        """Sessions' keys as they are."""
        return await self._insist(lambda: self._reader.parts(keys))

    async def keys(self, session: str) -> list[str]:
        """The keys of a session."""
        return await self._insist(lambda: self._reader.keys(session))

    async def blob(self, digest: str) -> bytes:
        """Stored bytes."""
        return await self._insist(lambda: self._reader.blob(digest))

    async def commit(
        self,
        key: str,
        expected: int,
        head: Head,
        *,
        action_type: str,
        state: str,
        blobs: Mapping[str, bytes],
        released: Sequence[str] = (),
        guards: Sequence[store_pb2.Guard] = (),
    ) -> Part:
        """Commits a head with its new blobs, and releases others. Raises SessionTakenOver."""
        uploads = _uploads(blobs)
        for digest in uploads:
            await self._put(digest, blobs[digest])
        text = head.to_json()
        request = store_pb2.TryCommitRequest(
            key=key,
            state_json=text,
            schema_version=SCHEMA_VERSION,
            blobs=[
                store_pb2.Blob(digest=digest, content=blob) for digest, blob in blobs.items() if digest not in uploads
            ],
            blob_refs=uploads,
            released_blob_refs=released,
            guards=guards,
            final=head.finished,
            transient_actions=True,
        )
        request.expected.version = expected
        # One action for all tries: where an answer was lost, the next one says that it took effect.
        request.actions.add(
            action_id=str(self._new_id()), fingerprint=blake3(text.encode()).digest(), type=action_type
        ).provenance.actor = head.writer
        request.projection.tag = state
        request.projection.indices["session"] = head.session
        answer = await self._insist(lambda: self._stub.TryCommit(request))
        match answer.WhichOneof("outcome"):
            case "committed":
                committed = answer.committed
            case "duplicate":
                committed = answer.duplicate.known[0].committed
            case _:
                raise SessionTakenOver(metadata={"session": head.session})
        return Part(committed.version, head, timestamp.to_time(committed.commit_time))

    async def _put(self, digest: str, blob: bytes) -> None:
        async def frames() -> AsyncIterator[store_pb2.PutBlobRequest]:
            yield store_pb2.PutBlobRequest(header=store_pb2.PutBlobHeader(digest=digest))
            content = memoryview(blob)
            for start in range(0, len(content), _CHUNK_BYTES):
                yield store_pb2.PutBlobRequest(chunk=bytes(content[start : start + _CHUNK_BYTES]))

        async def put() -> None:
            await self._stub.PutBlob(frames())

        await self._insist(put)

    async def _insist(self, call: Callable[[], Awaitable[T]]) -> T:
        tries = 0
        while True:
            try:
                return await call()
            except (Unavailable, DeadlineExceeded, ResourceExhausted) as error:
                if tries == len(_PAUSES):
                    # Once an outage: more lines would say no more.
                    _log.warning(
                        "a session waits for the store: %s", error.message, extra={"reason": error.reason_name}
                    )
                await self._sleep(_PAUSES[min(tries, len(_PAUSES) - 1)])
                tries += 1


def releasable(referred: set[str], needed: set[str]) -> list[str]:
    """Those of the digests that a key refers to and needs no more that one commit can release."""
    return sorted(referred - needed)[:_RELEASES]


def _uploads(blobs: Mapping[str, bytes]) -> list[str]:
    """The digests of the blobs that do not fit into a commit."""
    uploads = []
    count = size = 0
    for digest, blob in blobs.items():
        if len(blob) > _INLINE_BYTES or count == _INLINE_COUNT or size + len(blob) > _COMMIT_BYTES:
            uploads.append(digest)
        else:
            count += 1
            size += len(blob)
    return uploads
