"""What the node's contract says of aggregation: the aggregation, state_management and caching subcontracts, read and checked. Pure.

The subcontracts' text and places are the chassis'.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.reducer.aggregation.config import MILLISECOND, Config, Gap, Hopping, Strategy, Tumbling, Window

Location: TypeAlias = tuple[str | int, ...]


class AggregationContractError(ValueError):
    """Subcontracts that say nothing usable: where in the contract, and why."""

    def __init__(self, location: Location, reason: str) -> None:
        super().__init__(f"{'.'.join(map(str, location))}: {reason}")
        self.location = location


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


_Milliseconds = Annotated[int, Field(gt=0)]
_MillisecondsOrNone = Annotated[int, Field(ge=0)]


class _TumblingPart(_Part):
    kind: Literal["tumbling"]
    size_ms: _Milliseconds

    def window(self) -> Window:
        return Tumbling(self.size_ms * MILLISECOND)


class _HoppingPart(_Part):
    kind: Literal["hopping"]
    size_ms: _Milliseconds
    hop_ms: _Milliseconds

    def window(self) -> Window:
        return Hopping(self.size_ms * MILLISECOND, self.hop_ms * MILLISECOND)


class _SessionPart(_Part):
    kind: Literal["session"]
    gap_ms: _Milliseconds

    def window(self) -> Window:
        return Gap(self.gap_ms * MILLISECOND)


_Kind: TypeAlias = Literal[
    "namespace_grouping", "time_window", "file_type_grouping", "size_buckets", "workflow_grouping", "custom"
]


class _ConfigPart(_Part):
    strategies: Annotated[list[_Kind], Field(min_length=1)]
    by_namespace: bool
    window: Annotated[_TumblingPart | _HoppingPart | _SessionPart, Field(discriminator="kind")]
    watermark_delay_ms: _MillisecondsOrNone
    allowed_lateness_ms: _MillisecondsOrNone
    early_period_ms: _MillisecondsOrNone
    max_wait_ms: _MillisecondsOrNone
    size_bounds: list[Annotated[int, Field(gt=0)]]
    custom_fold: str = ""
    exact_distinct: Annotated[int, Field(ge=0, le=10_000)]

    def config(self, retention_ms: int) -> Config:
        return Config(
            strategies=tuple(Strategy[kind.upper()] for kind in self.strategies),
            by_namespace=self.by_namespace,
            window=self.window.window(),
            watermark_delay=self.watermark_delay_ms * MILLISECOND,
            allowed_lateness=self.allowed_lateness_ms * MILLISECOND,
            early_period=self.early_period_ms * MILLISECOND,
            retention=retention_ms * MILLISECOND,
            max_wait=self.max_wait_ms * MILLISECOND,
            size_bounds=tuple(self.size_bounds),
            custom_fold=self.custom_fold,
            exact_distinct=self.exact_distinct,
        )


class SessionStage(StrEnum):
    """What a session does."""

    IDLE = "IDLE"
    AGGREGATING = "AGGREGATING"
    PERSISTING = "PERSISTING"


_NEEDED = (
    (SessionStage.IDLE, "opened"),
    (SessionStage.AGGREGATING, "due"),
    (SessionStage.PERSISTING, "committed"),
    (SessionStage.AGGREGATING, "left"),
)


class _MovePart(_Part):
    event: Literal["opened", "due", "committed", "left"]
    source: Annotated[SessionStage, Field(alias="from", strict=False)]
    to: Annotated[SessionStage, Field(strict=False)]


class _AggregationPart(_Part):
    sessions: _ConfigPart
    """How a session aggregates where its configuration leaves it open."""
    workflows: _ConfigPart
    """How the mesh's own session aggregates."""
    batch_items: Annotated[int, Field(gt=0, le=10_000)]
    """Items of one message."""
    group_items: Annotated[int, Field(gt=0)]
    """Items that are committed together at the latest, whatever their `max_wait`."""
    states: list[_MovePart]
    """The state machine of a session."""


class _SessionsPart(_Part):
    checkpoint_commits: Annotated[int, Field(gt=0, le=90)]
    """Commits between two checkpoints, each with a delta to be read when a session is resumed."""
    checkpoint_ms: _Milliseconds
    """The longest between two checkpoints of a session that goes on."""
    retention_ms: _Milliseconds
    """How long final panes are kept for readers, by the watermark."""


class _CachingPart(_Part):
    session_bytes: Annotated[int, Field(gt=0)]
    """Of one session's open cells in memory; beyond, the coldest are evicted to the store."""
    all_bytes: Annotated[int, Field(gt=0)]
    """Of all sessions together."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What the contract says of aggregation, in full."""

    sessions: Config
    workflows: Config
    batch_items: int
    group_items: int
    moves: Mapping[tuple[SessionStage, str], SessionStage]
    checkpoint_commits: int
    checkpoint_seconds: float
    session_bytes: int
    all_bytes: int


def read(aggregation: Mapping[str, Any], sessions: Mapping[str, Any], caching: Mapping[str, Any]) -> Terms:
    """The three together; `sessions` is that section of state_management. Raises AggregationContractError."""
    shape = _parsed(_AggregationPart, aggregation, ("aggregation",))
    kept = _parsed(_SessionsPart, sessions, ("state_management", "sessions"))
    cached = _parsed(_CachingPart, caching, ("caching",))
    for name, part in (("sessions", shape.sessions), ("workflows", shape.workflows)):
        if isinstance(part.window, _HoppingPart) and not 1 <= part.window.size_ms / part.window.hop_ms <= 100:
            raise AggregationContractError(("aggregation", name, "window", "hop_ms"), "must be 1 to 1/100 of size_ms")
        for field, fault in _faults(part):
            raise AggregationContractError(("aggregation", name, field), fault)
    moves = {(move.source, move.event): move.to for move in shape.states}
    for source, event in _NEEDED:
        if (source, event) not in moves:
            raise AggregationContractError(("aggregation", "states"), f"lacks what {event} does in {source}")
    return Terms(
        sessions=shape.sessions.config(kept.retention_ms),
        workflows=shape.workflows.config(kept.retention_ms),
        batch_items=shape.batch_items,
        group_items=shape.group_items,
        moves=moves,
        checkpoint_commits=kept.checkpoint_commits,
        checkpoint_seconds=kept.checkpoint_ms / 1000,
        session_bytes=cached.session_bytes,
        all_bytes=cached.all_bytes,
    )


def _faults(part: _ConfigPart) -> Iterator[tuple[str, str]]:
    if len(set(part.strategies)) < len(part.strategies):
        yield "strategies", "must differ"
    if ("custom" in part.strategies) is not bool(part.custom_fold):
        yield "custom_fold", "must be set with the strategy custom, and only then"
    if sorted(set(part.size_bounds)) != part.size_bounds:
        yield "size_bounds", "must rise"


def _parsed(part: type[Any], document: Mapping[str, Any], location: Location) -> Any:
    try:
        return part.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise AggregationContractError((*location, *first["loc"]), first["msg"]) from None
