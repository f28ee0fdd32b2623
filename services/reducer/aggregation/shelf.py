"""Shelves: cells that are kept in memory together, leave it together, and come due together. Pure.

When a shelf is opened, closed or let go is `aggregation`'s; how its records are stored is the writer's.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush
from itertools import chain, islice
from operator import attrgetter

from services.reducer.aggregation.cell import Cell, Counting, Stage
from services.reducer.aggregation.pane import CellId
from services.reducer.aggregation.strategy import Slot

_END = attrgetter("end")


class WindowShelf:
    """The cells of one aligned window."""

    __slots__ = ("_final", "cells", "deadline", "end", "name", "size_bytes", "start")

    def __init__(self, name: str, start: int, end: int, lateness: int, strategies: Iterable[int]) -> None:
        self.name = name
        self.start = start
        self.end = end
        self.deadline = end
        """Where the watermark must be for something to become of a cell."""
        self.size_bytes = 0
        self.cells: dict[int, dict[Slot, Cell]] = {strategy: {} for strategy in strategies}
        self._final = end + lateness

    def __iter__(self) -> Iterator[Cell]:
        return chain.from_iterable(cells.values() for cells in self.cells.values())

    def __len__(self) -> int:
        return sum(map(len, self.cells.values()))

    def find(self, slot: Slot, cell_id: CellId) -> Cell | None:
        """The cell, if it is here."""
        return self.cells[cell_id[0]].get(slot)

    def put(self, slot: Slot, cell: Cell) -> None:
        """Keeps a cell; `settle` follows."""
        self.cells[cell.strategy][slot] = cell
        self.size_bytes += cell.size_bytes

    def remove(self, slot: Slot, cell: Cell) -> None:
        """Keeps a cell no more."""
        del self.cells[cell.strategy][slot]
        self.size_bytes -= cell.size_bytes

    def due(self, watermark: int | None, limit: int) -> tuple[list[Cell], bool]:
        """Up to `limit` cells that the watermark has come to, all where it is None, and whether none is left.

        They are not due again for the same once what is to become of them has.
        """
        stage = Stage.FINAL if watermark is None or watermark >= self._final else Stage.ON_TIME
        due = list(islice((cell for cell in self if cell.stage < stage), limit + 1))
        if len(due) > limit:
            return due[:limit], False
        self.deadline = self._final
        return due, True

    def settle(self) -> None:
        """Finds the deadline from the cells' stages."""
        self.deadline = self.end if any(cell.stage == Stage.OPEN for cell in self) else self._final


