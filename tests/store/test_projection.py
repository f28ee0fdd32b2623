"""Projections as they are listed and counted: every filter, both orders, stable pages, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import ValidationError

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.store.v1 import store_pb2 as pb
from omninode.bridge.store.v1.store_pb2_grpc import StoreServiceStub
from services.chassis.errors import InvalidArgument
from services.chassis.timestamp import to_timestamp
from services.store.domain import Limits
from services.store.projection import CountQuery, Lag, total_lag
from tests.store.projecting import Replica, replica
from tests.store.sample import PARTITIONS, commit, keys_in, sql

pytestmark = pytest.mark.asyncio(loop_scope="module")

DAY = datetime(2024, 5, 1, tzinfo=UTC)
KEY, NEWEST = pb.PROJECTION_ORDER_KEY, pb.PROJECTION_ORDER_NEWEST_FIRST


@pytest_asyncio.fixture(loop_scope="module")
async def store(database_url: str) -> AsyncIterator[Replica]:
    """A replica on the test's own database; it owns nothing yet."""
    async with replica(database_url) as store:
        yield store


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def peopled(shared_url: str) -> AsyncIterator[Replica]:
    """A replica whose database holds six keys, each another day, and is not written to any more."""
    async with replica(shared_url) as store:
        for key, tag, namespace, indices in (
            ("workflow/a", "RUNNING", "docs", {"owner": "ann", "kind": "x"}),
            ("workflow/b", "DONE", "docs", {"owner": "bob"}),
            ("workflow/c", "FAILED", "", {"owner": "ann"}),
            ("aggregate/a", "OPEN", "docs", {}),
            ("workflow-x/a", "RUNNING", "code", {"owner": "ann", "kind": "y"}),
            ("workflow0/a", "DONE", "code", {"owner": ""}),
        ):
            projection = pb.ProjectionInput(tag=tag, namespace=namespace, indices=indices)
            await store.commit(key, projection=projection)
        async with sql(shared_url) as connection:
            await connection.execute(
                "UPDATE workflow_state SET created_at = $1::timestamptz + place * interval '1 day',"
                " updated_at = $1::timestamptz + (20 - place) * interval '1 day'"
                " FROM (SELECT key, row_number() OVER (ORDER BY created_at) - 1 AS place FROM workflow_state) AS placed"
                " WHERE placed.key = workflow_state.key",
                DAY,
            )
        await store.project_all()
        yield store


def day(number: int) -> Timestamp:
    return to_timestamp(DAY + timedelta(days=number))


def wanted(**fields: Any) -> pb.ProjectionFilter:
    return pb.ProjectionFilter(**fields)


FILTERS = [
    pytest.param(wanted(), "aA wA wB wC xA 0A", id="none"),
    pytest.param(wanted(collection="workflow"), "wA wB wC", id="collection"),
    pytest.param(wanted(collection="nobody"), "", id="collection of nothing"),
    pytest.param(wanted(namespace="docs"), "aA wA wB", id="namespace"),
    pytest.param(wanted(namespace=""), "wC", id="empty namespace"),
    pytest.param(wanted(tags=["DONE"]), "wB 0A", id="tag"),
    pytest.param(wanted(tags=["DONE", "RUNNING", "DONE", "none"]), "wA wB xA 0A", id="tags"),
    pytest.param(wanted(indices={"owner": "ann"}), "wA wC xA", id="index"),
    pytest.param(wanted(indices={"owner": "ann", "kind": "x"}), "wA", id="indices"),
    pytest.param(wanted(indices={"owner": ""}), "0A", id="empty index"),
    pytest.param(wanted(created_after=day(2)), "aA wC xA 0A", id="created after, inclusive"),
    pytest.param(wanted(created_before=day(2)), "wA wB", id="created before, exclusive"),
    pytest.param(wanted(created_after=day(1), created_before=day(3)), "wB wC", id="created between"),
    pytest.param(wanted(updated_after=day(18)), "wA wB wC", id="updated after, inclusive"),
    pytest.param(wanted(updated_before=day(18)), "aA xA 0A", id="updated before, exclusive"),
    pytest.param(wanted(updated_after=day(16), updated_before=day(18)), "aA xA", id="updated between"),
    pytest.param(
        wanted(
            collection="workflow",
            namespace="docs",
            tags=["RUNNING", "FAILED"],
            indices={"owner": "ann"},
            created_after=day(0),
            created_before=day(5),
            updated_after=day(0),
            updated_before=day(30),
        ),
        "wA",
        id="all",
    ),
]
_NAMES = {
    "workflow/a": "wA",
    "workflow/b": "wB",
    "workflow/c": "wC",
    "aggregate/a": "aA",
    "workflow-x/a": "xA",
    "workflow0/a": "0A",
}


