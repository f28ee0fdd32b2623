"""Readers over the real store: sessions, their panes as committed, and the feed of panes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.reducer.v1 import aggregation_pb2 as pb
from omninode.bridge.reducer.v1.reducer_pb2_grpc import ReducerServiceStub
from omninode.bridge.store.v1.store_pb2_grpc import StoreServiceStub
from services.chassis.client import ClientSettings, connect
from services.chassis.errors import BridgeError, InvalidArgument, NotFound, ResourceExhausted
from services.chassis.feed import FeedSettings
from services.reducer.aggregation.contract import SessionStage
from services.reducer.aggregation.durable import OWN_SESSION, key_of
from services.reducer.aggregation.session import Part
from tests.chaos.proxy import proxy, to_port
from tests.reducer.aggregation.reading import QUIET, Script, following, reading_stub
from tests.reducer.aggregation.scripted import CONFIG, LATENESS, SIZE, cell_id
from tests.store.node import store_node, store_stub
from tests.store.watching import watching

FILE_TYPE = pb.AGGREGATION_STRATEGY_FILE_TYPE_GROUPING


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Any]:
    async with store_stub(database_url) as stub:
        yield stub


def counts(panes: Any) -> list[tuple[str, int, int, bool]]:
    """Key, items, revision, whether final."""
    return [(pane.key, pane.count, pane.revision, pane.is_final) for pane in panes]


async def panes_of(reader: ReducerServiceStub, **request: Any) -> list[tuple[str, int, int, bool]]:
    return counts((await reader.GetAggregates(pb.GetAggregatesRequest(session="uploads", **request))).panes)


async def test_aggregates_are_as_they_were_committed_before_the_call(store: Any) -> None:
    script = Script(store)
    async with reading_stub(store, stages={"uploads": SessionStage.PERSISTING}) as reader:
        await script.commit([(cell_id(0, "py"), 4), (cell_id(1, "md"), 2)])
        assert await panes_of(reader) == [("md", 1, 1, False), ("py", 1, 1, False)]
        await script.commit([(cell_id(0, "py"), 8)], SIZE)
        assert await panes_of(reader) == [("md", 1, 1, False), ("py", 2, 2, False)]
        # What a reader has missed is not kept as deltas: it is read from the checkpoint.
        await script.commit([(cell_id(1, "md"), 1)])
        await script.commit(watermark=SIZE + LATENESS)
        await script.checkpoint(keep=0)
        await script.commit([(cell_id(1, "md"), 1)])
        assert await panes_of(reader) == [("md", 3, 3, False), ("py", 2, 3, True)]
        assert await panes_of(reader, filter=pb.PaneFilter(final_only=True)) == [("py", 2, 3, True)]
        assert await panes_of(reader, filter=pb.PaneFilter(key="md")) == [("md", 3, 3, False)]
        assert await panes_of(reader, filter=pb.PaneFilter(namespace="elsewhere")) == []
        assert len(await panes_of(reader, filter=pb.PaneFilter(strategies=[FILE_TYPE]))) == 2
        answer = await reader.GetAggregates(pb.GetAggregatesRequest(session="uploads"))
        pane, session = answer.panes[1], answer.session
        assert pane == pb.Pane(
            strategy=FILE_TYPE,
            window_start_time=Timestamp(),
            window_end_time=Timestamp(nanos=SIZE * 1000),
            key="py",
            count=2,
            total_bytes=12,
            min_bytes=4,
            max_bytes=8,
            mean_bytes=6,
            distinct_file_types=pb.DistinctCount(count=1),
            distinct_workflows=pb.DistinctCount(count=2),
            workflow_states={"COMPLETED": 2},
            revision=3,
            timing=pb.PANE_TIMING_ON_TIME,
            is_final=True,
        )
        assert session == (await reader.GetSession(pb.GetSessionRequest(session="uploads"))).session
        assert session.state == pb.SESSION_STATE_PERSISTING
        assert (session.offset, session.item_count, session.part_count) == (6, 5, 1)
        assert session.watermark == Timestamp(nanos=(SIZE + LATENESS) * 1000)
        assert session.config.tumbling.size.nanos == SIZE * 1000
        assert session.config.HasField("early_period")
        assert session.config.exact_distinct == CONFIG.exact_distinct


async def test_a_walk_of_pages_shows_every_pane_once(store: Any) -> None:
    script = Script(store)
    await script.commit([(cell_id(window, key), 1) for window in range(3) for key in "abcd"])
    async with reading_stub(store) as reader:
        shown, token, pages = [], "", 0
        while token or not pages:
            request = pb.GetAggregatesRequest(session="uploads", page_size=5, page_token=token)
            page = await reader.GetAggregates(request)
            shown += [(pane.window_start_time.nanos // 1000 // SIZE, pane.key) for pane in page.panes]
            token, pages = page.next_page_token, pages + 1
            if pages == 1:
                request.filter.key, request.page_token = "a", token
                with pytest.raises(InvalidArgument) as caught:
                    await reader.GetAggregates(request)
                assert caught.value.reason == errors_pb2.ERROR_REASON_PAGE_TOKEN_MISMATCH
        assert shown == [(window, key) for window in (2, 1, 0) for key in "abcd"]
        assert pages == 3


async def test_a_watcher_is_shown_what_there_is_then_what_changes_and_resumes_on_another_node(store: Any) -> None:
    script = Script(store)
    await script.commit([(cell_id(0, "py"), 4), (cell_id(0, "md"), 2)])
    async with reading_stub(store) as reader:
        async with watching(reader.WatchAggregates(pb.WatchAggregatesRequest(session="uploads"))) as watch:
            assert sorted(counts(await watch.until("caught_up"))) == [("md", 1, 1, False), ("py", 1, 1, False)]
            await script.commit([(cell_id(0, "py"), 8)])
            assert counts(await watch.until_items(3))[2:] == [("py", 2, 2, False)]
            cursor = watch.cursor
        await script.commit([(cell_id(0, "md"), 8)])
        await script.checkpoint()
    async with reading_stub(store) as other:
        request = pb.WatchAggregatesRequest(session="uploads", cursor=cursor)
        async with watching(other.WatchAggregates(request)) as watch:
            assert counts(await watch.until("caught_up")) == [("md", 2, 2, False)]
        request.filter.key = "md"
        with pytest.raises(InvalidArgument) as caught:
            await anext(aiter(other.WatchAggregates(request)))
        assert caught.value.reason == errors_pb2.ERROR_REASON_CURSOR_MISMATCH
        request = pb.WatchAggregatesRequest(session="uploads", from_beginning=True, filter=pb.PaneFilter(key="py"))
        async with watching(other.WatchAggregates(request)) as watch:
            assert counts(await watch.until("caught_up")) == [("py", 2, 2, False)]


async def test_a_session_is_watched_before_it_is_there_and_through_a_connection_that_breaks(database_url: str) -> None:
    once = ClientSettings(attempts=1)
    async with (
        store_node(database_url) as target,
        proxy(to_port(int(target.rpartition(":")[2]))) as between,
        connect(target, once) as straight,
        connect(f"127.0.0.1:{between.port}", once) as breaking,
        reading_stub(StoreServiceStub(breaking)) as reader,
        watching(reader.WatchAggregates(pb.WatchAggregatesRequest(session="uploads"))) as watch,
    ):
        script = Script(StoreServiceStub(straight))
        assert await watch.until("caught_up") == []
        await script.commit([(cell_id(0, "py"), 4)])
        assert counts(await watch.until_items(1)) == [("py", 1, 1, False)]
        assert between.cut()
        # What is committed meanwhile is missed twice: the stream is away, and its deltas are released.
        await script.commit([(cell_id(0, "py"), 4)])
        await script.checkpoint(keep=0)
        assert counts(await watch.until_items(2))[1:] == [("py", 2, 2, False)]


async def test_the_parts_of_the_meshs_own_session_are_one_to_its_readers(store: Any) -> None:
    one, other = Script(store, OWN_SESSION, 3), Script(store, OWN_SESSION, 11)
    await one.commit([(cell_id(0, "py"), 4)], 3)
    for name in ("a", "uploads", "z"):
        await Script(store, name).commit()
    async with reading_stub(store) as reader:
        async with watching(reader.WatchAggregates(pb.WatchAggregatesRequest(session=OWN_SESSION))) as watch:
            assert counts(await watch.until("caught_up")) == [("py", 1, 1, False)]
            await other.commit([(cell_id(0, "py"), 5)], 7)
            assert counts(await watch.until_items(2))[1:] == [("py", 2, 2, False)]
        session = (await reader.GetSession(pb.GetSessionRequest(session=OWN_SESSION))).session
        assert (session.item_count, session.offset, session.part_count) == (2, 0, 16)
        assert not session.HasField("watermark"), "not every part has one"
        for page_size in (1, 3, 100):
            assert await listed(reader, page_size) == ["a", "uploads", OWN_SESSION, "z"]
        assert (await reader.ListSessions(pb.ListSessionsRequest(page_size=100))).sessions[2] == session


async def listed(reader: ReducerServiceStub, page_size: int) -> list[str]:
    """Every session, once the projections show all of them."""
    async with asyncio.timeout(20):
        while True:
            names: list[str] = []
            request = pb.ListSessionsRequest(page_size=page_size)
            while not names or request.page_token:
                page = await reader.ListSessions(request)
                assert len(page.sessions) <= page_size
                names += [session.session for session in page.sessions]
                request.page_token = page.next_page_token
            if len(names) >= 4:
                return names


async def test_a_session_that_memory_does_not_hold_is_refused_and_one_that_nobody_reads_makes_room(store: Any) -> None:
    large, small = Script(store, "large"), Script(store, "small")
    await large.commit([(cell_id(0, f"key {number}"), 1) for number in range(100)])
    await small.commit([(cell_id(0, "py"), 1)])
    async with reading_stub(store, memory_bytes=100_000, feed=FeedSettings(checkpoint_seconds=0.02)) as reader:
        await reader.GetAggregates(pb.GetAggregatesRequest(session="small"))
        await large.commit([(cell_id(0, "more"), 1)])
        with pytest.raises(ResourceExhausted) as caught:
            await reader.GetAggregates(pb.GetAggregatesRequest(session="large"))
        assert caught.value.reason == errors_pb2.ERROR_REASON_SESSION_TOO_LARGE
        assert caught.value.metadata == {"session": "large", "limit_bytes": "100000"}
        # A watcher is told when its session has outgrown the memory.
        async with watching(reader.WatchAggregates(pb.WatchAggregatesRequest(session="small"))) as watch:
            await watch.until("caught_up")
            await small.commit([(cell_id(1, f"key {number}"), 1) for number in range(200)])
            with pytest.raises(ResourceExhausted) as caught:
                await watch.until("reset")
            assert caught.value.reason == errors_pb2.ERROR_REASON_SESSION_TOO_LARGE


async def test_a_subscriber_hears_who_writes_a_session_now(store: Any) -> None:
    script = Script(store)
    await script.commit()
    heard: asyncio.Queue[Part] = asyncio.Queue()
    async with asyncio.timeout(20), following(store) as follower:
        end = follower.subscribe(key_of("uploads"), heard.put_nowait)
        assert (await heard.get()).head.writer == "one"
        await script.commit(writer="another")
        assert (await heard.get()).head.writer == "another"
        end()


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    [
        ("GetSession", pb.GetSessionRequest(session="a/b"), "session"),
        ("GetSession", pb.GetSessionRequest(), "session"),
        ("GetAggregates", pb.GetAggregatesRequest(session="s", page_size=-1), "page_size"),
        (
            "GetAggregates",
            pb.GetAggregatesRequest(
                session="s", filter=pb.PaneFilter(strategies=[pb.AGGREGATION_STRATEGY_UNSPECIFIED])
            ),
            "filter.strategies[0]",
        ),
        ("GetAggregates", pb.GetAggregatesRequest(session="s", filter=pb.PaneFilter(key="k" * 441)), "filter.key"),
        (
            "WatchAggregates",
            pb.WatchAggregatesRequest(session="s", filter=pb.PaneFilter(namespace="\0")),
            "filter.namespace",
        ),
        ("ListSessions", pb.ListSessionsRequest(page_size=-1), "page_size"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
async def test_a_malformed_question_is_refused_by_its_field_without_a_store(
    method: str, request_: Any, field: str
) -> None:
    async with reading_stub(None) as reader:
        call = getattr(reader, method)(request_)
        with pytest.raises(InvalidArgument) as caught:
            await (anext(aiter(call)) if method.startswith("Watch") else call)
        assert caught.value.violations[0].field == field


async def test_a_session_that_nobody_has_opened_is_not_found(store: Any) -> None:
    async with reading_stub(store) as reader:
        for call in (
            reader.GetSession(pb.GetSessionRequest(session="nobody")),
            reader.GetAggregates(pb.GetAggregatesRequest(session="nobody")),
        ):
            with pytest.raises(NotFound) as caught:
                await call
            assert caught.value.reason == errors_pb2.ERROR_REASON_SESSION_NOT_FOUND
            assert caught.value.metadata == {"session": "nobody"}
        assert not (await reader.ListSessions(pb.ListSessionsRequest())).sessions


async def test_one_watcher_more_than_the_limit_is_refused_whatever_its_session(store: Any) -> None:
    feed = QUIET.model_copy(update={"max_watchers": 1})
    async with (
        reading_stub(store, feed=feed) as reader,
        watching(reader.WatchAggregates(pb.WatchAggregatesRequest(session="one"))) as watch,
    ):
        await watch.until("caught_up")
        with pytest.raises(BridgeError) as caught:
            await anext(aiter(reader.WatchAggregates(pb.WatchAggregatesRequest(session="other"))))
        assert caught.value.reason == errors_pb2.ERROR_REASON_TOO_MANY_WATCHERS
