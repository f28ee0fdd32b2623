"""Folding over the real store: what becomes of actions that race, repeat, come late or are refused."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from blake3 import blake3
from prometheus_client import CollectorRegistry

from examples.counter.counter_reducer import Counter
from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.store.v1 import store_pb2
from omninode.bridge.store.v1.store_pb2_grpc import StoreServiceStub
from services.chassis.errors import (
    AlreadyExists,
    BridgeError,
    FailedPrecondition,
    InvalidArgument,
    Unavailable,
)
from services.reducer.domain import Action, IllegalTransition, UnknownVersion
from services.reducer.folding import Folded, FoldingSettings, GaveUp
from services.reducer.turn import lease_name
from services.store.domain import Limits
from tests.reducer.node import QUICK, folder_over
from tests.reducer.workflow import DIGEST, FAILED, STEPS, SUBMITTED, WALK, action, step
from tests.store.node import store_stub

KEY = "workflow/build-17"
BY_HAND = {"state": "PROCESSING", "workflow_id": "build-17", "namespace": "docs", "steps": []}


class Between:
    """A stub of the store that counts its calls, and lets a test act before or instead of one."""

    def __init__(self, stub: StoreServiceStub) -> None:
        self._stub = stub
        self.calls: list[tuple[str, Any]] = []
        self.before: Callable[[store_pb2.BatchTryCommitRequest], Any] | None = None
        self.append: Callable[[store_pb2.AppendEventsRequest], Any] | None = None
        """What is called in the place of AppendEvents."""

    def __getattr__(self, name: str) -> Any:
        async def call(request: Any) -> Any:
            self.calls.append((name, request))
            if name == "BatchTryCommit" and self.before is not None:
                await self.before(request)
            if name == "AppendEvents" and self.append is not None:
                return await self.append(request)
            return await getattr(self._stub, name)(request)

        return call

    @property
    def commits(self) -> list[store_pb2.TryCommitRequest]:
        return [item for name, request in self.calls if name == "BatchTryCommit" for item in request.items]

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[StoreServiceStub]:
    async with store_stub(database_url) as stub:
        yield stub


@pytest.fixture
def between(store: StoreServiceStub) -> Between:
    return Between(store)


async def state_of(store: StoreServiceStub, key: str = KEY) -> store_pb2.State:
    return (await store.GetState(store_pb2.GetStateRequest(key=key))).state


async def write(store: StoreServiceStub, key: str = KEY, **fields: Any) -> int:
    """Another writer's commit of a workflow that is under way; its version."""
    request = store_pb2.TryCommitRequest(key=key, state_json=json.dumps({**BY_HAND, **fields}))
    request.expected.any.SetInParent()
    request.actions.add(action_id=str(uuid.uuid4()), fingerprint=bytes(32), type="by_hand")
    return (await store.TryCommit(request)).committed.version


def submitted(key: str = KEY, **fields: Any) -> Action:
    return action("submitted", {**SUBMITTED, "workflow_id": key.removeprefix("workflow/")}, key=key, **fields)


def walk() -> list[Action]:
    return [action(type_, payload) for type_, payload in WALK]


def kinds(outcomes: Any) -> list[str]:
    return [type(outcome).__name__ for outcome in outcomes]


async def test_actions_that_wait_for_one_key_are_one_commit_each_with_its_own_state(
    store: StoreServiceStub, between: Between
) -> None:
    async with folder_over(between) as folder:
        outcomes: Any = await folder.fold(walk())
    assert between.names == ["BatchTryCommit"]
    assert [outcome.version for outcome in outcomes] == [1] * len(WALK)
    states = [json.loads(outcome.fold.state_json)["state"] for outcome in outcomes]
    assert states == ["PENDING", "PROCESSING", *["PROCESSING"] * 4, "COMPLETED"]
    kept = await state_of(store)
    assert (kept.state_json, kept.final, kept.schema_version) == (outcomes[-1].fold.state_json, True, 1)


async def test_a_key_that_was_committed_last_needs_no_read(between: Between) -> None:
    async with folder_over(between) as folder:
        for item in walk()[:4]:
            (outcome,) = await folder.fold([item])
            assert isinstance(outcome, Folded)
    assert between.names == ["BatchTryCommit"] * 4


