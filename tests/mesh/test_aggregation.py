"""Stories of streams: real processes, kill -9 of each in mid-stream, and totals that are exact all the same."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from omninode.bridge.reducer.v1 import reducer_pb2
from omninode.bridge.reducer.v1.reducer_pb2_grpc import ReducerServiceStub
from omninode.bridge.store.v1 import store_pb2
from omninode.bridge.store.v1.store_pb2_grpc import StoreServiceStub
from services.chassis.client import ClientSettings, connect
from tests.aggregation_load.load import SECOND, Load
from tests.aggregation_load.run import Plan, Victim, run
from tests.aggregation_load.server import servers
from tests.reducer.workflow import SUBMITTED, step

SHORT = Load(seed=5, count=20_000, late_share=0.001, invalid_share=0.001)
LONG = Load(seed=5, count=1_000_000, step=SECOND // 2000, late_share=0.0001, invalid_share=0.0001)
KILLS = 3
"""Of each, at least, in the long story; a slow machine restarts nodes more slowly, and comes to fewer."""
CALLERS = 100
ACTIONS = 300
KEY = "workflow/hot"


async def test_a_stream_is_counted_exactly_whatever_is_killed(tmp_path: Path) -> None:
    victims = (Victim.REDUCERS, Victim.WRITER, Victim.STORE)
    # Two seconds of items, so that each kill comes amid them.
    result = await run(Plan(SHORT, victims, gap=3_000, rate=10_000, reducers=1), tmp_path)
    assert result.violations == []
    assert result.kills == dict.fromkeys(victims, 1)
    # The store's absence a stream may have waited for, not those of its two ends.
    assert result.streams >= 3
    assert result.rejected
    assert result.panes


@pytest.mark.long
async def test_a_million_items_are_counted_exactly_whatever_is_killed_again_and_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def report(line: str) -> None:
        with capsys.disabled():
            print(line, flush=True)

    result = await run(Plan(LONG, tuple(Victim), gap=20_000, again=True, rate=20_000), tmp_path, report)
    report(
        f"{result.kills.total()} kills, {result.streams} streams, {result.groups:,} groups of answers, {result.repeated} of them "
        f"repeated, {result.panes:,} final panes, {result.rejected:,} items refused"
    )
    assert result.violations == []
    assert min(result.kills[victim] for victim in Victim) >= KILLS
    # Answers were lost, and answered again.
    assert result.repeated


async def test_a_hundred_callers_of_one_key_over_two_reducers_are_all_served_exactly_once(tmp_path: Path) -> None:
    async with AsyncExitStack() as ending:
        running = await ending.enter_async_context(servers(tmp_path))
        # Round robin over both, and nothing is sent twice.
        channel = await ending.enter_async_context(connect(running.target, ClientSettings(attempts=1)))
        stub = ReducerServiceStub(channel)
        for type_, payload in (("submitted", SUBMITTED), ("started", {})):
            assert (await stub.Reduce(action(type_, payload))).HasField("committed")
        numbers = iter(range(ACTIONS))
        async with asyncio.TaskGroup() as group:
            callers = [group.create_task(call(stub, numbers)) for _ in range(CALLERS)]
        answers = [answer for caller in callers for answer in caller.result()]
        assert Counter(answer.WhichOneof("outcome") for answer in answers) == {"committed": ACTIONS}
        channel = await ending.enter_async_context(connect(running.store.target))
        logged = await log_of_the_key(StoreServiceStub(channel))
    # Each action stands in the log once, where its caller was told.
    told = {(answer.committed.version, answer.committed.commit.offset) for answer in answers}
    assert len(logged) == len({item.action_id for item in logged}) == ACTIONS + 2
    assert {(item.version, item.offset) for item in logged[2:]} == told
    # Both folded what waited; without that, versions would be as many as actions.
    assert [item.version for item in logged] == sorted(item.version for item in logged)
    assert logged[-1].version < ACTIONS


async def log_of_the_key(stub: StoreServiceStub) -> list[store_pb2.CommittedAction]:
    items: list[store_pb2.CommittedAction] = []
    async for answer in stub.WatchCommits(store_pb2.WatchCommitsRequest(from_beginning=True, keys=[KEY])):
        items += answer.items
        if answer.HasField("caught_up"):
            break
    return items


async def call(stub: ReducerServiceStub, numbers: Iterator[int]) -> list[reducer_pb2.ReduceResponse]:
    """One caller: an action after another."""
    return [
        await stub.Reduce(action("step_completed", {**step("validate_input"), "attempt_count": number}))
        for number in numbers
    ]


_SECONDS = count(1_767_225_600)


def action(type_: str, payload: object) -> reducer_pb2.ReduceRequest:
    return reducer_pb2.ReduceRequest(
        action=reducer_pb2.Action(
            key=KEY,
            action_id=str(uuid.uuid4()),
            reducer="stamping_workflow",
            type=type_,
            payload_json=json.dumps(payload),
            occur_time=Timestamp(seconds=next(_SECONDS)),
        )
    )
