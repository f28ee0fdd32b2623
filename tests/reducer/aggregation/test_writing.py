"""Aggregate as its writers meet it: real stub, real socket, real store, real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.reducer.v1 import aggregation_pb2 as pb
from omninode.bridge.reducer.v1.reducer_pb2_grpc import ReducerServiceStub
from omninode.bridge.store.v1.store_pb2_grpc import StoreServiceStub
from services.chassis.errors import BridgeError, InvalidArgument, Unavailable
from services.reducer.aggregation.request import to_batch
from services.reducer.aggregation.sessions import Sessions
from tests.reducer.aggregation.writing import (
    FINISH,
    NOW,
    Writing,
    columns,
    heartbeat,
    opening,
    sessions_over,
    terms_of,
    writing_stub,
)
from tests.store.node import store_stub


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[StoreServiceStub]:
    async with store_stub(database_url) as stub:
        yield stub


@pytest.fixture
def sessions(store: StoreServiceStub) -> Sessions:
    return sessions_over(store)


@pytest.fixture
async def stub(sessions: Sessions) -> AsyncIterator[ReducerServiceStub]:
    async with writing_stub(sessions) as stub:
        yield stub


def shown(panes: list[pb.Pane]) -> list[tuple[int, str, int, int, bool]]:
    """Of panes the window's second, key, count, timing and finality."""
    return [(pane.window_start_time.seconds - NOW, pane.key, pane.count, pane.timing, pane.is_final) for pane in panes]


ON_TIME, REVISED, EARLY = pb.PANE_TIMING_ON_TIME, pb.PANE_TIMING_REVISED, pb.PANE_TIMING_EARLY


async def test_a_window_is_shown_on_time_then_revised_then_final_and_what_comes_after_is_late(
    stub: ReducerServiceStub,
) -> None:
    writing = Writing(stub, opening("s"))
    assert (await writing.opened()).next_offset == 1
    writing.send(columns(1, [0, 1, 4.9]))
    await writing.until(3)
    assert not writing.panes
    writing.send(columns(4, [5.5]))
    await writing.until(4)
    assert shown(writing.panes) == [(0, "a", 3, ON_TIME, False)]
    writing.send(columns(5, [4]))
    await writing.until(5)
    assert shown(writing.panes)[1:] == [(0, "a", 4, REVISED, False)]
    writing.send(heartbeat(6, 7))
    await writing.until(6)
    assert shown(writing.panes)[2:] == [(0, "a", 4, REVISED, True)]
    writing.send(columns(7, [3, 6]))
    await writing.until(8)
    assert [(item.offset, item.rejection) for item in writing.rejected] == [(7, pb.REJECTION_LATE)]
    assert writing.rejected[0].watermark.seconds == NOW + 7


async def test_finish_makes_everything_final_and_ends_the_session(stub: ReducerServiceStub) -> None:
    writing = Writing(stub, opening("s"))
    writing.send(columns(1, [0, 6]), FINISH)
    await writing.rest()
    assert [pane[:3] for pane in shown(writing.panes) if pane[-1]] == [(0, "a", 1), (5, "a", 1)]
    again = Writing(stub, opening("s", 2))
    opened = await again.opened()
    assert opened.session.finished
    assert opened.session.state == pb.SESSION_STATE_IDLE
    again.send(columns(3, [7]))
    with pytest.raises(BridgeError) as refused:
        await again.rest()
    assert refused.value.reason == errors_pb2.ERROR_REASON_SESSION_FINISHED


async def test_a_stream_that_ends_leaves_its_windows_to_the_next(stub: ReducerServiceStub, sessions: Sessions) -> None:
    writing = Writing(stub, opening("s"))
    writing.send(columns(1, [0, 1]))
    writing.half_close()
    await writing.rest()
    assert (writing.offset, writing.panes) == (2, [])
    again = Writing(stub, opening("s", 2))
    opened = await again.opened()
    assert opened.next_offset == 3
    assert opened.session.item_count == 2
    again.send(columns(3, [2]), FINISH)
    await again.rest()
    assert shown(again.panes) == [(0, "a", 3, ON_TIME, True)]


async def test_a_writer_that_was_cut_off_sends_again_and_nothing_is_lost_or_counted_twice(
    stub: ReducerServiceStub,
) -> None:
    writing = Writing(stub, opening("s"))
    writing.send(columns(1, [0, 1, 6]))
    await writing.until(3)
    assert shown(writing.panes) == [(0, "a", 2, ON_TIME, False)]
    writing.call.cancel()
    # Its last acknowledgement was lost on the way.
    again = Writing(stub, opening("s", 0))
    assert (await again.opened()).next_offset == 4
    again.send(columns(1, [0, 1, 6]), columns(3, [6, 8]), FINISH)
    with pytest.raises(InvalidArgument, match="must be above 3"):
        await again.rest()
    last = Writing(stub, opening("s", 0))
    last.send(columns(2, [1, 6, 8]), FINISH)
    await last.rest()
    # What was answered is answered again, and equal.
    assert shown(last.panes)[0] == shown(writing.panes)[0]
    assert shown(last.panes)[1:] == [(0, "a", 2, REVISED, True), (5, "a", 2, ON_TIME, True)]


