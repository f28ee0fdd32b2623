"""Which panes the live table keeps and shows."""

from __future__ import annotations

import io
import random

import pytest
from rich.console import Console

from omninode.bridge.reducer.v1 import aggregation_pb2 as pb
from services.cli import board
from services.cli.board import Board


def pane(start: int, end: int, key: str = "", *, final: bool = False, revision: int = 1) -> pb.Pane:
    made = pb.Pane(
        strategy=pb.AGGREGATION_STRATEGY_WORKFLOW_GROUPING, key=key, is_final=final, revision=revision, count=1
    )
    made.window_start_time.FromSeconds(start)
    made.window_end_time.FromSeconds(end)
    return made


def shown(board: Board, count: int = 10) -> list[tuple[int, str, int]]:
    return [(each.window_start_time.seconds, each.key, each.revision) for each in board.newest(count)]


def test_a_pane_is_there_once_with_its_newest_revision() -> None:
    board = Board("s")
    for revision in (1, 2, 3):
        board.put(pane(0, 5, "a", revision=revision))

    assert shown(board) == [(0, "a", 3)]


def test_the_newest_windows_come_first_then_by_key() -> None:
    board = Board("s")
    panes = [pane(start, start + 5, key) for start in (0, 5, 10) for key in "ba"]
    random.Random(1).shuffle(panes)
    for each in panes:
        board.put(each)

    assert shown(board) == [(10, "a", 1), (10, "b", 1), (5, "a", 1), (5, "b", 1), (0, "a", 1), (0, "b", 1)]


def test_final_panes_give_way_to_open_ones_of_older_windows() -> None:
    board = Board("s")
    for each in (pane(10, 15, final=True), pane(5, 10), pane(0, 5), pane(15, 20, final=True)):
        board.put(each)

    assert [start for start, *_ in shown(board, 3)] == [15, 5, 0]


def test_session_windows_that_were_merged_are_shown_as_one() -> None:
    board = Board("s")
    for each in (pane(0, 5, "a"), pane(8, 12, "a"), pane(0, 5, "b"), pane(0, 12, "a"), pane(20, 25, "a")):
        board.put(each)

    assert shown(board) == [(20, "a", 1), (0, "b", 1), (0, "a", 1)]


def test_it_keeps_no_more_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "KEPT", 10)
    many = Board("s")
    for start in range(100):
        many.put(pane(start, start + 5, final=start != 3))

    assert len(many.newest(1000)) <= 20
    assert [start for start, *_ in shown(many, 3)] == [99, 98, 3]


@pytest.mark.parametrize("height", [1, 10, 24])
def test_a_drawing_fits_the_screen(height: int) -> None:
    crowded = Board("s\x1b[2J")
    crowded.session = pb.Session(session="s")
    for start in range(100):
        crowded.put(pane(start, start + 5, "k" * 300))
    out = io.StringIO()

    Console(file=out, width=60, height=height, force_terminal=False).print(crowded)

    lines = out.getvalue().splitlines()
    assert len(lines) <= max(height, 8)
    assert max(map(len, lines)) <= 60
    assert "\x1b" not in out.getvalue()


def test_on_a_narrow_screen_texts_give_way_and_figures_do_not() -> None:
    narrow = Board("s")
    for start in (0, 5):
        narrow.put(pane(start, start + 5, "k" * 300, revision=12345))
    out = io.StringIO()

    Console(file=out, width=60, height=20).print(narrow)

    lines = out.getvalue().splitlines()
    assert [line.split()[0] for line in lines[2:] if "…" in line] == ["00:00:05Z", "00:00:00Z"]
    assert all("12345" in line for line in lines if "…" in line)
    assert "1970-01-01" in lines[2]


def test_windows_of_two_days_have_their_dates() -> None:
    board = Board("s")
    board.put(pane(86_395, 86_400))
    board.put(pane(86_400, 86_405))
    out = io.StringIO()

    Console(file=out, width=80, height=20).print(board)

    assert "1970-01-01 23:59:55Z" in out.getvalue()
    assert "1970-01-02 00:00:00Z" in out.getvalue()
