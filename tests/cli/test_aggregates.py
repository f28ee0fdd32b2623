"""`omnibridge aggregates list, show, watch`, against a fake reducer."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.feed.v1 import feed_pb2
from omninode.bridge.reducer.v1 import aggregation_pb2 as pb
from services.chassis.errors import Unavailable
from services.cli import following, live
from tests.cli.conftest import Run
from tests.cli.fake_reducer import FakeReducer

FILTERS = (
    *("--strategy", "file_type_grouping", "--strategy", "custom", "--namespace", "", "--key", "text/plain"),
    "--final-only",
)
FILTER = pb.PaneFilter(
    strategies=[pb.AGGREGATION_STRATEGY_FILE_TYPE_GROUPING, pb.AGGREGATION_STRATEGY_CUSTOM],
    namespace="",
    key="text/plain",
    final_only=True,
)


def pane(number: int, **fields: Any) -> pb.Pane:
    """The pane of one window of 5 s; a larger number is a later window."""
    made = pb.Pane(
        strategy=pb.AGGREGATION_STRATEGY_FILE_TYPE_GROUPING,
        key="text/plain",
        count=1000 + number,
        total_bytes=2048,
        mean_bytes=2,
        distinct_workflows=pb.DistinctCount(count=1200, estimated=True),
        workflow_states={"FAILED": 2, "COMPLETED": 1},
        revision=number,
        timing=pb.PANE_TIMING_ON_TIME,
    )
    made.MergeFrom(pb.Pane(**fields))
    made.window_start_time.FromSeconds(1_772_366_400 + 5 * number)
    made.window_end_time.FromSeconds(1_772_366_405 + 5 * number)
    return made


def session(name: str, **fields: Any) -> pb.Session:
    made = pb.Session(
        session=name, state=pb.SESSION_STATE_AGGREGATING, item_count=1200, late_count=3, open_window_count=2, **fields
    )
    made.watermark.FromJsonString("2026-03-01T12:00:07.5Z")
    made.config.tumbling.size.FromSeconds(5)
    return made


def items(cursor: str, *numbers: int) -> pb.WatchAggregatesResponse:
    return pb.WatchAggregatesResponse(items=[pane(number) for number in numbers], cursor=cursor)


@pytest.fixture
def counting(reducer: FakeReducer) -> FakeReducer:
    """A reducer with two sessions and three panes."""
    reducer.sessions = [session("uploads"), pb.Session(session="x\x1b[2J", finished=True)]
    reducer.panes = [pane(2), pane(1, is_final=True), pane(0, namespace="docs", custom_json='{"a":1}')]
    return reducer


def test_sessions_are_a_row_each(run: Run, counting: FakeReducer) -> None:
    ended = run("aggregates", "list")

    *_, first, second, _blank, count = ended.out.splitlines()
    assert first.split() == ["uploads", "aggregating", "2026-03-01", "12:00:07.500Z", "1,200", "3", "0", "2", "0", "-"]
    assert second.split()[:3] == ["x\\x1b[2J", "finished", "-"]
    assert count == "2 sessions"


def test_sessions_are_json_lines(run: Run, counting: FakeReducer) -> None:
    first, _second = run("aggregates", "list", "--json").records

    assert (first["session"], first["item_count"]) == ("uploads", "1200")


def test_a_session_is_shown_with_its_configuration_and_its_panes(run: Run, counting: FakeReducer) -> None:
    ended = run("aggregates", "show", "uploads")

    rows = [line.split() for line in ended.out.splitlines()]
    assert ["config.tumbling.size", "5s"] in rows
    assert ["watermark", "2026-03-01T12:00:07.500Z"] in rows
    window = ["2026-03-01", "12:00:10Z", "5", "s", "file_type_grouping", "-", "text/plain", "1,002", "2.0", "KiB"]
    assert [*window, "2", "B", "0", "~1,200", "COMPLETED=1", "FAILED=2", "2", "on", "time"] in rows
    assert [row[-1] for row in rows if "1,001" in row] == ["final"]
    assert [row[-4] for row in rows if "docs" in row] == ['{"a":1}']
    assert ended.out.splitlines()[-1] == "3 panes"


def test_in_json_the_session_comes_first(run: Run, counting: FakeReducer) -> None:
    told, *panes = run("aggregates", "show", "uploads", "--json").records

    assert told["config"]["tumbling"] == {"size": "5s"}
    assert [each["revision"] for each in panes] == ["2", "1", "0"]


def test_panes_are_asked_for_with_every_filter_of_the_contract(run: Run, counting: FakeReducer) -> None:
    ended = run("aggregates", "show", "uploads", *FILTERS, "--limit", "2")

    assert counting.requests[-1] == pb.GetAggregatesRequest(session="uploads", filter=FILTER, page_size=2)
    assert ended.out.splitlines()[-1] == "2 panes, the newest; --limit shows more"


def test_a_session_that_is_not_there_is_one_line(run: Run, counting: FakeReducer) -> None:
    ended = run("aggregates", "show", "downloads")

    assert (ended.status, ended.out) == (1, "")
    assert ended.err == "omnibridge: reducer: SESSION_NOT_FOUND: there is no such session\n"


def test_a_watched_pane_is_a_line(run: Run, reducer: FakeReducer) -> None:
    shown = pane(1, namespace="docs", key="a\n", is_final=True)
    reducer.feed.then(items("c1", 0), pb.WatchAggregatesResponse(items=[shown], cursor="c2"))

    ended = run("aggregates", "watch", "uploads", *FILTERS, "--cursor", "c0", "--count", "2")

    assert ended.out.splitlines() == [
        "2026-03-01 12:00:00Z +5s  file_type_grouping  -  text/plain  1,000 items  2.0 KiB  r0  on time",
        "2026-03-01 12:00:05Z +5s  file_type_grouping  docs  a\\n  1,001 items  2.0 KiB  r1  final",
    ]
    assert ended.err == "omnibridge: to go on from here: --cursor c2\n"
    assert reducer.feed.requests == [pb.WatchAggregatesRequest(session="uploads", filter=FILTER, cursor="c0")]


def test_a_json_line_is_a_pane_with_its_cursor(run: Run, reducer: FakeReducer) -> None:
    reducer.feed.then(items("c1", 1))

    (told,) = run("aggregates", "watch", "uploads", "--json", "--count", "1").records

    assert (told["count"], told["cursor"]) == ("1001", "c1")


def test_on_a_terminal_a_table_says_what_the_feed_does(
    run: Run, counting: FakeReducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "FIRST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(live, "PERIOD_SECONDS", 0)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    stopping = Unavailable("the node is stopping", reason=errors_pb2.ERROR_REASON_SHUTTING_DOWN)
    caught_up = pb.WatchAggregatesResponse(caught_up=feed_pb2.CaughtUp(position="c1"))
    counting.feed.then(items("c0", 0, 1), stopping).then(caught_up, items("c2", 2))

    ended = run("aggregates", "watch", "uploads", "--count", "3")

    assert ended.status == 0
    assert "reducer: SHUTTING_DOWN: the node is stopping; reconnecting until it is back" in ended.out
    drawn = ended.out[ended.out.rindex("uploads") :]
    assert "aggregating, watermark 2026-03-01 12:00:07.500Z, 1,200 items, 2 open windows, 3 late" in drawn
    assert [word for word in drawn.split() if word.startswith("1,00")] == ["1,002", "1,001", "1,000"]
    assert "caught up: what follows is new" in drawn
    # Nothing but the cursor is a line of its own beside the table.
    assert ended.err == "omnibridge: to go on from here: --cursor c2\n"
