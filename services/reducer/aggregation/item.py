"""Items to count, as columns, and what became of those that were not counted. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Columns(NamedTuple):
    """Items one after another; all columns are of equal length, and every value is within its bounds."""

    times: Sequence[int]
    """Event times in microseconds since 1970."""
    sizes: Sequence[int]
    """Bytes."""
    namespaces: Sequence[str]
    file_types: Sequence[str]
    workflow_ids: Sequence[str]
    workflow_states: Sequence[str]
    payloads: Sequence[str]
    """JSON objects as text, for custom folds; empty means `{}`."""


class Late(NamedTuple):
    """An item that came after some of its windows, or all, were final."""

    place: int
    """In its columns."""
    watermark: int
    """Where the watermark was, in microseconds."""
    counted: bool
    """Whether it is counted in its other windows."""
