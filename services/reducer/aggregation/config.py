"""How a session aggregates, and how the node's contract says what it does not. Pure. Times are microseconds throughout."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

MILLISECOND = 1000
SECOND = 1000 * MILLISECOND


class Strategy(IntEnum):
    """By what items are put together; the numbers of the contract."""

    NAMESPACE_GROUPING = 1
    TIME_WINDOW = 2
    FILE_TYPE_GROUPING = 3
    SIZE_BUCKETS = 4
    WORKFLOW_GROUPING = 5
    CUSTOM = 6


@dataclass(frozen=True, slots=True)
class Tumbling:
    """Windows one after another."""

    size: int


@dataclass(frozen=True, slots=True)
class Hopping:
    """Windows of `size`, one each `hop`, which is at most `size`."""

    size: int
    hop: int


@dataclass(frozen=True, slots=True)
class Gap:
    """Session windows: they end where a cell has no item for so long."""

    gap: int


Window: TypeAlias = Tumbling | Hopping | Gap


@dataclass(frozen=True, slots=True)
class Config:
    """How a session aggregates, in full."""

    strategies: tuple[Strategy, ...]
    by_namespace: bool
    window: Window
    watermark_delay: int
    allowed_lateness: int
    early_period: int
    """0 for no early panes."""
    retention: int
    max_wait: int
    size_bounds: tuple[int, ...]
    custom_fold: str
    """Empty where CUSTOM is not among the strategies."""
    exact_distinct: int
