"""What a stamp is, what may be stamped, and this node's refusals. Pure: the clock and the ids are arguments."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, NamedTuple, Self

from blake3 import blake3
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from omninode.bridge.errors.v1 import errors_pb2
from services.chassis.boundary import WITHOUT_NUL, Digest, FilePath, Name, RequestId, check_size
from services.chassis.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from services.chassis.identity import op_id
from services.stamping import embedding
from services.stamping.content_type import content_type

METADATA_VERSION = "0.1"
PROTOCOL_VERSION = "1.0"

_MIB = 1024 * 1024


class StreamOutOfOrder(InvalidArgument):
    """A stream begins with one header, and only chunks follow."""

    reason = errors_pb2.ERROR_REASON_STREAM_OUT_OF_ORDER


class RequestIdReused(AlreadyExists):
    """The request_id was used before with another body; the first request stands."""

    reason = errors_pb2.ERROR_REASON_REQUEST_ID_REUSED


class StampNotFound(NotFound):
    """No unrevoked stamp of this digest stands in the namespace."""

    reason = errors_pb2.ERROR_REASON_STAMP_NOT_FOUND


class StampRequestRevoked(FailedPrecondition):
    """The request was revoked: its claim was released, or its revocation came before it."""

    reason = errors_pb2.ERROR_REASON_STAMP_REQUEST_REVOKED


class Limits(BaseModel):
    """What one call may hold."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    content_bytes: int = Field(10 * _MIB, gt=0)
    """Content of a unary call, counted without its stamps. Larger content goes by stream, which needs no memory for it."""
    stamp_bytes: int = Field(64 * 1024, gt=0)
    """What a content's own stamps may add to that; a block takes about half a KiB."""
    batch_items: int = Field(500, gt=0)
    """Items of a batch: what one SQL statement takes best."""
    batch_bytes: int = Field(12 * _MIB, gt=0)
    """Contents of a batch in all, so that a batch with its paths and metadata stays below the 16 MiB of a message."""
    metadata_bytes: int = Field(64 * 1024, gt=0)
    """A stamp's metadata, as JSON; it stands in every page of a list."""
    block_bytes: int = Field(64 * 1024, gt=0)
    """An O.N.E. block, as text or as values; parsing YAML costs about a microsecond a byte."""
    inline_bytes: int = Field(_MIB, ge=0)
    """Content up to this is worked on in the event loop; more goes to a thread: reading it would stall other calls."""


class Origin(BaseModel):
    """Who asks for a stamp, and of what file."""

    model_config = ConfigDict(frozen=True)

    request_id: RequestId
    namespace: Name
    file_path: FilePath


class Place(BaseModel):
    """Where content stands that is to be validated."""

    model_config = ConfigDict(frozen=True)

    namespace: Name
    file_path: FilePath


class LedgerKey(BaseModel):
    """What names a stamp in the ledger."""

    model_config = ConfigDict(frozen=True)

    digest: Digest
    namespace: Name


class Revocation(BaseModel):
    """The claim of which request is to be released, by which request, and why."""

    model_config = ConfigDict(frozen=True)

    creation_request_id: RequestId
    request_id: RequestId
    namespace: Name
    reason: Annotated[str, StringConstraints(max_length=1024, pattern=WITHOUT_NUL)]


class StampQuery(BaseModel):
    """A query of the ledger. Times are aware; None and the empty string leave a filter out."""

    model_config = ConfigDict(frozen=True)

    namespace: Name
    content_type: Annotated[str, StringConstraints(max_length=255)]
    file_path_prefix: FilePath
    created_after: datetime | None
    created_before: datetime | None
    revoked: bool | None


class Claim(NamedTuple):
    """A request for a stamp, ready for the ledger."""

    origin: Origin
    fingerprint: bytes
    """BLAKE3 of the request's body: the same request_id with another fingerprint is another request."""
    digest: bytes
    stamp_id: uuid.UUID
    """The id that the stamp gets if this claim makes it."""
    op_id: uuid.UUID
    content_type: str
    size_bytes: int
    intelligence_data: str
    """A JSON object as text."""


class Stamp(NamedTuple):
    """One stamp of the ledger."""

    stamp_id: uuid.UUID
    digest: bytes
    namespace: str
    op_id: uuid.UUID
    version: int
    content_type: str
    size_bytes: int
    file_path: str
    intelligence_data: str
    created_at: datetime
    revoked_at: datetime | None


