"""The stamping contract over gRPC: messages to the domain's values, the domain's answers to messages. No SQL, no rules."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import datetime
from typing import Any, ParamSpec, TypeAlias, TypeVar

import grpc
from blake3 import blake3
from pydantic import ValidationError

from omninode.bridge.stamping.v1 import stamping_pb2, stamping_pb2_grpc
from services.chassis import paging, timestamp
from services.chassis.boundary import DEFAULT_NAMESPACE, check_size
from services.chassis.errors import (
    BridgeError,
    ResourceExhausted,
    Unavailable,
    from_validation,
    invalid_field,
    to_message,
)
from services.chassis.feed import Feed
from services.chassis.json_struct import from_struct, to_text
from services.chassis.turns import in_turns
from services.stamping import embedding, message
from services.stamping.content_type import HEAD_BYTES, content_type
from services.stamping.domain import (
    Claim,
    LedgerKey,
    Limits,
    Origin,
    Place,
    Recorded,
    Revocation,
    StampQuery,
    StreamOutOfOrder,
    Verdict,
    block_fields,
    body_of,
    claim_of_content,
    claim_of_digest,
    read,
    verdicts,
)
from services.stamping.event import EventKind, EventQuery, Note, StampEvent, batch_notes
from services.stamping.journal import Journal
from services.stamping.one_protocol import validate_block, validate_metadata
from services.stamping.repository import Repositories
from services.stamping.view import StampView

_Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
_P = ParamSpec("_P")
_T = TypeVar("_T")


class StampingServicer(stamping_pb2_grpc.StampingServiceServicer):
    """Answers the stamping contract from one ledger; `new_id` gives the ids of new stamps, in the order of their making."""

    def __init__(
        self,
        repositories: Repositories,
        journal: Journal,
        feed: Feed[StampEvent],
        limits: Limits,
        new_id: Callable[[], uuid.UUID],
    ) -> None:
        self._stamps = repositories.stamps
        self._revocations = repositories.revocations
        self._journal = journal
        self._feed = feed
        self._limits = limits
        self._new_id = new_id

    async def Hash(self, request: stamping_pb2.HashRequest, context: _Context) -> stamping_pb2.HashResponse:
        check_size("content", len(request.content), self._limits.content_bytes)
        digest = await self._work(len(request.content), _hexdigest, request.content)
        return stamping_pb2.HashResponse(digest=digest, size_bytes=len(request.content))

    async def HashStream(
        self, request_iterator: AsyncIterator[stamping_pb2.HashStreamRequest], context: _Context
    ) -> stamping_pb2.HashStreamResponse:
        hasher = blake3()
        size = 0
        async for request in request_iterator:
            # Read once: every access of a bytes field copies it.
            chunk = request.chunk
            hasher.update(chunk)
            size += len(chunk)
        return stamping_pb2.HashStreamResponse(digest=hasher.hexdigest(), size_bytes=size)

    async def CreateStamp(
        self, request: stamping_pb2.CreateStampRequest, context: _Context
    ) -> stamping_pb2.CreateStampResponse:
        claim, body = await self._work(len(request.content), self._claim, request)
        recorded = await self._stamps.add(claim)
        response = stamping_pb2.CreateStampResponse()
        _answer(response, request, body, recorded)
        return response

    async def BatchCreateStamps(
        self, request: stamping_pb2.BatchCreateStampsRequest, context: _Context
    ) -> stamping_pb2.BatchCreateStampsResponse:
        items = request.items
        if not 1 <= len(items) <= self._limits.batch_items:
            raise invalid_field("items", f"must hold 1 to {self._limits.batch_items} items", item_count=str(len(items)))
        check_size("items", sum(len(item.content) for item in items), self._limits.batch_bytes)
        prepared: list[tuple[Claim, bytes] | BridgeError] = [self._prepared(item) async for item in in_turns(items)]
        claims = [claimed[0] for claimed in prepared if not isinstance(claimed, BridgeError)]
        outcomes = iter(await self._stamps.add_many(claims))
        response = stamping_pb2.BatchCreateStampsResponse()
        async for index, claimed in in_turns(enumerate(prepared)):
            outcome, body = (claimed, b"") if isinstance(claimed, BridgeError) else (next(outcomes), claimed[1])
            if isinstance(outcome, Unavailable | ResourceExhausted):
                raise outcome
            result = response.results.add()
            if isinstance(outcome, BridgeError):
                result.error.CopyFrom(to_message(outcome, f"items[{index}]"))
            else:
                _answer(result.stamped, items[index], body, outcome)
        self._journal.note(
            batch_notes(
                (_namespace(item), result.HasField("stamped"))
                for item, result in zip(items, response.results, strict=True)
            )
        )
        return response

    async def CreateStampStream(
        self, request_iterator: AsyncIterator[stamping_pb2.CreateStampStreamRequest], context: _Context
    ) -> stamping_pb2.CreateStampStreamResponse:
        header = await anext(request_iterator, None)
        if header is None or header.WhichOneof("frame") != "header":
            raise StreamOutOfOrder("header: must be the first message of the stream", metadata={"expected": "header"})
        origin = _origin(header.header)
        metadata = to_text(header.header.metadata, "metadata", self._limits.metadata_bytes)
        hasher = blake3()
        head = b""
        size = 0
        async for request in request_iterator:
            if request.WhichOneof("frame") != "chunk":
                raise StreamOutOfOrder(
                    "chunk: must follow the header, and nothing else", metadata={"expected": "chunk"}
                )
            chunk = request.chunk
            hasher.update(chunk)
            size += len(chunk)
            if len(head) < HEAD_BYTES:
                head += chunk[: HEAD_BYTES - len(head)]
        digest = hasher.digest()
        claim = claim_of_digest(
            origin,
            digest,
            size_bytes=size,
            media_type=content_type(head, origin.file_path),
            intelligence_data=metadata,
            given=digest,
            stamp_id=self._new_id(),
        )
        recorded = await self._stamps.add(claim)
        return stamping_pb2.CreateStampStreamResponse(stamp=message.of_stamp(recorded.stamp), created=recorded.created)

    async def RevokeStamp(
        self, request: stamping_pb2.RevokeStampRequest, context: _Context
    ) -> stamping_pb2.RevokeStampResponse:
        release = await self._revocations.add(
            Revocation(
                creation_request_id=request.creation_request_id,
                request_id=request.request_id,
                namespace=_namespace(request),
                reason=request.reason,
            )
        )
        return stamping_pb2.RevokeStampResponse(
            stamp=message.of_stamp(release.stamp) if release.stamp else None,
            revoked=release.revoked,
            remaining_claim_count=release.remaining_claims,
        )

    async def WatchStamps(
        self, request: stamping_pb2.WatchStampsRequest, context: _Context
    ) -> AsyncIterator[stamping_pb2.WatchStampsResponse]:
        query = EventQuery(
            namespace=_namespace(request) if request.HasField("namespace") else None,
            kinds=_kinds(request.kinds),
            digest=request.digest or None,
        )
        view = StampView(query)
        async for response in self._feed.watch(view, request.cursor, from_beginning=request.from_beginning):
            yield response

    async def ValidateStamp(
        self, request: stamping_pb2.ValidateStampRequest, context: _Context
    ) -> stamping_pb2.ValidateStampResponse:
        place = Place(namespace=_namespace(request), file_path=request.file_path)
        digest, reading, judged = await self._work(len(request.content), self._judge, request.content, place)
        known = await self._stamps.find(digest, place.namespace)
        if known is not None:
            self._journal.note([Note(EventKind.VALIDATED, known.namespace, known.stamp_id)])
        return stamping_pb2.ValidateStampResponse(
            digest=digest.hex(),
            stamps=[message.of_verdict(verdict) for verdict in judged],
            valid=bool(judged) and not any(verdict.reason for verdict in judged),
            ledger_stamp=message.of_stamp(known) if known else None,
            quoted=[
                stamping_pb2.QuotedStamp(form=message.FORMS[quoted.form], line=quoted.line, reason=quoted.reason)
                for quoted in reading.quoted
            ],
            foreign=[stamping_pb2.ForeignBlock(line=block.line, fields=block.fields) for block in reading.foreign],
            truncated=reading.truncated,
        )

    def _judge(self, content: bytes, place: Place) -> tuple[bytes, embedding.Reading, list[Verdict]]:
        reading = read(content, place.file_path, self._limits)
        return blake3(reading.body).digest(), reading, verdicts(reading)

    async def ValidateProtocol(
        self, request: stamping_pb2.ValidateProtocolRequest, context: _Context
    ) -> stamping_pb2.ValidateProtocolResponse:
        match request.WhichOneof("source"):
            case "metadata":
                check_size("metadata", request.metadata.ByteSize(), self._limits.block_bytes)
                violations = validate_metadata(from_struct(request.metadata, "metadata"))
            case "block":
                check_size("block", len(request.block.encode()), self._limits.block_bytes)
                violations = validate_block(request.block)
            case _:
                raise invalid_field("source", "either metadata or block must be set")
        return stamping_pb2.ValidateProtocolResponse(
            valid=not violations,
            violations=[
                stamping_pb2.ProtocolViolation(field=violation.field, description=violation.description)
                for violation in violations
            ],
        )

    async def GetStamp(self, request: stamping_pb2.GetStampRequest, context: _Context) -> stamping_pb2.GetStampResponse:
        key = LedgerKey(digest=request.digest, namespace=_namespace(request))
        stamp = await self._stamps.get(bytes.fromhex(key.digest), key.namespace)
        return stamping_pb2.GetStampResponse(stamp=message.of_stamp(stamp))

    async def ListStamps(
        self, request: stamping_pb2.ListStampsRequest, context: _Context
    ) -> stamping_pb2.ListStampsResponse:
        query = StampQuery(
            namespace=_namespace(request),
            content_type=request.content_type,
            file_path_prefix=request.file_path_prefix,
            created_after=_time(request, "created_after"),
            created_before=_time(request, "created_before"),
            revoked=_revoked(request.state),
        )
        size = paging.page_size(request.page_size)
        filters = query.model_dump(mode="json")
        after = _position(request.page_token, filters)
        stamps = await self._stamps.list(query, after, size + 1)
        more = len(stamps) > size
        return stamping_pb2.ListStampsResponse(
            stamps=[message.of_stamp(stamp) for stamp in stamps[:size]],
            next_page_token=paging.encode((str(stamps[size - 1].stamp_id),), filters) if more else "",
        )

    async def _work(self, size: int, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Works on `size` bytes: in a thread where they are so many that the event loop would stall."""
        if size <= self._limits.inline_bytes:
            return function(*args, **kwargs)
        return await asyncio.to_thread(function, *args, **kwargs)

    def _claim(self, request: stamping_pb2.CreateStampRequest) -> tuple[Claim, bytes]:
        """The claim of a request, and its content without its own stamps."""
        origin = _origin(request)
        content = request.content
        body = body_of(content, origin.file_path, self._limits)
        metadata = to_text(request.metadata, "metadata", self._limits.metadata_bytes)
        claim = claim_of_content(origin, content, body, metadata, embed=request.embed, stamp_id=self._new_id())
        return claim, body

    def _prepared(self, item: stamping_pb2.CreateStampRequest) -> tuple[Claim, bytes] | BridgeError:
        """What `_claim` returns, or the refusal of an item of a batch."""
        try:
            return self._claim(item)
        except BridgeError as error:
            return error
        except ValidationError as error:
            return from_validation(error)


