"""The store's contract over gRPC: messages to the domain's values, the domain's answers to messages. No SQL, no rules."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeAlias

import grpc
from blake3 import blake3
from pydantic import ValidationError

from omninode.bridge.store.v1 import store_pb2, store_pb2_grpc
from services.chassis import paging, timestamp
from services.chassis.errors import (
    BridgeError,
    ResourceExhausted,
    Unavailable,
    from_validation,
    invalid_field,
    to_message,
)
from services.store.domain import (
    INLINE_BLOB_BYTES,
    Append,
    BlobKey,
    BlobTooLarge,
    Commit,
    LeaseQuery,
    LeaseRelease,
    Limits,
    NotApplied,
    OpenKeysQuery,
    Outcome,
    StateKey,
    StateNotFound,
    StreamOutOfOrder,
    check_digest,
    refuse_repeated_actions,
)
from services.store.message import (
    StateAllowance,
    fill_batch_outcome,
    fill_outcome,
    fill_state,
    to_commit,
    to_lease_message,
    to_lease_messages,
    to_lease_request,
    to_renewal,
)
from services.store.repository import Repositories

_Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class StoreServicer(store_pb2_grpc.StoreServiceServicer):
    """Answers the store's contract from one database; `new_id` gives the ids of uploads."""

    def __init__(self, repositories: Repositories, limits: Limits, new_id: Callable[[], uuid.UUID]) -> None:
        self._partitions = repositories.partitions
        self._commits = repositories.commits
        self._appends = repositories.appends
        self._states = repositories.states
        self._blobs = repositories.blobs
        self._leases = repositories.leases
        self._limits = limits
        self._new_id = new_id

    async def DescribeStore(
        self, request: store_pb2.DescribeStoreRequest, context: _Context
    ) -> store_pb2.DescribeStoreResponse:
        return store_pb2.DescribeStoreResponse(partition_count=await self._partitions.count())

    async def TryCommit(self, request: store_pb2.TryCommitRequest, context: _Context) -> store_pb2.TryCommitResponse:
        outcome = await self._commits.commit(to_commit(request))
        response = store_pb2.TryCommitResponse()
        fill_outcome(response, outcome, self._allowance())
        return response

    async def BatchTryCommit(
        self, request: store_pb2.BatchTryCommitRequest, context: _Context
    ) -> store_pb2.BatchTryCommitResponse:
        self._check_count("items", len(request.items))
        prepared = [_prepared(item) for item in request.items]
        if request.atomic:
            prepared = refuse_repeated_actions(prepared)
        commits = [commit for commit in prepared if isinstance(commit, Commit)]
        outcomes: Sequence[Outcome | NotApplied | BridgeError]
        if request.atomic:
            outcomes = await self._commits.commit_atomically(commits, whole=len(commits) == len(prepared))
        else:
            outcomes = await self._commits.commit_many(commits)
        response = store_pb2.BatchTryCommitResponse()
        allowance, rest = self._allowance(), iter(outcomes)
        for index, commit in enumerate(prepared):
            outcome = commit if isinstance(commit, BridgeError) else next(rest)
            if isinstance(outcome, Unavailable | ResourceExhausted):
                raise outcome
            fill_batch_outcome(response.results.add(), outcome, allowance, f"items[{index}]")
        return response

    async def GetState(self, request: store_pb2.GetStateRequest, context: _Context) -> store_pb2.GetStateResponse:
        state = await self._states.get(StateKey.model_validate(request).key)
        response = store_pb2.GetStateResponse()
        fill_state(response.state, state, self._allowance())
        return response

    async def BatchGetStates(
        self, request: store_pb2.BatchGetStatesRequest, context: _Context
    ) -> store_pb2.BatchGetStatesResponse:
        self._check_count("keys", len(request.keys))
        asked = [_asked(key) for key in request.keys]
        states = await self._states.find_many(list({key for key in asked if isinstance(key, str)}))
        response = store_pb2.BatchGetStatesResponse()
        allowance = self._allowance()
        for index, key in enumerate(asked):
            result = response.results.add()
            if isinstance(key, BridgeError):
                result.error.CopyFrom(to_message(key, f"keys[{index}]"))
            elif state := states.get(key):
                fill_state(result.state, state, allowance)
            else:
                result.error.CopyFrom(to_message(StateNotFound(metadata={"key": key})))
        return response

    async def ListOpenKeys(
        self, request: store_pb2.ListOpenKeysRequest, context: _Context
    ) -> store_pb2.ListOpenKeysResponse:
        query = OpenKeysQuery.model_validate({"collection": request.collection, "partitions": request.partitions})
        size = paging.page_size(request.page_size)
        filters = query.model_dump(mode="json")
        after = None
        if request.page_token:
            number, key = paging.decode(request.page_token, filters)
            after = (int(number or 0), str(key))
        partitions = query.partitions or range(await self._partitions.count())
        keys = await self._states.list_open(query, partitions, after, size + 1)
        response = store_pb2.ListOpenKeysResponse()
        for open_key in keys[:size]:
            message = response.keys.add(key=open_key.key, version=open_key.version, partition=open_key.partition)
            timestamp.fill(message.update_time, open_key.updated_at)
        if len(keys) > size:
            response.next_page_token = paging.encode((keys[size - 1].partition, keys[size - 1].key), filters)
        return response

    async def AppendEvents(
        self, request: store_pb2.AppendEventsRequest, context: _Context
    ) -> store_pb2.AppendEventsResponse:
        append = Append.model_validate(request)
        for index, event in enumerate(append.events):
            if not event.partition_key:
                raise invalid_field(f"events[{index}].partition_key", "must not be empty")
        response = store_pb2.AppendEventsResponse()
        for place in await self._appends.add(append):
            response.events.add(event_id=str(place.event_id), partition=place.partition, offset=place.offset)
        return response

    async def PutBlob(
        self, request_iterator: AsyncIterator[store_pb2.PutBlobRequest], context: _Context
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
                while size > INLINE_BLOB_BYTES and len(pending) >= self._limits.blob_chunk_bytes:
                    await self._blobs.add_chunk(upload_id, position, bytes(pending[: self._limits.blob_chunk_bytes]))
                    del pending[: self._limits.blob_chunk_bytes]
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
        self, request: store_pb2.GetBlobRequest, context: _Context
    ) -> AsyncIterator[store_pb2.GetBlobResponse]:
        size, source = await self._blobs.get(BlobKey.model_validate(request).digest)
        if isinstance(source, bytes):
            yield store_pb2.GetBlobResponse(chunk=source, size_bytes=size)
            return
        position = 0
        while (chunk := await self._blobs.find_chunk(source, position)) is not None:
            yield store_pb2.GetBlobResponse(chunk=chunk, size_bytes=size)
            position += 1

    async def AcquireLease(
        self, request: store_pb2.AcquireLeaseRequest, context: _Context
    ) -> store_pb2.AcquireLeaseResponse:
        lease = await self._leases.acquire(to_lease_request(request))
        return store_pb2.AcquireLeaseResponse(acquired=lease.owner == request.owner, lease=to_lease_message(lease))

    async def RenewLeases(
        self, request: store_pb2.RenewLeasesRequest, context: _Context
    ) -> store_pb2.RenewLeasesResponse:
        response = store_pb2.RenewLeasesResponse()
        for held, lease in await self._leases.renew(to_renewal(request)):
            response.leases.add(held=held, lease=lease and to_lease_message(lease))
        return response

    async def ReleaseLease(
        self, request: store_pb2.ReleaseLeaseRequest, context: _Context
    ) -> store_pb2.ReleaseLeaseResponse:
        released = await self._leases.release(LeaseRelease.model_validate(request))
        return store_pb2.ReleaseLeaseResponse(released=released)

    async def ListLeases(self, request: store_pb2.ListLeasesRequest, context: _Context) -> store_pb2.ListLeasesResponse:
        query = LeaseQuery.model_validate(request)
        size = paging.page_size(request.page_size)
        filters = query.model_dump(mode="json")
        (after,) = paging.decode(request.page_token, filters) if request.page_token else ("",)
        leases = await self._leases.list(query, str(after), size + 1)
        token = paging.encode((leases[size - 1].name,), filters) if len(leases) > size else ""
        return store_pb2.ListLeasesResponse(leases=to_lease_messages(leases[:size]), next_page_token=token)

    def _allowance(self) -> StateAllowance:
        return StateAllowance(self._limits.answer_state_bytes)

    def _check_count(self, field: str, count: int) -> None:
        if not 1 <= count <= self._limits.batch_items:
            raise invalid_field(field, f"must hold 1 to {self._limits.batch_items} items", item_count=str(count))

    def _check_blob_size(self, size: int) -> None:
        if size > self._limits.blob_bytes:
            raise BlobTooLarge(
                f"chunk: the blob is larger than the {self._limits.blob_bytes} bytes that the store takes",
                metadata={"field": "chunk", "limit_bytes": str(self._limits.blob_bytes)},
            )


def _prepared(item: store_pb2.TryCommitRequest) -> Commit | BridgeError:
    try:
        return to_commit(item)
    except BridgeError as error:
        return error
    except ValidationError as error:
        return from_validation(error)


def _asked(key: str) -> str | BridgeError:
    try:
        return StateKey(key=key).key
    except ValidationError as error:
        return from_validation(error)


def _chunk_of(request: store_pb2.PutBlobRequest) -> bytes:
    if request.WhichOneof("frame") != "chunk":
        raise StreamOutOfOrder("chunk: must follow the header, and nothing else", metadata={"expected": "chunk"})
    return request.chunk