async def test_a_key_that_is_not_cached_is_read_before_its_state_is_folded_on(
    store: StoreServiceStub, between: Between
) -> None:
    await write(store)
    async with folder_over(between) as folder:
        (outcome,) = await folder.fold([action("completed")])
    assert isinstance(outcome, Folded)
    assert outcome.version == 2
    assert between.names == ["BatchGetStates", "BatchTryCommit"]


async def test_a_state_that_the_stores_answer_had_no_room_for_is_asked_for_alone(database_url: str) -> None:
    one_state = Limits.model_construct(answer_state_bytes=len(json.dumps(BY_HAND)))
    async with store_stub(database_url, limits=one_state) as stub:
        keys = ("workflow/a", "workflow/b")
        for key in keys:
            await write(stub, key)
        between = Between(stub)
        async with folder_over(between) as folder:
            outcomes = await folder.fold([action("completed", key=key) for key in keys])
    assert kinds(outcomes) == ["Folded", "Folded"]
    assert between.names == ["BatchGetStates", "GetState", "BatchTryCommit"]


async def test_a_hundred_actions_at_once_on_one_key_all_take_effect_once(
    store: StoreServiceStub, between: Between
) -> None:
    registry = CollectorRegistry()
    async with folder_over(between, registry=registry) as folder:
        await folder.fold(walk()[:2])
        steps = [action("step_completed", step("validate_input")) for _ in range(100)]
        outcomes: Any = [outcome for (outcome,) in await asyncio.gather(*(folder.fold([item]) for item in steps))]
    assert kinds(outcomes) == ["Folded"] * 100
    assert (await state_of(store)).version == outcomes[-1].version == 2, "they were folded into one commit"
    assert registry.get_sample_value("conflict_attempts_total") == 0
    assert registry.get_sample_value("reducer_successful_actions_total") == 102


async def test_a_hundred_callers_of_two_replicas_on_one_key_all_take_effect_once_and_none_gives_up(
    store: StoreServiceStub,
) -> None:
    registries = CollectorRegistry(), CollectorRegistry()
    # Two actions a commit, so that the replicas meet again and again.
    settings = FoldingSettings(commit_actions=2)
    counting = [action("counted", reducer="counter") for _ in range(100)]
    async with (
        folder_over(store, settings, registries[0], reducers=[Counter()]) as one,
        folder_over(store, settings, registries[1], reducers=[Counter()]) as two,
    ):
        outcomes = await asyncio.gather(
            *(folder.fold([item]) for item, folder in zip(counting, (one, two) * 50, strict=True))
        )
    assert [type(outcome) for (outcome,) in outcomes] == [Folded] * 100
    assert json.loads((await state_of(store)).state_json) == {"count": 100}
    assert sum(registry.get_sample_value("reducer_gaveup_total") or 0 for registry in registries) == 0
    assert sum(registry.get_sample_value("reducer_successful_actions_total") or 0 for registry in registries) == 100
    assert sum(registry.get_sample_value("conflict_attempts_total") or 0 for registry in registries) > 0, "they met"


async def test_who_always_comes_first_asks_whose_turn_it_is_and_waits_for_it(
    store: StoreServiceStub, between: Between
) -> None:
    counter = [action("counted", {}, reducer="counter") for _ in range(20)]
    waits = []

    async with folder_over(between, reducers=[Counter()], sleep=no_sleep) as folder:
        for item in counter[:17]:
            await folder.fold([item])
        assert between.names == ["BatchTryCommit"] * 16 + ["ListLeases", "BatchTryCommit"]
    other = await turn(store)

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        await store.ReleaseLease(other)

    between.calls.clear()
    async with folder_over(between, reducers=[Counter()], sleep=sleep) as folder:
        for _ in range(17):
            outcomes = await folder.fold([action("counted", {}, reducer="counter")])
    assert kinds(outcomes) == ["Folded"]
    assert len(waits) == 1
    assert between.names[-6:] == [
        "ListLeases",
        *["AcquireLease"] * 2,
        "BatchGetStates",
        "BatchTryCommit",
        "ReleaseLease",
    ]


async def test_one_action_sent_sixteen_times_at_once_takes_effect_once(store: StoreServiceStub) -> None:
    twin = submitted()
    async with folder_over(store) as one, folder_over(store) as two:
        outcomes = await asyncio.gather(*(folder.fold([twin]) for folder in (one, two) * 8))
    found: Any = [outcome for (outcome,) in outcomes]
    assert sorted(kinds(found)) == ["Folded"] + ["KnownAction"] * 15
    assert (await state_of(store)).version == 1