def names(projections: Sequence[pb.Projection]) -> list[str]:
    return [_NAMES[projection.key] for projection in projections]


async def walk(store: Replica, page_size: int = 2, **query: Any) -> list[pb.Projection]:
    """All pages."""
    shown: list[pb.Projection] = []
    token = ""
    while True:
        page = await store.stub.ListProjections(
            pb.ListProjectionsRequest(page_size=page_size, page_token=token, **query)
        )
        assert len(page.projections) <= page_size
        shown.extend(page.projections)
        token = page.next_page_token
        if not token:
            return shown


@pytest.mark.parametrize("page_size", [1, 2, 100])
@pytest.mark.parametrize(("query", "fitting"), FILTERS)
async def test_a_walk_shows_what_fits_the_filter_in_the_order_of_keys(
    peopled: Replica, query: pb.ProjectionFilter, fitting: str, page_size: int
) -> None:
    shown = await walk(peopled, page_size, filter=query)
    assert [projection.key for projection in shown] == sorted(projection.key for projection in shown)
    assert sorted(names(shown)) == sorted(fitting.split())
    assert await walk(peopled, page_size, filter=query, order=KEY) == shown


@pytest.mark.parametrize("page_size", [1, 2, 100])
@pytest.mark.parametrize(("query", "fitting"), FILTERS)
async def test_the_newest_come_first_where_that_is_asked(
    peopled: Replica, query: pb.ProjectionFilter, fitting: str, page_size: int
) -> None:
    shown = await walk(peopled, page_size, filter=query, order=NEWEST)
    assert names(shown) == sorted(fitting.split(), key=["0A", "xA", "aA", "wC", "wB", "wA"].index)


@pytest.mark.parametrize(("query", "fitting"), FILTERS)
async def test_a_count_counts_what_a_walk_shows(peopled: Replica, query: pb.ProjectionFilter, fitting: str) -> None:
    count = await peopled.stub.CountProjections(pb.CountProjectionsRequest(filter=query))
    assert (count.total, list(count.groups), count.truncated) == (len(fitting.split()), [], False)


@pytest.mark.parametrize(
    ("group", "index", "groups"),
    [
        pytest.param("TAG", "", [("DONE", 2), ("RUNNING", 2), ("FAILED", 1), ("OPEN", 1)], id="tag"),
        pytest.param("NAMESPACE", "", [("docs", 3), ("code", 2), ("", 1)], id="namespace"),
        pytest.param(
            "COLLECTION", "", [("workflow", 3), ("aggregate", 1), ("workflow-x", 1), ("workflow0", 1)], id="collection"
        ),
        pytest.param("INDEX", "owner", [("ann", 3), ("", 2), ("bob", 1)], id="index"),
    ],
)
async def test_groups_are_counted_the_largest_first(
    peopled: Replica, group: str, index: str, groups: list[tuple[str, int]]
) -> None:
    request = pb.CountProjectionsRequest(
        group_by=pb.ProjectionGroup.Value(f"PROJECTION_GROUP_{group}"), group_index=index
    )
    count = await peopled.stub.CountProjections(request)
    assert [(found.value, found.count) for found in count.groups] == groups
    assert (count.total, count.truncated) == (6, False)
    request.filter.tags.append("nothing")
    nothing = await peopled.stub.CountProjections(request)
    assert (nothing.total, list(nothing.groups)) == (0, [])


async def test_of_many_groups_a_thousand_are_shown_and_all_are_counted(store: Replica, database_url: str) -> None:
    await store.project_all()
    async with sql(database_url) as connection:
        await connection.execute(
            "INSERT INTO workflow_projection SELECT 0, 'workflow/' || number, 0, 1, 'tag ' || number % 1001, '', '', now(), now(),"
            " false, '{}', '{}' FROM generate_series(0, 1001) AS number"
        )
    request = pb.CountProjectionsRequest(group_by=pb.PROJECTION_GROUP_TAG)
    count = await store.stub.CountProjections(request)
    assert (count.total, len(count.groups), count.truncated) == (1002, 1000, True)
    assert (count.groups[0].value, count.groups[0].count) == ("tag 0", 2)


