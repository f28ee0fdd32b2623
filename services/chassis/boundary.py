"""What several contracts have in common at their boundary: forms of names, keys, paths and digests, and content's bound. Pure."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints

from omninode.bridge.errors.v1 import errors_pb2
from services.chassis.errors import FieldViolation, InvalidArgument

DEFAULT_NAMESPACE = "omninode.services.metadata"
"""Of stamps, where none is said."""
REQUEST_ID_CHARACTERS = 255
PRINTABLE = r"^[^\p{C}\p{Zl}\p{Zp}]+$"
WITHOUT_NUL = r"^[^\x00]*$"
"""PostgreSQL's text takes every character but this one."""
_PATH_BYTES = 4096
"""Linux's own bound of a path."""
_KEY_ID_CHARACTERS = 440


class Boundary(BaseModel):
    """A value that came in from outside; it reads a mapping, or a message's attributes, which bear the same names."""

    model_config = ConfigDict(frozen=True, from_attributes=True)


def _relative(path: str) -> str:
    if "\0" in path:
        raise ValueError("must not hold U+0000")
    if path.startswith("/"):
        raise ValueError("must be relative")
    if ".." in path and ".." in path.split("/"):
        raise ValueError("must not hold a segment `..`")
    if len(path) > _PATH_BYTES // 4 and len(path.encode()) > _PATH_BYTES:
        raise ValueError(f"must be at most {_PATH_BYTES} bytes")
    return path


def _short_id(key: str) -> str:
    # Not in the pattern: 440 times that class is more than a compiled pattern may hold.
    if len(key) > _KEY_ID_CHARACTERS and len(key.partition("/")[2]) > _KEY_ID_CHARACTERS:
        raise ValueError(f"must have an id of at most {_KEY_ID_CHARACTERS} characters")
    return key


RequestId = Annotated[str, StringConstraints(max_length=REQUEST_ID_CHARACTERS, pattern=PRINTABLE)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,255}$")]
FilePath = Annotated[str, AfterValidator(_relative)]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{64}$", to_lower=True)]
Key = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,63}/[^\p{C}\p{Zl}\p{Zp}]+$"), AfterValidator(_short_id)
]
"""`<collection>/<id>`."""
LeaseName = Annotated[str, StringConstraints(max_length=255, pattern=r"^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*$")]


class ContentTooLarge(InvalidArgument):
    """The content is larger than the call takes; send it by stream, or in smaller batches."""

    reason = errors_pb2.ERROR_REASON_CONTENT_TOO_LARGE


def check_size(field: str, size: int, limit: int) -> None:
    """Raises ContentTooLarge, naming `field`, where `size` bytes are more than `limit`."""
    if size > limit:
        raise ContentTooLarge(
            f"{field}: {size} bytes are more than the {limit} that this call takes",
            metadata={"field": field, "size_bytes": str(size), "limit_bytes": str(limit)},
            violations=[FieldViolation(field, f"must be at most {limit} bytes")],
        )