async def test_an_action_sent_again_gets_its_first_result_also_where_it_is_not_allowed_any_more(
    store: StoreServiceStub, between: Between
) -> None:
    actions = walk()
    async with folder_over(between) as folder:
        for item in actions:
            await folder.fold([item])
        last = len(between.calls)
        outcomes: Any = await folder.fold(actions)
    assert kinds(outcomes) == ["KnownAction"] * len(WALK)
    assert [outcome.committed.version for outcome in outcomes] == list(range(1, len(WALK) + 1))
    events = [[event.event_type for event in outcome.events] for outcome in outcomes]
    assert events[1] == ["WORKFLOW_STARTED", "STATE_TRANSITION"]
    assert len(between.calls) == last + 1
    assert (await state_of(store)).version == len(WALK)


async def test_new_actions_among_known_ones_take_effect(store: StoreServiceStub) -> None:
    actions = walk()
    async with folder_over(store) as folder:
        await folder.fold(actions[:4])
        outcomes = await folder.fold(actions)
    assert kinds(outcomes) == ["KnownAction"] * 4 + ["Folded"] * 3
    assert (await state_of(store)).version == 2


async def test_another_replicas_commit_makes_a_cached_state_stale_which_counts_as_no_attempt(
    store: StoreServiceStub, between: Between
) -> None:
    registry = CollectorRegistry()
    async with folder_over(between, FoldingSettings(attempts=1), registry) as folder:
        await folder.fold([submitted()])
        await write(store, other="theirs")
        (outcome,) = await folder.fold([action("failed", FAILED)])
    assert isinstance(outcome, Folded)
    assert (outcome.version, outcome.fold.state["other"]) == (3, "theirs")
    assert between.names == ["BatchTryCommit"] * 3
    assert registry.get_sample_value("conflict_attempts_total") == 0


async def test_a_stale_state_that_seems_to_forbid_an_action_is_found_out(
    store: StoreServiceStub, between: Between
) -> None:
    async with folder_over(between) as folder:
        await folder.fold([submitted()])
        await write(store)
        (outcome,) = await folder.fold([action("completed")])
        assert isinstance(outcome, Folded)
    assert (await state_of(store)).version == 3


async def test_opening_a_key_that_is_open_is_refused_once_the_store_says_so(
    store: StoreServiceStub, between: Between
) -> None:
    version = await write(store)
    async with folder_over(between) as folder:
        (outcome,) = await folder.fold([submitted()])
    assert isinstance(outcome, IllegalTransition)
    assert outcome.metadata["state"] == "PROCESSING"
    assert between.names == ["BatchTryCommit"] * 2
    assert (await state_of(store)).version == version


async def test_a_first_conflict_is_folded_anew_at_once_on_the_state_that_it_carries(
    store: StoreServiceStub, between: Between
) -> None:
    registry, left = CollectorRegistry(), [1]

    async def rival(request: store_pb2.BatchTryCommitRequest) -> None:
        if left:
            await write(store, other=left.pop())

    await write(store)
    between.before = rival
    async with folder_over(between, QUICK, registry, sleep=no_sleep) as folder:
        (outcome,) = await folder.fold([action("completed")])
    assert isinstance(outcome, Folded)
    assert (outcome.version, outcome.fold.state["other"]) == (3, 1)
    assert between.names == ["BatchGetStates"] + ["BatchTryCommit"] * 2
    assert registry.get_sample_value("conflict_attempts_total") == 1
    assert registry.get_sample_value("reducer_backoff_ms_count") == 0


async def test_after_a_second_conflict_the_keys_turn_is_waited_for_and_what_is_current_then_folded_on(
    store: StoreServiceStub, between: Between
) -> None:
    registry, waits, left = CollectorRegistry(), [], [1, 2]
    other = await turn(store)

    async def rival(request: store_pb2.BatchTryCommitRequest) -> None:
        if left:
            await write(store, other=left.pop())

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            await write(store, other=3)
            await store.ReleaseLease(other)

    await write(store)
    between.before = rival
    settings = FoldingSettings(backoff_initial=0.01, backoff_max=0.25)
    async with folder_over(between, settings, registry, sleep=sleep, draw=lambda: 0.5) as folder:
        (outcome,) = await folder.fold([action("completed")])
        assert isinstance(outcome, Folded)
        assert (outcome.version, outcome.fold.state["other"]) == (5, 3)
    assert waits == pytest.approx([0.01, 0.02])
    conflicts = ["BatchTryCommit"] * 2
    turns = ["AcquireLease"] * 3
    assert between.names == ["BatchGetStates", *conflicts, *turns, "BatchGetStates", "BatchTryCommit", "ReleaseLease"]
    assert registry.get_sample_value("conflict_attempts_total") == 2
    assert registry.get_sample_value("reducer_backoff_ms_sum") == pytest.approx(30)