@pytest.mark.parametrize("order", [KEY, NEWEST], ids=["key", "newest first"])
async def test_a_walk_shows_each_key_once_while_keys_change_and_are_added(store: Replica, order: Any) -> None:
    old = [f"workflow/{number:02}" for number in range(0, 40, 2)]
    projection = pb.ProjectionInput(tag="OLD")
    for key in old:
        await store.commit(key, projection=projection)
    await store.project_all()
    shown: list[str] = []
    token = ""
    for turn in range(100):
        request = pb.ListProjectionsRequest(order=order, page_size=3, page_token=token)
        page = await store.stub.ListProjections(request)
        shown += [projection.key for projection in page.projections]
        token = page.next_page_token
        if not token:
            break
        await asyncio.gather(*(store.commit(key, projection=pb.ProjectionInput(tag=f"{turn}")) for key in old))
        await store.commit(f"workflow/{2 * turn + 1:02}")
        await store.project_all()
    assert len(shown) == len(set(shown))
    assert set(old) <= set(shown)


async def test_keys_of_one_moment_are_all_shown_newest_first(store: Replica, database_url: str) -> None:
    keys = [f"workflow/{number}" for number in range(7)]
    await asyncio.gather(*(store.commit(key) for key in keys))
    async with sql(database_url) as connection:
        await connection.execute("UPDATE workflow_state SET created_at = $1", DAY)
    await store.project_all()
    shown = await walk(store, 2, order=NEWEST)
    assert [projection.key for projection in shown] == sorted(keys, reverse=True)


async def test_a_page_ends_where_its_extras_would_be_too_many(database_url: str) -> None:
    limits = Limits.model_construct(answer_state_bytes=250)
    async with replica(database_url, limits=limits) as store:
        for number, size in enumerate((100, 100, 100, 300, 20, 20)):
            extras = '{"e": "' + "x" * (size - 9) + '"}'
            assert len(extras) == size
            await store.commit(f"workflow/{number}", projection=pb.ProjectionInput(tag="A", extras_json=extras))
        await store.project_all()
        pages: list[list[str]] = []
        token = ""
        while token or not pages:
            page = await store.stub.ListProjections(pb.ListProjectionsRequest(page_size=4, page_token=token))
            pages.append([projection.key[-1] for projection in page.projections])
            token = page.next_page_token
        assert pages == [["0", "1"], ["2"], ["3"], ["4", "5"]]


async def test_a_token_of_another_query_is_refused(peopled: Replica) -> None:
    page = await peopled.stub.ListProjections(pb.ListProjectionsRequest(page_size=1))
    for other in (
        pb.ListProjectionsRequest(order=NEWEST),
        pb.ListProjectionsRequest(filter=wanted(tags=["DONE"])),
        pb.ListProjectionsRequest(filter=wanted(namespace="")),
    ):
        other.page_token = page.next_page_token
        with pytest.raises(InvalidArgument) as caught:
            await peopled.stub.ListProjections(other)
        assert caught.value.reason == errors_pb2.ERROR_REASON_PAGE_TOKEN_MISMATCH


async def test_the_lag_is_said_of_all_partitions_and_of_each(store: Replica, database_url: str) -> None:
    one, other = next(keys_in(1)), next(keys_in(2))
    for key in (one, one, one, other):
        await store.commit(key)
    async with sql(database_url) as connection:
        await connection.execute(
            "UPDATE workflow_commits SET committed_at = now() - interval '1 hour' WHERE partition = 2"
        )
    listed = (await store.stub.ListProjections(pb.ListProjectionsRequest())).lag
    counted = (await store.stub.CountProjections(pb.CountProjectionsRequest())).lag
    for lag in (listed, counted):
        assert lag.commits == 4
        assert timedelta(hours=1) <= lag.time.ToTimedelta() < timedelta(hours=2)
    await store.project_all()
    await store.commit(one)
    marks = (await store.stub.GetWatermarks(pb.GetWatermarksRequest())).watermarks
    assert [mark.partition for mark in marks] == list(range(PARTITIONS))
    assert [(mark.next_offset, mark.watermark, mark.lag.commits) for mark in marks[:3]] == [
        (0, 0, 0),
        (4, 3, 1),
        (1, 1, 0),
    ]
    assert timedelta(0) < marks[1].lag.time.ToTimedelta() < timedelta(hours=1)
    assert marks[2].lag.time.ToTimedelta() == timedelta(0)
    assert (marks[1].first_offset, marks[1].first_event_offset) == (0, 0)