_Namespaced: TypeAlias = (
    stamping_pb2.CreateStampRequest
    | stamping_pb2.CreateStampHeader
    | stamping_pb2.ValidateStampRequest
    | stamping_pb2.GetStampRequest
    | stamping_pb2.ListStampsRequest
    | stamping_pb2.RevokeStampRequest
    | stamping_pb2.WatchStampsRequest
)


def _hexdigest(content: bytes) -> str:
    return blake3(content).hexdigest()


def _namespace(request: _Namespaced) -> str:
    return request.namespace if request.HasField("namespace") else DEFAULT_NAMESPACE


def _origin(request: stamping_pb2.CreateStampRequest | stamping_pb2.CreateStampHeader) -> Origin:
    return Origin(request_id=request.request_id, namespace=_namespace(request), file_path=request.file_path)


def _time(request: stamping_pb2.ListStampsRequest, field: str) -> datetime | None:
    if not request.HasField(field):  # type: ignore[arg-type]  # the stub wants a literal; both callers pass one
        return None
    try:
        return timestamp.to_time(getattr(request, field))
    except ValueError as error:
        raise invalid_field(field, str(error)) from None


def _revoked(state: stamping_pb2.StampState.ValueType) -> bool | None:
    match state:
        case stamping_pb2.STAMP_STATE_UNSPECIFIED:
            return None
        case stamping_pb2.STAMP_STATE_ACTIVE:
            return False
        case stamping_pb2.STAMP_STATE_REVOKED:
            return True
        case _:
            raise invalid_field("state", "must be a value of StampState", value=str(state))


_KINDS = {number: kind for kind, number in message.KINDS.items()}


def _kinds(given: Iterable[stamping_pb2.StampEventKind.ValueType]) -> frozenset[EventKind]:
    for index, kind in enumerate(given):
        if kind not in _KINDS:
            raise invalid_field(f"kinds[{index}]", "must be a kind of StampEventKind", value=str(kind))
    return frozenset(_KINDS[kind] for kind in given)


def _position(token: str, filters: dict[str, object]) -> uuid.UUID | None:
    if not token:
        return None
    (last,) = paging.decode(token, filters)
    return uuid.UUID(str(last))


def _answer(
    response: stamping_pb2.CreateStampResponse,
    request: stamping_pb2.CreateStampRequest,
    body: bytes,
    recorded: Recorded,
) -> None:
    """Fills the answer in its place: a batch's five hundred would be copied four times on their way into it."""
    message.fill(response.stamp, recorded.stamp)
    response.created = recorded.created
    if request.embed:
        # The path of this request, not of the one that made the stamp: it tells this content's comment syntax.
        stamped = embedding.write(body, request.file_path, block_fields(recorded.stamp))
        if stamped is not None:
            response.stamped_content = stamped