async def test_in_its_turn_a_replica_folds_anew_at_once_whoever_comes_first(
    store: StoreServiceStub, between: Between
) -> None:
    left = [1, 2, 3, 4]

    async def rival(request: store_pb2.BatchTryCommitRequest) -> None:
        if left:
            await write(store, other=left.pop())

    await write(store)
    between.before = rival
    async with folder_over(between, sleep=no_sleep) as folder:
        (outcome,) = await folder.fold([action("completed")])
        assert isinstance(outcome, Folded)
        assert (outcome.version, outcome.fold.state["other"]) == (6, 1)
    turn_comes = ["AcquireLease", "BatchGetStates"]
    commits = ["BatchTryCommit"]
    assert between.names == ["BatchGetStates", *commits * 2, *turn_comes, *commits * 3, "ReleaseLease"]


async def test_a_fold_that_loses_every_race_is_given_up_and_told(
    store: StoreServiceStub, between: Between, database_url: str
) -> None:
    async def rival(request: store_pb2.BatchTryCommitRequest) -> None:
        await write(store)

    registry = CollectorRegistry()
    await write(store)
    between.before = rival
    losers = [action("step_completed", step("validate_input")), action("completed")]
    async with folder_over(between, QUICK, registry) as folder:
        outcomes = await folder.fold(losers)
    assert outcomes == [GaveUp(7, 8)] * 2
    (appended,) = [request for name, request in between.calls if name == "AppendEvents"]
    assert appended.request_id.startswith(str(losers[0].action_id))
    told = [json.loads(event.payload_json) for event in appended.events]
    assert [event.event_type for event in appended.events] == ["ReducerGaveUp"] * 2
    assert {event.partition_key for event in appended.events} == {KEY}
    assert told[1] == {
        "action_id": str(losers[1].action_id),
        "actual_version": 8,
        "attempt_count": 7,
        "key": KEY,
        "reducer": "stamping_workflow",
        "type": "completed",
    }
    assert registry.get_sample_value("reducer_gaveup_total") == 2
    assert registry.get_sample_value("reducer_failed_actions_total") == 2
    assert registry.get_sample_value("conflict_attempts_total") == 7
    assert (await state_of(store)).version == 8


async def test_a_turn_that_nobody_ends_is_waited_for_as_long_as_its_lease_could_last(
    store: StoreServiceStub, between: Between
) -> None:
    left, waits = [1, 2], []

    async def rival(request: store_pb2.BatchTryCommitRequest) -> None:
        if left:
            await write(store, other=left.pop())

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    await write(store)
    await turn(store)
    between.before = rival
    settings = QUICK.model_copy(update={"turn_ttl": 0.1})
    async with folder_over(between, settings, sleep=sleep) as folder:
        assert kinds(await folder.fold([action("completed")])) == ["Folded"]
    assert sum(waits) == pytest.approx(0.1, abs=settings.backoff_max)
    assert between.names[-2:] == ["BatchGetStates", "BatchTryCommit"], "nothing of its own is to be released"


async def test_the_turn_of_a_replica_that_was_killed_ends_by_itself(store: StoreServiceStub, between: Between) -> None:
    left = [1, 2]

    async def rival(request: store_pb2.BatchTryCommitRequest) -> None:
        if left:
            await write(store, other=left.pop())

    await write(store)
    await turn(store, ttl=0.1)
    between.before = rival
    async with folder_over(between) as folder:
        assert kinds(await folder.fold([action("completed")])) == ["Folded"]
    assert between.names[-1] == "ReleaseLease", "the turn came"


