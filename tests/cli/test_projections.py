"""`omnibridge projections`, against a fake store."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta

import pytest

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.store.v1 import store_pb2 as pb
from services.chassis.errors import FailedPrecondition
from tests.cli.conftest import Run
from tests.cli.fake import END
from tests.cli.fake_store import FakeStore

FILTERS = (
    *("--collection", "workflow", "--namespace", "", "--tag", "FAILED", "--tag", "CANCELLED"),
    *("--index", "owner=a=b", "--index", "file="),
    *("--created-after", "2026-01-02T03:04:05Z", "--created-before", "2026-01-03T00:00:00+02:00"),
    *("--updated-after", "2026-01-04T00:00Z", "--updated-before", "2026-01-05T00:00:00.5Z"),
)


def _filter() -> pb.ProjectionFilter:
    wanted = pb.ProjectionFilter(
        collection="workflow", namespace="", tags=["FAILED", "CANCELLED"], indices={"owner": "a=b", "file": ""}
    )
    wanted.created_after.FromDatetime(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    wanted.created_before.FromDatetime(datetime(2026, 1, 2, 22, tzinfo=UTC))
    wanted.updated_after.FromDatetime(datetime(2026, 1, 4, tzinfo=UTC))
    wanted.updated_before.FromDatetime(datetime(2026, 1, 5, 0, 0, 0, 500_000, tzinfo=UTC))
    return wanted


def projection(number: int, **indices: str) -> pb.Projection:
    item = pb.Projection(
        key=f"workflow/{number}", version=3, tag="FAILED", last_action="step_failed", namespace="docs", indices=indices
    )
    item.create_time.FromJsonString("2026-03-01T12:00:00Z")
    item.update_time.FromJsonString("2026-03-01T12:00:01Z")
    return item


def lag(commits: int, milliseconds: int = 0) -> pb.ProjectionLag:
    message = pb.ProjectionLag(commits=commits)
    message.time.FromMilliseconds(milliseconds)
    return message


def test_a_list_asks_with_every_filter_of_the_contract(run: Run, store: FakeStore) -> None:
    ended = run("projections", "list", *FILTERS, "--order", "newest", "--limit", "5")

    (request,) = store.requests
    assert ended.status == 0
    assert request == pb.ListProjectionsRequest(filter=_filter(), order=pb.PROJECTION_ORDER_NEWEST_FIRST, page_size=5)


def test_a_list_without_filters_asks_for_all_by_key(run: Run, store: FakeStore) -> None:
    run("projections", "list")

    (request,) = store.requests
    assert not request.filter.HasField("namespace")
    assert not request.filter.HasField("created_after")
    assert request.order == pb.PROJECTION_ORDER_KEY


def test_a_projection_is_one_line_however_wide_and_the_last_line_says_how_far_behind(
    run: Run, store: FakeStore
) -> None:
    wide = {f"index-{number}": "v" * 60 for number in range(8)}
    store.projections = [projection(1, owner="[b]a"), projection(2, **wide)]
    store.lag.CopyFrom(lag(1200, 350))

    lines = run("projections", "list").out.splitlines()

    (first,) = [line for line in lines if line.startswith(" workflow/1 ")]
    (second,) = [line for line in lines if line.startswith(" workflow/2 ")]
    assert first.split() == [
        *("workflow/1", "3", "FAILED", "step_failed", "docs"),
        *("2026-03-01", "12:00:00Z", "2026-03-01", "12:00:01Z", "owner=[b]a"),
    ]
    assert all(f"{name}={value}" in second for name, value in wide.items())
    assert lines[-1] == "2 projections; 1,200 commits (0.35 s) behind the log"


@pytest.mark.parametrize(
    ("order", "said"), [pytest.param("key", "the first", id="key"), pytest.param("newest", "the newest", id="newest")]
)
def test_a_list_that_is_cut_off_says_so(run: Run, store: FakeStore, order: str, said: str) -> None:
    store.projections = [projection(number) for number in range(1500)]

    ended = run("projections", "list", "--limit", "1200", "--order", order)

    assert [request.page_size for request in store.requests] == [1000, 200]
    last = ended.out.splitlines()[-1]
    assert last == f"1,200 projections, {said}; --limit shows more; nothing behind the log"


def test_a_json_line_is_a_projection(run: Run, store: FakeStore) -> None:
    store.projections = [projection(1, owner="a")]

    (record,) = run("projections", "list", "--json").records

    assert (record["key"], record["version"], record["indices"]) == ("workflow/1", "3", {"owner": "a"})


@pytest.mark.parametrize(
    ("source", "behind", "line"),
    [
        pytest.param(
            pb.PROJECTION_SOURCE_PROJECTION,
            lag(0),
            "from the projection; its partition's projections are nothing behind the log",
            id="projection",
        ),
        pytest.param(
            pb.PROJECTION_SOURCE_CANONICAL,
            lag(1, 5_400_000),
            "from the canonical state; its partition's projections are 1 commit (1.5 h) behind the log",
            id="canonical",
        ),
    ],
)
def test_one_is_shown_with_its_source(
    run: Run, store: FakeStore, source: pb.ProjectionSource.ValueType, behind: pb.ProjectionLag, line: str
) -> None:
    store.projection = pb.GetProjectionResponse(projection=projection(1, owner="a"), source=source, lag=behind)

    ended = run("projections", "show", "workflow/1")

    assert ended.out.splitlines()[-1] == line
    assert ["indices.owner", "a"] in [row.split() for row in ended.out.splitlines()]


@pytest.mark.parametrize(
    ("text", "wait"),
    [
        pytest.param("5s", timedelta(seconds=5), id="seconds"),
        pytest.param("250ms", timedelta(milliseconds=250), id="milliseconds"),
        pytest.param("0.5m", timedelta(seconds=30), id="minutes"),
        pytest.param("7", timedelta(seconds=7), id="no unit"),
    ],
)
def test_it_is_asked_for_at_a_version_and_with_a_wait(run: Run, store: FakeStore, text: str, wait: timedelta) -> None:
    store.projection = pb.GetProjectionResponse(projection=projection(1), source=pb.PROJECTION_SOURCE_CANONICAL)

    (record,) = run("projections", "show", "workflow/1", "--min-version", "4", "--max-wait", text, "--json").records

    (request,) = store.requests
    assert (request.key, request.min_version, request.max_wait.ToTimedelta()) == ("workflow/1", 4, wait)
    assert record["source"] == "PROJECTION_SOURCE_CANONICAL"


@pytest.mark.parametrize(
    ("by", "group", "index"),
    [
        pytest.param("tag", pb.PROJECTION_GROUP_TAG, "", id="tag"),
        pytest.param("namespace", pb.PROJECTION_GROUP_NAMESPACE, "", id="namespace"),
        pytest.param("collection", pb.PROJECTION_GROUP_COLLECTION, "", id="collection"),
        pytest.param("index:a:b", pb.PROJECTION_GROUP_INDEX, "a:b", id="index"),
    ],
)
def test_counts_are_by_group(
    run: Run, store: FakeStore, by: str, group: pb.ProjectionGroup.ValueType, index: str
) -> None:
    store.counted = pb.CountProjectionsResponse(
        total=1205,
        groups=[pb.ProjectionCount(value="FAILED", count=1200), pb.ProjectionCount(value="", count=4)],
        truncated=True,
    )

    ended = run("projections", "count", "--by", by, *FILTERS)

    (request,) = store.requests
    assert request == pb.CountProjectionsRequest(filter=_filter(), group_by=group, group_index=index)
    rows = [line.split() for line in ended.out.splitlines()]
    assert [index or by, "projections"] in rows
    assert ["FAILED", "1,200"] in rows
    assert ["-", "4"] in rows
    last = ended.out.splitlines()[-1]
    assert last == "1,205 projections, in more groups than are shown; nothing behind the log"


def test_a_count_of_all_is_one_line(run: Run, store: FakeStore) -> None:
    store.counted = pb.CountProjectionsResponse(total=1)

    ended = run("projections", "count")

    assert ended.out == "1 projection; nothing behind the log\n"
    assert store.requests == [pb.CountProjectionsRequest(filter=pb.ProjectionFilter())]


def _progress(phase: pb.RebuildPhase.ValueType, done: int, total: int) -> pb.RebuildProjectionResponse:
    return pb.RebuildProjectionResponse(phase=phase, done_count=done, total_count=total)


REBUILD = (
    _progress(pb.REBUILD_PHASE_BUILDING, 500, 1200),
    _progress(pb.REBUILD_PHASE_BUILDING, 1000, 1200),
    _progress(pb.REBUILD_PHASE_CATCHING_UP, 3, 3),
    _progress(pb.REBUILD_PHASE_CLEANING, 0, 1200),
)
DONE = _progress(pb.REBUILD_PHASE_DONE, 1200, 1200)


def test_a_rebuild_says_what_it_built(run: Run, store: FakeStore) -> None:
    store.rebuild.then(*REBUILD, DONE, lambda: END)

    ended = run("projections", "rebuild")

    assert (ended.status, ended.err) == (0, "")
    assert ended.out.startswith("built 1,200 projections anew in ")
    assert ended.out.count("\n") == 1


def test_a_rebuild_shows_a_bar_on_a_terminal(run: Run, store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    store.rebuild.then(*REBUILD, DONE, lambda: END)

    ended = run("projections", "rebuild")

    assert "cleaning up" in ended.err
    assert "0/1200" in ended.err


def test_a_rebuild_in_json_is_its_progress(run: Run, store: FakeStore) -> None:
    store.rebuild.then(*REBUILD, DONE, lambda: END)

    records = run("projections", "rebuild", "--json").records

    assert len(records) == 5
    assert records[0] == {"phase": "REBUILD_PHASE_BUILDING", "done_count": "500", "total_count": "1200"}


def test_a_rebuild_that_was_cut_off_is_a_failure(run: Run, store: FakeStore) -> None:
    store.rebuild.then(*REBUILD, lambda: END)

    ended = run("projections", "rebuild")

    assert (ended.status, ended.out) == (1, "")
    assert ended.err == "omnibridge: store: the rebuild ended before it said that it was done\n"


def test_a_second_rebuild_is_one_line(run: Run, store: FakeStore) -> None:
    store.rebuild.then(FailedPrecondition("another is under way", reason=errors_pb2.ERROR_REASON_REBUILD_RUNNING))

    ended = run("projections", "rebuild")

    assert (ended.status, ended.err) == (1, "omnibridge: store: REBUILD_RUNNING: another is under way\n")


def test_watermarks_are_a_row_a_partition(run: Run, store: FakeStore) -> None:
    store.watermarks = pb.GetWatermarksResponse(
        watermarks=[
            pb.Watermark(partition=0, next_offset=9, first_offset=2, first_event_offset=4, watermark=9, lag=lag(0)),
            pb.Watermark(partition=1, next_offset=9, watermark=7, lag=lag(2, 1500)),
        ]
    )

    ended = run("projections", "watermarks")

    rows = [line.split() for line in ended.out.splitlines()]
    assert ["0", "2", "4", "9", "9", "0", "0", "s"] in rows
    assert ["1", "0", "0", "9", "7", "2", "1.5", "s"] in rows
    assert ended.out.endswith("\n2 partitions, 2 commits behind\n")
    assert [record["partition"] for record in run("projections", "watermarks", "--json").records] == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        pytest.param(["list", "--index", "owner"], "an indexed field is written as NAME=VALUE", id="index"),
        pytest.param(["list", "--index", "a=1", "--index", "a=2"], "--index a: a field has one value", id="twice"),
        pytest.param(["list", "--updated-after", "yesterday"], "a time is written as", id="time"),
        pytest.param(["list", "--order", "size"], "'size' is not one of", id="order"),
        pytest.param(["count", "--by", "size"], "tag, namespace, collection, index:NAME", id="group"),
        pytest.param(["count", "--by", "index:"], "tag, namespace, collection, index:NAME", id="group without a name"),
        pytest.param(["show", "a/b", "--max-wait", "-1s"], "a length of time is written as", id="wait"),
        pytest.param(["show", "a/b", "--min-version", "-1"], "Invalid value for '--min-version'", id="version"),
    ],
)
def test_a_malformed_option_is_wrong_usage(run: Run, arguments: list[str], line: str) -> None:
    ended = run("projections", *arguments)

    assert ended.status == 2
    assert line in ended.err
    assert ended.err.count("\n") == 1
