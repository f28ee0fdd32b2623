"""The live table of a session: which panes it keeps, and what it looks like. When it is drawn is live.py's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text

from omninode.bridge.reducer.v1 import aggregation_pb2 as pb
from services.cli import aggregate_report
from services.cli.failure import shown
from services.cli.report import counted, moment, readable_bytes, table_of, text

KEPT = 1000
"""Panes at most: more than a screen has lines, so that there are some when it grows."""
_FRAME_LINES = 7
"""Those of a drawing that are no panes, and the cursor's."""
_NUMBERS = {"items", "bytes", "rev"}
_TEXTS = {"strategy", "namespace", "key"}

Cell: TypeAlias = tuple[int, int, int, str, str]
"""The window's start, negated for the newest to come first, its end, strategy, namespace, key."""


class Board:
    """The newest revision of the panes that matter most: those of the newest windows, open ones before final ones."""

    def __init__(self, session: str) -> None:
        self._name = session
        self._panes: dict[Cell, pb.Pane] = {}
        self.session: pb.Session | None = None
        """As it was last read; None while it is not there."""
        self.status = "reading what there is"
        """What the feed does."""

    def put(self, pane: pb.Pane) -> None:
        """Show this revision of a pane."""
        self._panes[_cell(pane)] = pane
        # Not at each: to find the last of them takes a look at all.
        if len(self._panes) > 2 * KEPT:
            kept = sorted(self._panes.items(), key=lambda item: (item[1].is_final, item[0]))[:KEPT]
            self._panes = dict(kept)

    def newest(self, count: int) -> list[pb.Pane]:
        """The panes to show in so many lines, the newest windows first; final ones where open ones leave room."""
        panes = self._current()
        chosen = sorted(panes, key=lambda cell: (panes[cell].is_final, cell))[:count]
        return [panes[cell] for cell in sorted(chosen)]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """As many panes as the screen has lines for."""
        height = options.height or console.size.height
        panes = self.newest(max(1, height - _FRAME_LINES))
        yield Group(self._headline(), _table(panes), Text(shown(self.status), style="dim", no_wrap=True))

    def _headline(self) -> Text:
        line = Text(shown(self._name), style="bold", no_wrap=True, overflow="ellipsis")
        if self.session is None:
            return line
        session = self.session
        figures = [aggregate_report.state(session), f"watermark {aggregate_report.watermark(session)}"]
        figures += [counted(session.item_count, "item"), counted(session.open_window_count, "open window")]
        figures += [f"{session.late_count:,} late"] if session.late_count else []
        figures += [f"{session.invalid_count:,} invalid"] if session.invalid_count else []
        return line.append(f"  {', '.join(figures)}", style="not bold")

    def _current(self) -> dict[Cell, pb.Pane]:
        """Without the session windows that were merged into larger ones, of which the feed says nothing."""
        by_key: dict[tuple[int, str, str], list[Cell]] = {}
        current: dict[Cell, pb.Pane] = {}
        # A window that holds others begins before them or ends after them.
        for cell in sorted(self._panes, key=lambda cell: (-cell[0], -cell[1])):
            others = by_key.setdefault(cell[2:], [])
            if not (others and _holds(others[-1], cell)):
                others.append(cell)
                current[cell] = self._panes[cell]
        return current


def _holds(cell: Cell, other: Cell) -> bool:
    return cell[0] >= other[0] and cell[1] >= other[1]


def _cell(pane: pb.Pane) -> Cell:
    start, end = pane.window_start_time.ToMicroseconds(), pane.window_end_time.ToMicroseconds()
    return (-start, end, pane.strategy, pane.namespace, pane.key)


def _table(panes: Sequence[pb.Pane]) -> Table:
    """A line for each pane. A column that would say the same in each is left out or is in the heading; texts give way on a narrow
    screen, figures do not.
    """
    days = {moment(pane.window_start_time)[:10] for pane in panes}
    day = f"{days.pop()} " if len(days) == 1 else ""
    timespec = "milliseconds" if any(pane.window_start_time.nanos for pane in panes) else "seconds"
    columns: dict[str, Callable[[pb.Pane], str | Text]] = {
        day.strip() or "window": lambda pane: moment(pane.window_start_time, timespec).removeprefix(day),
        "for": aggregate_report.length,
        "strategy": lambda pane: _elastic(aggregate_report.strategy(pane)),
        "namespace": lambda pane: _elastic(text(pane.namespace)),
        "key": lambda pane: _elastic(text(pane.key)),
        "items": lambda pane: f"{pane.count:,}",
        "bytes": lambda pane: readable_bytes(pane.total_bytes),
        "rev": lambda pane: str(pane.revision),
        "timing": aggregate_report.timing,
    }
    if len({pane.strategy for pane in panes}) == 1:
        del columns["strategy"]
    if not any(pane.namespace for pane in panes):
        del columns["namespace"]
    table = table_of(*columns)
    table.padding = (0, 1, 0, 0)
    for pane in panes:
        table.add_row(*(cell(pane) for cell in columns.values()), style="dim" if pane.is_final else None)
    for column in table.columns:
        column.no_wrap = column.header not in _TEXTS
        column.justify = "right" if column.header in _NUMBERS else "left"
    return table


def _elastic(value: str) -> Text:
    return Text(value, no_wrap=True, overflow="ellipsis")