async def test_a_turn_ends_after_its_longest_time_also_where_there_is_more_to_fold(
    store: StoreServiceStub, between: Between
) -> None:
    left = [1, 2]

    async def rival(request: store_pb2.BatchTryCommitRequest) -> None:
        if left:
            await write(store, other=left.pop())

    await write(store)
    between.before = rival
    settings = QUICK.model_copy(update={"commit_actions": 1, "turn_longest": 1e-6, "turn_idle": 60})
    async with folder_over(between, settings) as folder:
        outcomes = await folder.fold([action("step_completed", payload) for payload in STEPS])
        assert kinds(outcomes) == ["Folded"] * 4
    assert between.names.count("ReleaseLease") == 1
    assert between.names.index("ReleaseLease") < len(between.names) - 2


async def test_a_reducers_bug_with_an_action_harms_no_other_of_its_commit(store: StoreServiceStub) -> None:
    class Brittle(Counter):
        def fold(self, state: Any, action: Action) -> Any:
            return {} if "by" in action.payload_json.value and 1 / 0 else super().fold(state, action)

    counts = [action("counted", payload, reducer="counter") for payload in ({}, {"by": 2}, {})]
    async with folder_over(store, reducers=[Brittle()]) as folder:
        outcomes = await folder.fold(counts)
    assert kinds(outcomes) == ["Folded", "ZeroDivisionError", "Folded"]
    assert json.loads((await state_of(store)).state_json) == {"count": 2}


class Later(Counter):
    """A version that counts by ten."""

    version = 2

    def fold(self, state: Any, action: Action) -> Any:
        fold = super().fold(state, action)
        count = fold.state["count"]
        assert isinstance(count, int)
        fold.state = {"count": count + 9}
        return fold


async def test_a_key_goes_on_with_the_version_that_made_it_and_the_newest_opens_keys(store: StoreServiceStub) -> None:
    other = "counter/other"
    async with folder_over(store, reducers=[Counter()]) as folder:
        await folder.fold([action("counted", {}, reducer="counter")])
    async with folder_over(store, reducers=[Later(), Counter()]) as folder:
        # Read from the store, then cached; the last in one commit with nothing before it.
        for key in (KEY, KEY, other, other):
            assert kinds(await folder.fold([action("counted", {}, key=key, reducer="counter")])) == ["Folded"]
    kept = [await state_of(store, key) for key in (KEY, other)]
    assert [(json.loads(state.state_json)["count"], state.schema_version) for state in kept] == [(3, 1), (20, 2)]


async def test_a_key_of_a_version_that_is_not_there_is_refused_by_name_and_left_as_it_is(
    store: StoreServiceStub,
) -> None:
    first = action("counted", {}, reducer="counter")
    async with folder_over(store, reducers=[Later()]) as folder:
        await folder.fold([first])
    async with folder_over(store, reducers=[Counter()]) as folder:
        known, refused = await folder.fold([first, action("counted", {}, reducer="counter")])
        with pytest.raises(UnknownVersion):
            await folder.dry_run(action("counted", {}, reducer="counter"))
    assert isinstance(known, store_pb2.KnownAction)
    assert isinstance(refused, UnknownVersion)
    assert refused.metadata == {"reducer": "counter", "version": "2", "known": "1"}
    assert (await state_of(store)).version == 1


async def test_an_action_that_was_given_up_takes_effect_when_it_is_sent_again(
    store: StoreServiceStub, between: Between
) -> None:
    async def rival(request: store_pb2.BatchTryCommitRequest) -> None:
        await write(store)

    await write(store)
    last = action("completed")
    async with folder_over(between) as folder:
        between.before = rival
        assert kinds(await folder.fold([last])) == ["GaveUp"]
        between.before = None
        assert kinds(await folder.fold([last])) == ["Folded"]


async def test_an_action_that_is_given_up_twice_is_told_of_twice(
    store: StoreServiceStub, between: Between, caplog: pytest.LogCaptureFixture
) -> None:
    async def rival(request: store_pb2.BatchTryCommitRequest) -> None:
        await write(store)

    version = await write(store)
    between.before = rival
    last = action("completed")
    async with folder_over(between, QUICK.model_copy(update={"attempts": 1})) as folder:
        for _ in range(2):
            assert kinds(await folder.fold([last])) == ["GaveUp"]
    told = [request.events[0] for name, request in between.calls if name == "AppendEvents"]
    assert [json.loads(event.payload_json)["actual_version"] for event in told] == [version + 3, version + 6]
    assert not caplog.records, "the store took both"


