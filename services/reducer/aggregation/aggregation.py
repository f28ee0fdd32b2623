"""A session's counting: what items make of cells, what becomes of cells as the watermark passes, and where they are kept. Pure.

What it counts depends on the items and their order alone, never on how they were cut into batches. What it tells is what changed
between one `take` and the next; a session that is built anew from that goes on as if it had never stopped. Where shelves and deltas
are stored, and when, is the writer's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import accumulate, chain, compress, repeat
from typing import NamedTuple, TypeAlias

from services.reducer.aggregation.cell import Cell, Counting, Stage, id_of, new_bytes, stage_of
from services.reducer.aggregation.config import Config, Gap, Strategy
from services.reducer.aggregation.durable import Delta, Progress, Record
from services.reducer.aggregation.fold import CustomFold, FoldItem
from services.reducer.aggregation.item import Columns, Late
from services.reducer.aggregation.pane import CellId, Pane, Timing
from services.reducer.aggregation.shelf import ClosedShelf, SessionShelf, WindowShelf
from services.reducer.aggregation.strategy import Grouping, Slot
from services.reducer.aggregation.window import (
    Grid,
    bucket_shelf,
    closed_end,
    closed_shelf,
    slice_end,
    window_shelf,
)

_Open: TypeAlias = WindowShelf | SessionShelf
_Row: TypeAlias = tuple[int, Slot, int, str, str, str, FoldItem | None]
_BEFORE_ALL = -(2**63)
_UNLIMITED = 2**62


class Change(NamedTuple):
    """What came of input."""

    delta: Delta
    """Without what was rejected."""
    early: Sequence[Pane]
    is_part: bool
    """Whether more is due."""


class Aggregation:
    """The cells of a session.

    Some shelves may be out of memory: those of `evicted`, with their deadlines as `shelves` told them, and those that `evict` let
    go. They are `put` before something touches them: see `shelves_of`, `due_shelves` and `shelves_of_records`.
    """

    def __init__(
        self,
        config: Config,
        fold: CustomFold | None = None,
        progress: Progress = Progress(),  # noqa: B008  # a value
        evicted: Mapping[str, int | None] | None = None,
    ) -> None:
        self._config = config
        self._counting = Counting(config.exact_distinct, fold)
        self._groupings = {int(strategy): Grouping(strategy, config, fold) for strategy in config.strategies}
        self._grid = None if isinstance(config.window, Gap) else Grid.of(config.window)
        self._gap = config.window.gap if isinstance(config.window, Gap) else 0
        self._progress = progress
        self._watermark = _BEFORE_ALL if progress.watermark is None else progress.watermark
        self._finishing = False
        self._changed: list[Cell] = []
        self._removed: list[CellId] = []
        self._unseen: dict[CellId, Cell] = {}
        """What the next early panes are of, and what has become of it since."""
        self._open: dict[str, _Open] = {}
        self._closed: dict[str, ClosedShelf] = {}
        self._away: dict[str, int] = {}
        """Open shelves that are not in memory, with their deadlines."""
        self._archived: set[str] = set()
        """Shelves of final cells that are not in memory."""
        for name, deadline in (evicted or {}).items():
            if deadline is None:
                self._archived.add(name)
            else:
                self._away[name] = deadline
        self._retained = [(closed_end(name), name) for name in self._archived]
        heapify(self._retained)
        self._expired: list[str] = []
        self._dirty: set[str] = set()
        self._recency: OrderedDict[str, None] = OrderedDict()
        self._size_bytes = 0

    @property
    def progress(self) -> Progress:
        """How far it has come; invalid items are as they were given. Windows of different session cells are different."""
        windows = self._progress.open_windows if self._grid is None else len(self._open) + len(self._away)
        watermark = None if self._watermark == _BEFORE_ALL else self._watermark
        return self._progress._replace(watermark=watermark, open_windows=windows)

    @property
    def size_bytes(self) -> int:
        """About what the shelves in memory take; what custom folds made is weighed at each `take`."""
        return self._size_bytes

    def add(self, items: Columns) -> list[Late]:
        """Counts items one after another, each judged by the watermark that those before it made."""
        assert not self._finishing, "a finished session counts no more"
        if not items.times:
            return []
        late = self._add_to_sessions(items) if self._grid is None else self._add_to_windows(self._grid, items)
        self._watermark = max(self._watermark, max(items.times) - self._config.watermark_delay)
        uncounted = sum(not item.counted for item in late)
        self._progress = self._progress._replace(
            item_count=self._progress.item_count + len(items.times) - uncounted,
            late_count=self._progress.late_count + len(late),
        )
        return late

    def advance(self, time: int) -> None:
        """The watermark is at least there."""
        self._watermark = max(self._watermark, time)

    def finish(self) -> None:
        """Nothing more will come: with the next `take` all cells are final, and the watermark is where they all are."""
        self._finishing = True

    def take(self, early: bool = False, limit: int = _UNLIMITED) -> Change:
        """What has changed since the last time.

        A pane is told when its cell becomes on time, when it is final, and whenever it changed in between. `early` asks also for
        panes of what is open and changed since it was last asked for; they are told only where the session has an early period.
        Of cells that come due `limit` at most are told, beside those that changed: what is left comes with the next. Of a shelf
        that is due and out of memory nothing becomes yet: it may be `put`, and then taken.
        """
        bound = None if self._finishing else self._watermark
        cells, self._changed = self._changed, []
        shelves = [shelf for shelf in self._open.values() if bound is None or shelf.deadline <= bound]
        passed: list[_Open] = []
        for shelf in shelves:
            due, is_whole = shelf.due(bound, limit)
            limit -= len(due)
            if due:
                self._touch(shelf.name)
            for cell in due:
                if not cell.changed:
                    cell.changed = True
                    cells.append(cell)
            if is_whole:
                passed.append(shelf)
        records, panes, final = self._tell(cells)
        self._close(passed, final)
        removed, self._removed = self._removed, []
        for cell_id in removed:
            self._unseen.pop(cell_id, None)
        return Change(Delta(records, removed, panes), self._early() if early else (), len(passed) < len(shelves))

    def shelves_of(self, items: Columns) -> set[str]:
        """The shelves out of memory that `add` would touch."""
        if not self._away:
            return set()
        if self._grid is not None:
            hop = self._grid.hop
            slices = {time - time % hop for time in items.times}
            names = {window_shelf(start) for time in slices for start in self._grid.starts(time)}
        else:
            names = {
                bucket_shelf(*grouping.parts(slot))
                for grouping in self._groupings.values()
                for slot in grouping.slots(items, grouping.fold_items(items))
            }
        return names & self._away.keys()

    def due_shelves(self) -> set[str]:
        """The shelves out of memory that `take` would touch."""
        return {name for name, deadline in self._away.items() if self._finishing or deadline <= self._watermark}

    def shelves_of_records(self, records: Iterable[Record], removed: Iterable[CellId] = ()) -> set[str]:
        """The shelves out of memory that `apply` would touch."""
        return {self._shelf_of(cell_id) for cell_id in chain(map(id_of, records), removed)} & self._away.keys()

    def put(self, shelf: str, records: Iterable[Record]) -> None:
        """Brings a shelf back into memory, as `records_of` gave it."""
        cells = [Cell.of(record, self._counting) for record in records]
        if shelf in self._archived:
            self._archived.remove(shelf)
            closed = self._closed[shelf] = ClosedShelf(shelf)
            closed.extend(cells, sum(cell.size_bytes for cell in cells))
            self._size_bytes += closed.size_bytes
        else:
            del self._away[shelf]
            opened = self._shelf(shelf, cells[0].start)
            for cell in cells:
                opened.put(self._slot(cell.id), cell)
            opened.settle()
            self._size_bytes += opened.size_bytes
        self._recency[shelf] = None

    def apply(self, records: Iterable[Record], removed: Iterable[CellId] = ()) -> None:
        """Does again what a delta told. Progress stays: it was given."""
        touched: dict[str, _Open] = {}
        for cell_id in removed:
            shelf = self._replayed(cell_id, touched)
            slot = self._slot(cell_id)
            cell = shelf.find(slot, cell_id)
            assert cell is not None, "what was removed was told before"
            shelf.remove(slot, cell)
            self._size_bytes -= cell.size_bytes
        for record in records:
            cell_id = id_of(record)
            shelf = self._replayed(cell_id, touched)
            slot = self._slot(cell_id)
            cell = shelf.find(slot, cell_id)
            if cell is not None:
                shelf.remove(slot, cell)
                self._size_bytes -= cell.size_bytes
            cell = cell or Cell(cell_id, self._counting)
            cell.apply(record)
            self._size_bytes += cell.size_bytes
            if stage_of(record) == Stage.FINAL:
                self._archive(cell.end, (cell,), cell.size_bytes)
            else:
                shelf.put(slot, cell)
        for shelf in touched.values():
            shelf.settle()
            self._drop_if_empty(shelf)

    def shelves(self) -> dict[str, int | None]:
        """Every shelf, in memory or not, with its deadline: where the watermark makes something of it; None where all is final."""
        return {
            **{name: shelf.deadline for name, shelf in self._open.items()},
            **self._away,
            **dict.fromkeys(chain(self._closed, self._archived)),
        }

    @property
    def dirty(self) -> frozenset[str]:
        """The shelves in memory that changed since `checkpointed`."""
        return frozenset(self._dirty)

    def checkpointed(self, shelves: Iterable[str]) -> None:
        """The records of these shelves, as they are now, are or will be stored."""
        self._dirty.difference_update(shelves)

    def records_of(self, shelf: str) -> Iterator[Record]:
        """The full records of a shelf in memory; right after a `take`, because what is not told must not be stored."""
        assert not self._changed, "everything is told"
        return (cell.record() for cell in self._open.get(shelf) or self._closed[shelf])

    def coldest(self) -> Iterator[str]:
        """The shelves in memory that are as they were stored, the one touched longest ago first; `evict` may follow each."""
        return (name for name in list(self._recency) if name not in self._dirty)

    def evict(self, shelf: str) -> None:
        """Lets a shelf that is as it was stored go from memory."""
        assert shelf not in self._dirty, "a shelf that changed is stored first"
        opened = self._open.pop(shelf, None)
        if opened is None:
            self._archived.add(shelf)
            self._size_bytes -= self._closed.pop(shelf).size_bytes
        else:
            for cell in opened:
                self._unseen.pop(cell.id, None)
            opened.settle()
            self._away[shelf] = opened.deadline
            self._size_bytes -= opened.size_bytes
        del self._recency[shelf]

    def expired(self) -> list[str]:
        """The shelves of final cells whose retention is over, in memory or not."""
        bound = self._watermark - self._config.allowed_lateness - self._config.retention
        while self._retained and self._retained[0][0] <= bound:
            self._expired.append(heappop(self._retained)[1])
        return list(self._expired)

    def forget(self, shelf: str) -> None:
        """Lets an expired shelf go for good."""
        self._expired.remove(shelf)
        self._archived.discard(shelf)
        self._dirty.discard(shelf)
        self._recency.pop(shelf, None)
        closed = self._closed.pop(shelf, None)
        if closed is not None:
            self._size_bytes -= closed.size_bytes

    def _add_to_windows(self, grid: Grid, items: Columns) -> list[Late]:
        bound = max(self._watermark, max(items.times) - self._config.watermark_delay)
        can_be_late = grid.first_end(min(items.times)) + self._config.allowed_lateness <= bound
        if can_be_late or not grid.even:
            kept, late = self._sift(grid, items.times)
        else:
            kept, late = [None] * grid.overlap, []
        for grouping in self._groupings.values():
            rows = list(_rows(grouping, items))
            for shift, keep in enumerate(kept):
                self._count(grid, shift, grouping, rows if keep is None else compress(rows, keep))
        return late

    def _sift(self, grid: Grid, times: Sequence[int]) -> tuple[list[list[bool] | None], list[Late]]:
        """For each shift whether each item is to be counted in its window of that shift, and who came late."""
        lateness = self._config.allowed_lateness
        kept: list[list[bool] | None] = []
        missed = [0] * len(times)
        counted = [False] * len(times)
        before = self._watermarks(times)
        for shift in range(grid.overlap):
            keep = []
            for place, (time, watermark) in enumerate(zip(times, before, strict=False)):
                end = time - time % grid.hop - shift * grid.hop + grid.size
                in_time = end + lateness > watermark
                is_in = end > time
                keep.append(is_in and in_time)
                counted[place] |= is_in and in_time
                missed[place] += is_in and not in_time
            kept.append(keep)
        late = [Late(place, before[place], counted[place]) for place, windows in enumerate(missed) if windows]
        return kept, late

    def _count(self, grid: Grid, shift: int, grouping: Grouping, rows: Iterable[_Row]) -> None:
        """Counts items, each in its window that begins `shift` hops before the latest one."""
        strategy, hop, size = grouping.strategy, grid.hop, grid.size
        counting, changed, parts = self._counting, self._changed, grouping.parts
        begin = end = grown = 0
        for time, slot, item_size, file_type, workflow_id, workflow_state, item in rows:
            if not begin <= time < end:
                begin = time - time % hop
                end = begin + hop
                start = begin - shift * hop
                shelf = self._window(start)
                cells = shelf.cells[strategy]
            cell = cells.get(slot)
            if cell is None:
                cell = cells[slot] = Cell((strategy, start, start + size, *parts(slot)), counting)
                shelf.size_bytes += (more := new_bytes(cell.key))
                grown += more
            if not cell.changed:
                cell.changed = True
                changed.append(cell)
            if more := cell.add(item_size, file_type, workflow_id, workflow_state, item):
                shelf.size_bytes += more
                grown += more
        self._size_bytes += grown

    def _add_to_sessions(self, items: Columns) -> list[Late]:
        before = self._watermarks(items.times)
        missed = [0] * len(items.times)
        opened = 0
        for grouping in self._groupings.values():
            for place, (time, slot, size, file_type, workflow_id, state, item) in enumerate(_rows(grouping, items)):
                parts = grouping.parts(slot)
                name = bucket_shelf(*parts)
                assert name not in self._away, "a shelf that items touch is in memory"
                shelf = self._open.get(name) or self._shelf(name)
                assert isinstance(shelf, SessionShelf)
                number, size_bytes = len(shelf), shelf.size_bytes
                cell_id = (grouping.strategy, time, time + self._gap, *parts)
                cell = shelf.join(
                    slot, time, cell_id, watermark=before[place], counting=self._counting, removed=self._removed
                )
                if cell is None:
                    missed[place] += 1
                    self._drop_if_empty(shelf)
                    continue
                self._touch(name)
                if not cell.changed:
                    cell.changed = True
                    self._changed.append(cell)
                shelf.size_bytes += cell.add(size, file_type, workflow_id, state, item)
                self._size_bytes += shelf.size_bytes - size_bytes
                opened += len(shelf) - number
        self._progress = self._progress._replace(open_windows=self._progress.open_windows + opened)
        strategies = len(self._groupings)
        return [Late(place, before[place], count < strategies) for place, count in enumerate(missed) if count]

    def _watermarks(self, times: Iterable[int]) -> list[int]:
        """The watermark before each item, and behind the last."""
        delay = self._config.watermark_delay
        return list(accumulate((time - delay for time in times), max, initial=self._watermark))

    def _window(self, start: int) -> WindowShelf:
        name = window_shelf(start)
        shelf = self._open.get(name)
        if shelf is None:
            assert name not in self._away, "a shelf that items touch is in memory"
            shelf = self._shelf(name, start)
        assert isinstance(shelf, WindowShelf)
        self._touch(name)
        return shelf

    def _shelf(self, name: str, start: int = 0) -> _Open:
        """A new shelf; `start` is its window's."""
        lateness = self._config.allowed_lateness
        shelf: _Open
        if self._grid is None:
            shelf = SessionShelf(name, self._gap, lateness)
        else:
            shelf = WindowShelf(name, start, start + self._grid.size, lateness, self._groupings)
        self._open[name] = shelf
        return shelf

    def _touch(self, name: str) -> None:
        self._dirty.add(name)
        self._recency[name] = None
        self._recency.move_to_end(name)

    def _tell(self, cells: Iterable[Cell]) -> tuple[list[Record], list[Pane], list[Cell]]:
        """Records, panes in the order of their windows' ends, and the cells that became final."""
        records: list[Record] = []
        panes: list[Pane] = []
        final: list[Cell] = []
        watermark, lateness = self._watermark, self._config.allowed_lateness
        for cell in cells:
            before = cell.stage
            if before == Stage.MERGED:
                continue
            if self._finishing or cell.end + lateness <= watermark:
                cell.stage = Stage.FINAL
                final.append(cell)
            elif cell.end <= watermark:
                cell.stage = Stage.ON_TIME
            cell.revision += 1
            cell.changed = False
            if cell.strategy == Strategy.CUSTOM:
                self._weigh(cell)
            records.append(cell.delta())
            if cell.stage != Stage.OPEN:
                timing = Timing.ON_TIME if before == Stage.OPEN else Timing.REVISED
                panes.append(cell.pane(timing, cell.stage == Stage.FINAL))
            if cell.stage != Stage.OPEN:
                self._unseen.pop(cell.id, None)
            elif self._config.early_period:
                self._unseen[cell.id] = cell
        panes.sort(key=lambda pane: pane.cell[2])
        return records, panes, final

    def _weigh(self, cell: Cell) -> None:
        grown = cell.weigh()
        self._open[self._shelf_of(cell.id)].size_bytes += grown
        self._size_bytes += grown

    def _early(self) -> list[Pane]:
        cells, self._unseen = self._unseen, {}
        return [cell.pane(Timing.EARLY, final=False) for cell in cells.values() if cell.stage == Stage.OPEN]

    def _close(self, due: Iterable[_Open], final: Sequence[Cell]) -> None:
        """Keeps final cells apart; the shelves of windows that are final go as they are."""
        if self._grid is None:
            for cell in final:
                shelf = self._open[self._shelf_of(cell.id)]
                size = shelf.size_bytes
                shelf.remove(self._slot(cell.id), cell)
                self._archive(cell.end, (cell,), size - shelf.size_bytes)
                self._drop_if_empty(shelf)
            self._progress = self._progress._replace(open_windows=self._progress.open_windows - len(final))
        else:
            bound = self._watermark - self._config.allowed_lateness
            for window in due:
                assert isinstance(window, WindowShelf)
                if self._finishing or window.end <= bound:
                    self._archive(window.end, window, window.size_bytes)
                    self._discard(window)
        if self._finishing and final:
            self.advance(max(cell.end for cell in final) + self._config.allowed_lateness)

    def _archive(self, end: int, cells: Iterable[Cell], size_bytes: int) -> None:
        """Puts final cells on the shelf of their slice."""
        slice_ = slice_end(self._config.window, end)
        place = 0
        # Not on one that is out of memory: final cells would have to be read only to be written again.
        while (name := closed_shelf(slice_, place)) in self._archived:
            place += 1
        shelf = self._closed.get(name)
        if shelf is None:
            shelf = self._closed[name] = ClosedShelf(name)
            heappush(self._retained, (slice_, name))
        shelf.extend(cells, size_bytes)
        self._touch(name)

    def _drop_if_empty(self, shelf: _Open) -> None:
        if not len(shelf):
            self._discard(shelf)

    def _discard(self, shelf: _Open) -> None:
        del self._open[shelf.name]
        self._recency.pop(shelf.name, None)
        self._dirty.discard(shelf.name)

    def _replayed(self, cell_id: CellId, touched: dict[str, _Open]) -> _Open:
        name = self._shelf_of(cell_id)
        shelf = touched.get(name)
        if shelf is None:
            assert name not in self._away, "a shelf that records touch is in memory"
            shelf = touched[name] = self._open.get(name) or self._shelf(name, cell_id[1])
            self._touch(name)
        return shelf

    def _slot(self, cell_id: CellId) -> Slot:
        return self._groupings[cell_id[0]].slot(cell_id[3], cell_id[4])

    def _shelf_of(self, cell_id: CellId) -> str:
        _, start, _, namespace, key = cell_id
        return bucket_shelf(namespace, key) if self._grid is None else window_shelf(start)


def _rows(grouping: Grouping, items: Columns) -> Iterator[_Row]:
    custom = grouping.fold_items(items)
    slots = grouping.slots(items, custom)
    columns = (items.sizes, items.file_types, items.workflow_ids, items.workflow_states)
    return zip(items.times, slots, *columns, custom or repeat(None), strict=False)