async def test_what_finish_made_final_is_answered_again_to_who_has_not_heard_it(stub: ReducerServiceStub) -> None:
    writing = Writing(stub, opening("s"))
    writing.send(columns(1, [0, 1]))
    await writing.until(2)
    writing.send(FINISH)
    await writing.rest()
    # It was killed with the last acknowledgement of items seen, and that of the end not.
    again = Writing(stub, opening("s", 2))
    again.half_close()
    await again.rest()
    assert shown(again.panes) == shown(writing.panes) == [(0, "a", 2, ON_TIME, True)]
    assert again.offset == 2


async def test_a_commit_holds_whole_messages_alone(sessions: Sessions) -> None:
    head = sessions.new_head("s", terms_of().sessions)
    async with sessions.writing("aggregate/s", lambda _part: head) as writer:
        batch = to_batch(columns(1, [0] * 5000).columns, limit=10_000, latest=2**62, payloads=False)
        adding = asyncio.ensure_future(writer.add(batch.columns, batch.offsets, batch.last_offset))
        await asyncio.sleep(0)
        await writer.commit()
        assert writer.head.progress.item_count == writer.head.offset
        await adding


async def test_a_message_that_was_counted_in_part_is_not_committed(store: StoreServiceStub) -> None:
    async with writing_stub(sessions_over(store, terms_of(session_bytes=300_000))) as stub:
        writing = Writing(stub, opening("s", strategies=["AGGREGATION_STRATEGY_WORKFLOW_GROUPING"]))
        writing.send(columns(1, [0]))
        await writing.until(1)
        many = columns(2, [0] * 3000)
        many.columns.texts.extend(f"workflow-{number}" for number in range(3000))
        many.columns.workflow_ids.extend(range(1, 3001))
        writing.send(many)
        with pytest.raises(BridgeError) as refused:
            await writing.rest()
        assert refused.value.reason == errors_pb2.ERROR_REASON_SESSION_TOO_LARGE
    async with writing_stub(sessions_over(store)) as stub:
        again = Writing(stub, opening("s", strategies=["AGGREGATION_STRATEGY_WORKFLOW_GROUPING"]))
        opened = await again.opened()
        assert (opened.next_offset, opened.session.item_count) == (2, 1)
        again.send(many, FINISH)
        await again.rest()
        assert len([pane for pane in again.panes if pane.is_final]) == 3001


async def test_another_node_goes_on_where_the_first_was_killed(store: StoreServiceStub) -> None:
    first, second = sessions_over(store, terms_of(checkpoint_commits=3)), sessions_over(store)
    async with writing_stub(first) as stub:
        writing = Writing(stub, opening("s"))
        for offset in range(1, 9):
            writing.send(columns(offset, [offset], size=offset))
            await writing.until(offset)
        # It is not left: the first node knows nothing of what comes.
        async with writing_stub(second) as other:
            again = Writing(other, opening("s", 8))
            assert (await again.opened()).next_offset == 9
            again.send(columns(9, [9], size=9), FINISH)
            await again.rest()
            # The first window was final before.
            assert shown(writing.panes)[-1] == (0, "a", 4, REVISED, True)
            assert [(pane.window_start_time.seconds - NOW, pane.count, pane.total_bytes) for pane in again.panes] == [
                (5, 5, 35)
            ]
            writing.send(columns(9, [9]))
            with pytest.raises(BridgeError) as refused:
                await writing.rest()
            assert refused.value.reason == errors_pb2.ERROR_REASON_SESSION_TAKEN_OVER


async def test_who_is_taken_over_on_the_same_node_is_told_at_once(stub: ReducerServiceStub) -> None:
    writing = Writing(stub, opening("s"))
    await writing.opened()
    again = Writing(stub, opening("s"))
    await again.opened()
    with pytest.raises(BridgeError) as refused:
        await writing.rest()
    assert refused.value.reason == errors_pb2.ERROR_REASON_SESSION_TAKEN_OVER
    again.send(columns(1, [0]))
    await again.until(1)


async def test_early_panes_show_what_is_committed_of_open_windows(stub: ReducerServiceStub) -> None:
    writing = Writing(stub, opening("s", early_period="0.001s"))
    writing.send(columns(1, [0, 1]))
    while not writing.panes:
        await writing.next()
    assert shown(writing.panes) == [(0, "a", 2, EARLY, False)]