async def test_an_action_is_given_up_also_where_the_store_does_not_take_the_event(
    store: StoreServiceStub, between: Between, caplog: pytest.LogCaptureFixture
) -> None:
    async def rival(request: store_pb2.BatchTryCommitRequest) -> None:
        await write(store)

    async def away(request: store_pb2.AppendEventsRequest) -> None:
        raise Unavailable

    await write(store)
    between.before, between.append = rival, away
    async with folder_over(between, QUICK.model_copy(update={"attempts": 1})) as folder:
        assert await folder.fold([action("completed")]) == [GaveUp(3, 4)]
    assert [record.getMessage() for record in caplog.records] == ["event of an action given up is lost"]


async def no_sleep(seconds: float) -> None:
    raise AssertionError(f"nothing is to wait, but something did for {seconds} s")


async def turn(store: StoreServiceStub, owner: str = "another", ttl: float = 60) -> store_pb2.ReleaseLeaseRequest:
    """Another replica's turn on the key; what ends it."""
    request = store_pb2.AcquireLeaseRequest(name=lease_name(KEY), owner=owner)
    request.ttl.FromMilliseconds(round(ttl * 1000))
    answer = await store.AcquireLease(request)
    assert answer.acquired
    return store_pb2.ReleaseLeaseRequest(name=request.name, owner=owner, epoch=answer.lease.epoch)


async def lease(store: StoreServiceStub, owner: str = "one") -> dict[str, Any]:
    """A guard that holds."""
    request = store_pb2.AcquireLeaseRequest(name="orchestrator/runner/3", owner=owner)
    request.ttl.FromSeconds(60)
    return {"lease": request.name, "epoch": (await store.AcquireLease(request)).lease.epoch, "condition": 1}


async def test_a_lease_that_is_not_held_fences_its_actions_and_no_others(store: StoreServiceStub) -> None:
    held = await lease(store)
    lost = {**held, "epoch": held["epoch"] + 1}
    await write(store)
    async with folder_over(store) as folder:
        outcomes: Any = await folder.fold(
            [
                action("step_completed", STEPS[0], guards=[held]),
                action("step_completed", STEPS[1], guards=[lost]),
                action("step_completed", STEPS[2], guards=[lost]),
                action("completed", guards=[held]),
            ]
        )
    assert kinds(outcomes) == ["Folded", "Fenced", "Fenced", "Folded"]
    assert outcomes[1] == store_pb2.Fenced(lease=held["lease"], current_epoch=held["epoch"])
    assert (await state_of(store)).version == 3


async def test_a_fenced_owner_is_told_so_also_where_its_action_is_not_allowed(store: StoreServiceStub) -> None:
    held = await lease(store)
    lost = {**held, "epoch": held["epoch"] + 1}
    await write(store, state="COMPLETED")
    async with folder_over(store) as folder:
        outcomes = await folder.fold([action("step_completed", STEPS[0], guards=[lost])])
    assert kinds(outcomes) == ["Fenced"]


async def test_who_is_fenced_after_a_commit_is_told_so_of_what_it_did_not_allow(
    store: StoreServiceStub, between: Between
) -> None:
    held = await lease(store)
    await write(store)

    async def release(request: store_pb2.BatchTryCommitRequest) -> None:
        if not request.items[0].state_json.startswith('{"'):
            name, epoch = held["lease"], held["epoch"]
            await store.ReleaseLease(store_pb2.ReleaseLeaseRequest(name=name, owner="one", epoch=epoch))

    between.before = release
    async with folder_over(between) as folder:
        outcomes = await folder.fold(
            [action("step_completed", STEPS[0], guards=[held]), action("started", guards=[held])]
        )
    assert kinds(outcomes) == ["Folded", "Fenced"]


async def test_what_took_no_effect_is_counted_once_each(store: StoreServiceStub) -> None:
    registry = CollectorRegistry()
    lost = {"lease": "nobody", "epoch": 1, "condition": 1}
    await write(store)
    async with folder_over(store, registry=registry) as folder:
        first = action("step_completed", STEPS[0])
        await folder.fold([first])
        outcomes = await folder.fold(
            [first, action("started"), action("completed", guards=[lost]), action("failed", guards=[lost])]
        )
    assert kinds(outcomes) == ["KnownAction", "IllegalTransition", "Fenced", "Fenced"]
    assert registry.get_sample_value("reducer_failed_actions_total") == 3
    assert registry.get_sample_value("reducer_successful_actions_total") == 1