@pytest.mark.parametrize(
    ("call", "request_message", "field"),
    [
        pytest.param("GetProjection", pb.GetProjectionRequest(key="none"), "key", id="key"),
        pytest.param(
            "GetProjection", pb.GetProjectionRequest(key="a/b", min_version=-1), "min_version", id="negative version"
        ),
        *(
            pytest.param("GetProjection", pb.GetProjectionRequest(key="a/b", max_wait=wait), "max_wait", id=name)
            for name, wait in {
                "a wait over 30 s": Duration(seconds=30, nanos=1),
                "a negative wait": Duration(seconds=-1),
                "a slightly negative wait": Duration(nanos=-1),
                "a wait of mixed signs": Duration(seconds=1, nanos=-1),
                "a wait of too many nanos": Duration(nanos=1_000_000_000),
                "an endless wait": Duration(seconds=2**63 - 1),
            }.items()
        ),
        *(
            pytest.param("ListProjections", pb.ListProjectionsRequest(filter=query), f"filter.{field}", id=name)
            for name, field, query in (
                ("collection", "collection", wanted(collection="a/b")),
                ("namespace", "namespace", wanted(namespace="x" * 256)),
                ("U+0000", "tags[1]", wanted(tags=["a", "\0"])),
                ("101 tags", "tags", wanted(tags=["a"] * 101)),
                ("17 indices", "indices", wanted(indices={str(number): "" for number in range(17)})),
                ("a time out of range", "created_after", wanted(created_after=Timestamp(seconds=2**60))),
                ("a time before the year 1", "updated_before", wanted(updated_before=Timestamp(seconds=-(2**60)))),
            )
        ),
        pytest.param("ListProjections", pb.ListProjectionsRequest(order=9), "order", id="order"),  # type: ignore[arg-type]
        pytest.param("ListProjections", pb.ListProjectionsRequest(page_size=-1), "page_size", id="page size"),
        pytest.param("ListProjections", pb.ListProjectionsRequest(page_token="x"), "page_token", id="page token"),
        pytest.param("CountProjections", pb.CountProjectionsRequest(group_by=9), "group_by", id="group"),  # type: ignore[arg-type]
        pytest.param("CountProjections", pb.CountProjectionsRequest(group_index="a"), "group_index", id="stray index"),
        pytest.param(
            "CountProjections",
            pb.CountProjectionsRequest(group_by=pb.PROJECTION_GROUP_TAG, group_index="a"),
            "group_index",
            id="an index of another group",
        ),
        pytest.param(
            "CountProjections",
            pb.CountProjectionsRequest(group_by=pb.PROJECTION_GROUP_INDEX),
            "group_index",
            id="missing index",
        ),
        pytest.param(
            "CountProjections", pb.CountProjectionsRequest(filter=wanted(tags=["\0"])), "filter.tags[0]", id="count tag"
        ),
    ],
)
async def test_bad_input_is_refused_by_its_field(peopled: Replica, call: str, request_message: Any, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await getattr(peopled.stub, call)(request_message)
    assert [violation.field for violation in caught.value.violations] == [field]


async def test_a_wait_of_thirty_seconds_is_taken(peopled: Replica) -> None:
    answer = await peopled.get("workflow/a", 1, 30)
    assert answer.source == pb.PROJECTION_SOURCE_PROJECTION


async def test_the_lag_of_no_partitions_is_none() -> None:
    assert total_lag([]) == Lag(0, timedelta())
    assert total_lag([Lag(2, timedelta(1)), Lag(1, timedelta(3))]) == Lag(3, timedelta(3))


async def test_a_group_that_is_unknown_is_blamed_itself_and_not_its_index() -> None:
    query = {"filter": None, "group_by": 9, "group_index": "a"}
    with pytest.raises(ValidationError) as caught:
        CountQuery.model_validate(query)
    assert {error["loc"][0] for error in caught.value.errors()} == {"filter", "group_by"}


async def test_a_caller_with_less_time_than_it_would_wait_is_answered_from_the_state(stub: StoreServiceStub) -> None:
    committed = commit()
    await stub.TryCommit(committed)
    asked = pb.GetProjectionRequest(key=committed.key, min_version=2)
    asked.max_wait.FromSeconds(30)
    answer = await stub.GetProjection(asked, timeout=0.5)
    assert (answer.source, answer.projection.version) == (pb.PROJECTION_SOURCE_CANONICAL, 1)
