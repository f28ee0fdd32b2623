"""What another replica writes between a commit's snapshot and its locks, told by SQL in its place; and a commit's one moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from typing import Any, TypeAlias
from uuid import UUID

import pytest
from blake3 import blake3

from omninode.bridge.store.v1 import store_pb2 as pb
from omninode.bridge.store.v1.store_pb2_grpc import StoreServiceStub
from tests.store.sample import Connection, action, at, commit, event, hold, keys_in, rows, sql, until_waiting

pytestmark = pytest.mark.asyncio(loop_scope="module")

PARTITION = 3
KEY, OTHER, NEW = islice(keys_in(PARTITION), 3)

_ADVANCE = "UPDATE workflow_state SET version = version + 1 WHERE key = $1"
_LOG = """
WITH taken AS (UPDATE store_partitions SET next_offset = next_offset + 1 WHERE partition = $1 RETURNING next_offset - 1 AS place)
INSERT INTO workflow_commits (partition, commit_offset, action_index, action_id, fingerprint, action_type, provenance, version,
                              committed_at)
SELECT $1, place, 0, $2, decode(repeat('66', 32), 'hex'), 'theirs', '', 7, clock_timestamp() FROM taken
"""

Answer: TypeAlias = "pb.TryCommitResponse | pb.BatchTryCommitResult"
Send: TypeAlias = Callable[[StoreServiceStub, pb.TryCommitRequest], Awaitable[Sequence[Answer]]]


async def alone(stub: StoreServiceStub, request: pb.TryCommitRequest) -> Sequence[Answer]:
    return [await stub.TryCommit(request)]


async def in_a_batch(stub: StoreServiceStub, request: pb.TryCommitRequest) -> Sequence[Answer]:
    return (await stub.BatchTryCommit(pb.BatchTryCommitRequest(items=[request, commit(OTHER)]))).results


async def atomically(stub: StoreServiceStub, request: pb.TryCommitRequest) -> Sequence[Answer]:
    return (await stub.BatchTryCommit(pb.BatchTryCommitRequest(items=[request, commit(OTHER)], atomic=True))).results


WAYS = [
    pytest.param(alone, id="alone"),
    pytest.param(in_a_batch, id="in a batch"),
    pytest.param(atomically, id="atomically"),
]


@asynccontextmanager
async def meanwhile(
    database_url: str, call: Callable[[], Awaitable[Any]]
) -> AsyncIterator[tuple[asyncio.Future[Any], Connection]]:
    """The call, which has its snapshot and waits for the partition, and the session that holds it until the block's end."""
    async with sql(database_url) as holder, sql(database_url) as watcher:
        async with holder.transaction():
            await hold(holder, PARTITION)
            calling = asyncio.ensure_future(call())
            await until_waiting(watcher)
            yield calling, holder
        await calling


def outcomes(answers: Sequence[Answer]) -> list[str | None]:
    return [answer.WhichOneof("outcome") for answer in answers]


@pytest.mark.parametrize("send", WAYS)
async def test_a_key_that_another_replica_advanced_meanwhile_is_committed_upon_that(
    stub: StoreServiceStub, database_url: str, send: Send
) -> None:
    await stub.TryCommit(commit(KEY))
    async with meanwhile(database_url, lambda: send(stub, commit(KEY))) as (calling, holder):
        await holder.execute(_ADVANCE, KEY)
    answers = calling.result()
    assert set(outcomes(answers)) == {"committed"}
    assert answers[0].committed.version == 3


@pytest.mark.parametrize("send", WAYS)
async def test_an_expectation_that_another_replica_broke_meanwhile_is_a_conflict(
    stub: StoreServiceStub, database_url: str, send: Send
) -> None:
    await stub.TryCommit(commit(KEY))
    async with meanwhile(database_url, lambda: send(stub, commit(KEY, expected=at(1)))) as (calling, holder):
        await holder.execute(_ADVANCE, KEY)
    answers = calling.result()
    assert outcomes(answers)[0] == "conflict"
    assert answers[0].conflict.actual_version == 2


@pytest.mark.parametrize(
    ("send", "kinds"),
    [
        pytest.param(alone, ["duplicate"], id="alone"),
        pytest.param(in_a_batch, ["duplicate", "committed"], id="in a batch"),
        pytest.param(atomically, ["duplicate", "not_applied"], id="atomically"),
    ],
)
async def test_an_action_that_another_replica_committed_meanwhile_is_a_duplicate_of_that(
    stub: StoreServiceStub, database_url: str, send: Send, kinds: list[str]
) -> None:
    await stub.TryCommit(commit(KEY))
    sent = action()
    async with meanwhile(database_url, lambda: send(stub, commit(KEY, actions=[sent]))) as (calling, holder):
        await holder.execute(_LOG, PARTITION, UUID(sent.action_id))
    answers = calling.result()
    assert outcomes(answers) == kinds
    (known,) = answers[0].duplicate.known
    assert (known.committed.offset, known.committed.version) == (1, 7)


async def test_a_commits_time_is_its_states_however_long_it_waited_for_its_place(
    stub: StoreServiceStub, database_url: str
) -> None:
    await stub.TryCommit(commit(KEY))
    items = [commit(KEY), commit(NEW)]
    async with meanwhile(database_url, lambda: stub.BatchTryCommit(pb.BatchTryCommitRequest(items=items))) as (
        calling,
        _,
    ):
        pass
    times = [result.committed.commit_time.ToNanoseconds() for result in calling.result().results]
    states = (await stub.BatchGetStates(pb.BatchGetStatesRequest(keys=[KEY, NEW]))).results
    assert [result.state.version for result in states] == [2, 1]
    assert [result.state.update_time.ToNanoseconds() for result in states] == times
    (differing,) = await rows(
        database_url,
        "SELECT count(*) FROM workflow_state JOIN workflow_commits USING (key, version) WHERE updated_at <> committed_at",
    )
    assert differing == (0,)


async def test_events_that_waited_for_their_place_are_later_also_by_the_clock(
    stub: StoreServiceStub, database_url: str
) -> None:
    await stub.TryCommit(commit(KEY))
    request = pb.AppendEventsRequest(request_id="r", events=[event(partition_key=KEY)])
    async with meanwhile(database_url, lambda: stub.AppendEvents(request)) as (calling, holder):
        held_until = await holder.fetchval("SELECT clock_timestamp()")
    assert calling.result().events[0].offset == 1
    ((appended_at,),) = await rows(database_url, "SELECT committed_at FROM workflow_commits WHERE commit_offset = 1")
    assert appended_at > held_until


async def test_two_atomic_batches_that_want_what_the_other_has_are_both_committed(stub: StoreServiceStub) -> None:
    contents = [b"%d" % number for number in range(30)]
    blobs = [pb.Blob(digest=blake3(content).hexdigest(), content=content) for content in contents]
    blobs.sort(key=lambda blob: blob.digest)
    one, two = next(keys_in(1)), next(keys_in(2))

    def batch(key: str, ordered: Sequence[pb.Blob]) -> pb.BatchTryCommitRequest:
        return pb.BatchTryCommitRequest(items=[commit(key, blobs=[blob]) for blob in ordered], atomic=True)

    answers = await asyncio.gather(
        stub.BatchTryCommit(batch(one, blobs)), stub.BatchTryCommit(batch(two, list(reversed(blobs))))
    )

    assert [[result.committed.version for result in answer.results] for answer in answers] == [[*range(1, 31)]] * 2
