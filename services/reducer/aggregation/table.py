"""The panes of one session in memory, as of its newest commit that is known here, and as the log that its feed follows. Pure.

A session of several parts has a table of each, merged pane by pane on reading. How heads and deltas come here is `feed`'s.

As a log it is compacted: a partition is a part, and a pane stands where it last changed. An offset is the version of the part's key
and, for a commit may change more panes than a message holds, a slice of its panes: the same on every replica, for it comes from the
pane's own id.
"""

from __future__ import annotations

import zlib
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from services.chassis.feed.log import Bounds, Page, Position
from services.reducer.aggregation.cell import Cell, Counting, Stage, id_of
from services.reducer.aggregation.config import Config
from services.reducer.aggregation.durable import Delta, Head, Record
from services.reducer.aggregation.fold import Folds
from services.reducer.aggregation.pane import CellId, Pane, Timing
from services.reducer.aggregation.session import Part, Session

SLICES = 1 << 16
"""Of a version; the last one holds no pane, but says that the version is over."""
_ENTRY_BYTES = 250
"""What a pane takes beside its cell: its place in the log, in its part and in its window."""
_PANE_BYTES = 500
_TURN_RECORDS = 100
"""Records between two turns of the event loop: some milliseconds."""
_MARK_BYTES = 100

Deltas: TypeAlias = Sequence[tuple[int, Delta]]
"""Deltas with the versions that brought them, in order."""
_Range: TypeAlias = tuple[int, int]


