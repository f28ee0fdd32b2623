"""What a feed follows and what it shows: the shapes that a node gives it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

Position: TypeAlias = Mapping[int, int]
"""The offset of the next row in each partition."""
Mark: TypeAlias = Callable[[Any, Position], None]
"""Writes into a response what its type says of the place behind it, beside the cursor."""


class Row(Protocol):
    """A row of a log."""

    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def size_bytes(self) -> int:
        """About what it takes in memory."""


class Bounds(NamedTuple):
    """How far a partition of a log goes."""

    first: int
    """The oldest offset from which on nothing is missing."""
    next: int
    """The offset that the next row will have."""


R = TypeVar("R", bound=Row)
R_contra = TypeVar("R_contra", bound=Row, contravariant=True)


class Page(NamedTuple, Generic[R]):
    """What one read of a log found."""

    rows: Sequence[R]
    """Ordered by partition and offset; of an offset every row or none."""
    cut: Collection[int]
    """The partitions that have more than this page holds; of each it holds one offset at least."""


class Log(Protocol[R]):
    """What a feed follows; a node's repository."""

    async def bounds(self) -> Mapping[int, Bounds]:
        """Of every partition. Its `first` has moved before rows are taken away."""

    async def read(self, begin: Position, end: Position | None, rows: int, size_bytes: int) -> Page[R]:
        """What of `begin`'s partitions lies between `begin` and `end` (None: wherever the log ends).

        At most `rows` rows of a partition, and about `size_bytes` in all.
        """


class View(Protocol[R_contra]):
    """What one request asks to see of a log. Pure."""

    @property
    def filters(self) -> Mapping[str, object]:
        """The feed's name and everything that the request asks for, JSON-able: the cursors' query."""

    @property
    def partitions(self) -> Collection[int] | None:
        """Those that it sees; None means all."""

    @property
    def response(self) -> Callable[[], Any]:
        """The type of its responses, which have the fields of feed.proto's grammar."""

    def items(self, rows: Sequence[R_contra]) -> Iterable[Any]:
        """What it shows of one offset's rows."""
