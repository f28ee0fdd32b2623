"""How long the store keeps what, and what of a partition may go. Pure: the SQL is repository/retention's."""

from __future__ import annotations

from datetime import timedelta
from enum import IntEnum
from typing import Annotated, NamedTuple, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from services.chassis.settings import SharedVariable

MAX_BATCH = 10_000
"""The largest batch; so much is looked at again where a sweep broke off, because it did so within a batch."""
_CENTURY = 876_000
"""In hours: more is a mistake in the unit."""
Hours: TypeAlias = Annotated[float, Field(gt=0, le=_CENTURY)]


class RetentionSettings(BaseModel):
    """How long the store keeps what nobody needs any more. All of it is counted by the database's clock."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    dedup_hours: Annotated[Hours, SharedVariable("ACTION_DEDUP_TTL_HOURS")] = 6
    """How long the actions of a key are known after its end, and the requests of appended events: longer than any caller repeats
    itself. The actions of an open key are known for as long as it is open."""
    commit_log_hours: Annotated[Hours, Field(ge=1)] = 7 * 24
    """How far back commits are shown one by one, states at a version, and what happened to leases: a week to look into an
    incident, or for a follower to come back. An hour at least: a rebuild of the projections reads what came since it began."""
    outbox_hours: Hours = 7 * 24
    """How long events wait where no consumer is registered for them; as long as the topics that they go to keep them."""
    finished_hours: Hours = 30 * 24
    """How long the state and the projection of an ended key are shown; longer, if the log still
    holds its last commit."""
    blob_hours: Hours = 24
    """How long a blob that no key refers to waits for a commit that does, and an upload for its end."""
    sweep_interval_hours: Annotated[Hours, SharedVariable("ACTION_DEDUP_CLEANUP_INTERVAL_HOURS")] = 1
    """Between two sweeps of a partition: what is over is kept this much longer."""
    first_sweep_seconds: float = Field(60, gt=0, le=_CENTURY * 3600)
    """A partition that a replica has taken is swept at some time within: replicas that start together do not sweep together."""
    batch_size: int = Field(1000, gt=0, le=MAX_BATCH)
    """Commits that one statement looks at: some milliseconds, which is what a commit may wait for it."""
    pause_seconds: float = Field(0.02, ge=0, le=60)
    """Between two batches, so that commits pass: a sweep then takes about half of the time of one connection."""

    @model_validator(mode="after")
    def _nothing_is_forgotten_too_early(self) -> Self:
        # Not a ValueError: the text of those is kept from messages, for what they may quote.
        if self.dedup_hours > self.commit_log_hours:
            raise PydanticCustomError(
                "contradiction",
                "dedup_hours must not be more than commit_log_hours: what was appended is remembered by its place in the log",
            )
        if self.dedup_hours > self.finished_hours:
            raise PydanticCustomError(
                "contradiction",
                "dedup_hours must not be more than finished_hours: a key is not forgotten before its actions",
            )
        return self

    @property
    def dedup(self) -> timedelta:
        """dedup_hours."""
        return timedelta(hours=self.dedup_hours)

    @property
    def commit_log(self) -> timedelta:
        """commit_log_hours."""
        return timedelta(hours=self.commit_log_hours)

    @property
    def outbox(self) -> timedelta:
        """outbox_hours."""
        return timedelta(hours=self.outbox_hours)

    @property
    def finished(self) -> timedelta:
        """finished_hours."""
        return timedelta(hours=self.finished_hours)

    @property
    def blob(self) -> timedelta:
        """blob_hours."""
        return timedelta(hours=self.blob_hours)


class RetentionKind(IntEnum):
    """What retention deletes; the numbers of the contract."""

    DEDUP = 1
    COMMITS = 2
    KEYS = 3
    EVENTS = 4
    BLOBS = 5


class RetentionCount(NamedTuple):
    """How much of a kind would go."""

    kind: RetentionKind
    retention: timedelta
    over_count: int
    """What may go."""
    held_count: int
    """Older than the retention and kept for a consumer or the projection."""


class Floor(NamedTuple):
    """Where a partition's log, or its outbox, begins, and where it could."""

    first: int
    """The oldest offset that is kept."""
    aged: int
    """The oldest offset that the retention still covers."""
    read: int
    """The oldest offset that the projection or a consumer has not read."""

    @property
    def target(self) -> int:
        """The oldest offset to keep. It never goes back."""
        return max(self.first, min(self.aged, self.read))

    @property
    def held(self) -> int:
        """Offsets that are older than the retention, and kept for who has not read them."""
        return max(0, self.aged - self.target)


class Floors(NamedTuple):
    """The two floors of a partition. A row goes when it is below both and its action need not be known any more."""

    log: Floor
    outbox: Floor


class Cleared(NamedTuple):
    """What was taken from some rows of the log."""

    action_count: int
    """Rows deleted, and with each an action that is not known any more."""
    offset_count: int
    """Offsets whose events are dropped."""
    event_count: int
    """Events that are dropped."""
