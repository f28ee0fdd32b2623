"""Blobs over gRPC."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable

from blake3 import blake3

from omninode.bridge.store.v1 import store_pb2, store_pb2_grpc
from services.store.domain import (
    INLINE_BLOB_BYTES,
    BlobKey,
    BlobNotFound,
    BlobTooLarge,
    Limits,
    StreamOutOfOrder,
    check_digest,
)
from services.store.repository.blob import BlobRepository
from services.store.servicer.call import Context


class BlobServicer(store_pb2_grpc.StoreServiceServicer):
    """Takes blobs in and gives them out; `new_id` gives the ids of uploads."""

    def __init__(self, blobs: BlobRepository, limits: Limits, new_id: Callable[[], uuid.UUID]) -> None:
        self._blobs = blobs
        self._blob_limits = limits
        self._new_id = new_id

    async def PutBlob(
        self, request_iterator: AsyncIterator[store_pb2.PutBlobRequest], context: Context
    ) -> store_pb2.PutBlobResponse:
        header = await anext(request_iterator, None)
        if header is None or header.WhichOneof("frame") != "header":
            raise StreamOutOfOrder("header: must be the first message of the stream", metadata={"expected": "header"})
        digest = BlobKey.model_validate({"digest": header.header.digest}).digest
        upload_id = self._new_id()
        hasher, size, position, pending = blake3(), 0, 0, bytearray()
        try:
            async for request in request_iterator:
                chunk = _chunk_of(request)
                hasher.update(chunk)
                size += len(chunk)
                self._check_blob_size(size)
                pending += chunk
                while size > INLINE_BLOB_BYTES and len(pending) >= self._blob_limits.blob_chunk_bytes:
                    await self._blobs.add_chunk(
                        upload_id, position, bytes(pending[: self._blob_limits.blob_chunk_bytes])
                    )
                    del pending[: self._blob_limits.blob_chunk_bytes]
                    position += 1
            check_digest("header.digest", digest, hasher.hexdigest())
            if position and pending:
                await self._blobs.add_chunk(upload_id, position, bytes(pending))
        except BaseException:
            if size > INLINE_BLOB_BYTES:
                await self._blobs.drop_upload(upload_id)
            raise
        # What fails from here on may have been kept all the same: its chunks stay.
        if position:
            created = await self._blobs.add_upload(digest, size, upload_id)
        else:
            created = await self._blobs.add(digest, bytes(pending))
        return store_pb2.PutBlobResponse(digest=digest, size_bytes=size, created=created)

    async def GetBlob(
        self, request: store_pb2.GetBlobRequest, context: Context
    ) -> AsyncIterator[store_pb2.GetBlobResponse]:
        size, source = await self._blobs.get(BlobKey.model_validate(request).digest)
        if isinstance(source, bytes):
            yield store_pb2.GetBlobResponse(chunk=source, size_bytes=size)
            return
        position = sent = 0
        while (chunk := await self._blobs.find_chunk(source, position)) is not None:
            yield store_pb2.GetBlobResponse(chunk=chunk, size_bytes=size)
            position += 1
            sent += len(chunk)
        if sent < size:
            # Nothing referred to it, and its time ended while it was read.
            raise BlobNotFound(metadata={"digest": request.digest})

    def _check_blob_size(self, size: int) -> None:
        if size > self._blob_limits.blob_bytes:
            raise BlobTooLarge(
                f"chunk: the blob is larger than the {self._blob_limits.blob_bytes} bytes that the store takes",
                metadata={"field": "chunk", "limit_bytes": str(self._blob_limits.blob_bytes)},
            )


def _chunk_of(request: store_pb2.PutBlobRequest) -> bytes:
    if request.WhichOneof("frame") != "chunk":
        raise StreamOutOfOrder("chunk: must follow the header, and nothing else", metadata={"expected": "chunk"})
    return request.chunk