async def test_items_at_fault_are_answered_and_the_others_counted(stub: ReducerServiceStub) -> None:
    writing = Writing(stub, opening("s"))
    faulty = columns(1, [0, 3600, 1])
    faulty.columns.sizes_bytes[2] = -1
    writing.send(faulty, FINISH)
    await writing.rest()
    assert [(item.offset, item.error.field_violations[0].field) for item in writing.rejected] == [
        (2, "items[1].event_time"),
        (3, "items[2].size_bytes"),
    ]
    assert shown(writing.panes) == [(0, "a", 1, ON_TIME, True)]


AT_FAULT = [
    ([columns(1, [0])], "open"),
    ([opening("workflows")], "open.session"),
    ([opening("no name")], "open.session"),
    ([opening("s", 1)], "open.acknowledged_offset"),
    ([opening("s", -1)], "open.acknowledged_offset"),
    ([opening("s", tumbling={"size": "0s"})], "open.config.tumbling.size"),
    ([opening("s", strategies=["AGGREGATION_STRATEGY_CUSTOM"], custom_fold="none")], "open.config.custom_fold"),
    ([opening("s"), opening("s")], "open"),
    ([opening("s"), pb.AggregateRequest()], "frame"),
    ([opening("s"), columns(5, [0]), columns(5, [0])], "columns.first_offset"),
    ([opening("s"), heartbeat(5, 0), heartbeat(4, 0)], "heartbeat.offset"),
    ([opening("s"), columns(1, [0] * 10_001)], "columns.event_times_us"),
]


async def test_a_message_at_fault_ends_the_stream_with_its_field_and_the_session_survives(
    stub: ReducerServiceStub,
) -> None:
    # One session after another on one node: a database for each case would take most of the test's time.
    for number, (messages, field) in enumerate(AT_FAULT):
        session = f"s{number}"
        for message in messages:
            if message.open.session == "s":
                message.open.session = session
        writing = Writing(stub, messages[0])
        writing.send(*messages[1:])
        with pytest.raises(InvalidArgument) as refused:
            await writing.rest()
        assert [violation.field for violation in refused.value.violations] == [field]
        again = Writing(stub, opening(session))
        counted = (await again.opened()).next_offset - 1
        again.send(columns(counted + 1, [0]))
        await again.until(counted + 1)
        again.half_close()
        await again.rest()


async def test_another_configuration_is_refused_and_the_writer_stays(stub: ReducerServiceStub) -> None:
    writing = Writing(stub, opening("s"))
    await writing.opened()
    again = Writing(stub, opening("s", tumbling={"size": "6s"}))
    with pytest.raises(BridgeError) as refused:
        await again.rest()
    assert refused.value.reason == errors_pb2.ERROR_REASON_SESSION_CONFIG_DIFFERS
    assert refused.value.metadata["field"] == "open.config.tumbling"
    writing.send(columns(1, [0]))
    await writing.until(1)


async def test_a_node_that_stops_commits_what_it_has_taken_in(stub: ReducerServiceStub, sessions: Sessions) -> None:
    writing = Writing(stub, opening("s", max_wait="10s"))
    writing.send(columns(1, [0]), columns(2, [0] * 10_000), columns(10_002, [0] * 10_000))
    # So many are not kept waiting; one more is.
    await writing.until(20_001)
    writing.send(columns(20_002, [1]))
    while sessions.taken_in("s") < 20_002:  # noqa: ASYNC110  # turns of the same event loop, and nobody tells of items taken in
        await asyncio.sleep(0)
    sessions.drain()
    with pytest.raises(Unavailable):
        await writing.rest()
    assert writing.offset == 20_002
    again = Writing(stub, opening("t"))
    with pytest.raises(Unavailable):
        await again.rest()


async def test_windows_that_do_not_fit_into_memory_are_evicted_and_come_back(store: StoreServiceStub) -> None:
    crowded = sessions_over(store, terms_of(session_bytes=3000))
    async with writing_stub(crowded) as stub:
        writing = Writing(stub, opening("s", allowed_lateness="1000s"))
        offset = 1
        for number in range(3):
            for window in range(4):
                writing.send(columns(offset, [5 * window + number], namespace=f"n{number % 2}" * 60))
                await writing.until(offset)
                offset += 1
        writing.send(FINISH)
        await writing.rest()
        final = [(pane.window_start_time.seconds - NOW, pane.count) for pane in writing.panes if pane.is_final]
        assert sorted(final) == [(start, count) for start in (0, 5, 10, 15) for count in (1, 2)]


async def test_as_many_sessions_as_the_node_takes(store: StoreServiceStub) -> None:
    async with writing_stub(sessions_over(store, max_sessions=1)) as stub:
        writing = Writing(stub, opening("s"))
        await writing.opened()
        other = Writing(stub, opening("t"))
        with pytest.raises(BridgeError) as refused:
            await other.rest()
        assert refused.value.reason == errors_pb2.ERROR_REASON_TOO_MANY_SESSIONS