async def test_a_state_that_ended_its_key_is_not_kept_for_a_next_action(between: Between) -> None:
    async with folder_over(between) as folder:
        await folder.fold(walk())
        assert kinds(await folder.fold([action("started")])) == ["IllegalTransition"]
    assert between.names == ["BatchTryCommit", "BatchGetStates", "BatchTryCommit"]


async def test_an_action_that_is_not_allowed_harms_no_other_of_its_commit(store: StoreServiceStub) -> None:
    async with folder_over(store) as folder:
        outcomes = await folder.fold(
            [action("completed"), submitted(), action("started"), submitted(), action("completed")]
        )
    assert kinds(outcomes) == ["IllegalTransition", "Folded", "Folded", "IllegalTransition", "Folded"]
    kept = await state_of(store)
    assert (kept.version, json.loads(kept.state_json)["state"]) == (1, "COMPLETED")


async def test_an_action_that_is_not_allowed_is_refused_for_that_and_not_for_its_blobs(store: StoreServiceStub) -> None:
    await write(store)
    async with folder_over(store) as folder:
        outcomes = await folder.fold([action("started", blob_refs=["b" * 64])])
    assert kinds(outcomes) == ["IllegalTransition"]


async def test_an_action_is_judged_at_its_turn_and_not_by_what_came_after_it(store: StoreServiceStub) -> None:
    async with folder_over(store) as folder:
        outcomes: Any = await folder.fold([action("started"), submitted()])
    assert kinds(outcomes) == ["IllegalTransition", "Folded"]
    assert outcomes[0].metadata == {"key": KEY, "state": "", "type": "started", "allowed": "submitted"}


async def test_a_payload_that_is_refused_harms_no_other_of_its_commit(store: StoreServiceStub) -> None:
    await write(store)
    async with folder_over(store) as folder:
        outcomes: Any = await folder.fold([action("step_completed", {"step": "lunch"}), action("completed")])
    assert kinds(outcomes) == ["InvalidArgument", "Folded"]


@pytest.mark.parametrize(
    ("fault", "kind", "reason"),
    [
        ({"blob_refs": ["b" * 64]}, FailedPrecondition, errors_pb2.ERROR_REASON_BLOB_MISSING),
        ({"blobs": [{"digest": DIGEST, "content": b"other"}]}, InvalidArgument, errors_pb2.ERROR_REASON_BLOB_DIGEST_MISMATCH),
    ],
    ids=["a blob is missing", "a blob is another"],
)  # fmt: skip
async def test_a_refusal_of_the_store_harms_only_the_action_at_fault(
    store: StoreServiceStub, fault: dict[str, Any], kind: type[BridgeError], reason: int
) -> None:
    await write(store)
    good = [action("step_completed", payload) for payload in STEPS]
    async with folder_over(store) as folder:
        outcomes: Any = await folder.fold([*good[:2], action("step_completed", STEPS[0], **fault), *good[2:]])
    assert kinds(outcomes) == ["Folded", "Folded", kind.__name__, "Folded", "Folded"]
    assert outcomes[2].reason == reason
    assert all(violation.field == "blobs[0].digest" for violation in outcomes[2].violations)
    assert len(json.loads((await state_of(store)).state_json)["steps"]) == 4


async def test_an_action_id_of_another_action_is_refused_and_the_rest_takes_effect(store: StoreServiceStub) -> None:
    first = submitted()
    async with folder_over(store) as folder:
        await folder.fold([first])
        thief = action("started", action_id=str(first.action_id))
        illegal_thief = action("completed", action_id=str(first.action_id))
        outcomes: Any = await folder.fold([action("started"), thief, action("failed", FAILED), illegal_thief])
    assert kinds(outcomes) == ["Folded", "AlreadyExists", "Folded", "AlreadyExists"]
    assert isinstance(outcomes[1], AlreadyExists)
    assert outcomes[1].reason == errors_pb2.ERROR_REASON_ACTION_ID_REUSED
    assert outcomes[1].metadata["action_id"] == str(first.action_id)


async def test_of_several_that_are_not_allowed_only_the_thief_of_an_action_id_is_told_of_that(
    store: StoreServiceStub,
) -> None:
    first = submitted()
    async with folder_over(store) as folder:
        await folder.fold([first])
        thief = action("submitted", {**SUBMITTED, "size_bytes": 28}, action_id=str(first.action_id))
        outcomes: Any = await folder.fold([action("started"), submitted(), thief, submitted()])
    assert kinds(outcomes) == ["Folded", "IllegalTransition", "AlreadyExists", "IllegalTransition"]
    assert outcomes[2].metadata["action_id"] == str(first.action_id)


