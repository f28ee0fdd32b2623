"""Stamps files through the node: what goes into which request, and what becomes of each file.

How the files were found is tree.py's, how the outcome is shown report.py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

import grpc
from blake3 import blake3

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.stamping.v1 import stamping_pb2, stamping_pb2_grpc
from services.chassis.boundary import DEFAULT_NAMESPACE
from services.chassis.errors import BridgeError, from_message
from services.cli import batch, document, target
from services.cli.batch import Document
from services.cli.failure import Failed
from services.cli.tree import File
from services.cli.window import in_order


class Placement(StrEnum):
    """Where a stamp is."""

    EMBEDDED = "embedded"
    """Written into the file now."""
    CURRENT = "current"
    """In the file already, just as it would be written."""
    DETACHED = "detached"
    """In the ledger alone."""


@dataclass(frozen=True, slots=True)
class Stamped:
    """A file that has a stamp."""

    file: File
    stamp: stamping_pb2.Stamp
    created: bool
    """Whether the ledger learnt of it by this request."""
    placement: Placement


Outcome: TypeAlias = Stamped | Failed


class Stamper:
    """Stamps files in one namespace; with `embed` the stamp is written into every file that has a place for one."""

    def __init__(
        self, stub: stamping_pb2_grpc.StampingServiceStub, *, namespace: str = DEFAULT_NAMESPACE, embed: bool = False
    ) -> None:
        self._stub = stub
        self._namespace = namespace
        self._embed = embed

    async def stamp(self, files: Sequence[File]) -> AsyncGenerator[Outcome, None]:
        """An outcome for each file, in order. Raises Unavailable, which ends all; any other refusal is its own file's failure."""
        async with aclosing(in_order(batch.batches(files), self._stamp_batch, batch.REQUESTS_IN_FLIGHT)) as stamped:
            async for outcomes in stamped:
                for outcome in outcomes:
                    yield outcome

    async def _stamp_batch(self, files: Sequence[File]) -> list[Outcome]:
        return await batch.answers(files, self._send, self._stream)

    async def _send(self, documents: Sequence[Document]) -> list[Outcome]:
        request = stamping_pb2.BatchCreateStampsRequest(items=[self._request(item) for item in documents])
        timeout = target.deadline(sum(len(item.content) for item in documents))
        response = await self._stub.BatchCreateStamps(request, timeout=timeout)
        # Together, because a file that is written waits for the disk.
        settled = (self._settle(item, result) for item, result in zip(documents, response.results, strict=True))
        return await asyncio.gather(*settled)

    async def _settle(self, item: Document, result: stamping_pb2.BatchCreateStampsResult) -> Outcome:
        if result.HasField("stamped"):
            return await asyncio.to_thread(self._place, item, result.stamped)
        if result.error.reason == errors_pb2.ERROR_REASON_CONTENT_TOO_LARGE:
            return await self._stream(item.file)
        return target.failed(str(item.file.path), from_message(result.error))

    def _place(self, item: Document, response: stamping_pb2.CreateStampResponse) -> Outcome:
        """Write the stamped content into the file, where there is one and it differs."""
        placement = Placement.DETACHED
        if self._embed and response.HasField("stamped_content"):
            placement = Placement.CURRENT
            if response.stamped_content != item.content:
                placement = Placement.EMBEDDED
                try:
                    document.replace(item.file.path, item.content, response.stamped_content)
                except OSError as error:
                    return Failed.of(str(item.file.path), error)
        return Stamped(item.file, response.stamp, response.created, placement)

    async def _stream(self, file: File) -> Outcome:
        try:
            digest = await asyncio.to_thread(document.digest, file.path)
            response = await self._create_by_stream(file, digest)
        except OSError as error:
            return Failed.of(str(file.path), error)
        except (BridgeError, grpc.aio.AioRpcError) as error:
            return target.failed(str(file.path), error)
        return Stamped(file, response.stamp, response.created, Placement.DETACHED)

    async def _create_by_stream(self, file: File, digest: str) -> stamping_pb2.CreateStampStreamResponse:
        async def frames() -> AsyncIterator[stamping_pb2.CreateStampStreamRequest]:
            header = stamping_pb2.CreateStampHeader(
                request_id=batch.request_id(digest, file.name, self._namespace, embed=False),
                namespace=self._namespace,
                file_path=file.name,
            )
            yield stamping_pb2.CreateStampStreamRequest(header=header)
            async for chunk in document.chunks(file.path, digest):
                yield stamping_pb2.CreateStampStreamRequest(chunk=chunk)

        timeout = target.deadline(file.size)
        return await target.by_stream(
            lambda requests: self._stub.CreateStampStream(requests, timeout=timeout), frames()
        )

    def _request(self, item: Document) -> stamping_pb2.CreateStampRequest:
        digest = blake3(item.content).hexdigest()
        return stamping_pb2.CreateStampRequest(
            request_id=batch.request_id(digest, item.file.name, self._namespace, embed=self._embed),
            content=item.content,
            namespace=self._namespace,
            file_path=item.file.name,
            embed=self._embed,
        )