class PaneRow(NamedTuple):
    """A pane where it last changed, or without one how far a read has come."""

    partition: int
    offset: int
    pane: Pane | None

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory."""
        return _PANE_BYTES if self.pane else _MARK_BYTES


class Table:
    """The panes of one session. What it is brought up to date by must be the session's own, as it was committed."""

    def __init__(self, part_count: int, folds: Folds) -> None:
        self._folds = folds
        self._parts = [_Cells() for _ in range(part_count)]
        self._windows: list[tuple[int, int]] = []
        """Ends and starts of all windows, rising."""
        self._by_window: dict[tuple[int, int], list[CellId]] = {}
        self._unsorted: set[tuple[int, int]] = set()

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory."""
        return sum(cells.size_bytes for cells in self._parts)

    @property
    def session(self) -> Session | None:
        """The session; None before its first commit."""
        parts = [cells.part for cells in self._parts]
        return Session.of(parts) if any(parts) else None

    def version(self, number: int) -> int:
        """The version up to which a part is known; 0 where its key is not."""
        part = self._parts[number].part
        return part.version if part else 0

    def load(self, number: int, part: Part, cells: dict[CellId, Cell], deltas: Deltas) -> None:
        """Takes a part anew: the cells of its checkpoint, and the deltas that its head names, those before the checkpoint, too."""
        old, new = self._parts[number], _Cells(cells)
        self._parts[number] = new
        checkpoint = part.head.checkpoint_version
        for version, delta in deltas:
            if version > checkpoint:
                for removed in delta.removed:
                    new.drop(removed)
                new.count(delta.records, counting_of(part.head.config, len(self._parts)))
            new.place(map(id_of, delta.records), version)
            new.note(delta)
        # Nothing says when the others changed, but that it was before the first delta that is kept.
        kept_from = min(checkpoint, deltas[0][0] - 1) if deltas else checkpoint
        new.rest(kept_from, old)
        new.part = part
        for cell in old.cells.keys() - cells.keys():
            self._forget(cell)
        for cell in cells.keys() - old.cells.keys():
            self._know(cell)
        if len(self._parts) > 1:
            new.place_as(old, [cell for cell in old.places if cell not in cells and self._is_held(cell)])
            # The others, too: what they have passed was not known before.
            for any_part in self._parts:
                self._pass(any_part, None)
        self._expire()

    def apply(self, number: int, part: Part, deltas: Deltas) -> Iterator[None]:
        """Brings a part to this version, by every delta since the one that was known; in turns, for there may be many records.

        In between readers see cells that are newer than the version says. Given up on the way, it can be done again.
        """
        cells = self._parts[number]
        before = cells.part.head if cells.part else None
        for version, delta in deltas:
            for cell in delta.removed:
                cells.drop(cell)
                self._forget(cell)
            yield from self._count(cells, delta.records, counting_of(part.head.config, len(self._parts)))
            cells.place(map(id_of, delta.records), version)
            cells.note(delta)
        cells.part = part
        if len(self._parts) > 1:
            self._pass(cells, before)
        self._expire()

    def newest(self, after: CellId | None = None) -> Iterator[CellId]:
        """The panes' ids after this one: the newest windows first, then by strategy, namespace and key."""
        windows = self._windows
        place = len(windows) if after is None else bisect_right(windows, _window_of(after))
        for window in reversed(windows[:place]):
            ids = self._by_window[window]
            if window in self._unsorted:
                ids.sort()
                self._unsorted.discard(window)
            begin = bisect_right(ids, after) if after is not None and window == _window_of(after) else 0
            yield from ids[begin:]

    def pane(self, cell: CellId) -> Pane:
        """The pane of a cell that is there: of all parts that have it."""
        holders = [cells for cells in self._parts if cell in cells.cells]
        first = holders[0]
        final = self._is_final(cell)
        if len(holders) == 1:
            return first.cells[cell].pane(first.timing(cell), final)
        name = self._config.custom_fold
        counting = Counting(self._config.exact_distinct, self._folds.get(name) if name else None)
        merged = Cell.of(first.cells[cell].record(), counting)
        for other in holders[1:]:
            merged.merge(other.cells[cell])
        return merged.pane(_together([cells.timing(cell) for cells in holders]), final)

    def bounds(self) -> dict[int, Bounds]:
        """How far the log goes; nothing is ever missing from it."""
        return {number: Bounds(0, self._next(number)) for number in range(len(self._parts))}

    def read(self, begin: Position, end: Position | None, rows: int, size_bytes: int) -> Page[PaneRow]:
        """A page of the log, as `feed.Log` has it; each pane whose last changes lie between `begin` and `end` comes once.

        A pane of several parts may come again in a later page, where this one is cut in one part and not in another.
        """
        ranges = {number: (begin[number], end[number] if end else self._next(number)) for number in sorted(begin)}
        found: list[PaneRow] = []
        cut: set[int] = set()
        size = 0
        for number, (first, stop) in ranges.items():
            count, last = 0, -1
            for offset, cell in self._parts[number].between(first, stop):
                if count and offset != last and (count >= rows or size >= size_bytes):
                    cut.add(number)
                    break
                shown = self._is_shown(cell, number, ranges)
                found.append(PaneRow(number, offset, self.pane(cell) if shown else None))
                # Also where it is shown elsewhere: the bound is on the time that a read takes, too.
                size += _PANE_BYTES
                count, last = count + 1, offset
            else:
                if end is None and first < stop and last < stop - 1:
                    found.append(PaneRow(number, stop - 1, None))
        return Page(found, cut)

    def _next(self, number: int) -> int:
        return _offset(self.version(number) + 1)

    def _is_shown(self, cell: CellId, number: int, ranges: Mapping[int, _Range]) -> bool:
        """Whether a pane that stands in one part's range is shown there, and in no other's, now or later."""
        if len(self._parts) == 1:
            return True
        final = self._is_final(cell)

        def may_show(other: int) -> bool:
            return final or cell in self._parts[other].cells

        def shows(other: int, first: int, stop: int) -> bool:
            place = self._parts[other].places.get(cell, -1)
            return may_show(other) and (place >= stop or (place >= first and other > number))

        return may_show(number) and not any(
            other != number and shows(other, first, stop) for other, (first, stop) in ranges.items()
        )

    def _is_final(self, cell: CellId) -> bool:
        deadline = cell[2] + self._config.allowed_lateness
        return all(
            held.stage == Stage.FINAL if (held := cells.cells.get(cell)) else cells.is_past(deadline)
            for cells in self._parts
        )

    def _count(self, cells: _Cells, records: Sequence[Record], counting: Counting) -> Iterator[None]:
        for start in range(0, len(records), _TURN_RECORDS):
            for cell in cells.count(records[start : start + _TURN_RECORDS], counting):
                self._know(cell)
            yield

    @property
    def _config(self) -> Config:
        return next(cells.part.head.config for cells in self._parts if cells.part)

    def _know(self, cell: CellId) -> None:
        if len(self._parts) > 1 and sum(cell in cells.cells for cells in self._parts) > 1:
            return
        window = _window_of(cell)
        if window not in self._by_window:
            insort(self._windows, window)
            self._by_window[window] = []
        self._by_window[window].append(cell)
        self._unsorted.add(window)

    def _forget(self, cell: CellId) -> None:
        """Drops a cell that no part has from its window."""
        window = _window_of(cell)
        if window not in self._by_window or self._is_held(cell):
            return
        ids = self._by_window[window]
        if cell in ids:
            ids.remove(cell)
        for cells in self._parts:
            cells.drop(cell)
        if not ids:
            self._drop_window(window)

    def _is_held(self, cell: CellId) -> bool:
        return any(cell in cells.cells for cells in self._parts)

    def _drop_window(self, window: tuple[int, int]) -> None:
        del self._by_window[window]
        self._unsorted.discard(window)
        del self._windows[bisect_left(self._windows, window)]

    def _pass(self, cells: _Cells, before: Head | None) -> None:
        """Places what a part's watermark has passed in its log, too: it may be what other parts' panes waited for to be final."""
        mark = cells.part.head.progress.watermark if cells.part else None
        if cells.part is None or mark is None:
            return
        since = before.progress.watermark if before else None
        lateness = self._config.allowed_lateness
        first = 0 if since is None else bisect_right(self._windows, (since - lateness, _AFTER_ALL))
        last = bisect_right(self._windows, (mark - lateness, _AFTER_ALL))
        passed = (cell for window in self._windows[first:last] for cell in self._by_window[window])
        cells.place((cell for cell in passed if cell not in cells.places), cells.part.version)

    def _expire(self) -> None:
        """Drops what has been final for longer than it is kept, by the least watermark."""
        marks = [cells.part.head.progress.watermark if cells.part else None for cells in self._parts]
        known = [mark for mark in marks if mark is not None]
        if len(known) < len(marks):
            return
        config = self._config
        limit = min(known) - config.retention - config.allowed_lateness
        expired = bisect_right(self._windows, (limit, _AFTER_ALL))
        for window in self._windows[:expired]:
            for cell in self._by_window.pop(window):
                for cells in self._parts:
                    cells.drop(cell)
            self._unsorted.discard(window)
        del self._windows[:expired]


