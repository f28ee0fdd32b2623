"""Windows of event time: which windows a time is in, and the names of the shelves that their cells are kept on. Pure.

Cells that are not final are kept by window where windows are aligned, and by a bucket of their key where they are not; final ones
by when they ended. How session windows merge is `shelf`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

from services.reducer.aggregation.config import SECOND, Gap, Hopping, Tumbling

_BUCKETS = 64


@dataclass(frozen=True, slots=True)
class Grid:
    """Windows `[start, start + size)` for every `start` that is a multiple of `hop`, which is at most `size`."""

    size: int
    hop: int

    @classmethod
    def of(cls, window: Tumbling | Hopping) -> Grid:
        """The grid of a configuration: tumbling windows hop by their size."""
        return cls(window.size, window.hop if isinstance(window, Hopping) else window.size)

    @property
    def overlap(self) -> int:
        """In how many windows a time is at most."""
        return -(-self.size // self.hop)

    @property
    def even(self) -> bool:
        """Whether every time is in `overlap` windows."""
        return self.size % self.hop == 0

    def starts(self, time: int) -> list[int]:
        """The starts of the windows that the time is in, the latest first."""
        latest = time - time % self.hop
        return list(range(latest, time - self.size, -self.hop))

    def first_end(self, time: int) -> int:
        """The end of the earliest window that the time is in."""
        return ((time - self.size) // self.hop + 1) * self.hop + self.size


def slice_end(window: Tumbling | Hopping | Gap, end: int) -> int:
    """The end of the slice of time whose windows are kept together once they are final, for a window that ends at `end`."""
    if not isinstance(window, Gap):
        return end
    # Session windows end anywhere: a shelf for each end would hold one cell.
    width = max(10 * window.gap, 60 * SECOND)
    return -(-end // width) * width


def window_shelf(start: int) -> str:
    """The shelf of the aligned window that begins there."""
    return f"w{start}"


def bucket_shelf(namespace: str, key: str) -> str:
    """The shelf of a key's session windows."""
    both = f"{namespace}\0{key}"
    return f"k{crc32(both.encode()) % _BUCKETS}"


def closed_shelf(end: int, place: int = 0) -> str:
    """A shelf of final cells whose slice ends there; a slice may have several, from place 0."""
    return f"c{end}.{place}" if place else f"c{end}"


def closed_end(shelf: str) -> int:
    """Where the slice of a shelf of final cells ends."""
    return int(shelf[1:].partition(".")[0])