class Recorded(NamedTuple):
    """What became of a claim: the digest's one unrevoked stamp, and whether this request made it."""

    stamp: Stamp
    created: bool


class Release(NamedTuple):
    """What became of a revocation."""

    stamp: Stamp | None
    """The stamp that was claimed; None where the request had not come."""
    revoked: bool
    """Whether this revocation revoked the stamp."""
    remaining_claims: int

    @classmethod
    def of(cls, stamp: Stamp, *, revoked: bool, remaining_claims: int) -> Self:
        """What was answered, whatever has become of the stamp since: while a request claims it, it stands."""
        return cls(stamp._replace(revoked_at=None) if remaining_claims else stamp, revoked, remaining_claims)


def body_of(content: bytes, file_path: str, limits: Limits) -> bytes:
    """The content without its own stamps. Raises ContentTooLarge."""
    _check_stamped_size(content, limits)
    body = embedding.strip(content, file_path)
    check_size("content", len(body), limits.content_bytes)
    return body


def read(content: bytes, file_path: str, limits: Limits) -> embedding.Reading:
    """What the content bears. Raises ContentTooLarge."""
    _check_stamped_size(content, limits)
    reading = embedding.read(content, file_path)
    check_size("content", len(reading.body), limits.content_bytes)
    return reading


def _check_stamped_size(content: bytes, limits: Limits) -> None:
    check_size("content", len(content), limits.content_bytes + limits.stamp_bytes)


def claim_of_content(
    origin: Origin, content: bytes, body: bytes, intelligence_data: str, *, embed: bool, stamp_id: uuid.UUID
) -> Claim:
    """The claim of a unary request; `body` is `content` without its own stamps."""
    digest = blake3(body).digest()
    given = digest if len(body) == len(content) else blake3(content).digest()
    return claim_of_digest(
        origin,
        digest,
        size_bytes=len(body),
        media_type=content_type(body, origin.file_path),
        intelligence_data=intelligence_data,
        # Embedding is part of the body of a request: its answer differs.
        given=given + b"e" if embed else given,
        stamp_id=stamp_id,
    )


def claim_of_digest(
    origin: Origin,
    digest: bytes,
    *,
    size_bytes: int,
    media_type: str,
    intelligence_data: str,
    given: bytes,
    stamp_id: uuid.UUID,
) -> Claim:
    """The claim of a content known by its digest; `given` stands for the bytes as the request gave them."""
    # No part can hold NUL but `given`, which comes last: no two bodies run together to the same bytes.
    body = f"{origin.namespace}\0{origin.file_path}\0{intelligence_data}\0".encode() + given
    return Claim(
        origin=origin,
        fingerprint=blake3(body).digest(),
        digest=digest,
        stamp_id=stamp_id,
        op_id=op_id(origin.request_id),
        content_type=media_type,
        size_bytes=size_bytes,
        intelligence_data=intelligence_data,
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an embedded stamp is true of the content that it stands in; `reason` is empty where it is."""

    stamp: embedding.Stamp
    current_digest: str
    reason: str


def verdicts(reading: embedding.Reading) -> list[Verdict]:
    """What is to be said of each stamp of a reading, in its order."""
    current = {rule: embedding.digest(reading.body, rule) for rule in {stamp.rule for stamp in reading.stamps}}
    return [_verdict(stamp, current[stamp.rule]) for stamp in reading.stamps]


def _verdict(stamp: embedding.Stamp, current: str | None) -> Verdict:
    if current is None:
        return Verdict(stamp, "", "its rule hashes UTF-8 text, and the content is none")
    return Verdict(stamp, current, "" if current == stamp.digest else "the content is not what was stamped")


def block_fields(stamp: Stamp) -> Mapping[str, str]:
    """What an embedded block declares of a stamp: never its file_path or metadata, which could close a comment."""
    return {
        "content_type": stamp.content_type,
        "created_at": stamp.created_at.astimezone(UTC).isoformat(timespec="microseconds"),
        "digest": stamp.digest.hex(),
        "metadata_version": METADATA_VERSION,
        "namespace": stamp.namespace,
        "op_id": str(stamp.op_id),
        "protocol_version": PROTOCOL_VERSION,
        "size_bytes": str(stamp.size_bytes),
        "stamp_id": str(stamp.stamp_id),
        "version": str(stamp.version),
    }