async def test_a_store_that_is_away_is_told_to_all_and_harms_nothing_later(between: Between) -> None:
    async def away(request: store_pb2.BatchTryCommitRequest) -> None:
        raise Unavailable

    async with folder_over(between) as folder:
        await folder.fold([submitted()])
        between.before = away
        outcomes = await folder.fold([action("started"), action("completed")])
        assert [type(outcome) for outcome in outcomes] == [Unavailable] * 2
        between.before = None
        assert kinds(await folder.fold([action("started"), action("completed")])) == ["Folded"] * 2


async def test_a_commit_whose_answer_was_lost_is_answered_as_known(store: StoreServiceStub, between: Between) -> None:
    async def lost(request: store_pb2.BatchTryCommitRequest) -> None:
        await store.BatchTryCommit(request)
        raise Unavailable

    first = submitted()
    async with folder_over(between) as folder:
        between.before = lost
        assert kinds(await folder.fold([first])) == ["Unavailable"]
        between.before = None
        assert kinds(await folder.fold([first, action("started")])) == ["KnownAction", "Folded"]
    assert (await state_of(store)).version == 2


async def test_a_bug_of_the_store_is_no_refusal_and_ends_the_wait(between: Between) -> None:
    async def broken(request: store_pb2.BatchTryCommitRequest) -> None:
        raise grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), grpc.aio.Metadata())

    between.before = broken
    async with folder_over(between) as folder:
        (outcome,) = await folder.fold([submitted()])
    assert isinstance(outcome, grpc.aio.AioRpcError)


async def test_a_dry_run_shows_the_fold_and_commits_nothing(store: StoreServiceStub, between: Between) -> None:
    version = await write(store)
    async with folder_over(between) as folder:
        outcome = await folder.dry_run(action("completed", guards=[{"lease": "a", "epoch": 9, "condition": 1}]))
        assert (outcome.version, outcome.fold.state["state"], outcome.commit) == (version + 1, "COMPLETED", None)
        opening = await folder.dry_run(submitted("workflow/new"))
        assert (opening.version, opening.fold.state["state"]) == (1, "PENDING")
        with pytest.raises(IllegalTransition):
            await folder.dry_run(submitted())
    assert set(between.names) == {"BatchGetStates"}
    assert (await state_of(store)).version == version


async def test_a_commit_tells_the_store_who_did_what_and_on_whose_behalf(between: Between) -> None:
    guard = store_pb2.Guard(lease="orchestrator/runner/3", epoch=0, condition=store_pb2.GUARD_CONDITION_NOT_HELD)
    first = submitted(
        effect_id="build-17/submission", actor="ada", correlation_id="call-1", guards=[guard], blob_refs=["b" * 64]
    )
    async with folder_over(between) as folder:
        await folder.fold([first])
    (item,) = between.commits
    (sent,) = item.actions
    assert (sent.action_id, sent.fingerprint, sent.type) == (str(first.action_id), first.fingerprint(), "submitted")
    provenance = sent.provenance
    assert (provenance.effect_id, provenance.actor, provenance.correlation_id) == (
        "build-17/submission",
        "ada",
        "call-1",
    )
    assert provenance.occur_time.ToJsonString() == "2026-01-02T03:04:05.678901Z"
    assert item.guards == [guard]
    assert item.blob_refs == ["b" * 64]
    assert (item.projection.tag, item.projection.namespace) == ("PENDING", "docs")
    assert item.projection.indices["workflow_id"] == "build-17"


async def test_blobs_are_stored_with_the_commit(store: StoreServiceStub) -> None:
    content = b"print()"
    digest = blake3(content).hexdigest()
    async with folder_over(store) as folder:
        assert kinds(await folder.fold([submitted(blobs=[{"digest": digest, "content": content}])])) == ["Folded"]
    chunks = [response.chunk async for response in store.GetBlob(store_pb2.GetBlobRequest(digest=digest))]
    assert b"".join(chunks) == content


async def test_closing_finishes_what_waits(store: StoreServiceStub) -> None:
    async with folder_over(store) as folder:
        waiting = asyncio.create_task(folder.fold(walk()))
        await asyncio.sleep(0)
        await folder.aclose()
        assert kinds(await waiting) == ["Folded"] * len(WALK)