class SessionShelf:
    """The session windows of some keys. Those of one key that are not final do not overlap."""

    __slots__ = ("_count", "_gap", "_lateness", "_schedule", "_sequence", "name", "size_bytes", "slots")

    def __init__(self, name: str, gap: int, lateness: int) -> None:
        self.name = name
        self.size_bytes = 0
        self.slots: dict[tuple[int, Slot], list[Cell]] = {}
        """By strategy and slot, in the order of their ends: those that the watermark has passed come first."""
        self._count = 0
        self._gap = gap
        self._lateness = lateness
        # When each cell is due, in a heap; an entry that is not what its cell says is stale. A window that grows leaves its entry
        # where it is: it is found again when the old time comes.
        self._schedule: list[tuple[int, int, Cell]] = []
        self._sequence = 0

    def __iter__(self) -> Iterator[Cell]:
        return chain.from_iterable(self.slots.values())

    def __len__(self) -> int:
        return self._count

    @property
    def deadline(self) -> int:
        """Where the watermark must be for something to become of a cell; perhaps earlier than that, never later."""
        return self._schedule[0][0] if self._schedule else 0

    def join(
        self, slot: Slot, time: int, cell_id: CellId, *, watermark: int, counting: Counting, removed: list[CellId]
    ) -> Cell | None:
        """The cell of an item, merged from all whose windows overlap its own; None where it is late.

        Half-open windows overlap: an item exactly `gap` after another is apart. A window whose lateness has passed takes part in
        nothing, whether it was shown or not. The merged cell is on time if its end has passed and one of its parts was on time,
        else it is open. Ids that deltas told of and that are no more are added to `removed`.
        """
        own_end = time + self._gap
        cells = self.slots.get((cell_id[0], slot), [])
        place = bisect_right(cells, time, key=_END)
        parts = []
        for cell in cells[place:]:
            if cell.start >= own_end:
                break
            if cell.end + self._lateness > watermark:
                parts.append(cell)
        if not parts:
            if own_end + self._lateness <= watermark:
                return None
            cell = Cell(cell_id, counting)
            self.put(slot, cell)
            self._plan(cell, own_end)
            return cell
        first = parts[0]
        start, end = min(time, first.start), max(own_end, parts[-1].end)
        if len(parts) == 1 and start == first.start and end == first.end:
            return first
        # With its new end it may belong elsewhere among the windows that have passed.
        stage = max(part.stage for part in parts) if end <= watermark else Stage.OPEN
        for part in parts:
            cells.remove(part)
            if part.told:
                removed.append(part.id)
        self._count -= len(parts) - 1
        self.size_bytes -= sum(part.size_bytes for part in parts[1:])
        before = first.size_bytes if parts[1:] else 0
        for part in parts[1:]:
            first.merge(part)
            part.stage = Stage.MERGED
        if parts[1:]:
            self.size_bytes += first.size_bytes - before
        reopened = stage < first.stage
        first.start, first.end, first.stage, first.told = start, end, stage, False
        cells.insert(bisect_right(cells, end, key=_END), first)
        if reopened:
            self._plan(first, end)
        return first

    def find(self, slot: Slot, cell_id: CellId) -> Cell | None:
        """The cell, if it is here."""
        return next((cell for cell in self.slots.get((cell_id[0], slot), ()) if cell.id == cell_id), None)

    def put(self, slot: Slot, cell: Cell) -> None:
        """Keeps a cell; `settle` follows."""
        cells = self.slots.setdefault((cell.strategy, slot), [])
        cells.insert(bisect_right(cells, cell.end, key=_END), cell)
        self._count += 1
        self.size_bytes += cell.size_bytes

    def remove(self, slot: Slot, cell: Cell) -> None:
        """Keeps a cell no more."""
        cells = self.slots[cell.strategy, slot]
        cells.remove(cell)
        if not cells:
            del self.slots[cell.strategy, slot]
        cell.due = None
        self._count -= 1
        self.size_bytes -= cell.size_bytes

    def due(self, watermark: int | None, limit: int) -> tuple[list[Cell], bool]:
        """Up to `limit` cells that the watermark has come to, all where it is None, and whether none is left.

        They are not due again for the same.
        """
        if watermark is None:
            return list(islice(self, limit)), len(self) <= limit
        due: list[Cell] = []
        schedule = self._schedule
        while schedule and schedule[0][0] <= watermark:
            if len(due) == limit:
                return due, False
            time, _, cell = heappop(schedule)
            if cell.due != time or cell.stage == Stage.MERGED:
                continue
            deadline = self._deadline(cell)
            if deadline <= watermark:
                due.append(cell)
                deadline = cell.end + self._lateness
            if deadline > watermark:
                self._plan(cell, deadline)
        return due, True

    def settle(self) -> None:
        """Finds the deadline from the cells' stages."""
        self._schedule = []
        for cell in self:
            cell.due = self._deadline(cell)
            self._sequence += 1
            self._schedule.append((cell.due, self._sequence, cell))
        heapify(self._schedule)

    def _deadline(self, cell: Cell) -> int:
        return cell.end if cell.stage == Stage.OPEN else cell.end + self._lateness

    def _plan(self, cell: Cell, deadline: int) -> None:
        cell.due = deadline
        self._sequence += 1
        heappush(self._schedule, (deadline, self._sequence, cell))


class ClosedShelf:
    """Final cells."""

    __slots__ = ("cells", "name", "size_bytes")

    def __init__(self, name: str) -> None:
        self.name = name
        self.cells: list[Cell] = []
        self.size_bytes = 0

    def __iter__(self) -> Iterator[Cell]:
        return iter(self.cells)

    def extend(self, cells: Iterable[Cell], size_bytes: int) -> None:
        """Keeps cells that take so much memory together."""
        self.cells.extend(cells)
        self.size_bytes += size_bytes
