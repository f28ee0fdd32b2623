"""Commits as their callers meet them: every outcome, what is checked first, batches, and writers that race."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from typing import Any

import pytest
from blake3 import blake3
from google.protobuf.timestamp_pb2 import Timestamp
from prometheus_client import CollectorRegistry

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.store.v1 import store_pb2 as pb
from omninode.bridge.store.v1.store_pb2_grpc import StoreServiceStub
from services.chassis.errors import AlreadyExists
from services.chassis.identity import partition_of
from services.chassis.postgres import Database, PostgresSettings
from services.store.domain import Committed
from services.store.message import to_commit
from services.store.repository import Repositories
from services.store.repository import commit as commit_repository
from tests.store.node import store_stub
from tests.store.sample import (
    ABSENT,
    ANY,
    PARTITIONS,
    action,
    at,
    commit,
    counts,
    end_lease,
    event,
    hold,
    log,
    milliseconds,
    new_key,
    rows,
    sql,
    try_commit,
    until_waiting,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

LEASE = "orchestrator/runner/3"


async def state_of(stub: StoreServiceStub, key: str) -> pb.State:
    return (await stub.GetState(pb.GetStateRequest(key=key))).state


async def acquire(stub: StoreServiceStub, owner: str, ttl: int = 60_000, lease: str = LEASE) -> pb.AcquireLeaseResponse:
    return await stub.AcquireLease(pb.AcquireLeaseRequest(name=lease, owner=owner, ttl=milliseconds(ttl)))


def guard(epoch: int, condition: pb.GuardCondition.ValueType = pb.GUARD_CONDITION_HELD, lease: str = LEASE) -> pb.Guard:
    return pb.Guard(lease=lease, epoch=epoch, condition=condition)


def kinds(response: pb.BatchTryCommitResponse) -> list[str | None]:
    return [result.WhichOneof("outcome") for result in response.results]


async def test_the_first_commit_of_a_key_is_version_1_at_offset_0_of_its_partition(stub: StoreServiceStub) -> None:
    key = new_key()
    request = commit(key, expected=ABSENT, state_json='{"state": "PENDING"}', schema_version=7, final=True)
    committed = (await stub.TryCommit(request)).committed
    assert (committed.version, committed.partition, committed.offset) == (1, partition_of(key, PARTITIONS), 0)
    state = await state_of(stub, key)
    assert (state.key, state.version, state.partition) == (key, 1, committed.partition)
    assert (state.state_json, state.schema_version, state.final) == ('{"state": "PENDING"}', 7, True)
    assert state.update_time == committed.commit_time


@pytest.mark.parametrize(
    ("current", "expected", "version"),
    [
        pytest.param(0, ABSENT, 1, id="absent of an absent key"),
        pytest.param(0, at(0), 1, id="version 0 of an absent key"),
        pytest.param(0, ANY, 1, id="any of an absent key"),
        pytest.param(0, at(1), None, id="version 1 of an absent key"),
        pytest.param(2, at(2), 3, id="the current version"),
        pytest.param(2, ANY, 3, id="any of a key"),
        pytest.param(2, ABSENT, None, id="absent of a key"),
        pytest.param(2, at(0), None, id="version 0 of a key"),
        pytest.param(2, at(1), None, id="an older version"),
        pytest.param(2, at(3), None, id="a later version"),
    ],
)
async def test_a_commit_is_made_if_and_only_if_its_expectation_holds(
    shared_stub: StoreServiceStub, shared_url: str, current: int, expected: pb.Expectation, version: int | None
) -> None:
    key = new_key()
    for number in range(current):
        await shared_stub.TryCommit(commit(key, state_json=f'{{"n": {number + 1}}}', schema_version=3))
    before = await counts(shared_url)
    response = await shared_stub.TryCommit(commit(key, expected=expected, state_json='{"n": "new"}'))
    if version is not None:
        assert response.committed.version == version
        assert (await state_of(shared_stub, key)).state_json == '{"n": "new"}'
        return
    conflict = response.conflict
    assert conflict.actual_version == current
    assert conflict.expected == (ABSENT if expected == at(0) else expected)
    assert conflict.HasField("current") == (current > 0)
    if current:
        assert conflict.current == await state_of(shared_stub, key)
        assert (conflict.current.state_json, conflict.current.schema_version) == ('{"n": 2}', 3)
    assert await counts(shared_url) == before


async def test_a_commit_sent_again_is_a_duplicate_with_its_first_result_and_events(
    shared_stub: StoreServiceStub,
) -> None:
    key = new_key()
    sent = action(
        provenance=pb.Provenance(effect_id="w/stamp_creation", actor="runner"),
        events=[
            event(payload_json='{"a": "é\\\\u0000"}', headers={"b": "2", "a": "1"}),
            event(kind=pb.EVENT_KIND_INTENT, event_type="update_aggregate", partition_key="elsewhere"),
        ],
    )
    request = commit(key, expected=ABSENT, actions=[sent])
    first = (await shared_stub.TryCommit(request)).committed
    await shared_stub.TryCommit(commit(key))
    (known,) = (await shared_stub.TryCommit(request)).duplicate.known
    assert known.action_id == sent.action_id
    assert known.committed == first
    ids = [str(uuid.uuid5(uuid.UUID(sent.action_id), str(index))) for index in range(2)]
    one, two = sent.events
    one.MergeFrom(pb.Event(event_id=ids[0], partition_key=key))
    two.MergeFrom(pb.Event(event_id=ids[1], payload_json="{}"))
    assert list(known.events) == [one, two]
    assert (await state_of(shared_stub, key)).version == 2


async def test_folded_actions_are_one_commit_in_the_log_in_their_order(
    stub: StoreServiceStub, database_url: str
) -> None:
    key = new_key()
    actions = [action(type=kind) for kind in ("started", "step_completed", "completed")]
    committed = (await stub.TryCommit(commit(key, actions=actions))).committed
    assert await log(database_url) == [
        (committed.partition, 0, index, sent.action_id, key, 1) for index, sent in enumerate(actions)
    ]
    assert (await stub.TryCommit(commit(key))).committed.offset == 1


async def test_the_log_holds_the_state_once_for_a_commit_and_who_did_it_for_each_action(
    stub: StoreServiceStub, database_url: str
) -> None:
    sent = [
        action(
            provenance=pb.Provenance(
                effect_id="w/stamp", actor="ada", occur_time=Timestamp(seconds=1, nanos=5000), correlation_id="call-1"
            )
        ),
        action(type="ended"),
    ]
    await stub.TryCommit(commit(actions=sent, state_json='{"n": 1}', schema_version=7, final=True))
    stored = await rows(
        database_url,
        "SELECT action_type, provenance, state, schema_version, final FROM workflow_commits ORDER BY action_index",
    )
    assert stored == [
        ("started", '["w/stamp","ada","1970-01-01T00:00:01.000005+00:00","call-1"]', '{"n": 1}', 7, True),
        ("ended", '["","",null,""]', None, None, True),
    ]


async def test_a_projection_stands_until_a_commit_brings_another_and_the_last_action_is_the_newest(
    stub: StoreServiceStub, database_url: str
) -> None:
    key = new_key()
    stored = "SELECT projection, last_action FROM workflow_state WHERE key = $1"
    shown = pb.ProjectionInput(tag="PENDING", namespace="docs", indices={"id": "17"}, extras_json='{"a":1}')
    await stub.TryCommit(commit(key, projection=shown, actions=[action(), action(type="second")]))
    first = '["PENDING","docs",{"id":"17"},"{\\"a\\":1}"]'
    assert await rows(database_url, stored, key) == [(first, "second")]
    await stub.TryCommit(commit(key, actions=[action(type="third")]))
    assert await rows(database_url, stored, key) == [(first, "third")]
    await stub.TryCommit(commit(key, projection=pb.ProjectionInput(tag="ENDED")))
    assert await rows(database_url, stored, key) == [('["ENDED","",{},"{}"]', "started")]


async def test_a_commit_with_any_known_action_is_not_made_and_names_each_known_one(
    shared_stub: StoreServiceStub, shared_url: str
) -> None:
    key = new_key()
    first, second = action(), action()
    places = [(await shared_stub.TryCommit(commit(key, actions=[sent]))).committed for sent in (first, second)]
    before = await counts(shared_url)
    response = await shared_stub.TryCommit(commit(key, actions=[action(), second, action(), first]))
    assert [(known.action_id, known.committed) for known in response.duplicate.known] == [
        (second.action_id, places[1]),
        (first.action_id, places[0]),
    ]
    assert await counts(shared_url) == before


async def test_an_action_id_with_another_fingerprint_is_refused_whatever_else_is_wrong(
    shared_stub: StoreServiceStub, shared_url: str
) -> None:
    key, first, second = new_key(), action(), action()
    await shared_stub.TryCommit(commit(key, actions=[first, second]))
    before = await counts(shared_url)
    reused = action(second.action_id, fingerprint=b"g" * 32)
    for request in (
        commit(key, actions=[reused]),
        commit(actions=[reused]),
        commit(key, actions=[first, reused], expected=at(9), guards=[guard(1)], blob_refs=["0" * 64]),
    ):
        with pytest.raises(AlreadyExists) as caught:
            await shared_stub.TryCommit(request)
        assert caught.value.reason == errors_pb2.ERROR_REASON_ACTION_ID_REUSED
        assert caught.value.metadata["action_id"] == second.action_id
    assert await counts(shared_url) == before


async def test_duplicate_comes_before_fenced_and_fenced_before_conflict(shared_stub: StoreServiceStub) -> None:
    key, known = new_key(), action()
    await shared_stub.TryCommit(commit(key, actions=[known]))
    wrong: dict[str, Any] = {"expected": at(9), "guards": [guard(1)], "blob_refs": ["0" * 64]}
    assert (await shared_stub.TryCommit(commit(key, actions=[known], **wrong))).WhichOneof("outcome") == "duplicate"
    assert (await shared_stub.TryCommit(commit(key, **wrong))).WhichOneof("outcome") == "fenced"
    del wrong["guards"], wrong["blob_refs"]
    assert (await shared_stub.TryCommit(commit(key, **wrong))).WhichOneof("outcome") == "conflict"


HELD, NOT_HELD = pb.GUARD_CONDITION_HELD, pb.GUARD_CONDITION_NOT_HELD


@pytest.mark.parametrize(
    ("lease", "asked", "fenced_at"),
    [
        pytest.param("unknown", guard(1, HELD), 0, id="held, of a lease that never existed"),
        pytest.param("unknown", guard(0, HELD), 0, id="held with epoch 0, of a lease that never existed"),
        pytest.param("unknown", guard(0, NOT_HELD), None, id="not held, of a lease that never existed"),
        pytest.param("held", guard(1, HELD), None, id="held, with its epoch"),
        pytest.param("held", guard(2, HELD), 1, id="held, with another epoch"),
        pytest.param("held", guard(1, NOT_HELD), 1, id="not held, while it is"),
        pytest.param("held", guard(2, NOT_HELD), None, id="not held with another epoch"),
        pytest.param("ended", guard(1, HELD), 1, id="held, after its end"),
        pytest.param("ended", guard(1, NOT_HELD), None, id="not held, after its end"),
        pytest.param("taken over", guard(1, HELD), 2, id="held, after a take-over"),
        pytest.param("taken over", guard(1, NOT_HELD), None, id="not held, after a take-over"),
    ],
)
async def test_a_guard_is_checked_against_its_lease(
    shared_stub: StoreServiceStub,
    shared_url: str,
    lease: str,
    asked: pb.Guard,
    fenced_at: int | None,
) -> None:
    name = f"lease/{uuid.uuid4()}"
    if lease != "unknown":
        await acquire(shared_stub, "one", lease=name)
    if lease in ("ended", "taken over"):
        await end_lease(shared_url, name)
    if lease == "taken over":
        assert (await acquire(shared_stub, "two", lease=name)).acquired
    before = await counts(shared_url)
    response = await shared_stub.TryCommit(commit(guards=[guard(asked.epoch, asked.condition, name)]))
    if fenced_at is None:
        assert response.committed.version == 1
    else:
        assert response.fenced == pb.Fenced(lease=name, current_epoch=fenced_at)
        assert await counts(shared_url) == before


async def test_of_several_guards_the_first_that_does_not_hold_is_named(stub: StoreServiceStub) -> None:
    await acquire(stub, "one")
    guards = [guard(1), guard(0, NOT_HELD, "z"), guard(5, HELD, "x"), guard(5, HELD, "a")]
    assert (await stub.TryCommit(commit(guards=guards))).fenced == pb.Fenced(lease="x")
    assert (await stub.TryCommit(commit(guards=guards[:2]))).committed.version == 1


async def test_a_lease_that_a_commit_depends_on_is_not_taken_over_before_its_end(
    stub: StoreServiceStub, database_url: str
) -> None:
    key = new_key()
    await stub.TryCommit(commit(key))
    await acquire(stub, "one", ttl=1000)
    async with sql(database_url) as writer, sql(database_url) as watcher:
        async with writer.transaction():
            await hold(writer, partition_of(key, PARTITIONS))
            committing = asyncio.create_task(try_commit(stub, commit(key, guards=[guard(1)])))
            await until_waiting(watcher)
            taking = asyncio.create_task(acquire(stub, "two"))
            # Both wait, the second behind the first, although the lease has ended meanwhile.
            await until_waiting(watcher, 2)
            await watcher.execute("SELECT pg_sleep_until(expires_at) FROM leases")
            assert not taking.done()
        assert (await committing).committed.version == 2
        taken = await taking
    assert (taken.acquired, taken.lease.owner, taken.lease.epoch) == (True, "two", 2)
    fenced = await stub.TryCommit(commit(key, guards=[guard(1)]))
    assert fenced.fenced == pb.Fenced(lease=LEASE, current_epoch=2)


async def test_a_batch_answers_each_item_in_request_order(stub: StoreServiceStub, database_url: str) -> None:
    key, known = new_key(), action()
    await stub.TryCommit(commit(key, actions=[known]))
    items = [
        commit("z/1"),
        commit("no collection"),
        commit(key, expected=ABSENT),
        commit(actions=[known]),
        commit(actions=[action(known.action_id, fingerprint=b"g" * 32)]),
        commit(guards=[guard(4)]),
        commit(blob_refs=["A" * 64]),
        commit(blobs=[pb.Blob(digest="0" * 64, content=b"x")]),
        commit("a/1"),
    ]
    response = await stub.BatchTryCommit(pb.BatchTryCommitRequest(items=items))
    errors = ["error"] * 2
    assert kinds(response) == ["committed", "error", "conflict", "duplicate", "error", "fenced", *errors, "committed"]
    reasons = {
        index: (result.error.reason, [violation.field for violation in result.error.field_violations])
        for index, result in enumerate(response.results)
        if result.HasField("error")
    }
    assert reasons == {
        1: (errors_pb2.ERROR_REASON_INVALID_FIELD, ["items[1].key"]),
        4: (errors_pb2.ERROR_REASON_ACTION_ID_REUSED, []),
        6: (errors_pb2.ERROR_REASON_BLOB_MISSING, []),
        7: (errors_pb2.ERROR_REASON_BLOB_DIGEST_MISMATCH, ["items[7].blobs[0].digest"]),
    }
    assert response.results[6].error.metadata["digest"] == "a" * 64
    assert {row[4] for row in await log(database_url)} == {key, "z/1", "a/1"}


async def test_items_of_one_key_apply_in_request_order(shared_stub: StoreServiceStub) -> None:
    key, other = new_key(), new_key()
    items = [
        commit(key, expected=ABSENT, state_json='{"n": 1}'),
        commit(other, expected=ABSENT),
        commit(key, expected=at(1), state_json='{"n": 2}'),
        commit(key, expected=at(1), state_json='{"n": "late"}'),
        commit(key, expected=at(2), state_json='{"n": 3}'),
    ]
    response = await shared_stub.BatchTryCommit(pb.BatchTryCommitRequest(items=items))
    assert kinds(response) == ["committed", "committed", "committed", "conflict", "committed"]
    assert [response.results[index].committed.version for index in (0, 2, 4)] == [1, 2, 3]
    assert response.results[3].conflict.current.state_json == '{"n": 2}'
    assert (await state_of(shared_stub, key)).state_json == '{"n": 3}'


@pytest.mark.parametrize("same_key", [True, False], ids=["of one key", "of two keys"])
async def test_one_action_in_two_items_takes_effect_once(
    stub: StoreServiceStub, database_url: str, same_key: bool
) -> None:
    key, sent = new_key(), action()
    items = [commit(key, actions=[sent]), commit(key if same_key else None, actions=[sent]), commit(), commit()]
    response = await stub.BatchTryCommit(pb.BatchTryCommitRequest(items=items))
    assert sorted(map(str, kinds(response)[:2])) == ["committed", "duplicate"]
    assert kinds(response)[2:] == ["committed"] * 2
    (duplicate,) = [result.duplicate for result in response.results if result.HasField("duplicate")]
    (committed,) = [result.committed for result in response.results[:2] if result.HasField("committed")]
    assert duplicate.known[0].committed == committed
    assert Counter(row[3] for row in await log(database_url))[sent.action_id] == 1


async def test_an_atomic_batch_commits_all(stub: StoreServiceStub, database_url: str) -> None:
    key = new_key()
    items = [commit(key, expected=ABSENT), commit(), commit(key, expected=at(1)), commit(key, expected=at(2))]
    response = await stub.BatchTryCommit(pb.BatchTryCommitRequest(items=items, atomic=True))
    assert [result.committed.version for result in response.results] == [1, 1, 2, 3]
    (moments,) = await rows(database_url, "SELECT count(DISTINCT xmin::text) FROM workflow_commits")
    assert moments == (1,)


async def test_an_atomic_batch_commits_nothing_and_says_everything_that_is_wrong(
    stub: StoreServiceStub, database_url: str
) -> None:
    key, known = new_key(), action()
    await stub.TryCommit(commit(key, actions=[known]))
    before = await counts(database_url)
    blob = pb.Blob(digest="d74981efa70a0c880b8d8c1985d075dbcbf679b99a5f9914e5aaf96b831a9e24", content=b"hello world")
    items = [
        commit(blobs=[blob]),
        commit(key, expected=ABSENT),
        commit(actions=[known]),
        commit(guards=[guard(4)]),
        commit(blob_refs=["0" * 64]),
        commit(),
    ]
    response = await stub.BatchTryCommit(pb.BatchTryCommitRequest(items=items, atomic=True))
    assert kinds(response) == ["not_applied", "conflict", "duplicate", "fenced", "error", "not_applied"]
    assert await counts(database_url) == before
    items.append(commit("no collection"))
    response = await stub.BatchTryCommit(pb.BatchTryCommitRequest(items=items, atomic=True))
    assert kinds(response) == ["not_applied", "conflict", "duplicate", "fenced", "error", "not_applied", "error"]
    response = await stub.BatchTryCommit(
        pb.BatchTryCommitRequest(items=[commit(), commit("no collection")], atomic=True)
    )
    assert kinds(response) == ["not_applied", "error"]
    assert await counts(database_url) == before


async def test_in_an_atomic_batch_what_follows_a_refused_commit_of_its_key_is_not_judged(
    shared_stub: StoreServiceStub, shared_url: str
) -> None:
    key = new_key()
    await shared_stub.TryCommit(commit(key))
    before = await counts(shared_url)
    items = [commit(key, expected=ABSENT), commit(key, expected=at(2)), commit(expected=ABSENT)]
    response = await shared_stub.BatchTryCommit(pb.BatchTryCommitRequest(items=items, atomic=True))
    assert kinds(response) == ["conflict", "not_applied", "not_applied"]
    assert await counts(shared_url) == before


async def test_an_atomic_batch_that_repeats_an_action_is_not_applied(stub: StoreServiceStub, database_url: str) -> None:
    sent = action()
    items = [commit(actions=[sent]), commit(), commit(actions=[action(), sent])]
    response = await stub.BatchTryCommit(pb.BatchTryCommitRequest(items=items, atomic=True))
    assert kinds(response) == ["not_applied", "not_applied", "error"]
    error = response.results[2].error
    assert [violation.field for violation in error.field_violations] == ["items[2].actions"]
    assert error.metadata["action_id"] == sent.action_id
    assert not await log(database_url)


def weighing(kind: str, size: int) -> dict[str, Any]:
    """What makes a commit weigh at least so many bytes."""
    text = '{"a": "' + "x" * size + '"}'
    match kind:
        case "a state":
            return {"state_json": text}
        case "blobs":
            half = b"x" * (size // 2)
            return {"blobs": [pb.Blob(digest=blake3(half).hexdigest(), content=half)] * 2}
        case _:
            return {"actions": [action(events=[event(payload_json=text)])]}


@pytest.mark.parametrize("kind", ["a state", "blobs", "events"])
async def test_commits_that_together_are_too_large_are_several_statements(
    database_url: str, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(commit_repository, "_BATCH_BYTES", 10_000)
    keys = [f"workflow/{number}" for number in range(5)]
    commits = [to_commit(commit(key, **weighing(kind, 4000))) for key in keys]
    database = await Database.open(PostgresSettings(url=database_url), CollectorRegistry())
    repositories = Repositories.of(database)
    outcomes = await repositories.commits.commit_many(commits)
    await repositories.close()
    await database.close()
    assert all(isinstance(outcome, Committed) for outcome in outcomes)
    together = await rows(
        database_url, "SELECT array_agg(key ORDER BY key) FROM workflow_commits GROUP BY xmin::text ORDER BY 1"
    )
    assert together == [(keys[:2],), (keys[2:4],), (keys[4:],)]


@pytest.mark.parametrize("replicas", [1, 2])
async def test_sixteen_equal_commits_at_once_are_one_commit_and_fifteen_duplicates(
    database_url: str, replicas: int
) -> None:
    async with store_stub(database_url) as one, store_stub(database_url) as two:
        stubs = [one, two][:replicas]
        for _ in range(5):
            request = commit(expected=ABSENT)
            answers = await asyncio.gather(*(try_commit(stubs[number % replicas], request) for number in range(16)))
            (made,) = [answer.committed for answer in answers if answer.HasField("committed")]
            duplicates = [answer.duplicate for answer in answers if answer.HasField("duplicate")]
            assert [duplicate.known[0].committed for duplicate in duplicates] == [made] * 15
    assert len(await log(database_url)) == 5


async def test_a_hundred_writers_of_one_key_make_versions_without_gaps(
    stub: StoreServiceStub, database_url: str
) -> None:
    key = new_key()
    answers = await asyncio.gather(*(try_commit(stub, commit(key)) for _ in range(100)))
    assert sorted(answer.committed.version for answer in answers) == list(range(1, 101))
    assert [(row[1], row[5]) for row in await log(database_url)] == [(number, number + 1) for number in range(100)]
