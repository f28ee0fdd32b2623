"""Which windows a time is in, and where their cells are kept."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.reducer.aggregation.config import SECOND, Gap, Hopping, Tumbling
from services.reducer.aggregation.window import Grid, bucket_shelf, closed_end, closed_shelf, slice_end


@pytest.mark.parametrize(
    ("window", "time", "starts"),
    [
        (Tumbling(10), 0, [0]),
        (Tumbling(10), 9, [0]),
        (Tumbling(10), 10, [10]),
        (Tumbling(10), -1, [-10]),
        (Hopping(10, 5), 12, [10, 5]),
        (Hopping(10, 10), 12, [10]),
        (Hopping(10, 4), 9, [8, 4, 0]),
        (Hopping(10, 4), 10, [8, 4]),
    ],
    ids=["at 0", "at an end", "at a start", "before 0", "two", "a hop of its size", "uneven, three", "uneven, two"],
)
def test_a_time_is_in_these_windows(window: Tumbling | Hopping, time: int, starts: list[int]) -> None:
    assert Grid.of(window).starts(time) == starts


@settings(max_examples=100)
@given(st.integers(-100, 1000), st.integers(1, 50), st.data())
def test_a_time_is_in_every_window_around_it(time: int, size: int, data: st.DataObject) -> None:
    grid = Grid(size, data.draw(st.integers(1, size)))
    starts = grid.starts(time)
    around = [start for start in range(time - size + 1, time + 1) if start % grid.hop == 0]
    assert starts == around[::-1]
    assert grid.first_end(time) == starts[-1] + size
    assert len(starts) in ({grid.overlap} if grid.even else {grid.overlap - 1, grid.overlap})


@pytest.mark.parametrize(
    ("window", "end", "slice_"),
    [
        (Tumbling(10), 30, 30),
        (Gap(SECOND), 1, 60 * SECOND),
        (Gap(SECOND), 60 * SECOND, 60 * SECOND),
        (Gap(20 * SECOND), 1, 200 * SECOND),
    ],
    ids=["aligned", "first slice", "its end", "long gaps"],
)
def test_final_windows_are_kept_by_the_slice_of_their_end(window: Tumbling | Gap, end: int, slice_: int) -> None:
    assert slice_end(window, end) == slice_


def test_a_shelf_of_final_cells_says_when_its_slice_ends() -> None:
    assert closed_end(closed_shelf(50)) == closed_end(closed_shelf(50, 3)) == 50
    assert closed_shelf(50) != closed_shelf(50, 3)


def test_a_key_has_the_same_bucket_in_every_process() -> None:
    assert bucket_shelf("docs", "text/plain") == "k9"
