"""Validates files through the node: which stamps are in them, whether they are true, and whether the ledger knows the content."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

import grpc

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.stamping.v1 import stamping_pb2, stamping_pb2_grpc
from services.chassis.boundary import DEFAULT_NAMESPACE
from services.chassis.errors import BridgeError, NotFound
from services.cli import document, target
from services.cli.batch import UNARY_BYTES
from services.cli.failure import Failed
from services.cli.tree import File
from services.cli.window import in_order

FILES_IN_FLIGHT = 8
"""Enough to keep the node busy; bounds memory to this many files of 10 MiB."""


class Verdict(StrEnum):
    """What is to be said of a file."""

    VALID = "valid"
    """It holds a stamp, and every one is true."""
    INVALID = "invalid"
    """It holds a stamp that is not true of it."""
    RECORDED = "recorded"
    """It holds no stamp, and the ledger knows its content: it was stamped detached."""
    UNSTAMPED = "unstamped"
    """It holds no stamp, and the ledger does not know its content."""


@dataclass(frozen=True, slots=True)
class Validated:
    """A file that was looked at."""

    file: File
    verdict: Verdict
    response: stamping_pb2.ValidateStampResponse


Validation: TypeAlias = Validated | Failed


class Validator:
    """Validates files against one namespace of the ledger."""

    def __init__(self, stub: stamping_pb2_grpc.StampingServiceStub, *, namespace: str = DEFAULT_NAMESPACE) -> None:
        self._stub = stub
        self._namespace = namespace

    async def validate(self, files: Sequence[File]) -> AsyncGenerator[Validation, None]:
        """A validation for each file, in order. Raises Unavailable, which ends all; any other refusal is its own file's failure."""
        async with aclosing(in_order(files, self._validate, FILES_IN_FLIGHT)) as validations:
            async for validation in validations:
                yield validation

    async def digest(self, file: File) -> str:
        """The digest by which the ledger knows the file: of its content without stamps. Raises OSError and the node's refusals."""
        return (await self._look(file)).digest

    async def _validate(self, file: File) -> Validation:
        try:
            response = await self._look(file)
        except OSError as error:
            return Failed.of(str(file.path), error)
        except (BridgeError, grpc.aio.AioRpcError) as error:
            return target.failed(str(file.path), error)
        return Validated(file, verdict(response), response)

    async def _look(self, file: File) -> stamping_pb2.ValidateStampResponse:
        content = await asyncio.to_thread(document.read, file.path, UNARY_BYTES)
        if content is None:
            return await self._look_by_stream(file)
        request = stamping_pb2.ValidateStampRequest(content=content, namespace=self._namespace, file_path=file.name)
        try:
            return await self._stub.ValidateStamp(request, timeout=target.deadline(len(content)))
        except BridgeError as error:
            if error.reason != errors_pb2.ERROR_REASON_CONTENT_TOO_LARGE:
                raise
        return await self._look_by_stream(file)

    async def _look_by_stream(self, file: File) -> stamping_pb2.ValidateStampResponse:
        """A file too large to hold an embedded stamp, as the node would answer for it."""
        response = stamping_pb2.ValidateStampResponse(digest=await self._hash_by_stream(file))
        try:
            known = await self._stub.GetStamp(
                stamping_pb2.GetStampRequest(digest=response.digest, namespace=self._namespace)
            )
            response.ledger_stamp.CopyFrom(known.stamp)
        except NotFound:
            pass
        return response

    async def _hash_by_stream(self, file: File) -> str:
        async def requests() -> AsyncIterator[stamping_pb2.HashStreamRequest]:
            async for chunk in document.chunks(file.path):
                yield stamping_pb2.HashStreamRequest(chunk=chunk)

        timeout = target.deadline(file.size)
        response = await target.by_stream(lambda chunks: self._stub.HashStream(chunks, timeout=timeout), requests())
        return response.digest


def verdict(response: stamping_pb2.ValidateStampResponse) -> Verdict:
    """What the node's answer comes to."""
    if response.stamps:
        return Verdict.VALID if response.valid else Verdict.INVALID
    return Verdict.RECORDED if response.HasField("ledger_stamp") else Verdict.UNSTAMPED
