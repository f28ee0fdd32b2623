"""What a projection, its watermark and a query for projections are. Pure: no clock, no SQL."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, Field, StringConstraints, ValidationInfo, field_validator

from omninode.bridge.errors.v1 import errors_pb2
from services.chassis.boundary import WITHOUT_NUL, Boundary, Key
from services.chassis.errors import FailedPrecondition
from services.chassis.timestamp import to_time

REBUILD_LEASE = "store/rebuild"
"""The lease by which one rebuild at a time builds projections."""
MAX_WAIT = timedelta(seconds=30)
"""A reader that still waits then is better served by the canonical state."""
MAX_GROUPS = 1000
"""Groups of one count: more are no table that anybody reads."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class RebuildRunning(FailedPrecondition):
    """Another rebuild of the projections is under way."""

    reason = errors_pb2.ERROR_REASON_REBUILD_RUNNING


def _time(value: Any) -> datetime | None:
    """A protobuf Timestamp as a time; None where there is none."""
    return None if value is None else to_time(value)


_Short = Annotated[str, StringConstraints(max_length=255, pattern=WITHOUT_NUL)]
_Time = Annotated[datetime | None, BeforeValidator(_time)]
_MaybeCollection = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{0,63}$")]


class Order(IntEnum):
    """What pages are ordered by; the numbers of the contract."""

    UNSPECIFIED = 0
    KEY = 1
    NEWEST_FIRST = 2


class Group(IntEnum):
    """What is counted by; the numbers of the contract."""

    UNSPECIFIED = 0
    TAG = 1
    NAMESPACE = 2
    COLLECTION = 3
    INDEX = 4


class ProjectionFilter(Boundary):
    """Which projections: an empty collection, None and an empty sequence let all through. Time ranges are half open."""

    collection: _MaybeCollection
    namespace: _Short | None
    tags: Annotated[tuple[_Short, ...], Field(max_length=100)]
    indices: Annotated[dict[_Short, _Short], Field(max_length=16)]
    created_after: _Time
    created_before: _Time
    updated_after: _Time
    updated_before: _Time


class ProjectionQuery(Boundary):
    """Which projections to list, in which order."""

    filter: ProjectionFilter
    order: Order

    @property
    def newest_first(self) -> bool:
        """Whether pages go by creation, backwards, and not by key."""
        return self.order is Order.NEWEST_FIRST


class CountQuery(Boundary):
    """Which projections to count, by what."""

    filter: ProjectionFilter
    group_by: Group
    group_index: _Short

    @field_validator("group_index")
    @classmethod
    def _named_where_it_counts(cls, name: str, info: ValidationInfo) -> str:
        group = info.data.get("group_by")
        if group is Group.INDEX and not name:
            raise ValueError("must name an indexed field")
        if group not in (None, Group.INDEX) and name:
            raise ValueError("must be empty unless group_by is PROJECTION_GROUP_INDEX")
        return name


class ProjectionKey(Boundary):
    """What names a projection, and the version that a reader wants to see at least."""

    key: Key
    min_version: Annotated[int, Field(ge=0)]


class ShownProjection(NamedTuple):
    """What the projection shows of a key."""

    key: str
    version: int
    tag: str
    last_action: str
    namespace: str
    created_at: datetime
    updated_at: datetime
    indices: Mapping[str, str]
    extras_json: str
    final: bool


class Lag(NamedTuple):
    """How far projections are behind the log: commits, and the age of the oldest of them."""

    commits: int
    time: timedelta


class Watermark(NamedTuple):
    """How far a partition is; everything before `watermark` is projected."""

    partition: int
    next_offset: int
    first_offset: int
    first_event_offset: int
    watermark: int
    lag: Lag


class Reading(NamedTuple):
    """A key's projection as of one moment, None where there is none, and how far its partition was behind then."""

    projection: ShownProjection | None
    lag: Lag


class Page(NamedTuple):
    """Some projections, whether more follow, and how far all are behind."""

    projections: Sequence[ShownProjection]
    is_last: bool
    lag: Lag


class Place(NamedTuple):
    """Where a page ends: what its last projection is ordered by."""

    key: str
    created_at: datetime

    @classmethod
    def at(cls, key: str, microseconds: int) -> Place:
        """From what a page's token holds."""
        return cls(key, _EPOCH + timedelta(microseconds=microseconds))

    @property
    def microseconds(self) -> int:
        """Of `created_at` since 1970: what a page's token holds."""
        return (self.created_at - _EPOCH) // timedelta(microseconds=1)


class Count(NamedTuple):
    """How many projections there are, the groups with their sizes, and whether there are more groups."""

    total: int
    groups: Sequence[tuple[str, int]]
    truncated: bool
    lag: Lag


class Round(NamedTuple):
    """What one round of materializing did to one partition."""

    partition: int
    before: int
    watermark: int
    entries: int
    """Rows of the log that it went through: one for each action."""
    projected: int
    """Keys that it showed anew."""
    lag: timedelta
    """The age of the oldest commit that it found unapplied."""


class Phase(IntEnum):
    """What a rebuild does; the numbers of the contract."""

    BUILDING = 1
    CATCHING_UP = 2
    CLEANING = 3
    DONE = 4


class Progress(NamedTuple):
    """How far a rebuild is: keys of its phase that are done, and in all as far as is known."""

    phase: Phase
    done: int
    total: int


def total_lag(lags: Iterable[Lag]) -> Lag:
    """Of all partitions together: the sum of their commits, and the time of the one that is farthest behind."""
    each = list(lags)
    return Lag(sum(lag.commits for lag in each), max((lag.time for lag in each), default=timedelta()))


def is_served(reading: Reading, min_version: int) -> bool:
    """Whether the projection answers a reader that wants `min_version`; 0 means whatever is there."""
    return reading.projection is not None and reading.projection.version >= min_version


def may_come(reading: Reading, min_version: int) -> bool:
    """Whether waiting may bring what the reader wants.

    A version may be committed yet. Who names none wants what is there: that comes only while commits are not projected.
    """
    return min_version > 0 or reading.lag.commits > 0