class _Cells:
    """The cells of one part, and the order in which they last changed."""

    __slots__ = ("_ids", "_offsets", "_revised", "cells", "part", "places", "size_bytes")

    def __init__(self, cells: dict[CellId, Cell] | None = None) -> None:
        self.part: Part | None = None
        self.cells: dict[CellId, Cell] = {} if cells is None else cells
        self.places: dict[CellId, int] = {}
        """Where each stands in the log. Of several parts' cells also such as this one does not have, but has passed."""
        self._offsets: list[int] = []
        """Rising; an entry is stale where its id's place is another."""
        self._ids: list[CellId] = []
        self._revised: set[CellId] = set()
        """Those whose last pane was a revision."""
        self.size_bytes = sum(cell.size_bytes + _ENTRY_BYTES for cell in self.cells.values())

    def count(self, records: Iterable[Record], counting: Counting) -> list[CellId]:
        """Brings cells up to date by records; those that were not there before."""
        new = []
        for record in records:
            cell_id = id_of(record)
            cell = self.cells.get(cell_id)
            if cell is None:
                cell = self.cells[cell_id] = Cell.of(record, counting)
                self.size_bytes += cell.size_bytes + _ENTRY_BYTES
                new.append(cell_id)
            else:
                self.size_bytes -= cell.size_bytes
                cell.apply(record)
                self.size_bytes += cell.size_bytes
        return new

    def note(self, delta: Delta) -> None:
        """Keeps why the cells were shown last."""
        for pane in delta.panes:
            if pane.timing == Timing.REVISED:
                self._revised.add(pane.cell)
            else:
                self._revised.discard(pane.cell)

    def timing(self, cell: CellId) -> Timing:
        """Why the cell's pane is as it is."""
        if self.cells[cell].stage == Stage.OPEN:
            return Timing.EARLY
        return Timing.REVISED if cell in self._revised else Timing.ON_TIME

    def place(self, cells: Iterable[CellId], version: int) -> None:
        """Lets cells stand at a version, which is the newest."""
        base = _offset(version)
        placed = {cell: base + _slice_of(cell) for cell in cells}
        self.places |= placed
        # Other cells may stand at it already.
        begin = bisect_left(self._offsets, base)
        tail = sorted((self.places[cell], cell) for cell in {*self._ids[begin:], *placed} if cell in self.places)
        self._offsets[begin:] = [offset for offset, _ in tail]
        self._ids[begin:] = [cell for _, cell in tail]
        if len(self._ids) > 2 * len(self.places) + 1000:
            self._merge(())

    def place_as(self, old: _Cells, cells: Iterable[CellId]) -> None:
        """Lets cells stand where they stood before this part was read anew."""
        self._merge([(old.places[cell], cell) for cell in cells])

    def rest(self, version: int, old: _Cells) -> None:
        """Lets cells stand at a version that have no place yet; what did not change since, where it stood."""
        base = _offset(version)
        self.places = {cell: place for cell, place in self.places.items() if cell in self.cells}
        unplaced = [cell for cell in self.cells if cell not in self.places]
        self._merge([(base + _slice_of(cell), cell) for cell in unplaced])
        self._merge(
            [
                (place, cell)
                for cell, place in old.places.items()
                if cell in self.cells and cell in old.cells and self.cells[cell].revision == old.cells[cell].revision
            ]
        )

    def drop(self, cell: CellId) -> None:
        """Forgets a cell, if it is known."""
        held = self.cells.pop(cell, None)
        if held is not None:
            self.size_bytes -= held.size_bytes + _ENTRY_BYTES
        self.places.pop(cell, None)
        self._revised.discard(cell)

    def between(self, first: int, stop: int) -> Iterator[tuple[int, CellId]]:
        """The cells that stand between two offsets, in order."""
        for index in range(bisect_left(self._offsets, first), bisect_left(self._offsets, stop)):
            cell = self._ids[index]
            if self.places.get(cell) == self._offsets[index]:
                yield self._offsets[index], cell

    def is_past(self, deadline: int) -> bool:
        """Whether nothing comes any more before this time."""
        if self.part is None:
            return False
        head = self.part.head
        return head.finished or (head.progress.watermark is not None and head.progress.watermark >= deadline)

    def _merge(self, placed: Iterable[tuple[int, CellId]]) -> None:
        """Places cells anywhere in the log; and drops its stale entries."""
        self.places.update((cell, offset) for offset, cell in placed)
        entries = sorted((offset, cell) for cell, offset in self.places.items())
        self._offsets = [offset for offset, _ in entries]
        self._ids = [cell for _, cell in entries]


_AFTER_ALL = 1 << 63
"""After every time."""


def counting_of(config: Config, part_count: int) -> Counting:
    """How cells are read; a custom fold is needed only where they are counted, or merged, which those of one part are not."""
    return Counting(config.exact_distinct, None, seals=part_count == 1)


def _window_of(cell: CellId) -> tuple[int, int]:
    return cell[2], cell[1]


def _together(timings: Sequence[Timing]) -> Timing:
    """Why the pane of several cells is as it is: it waits for the slowest, and is revised by any."""
    if Timing.EARLY in timings:
        return Timing.EARLY
    return Timing.REVISED if Timing.REVISED in timings else Timing.ON_TIME


def _offset(version: int) -> int:
    return version * SLICES


def _slice_of(cell: CellId) -> int:
    return zlib.crc32("/".join(map(str, cell)).encode()) % (SLICES - 1)
