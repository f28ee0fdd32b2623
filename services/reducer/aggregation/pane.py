"""What is shown of the items of one window with one key. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import NamedTuple, TypeAlias

CellId: TypeAlias = tuple[int, int, int, str, str]
"""Strategy (the contract's number), the window's start and end in microseconds, namespace, key."""


class Timing(IntEnum):
    """Why a pane is shown; the numbers of the contract."""

    EARLY = 1
    ON_TIME = 2
    REVISED = 3


class Count(NamedTuple):
    """How many different values there were."""

    number: int
    estimated: bool


class Pane(NamedTuple):
    """One revision of one cell."""

    cell: CellId
    item_count: int
    total_bytes: int
    min_bytes: int
    max_bytes: int
    file_types: Count
    workflows: Count
    workflow_states: Mapping[str, int]
    custom_json: str
    """Empty where no custom fold is at work."""
    revision: int
    timing: Timing
    final: bool
