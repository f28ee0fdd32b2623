"""The log's order: offsets without gaps, nothing that becomes visible late, and replicas that agree with what they acknowledged."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from itertools import groupby, islice

import pytest

from omninode.bridge.store.v1 import store_pb2 as pb
from omninode.bridge.store.v1.store_pb2_grpc import StoreServiceStub
from tests.store.node import store_stub
from tests.store.sample import (
    ABSENT,
    ANY,
    Connection,
    action,
    at,
    commit,
    event,
    hold,
    keys_in,
    log,
    rows,
    sql,
    try_commit,
    until_waiting,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

_OFFSETS = "SELECT partition, commit_offset FROM workflow_commits WHERE action_index = 0 ORDER BY 1, 2"
_LATE = """
INSERT INTO workflow_commits (partition, commit_offset, action_index, action_id, fingerprint, action_type, provenance, version,
                              committed_at)
SELECT partition, next_offset, 0, gen_random_uuid(), decode(repeat('00', 32), 'hex'), 'late', '', 0, clock_timestamp()
FROM store_partitions WHERE partition = $1
"""


def is_gapless(offsets: list[tuple[int, int]]) -> bool:
    return all(
        [offset for _, offset in found] == list(range(len(found)))
        for _, entries in groupby(offsets, key=lambda entry: entry[0])
        for found in [list(entries)]
    )


async def test_each_partition_counts_its_commits_from_0(stub: StoreServiceStub, database_url: str) -> None:
    keys = [key for partition in (2, 5) for key in islice(keys_in(partition), 20)]
    await asyncio.gather(*(stub.TryCommit(commit(key)) for key in keys))
    batch = pb.BatchTryCommitRequest(items=[commit(key) for key in keys], atomic=True)
    answer = await stub.BatchTryCommit(batch)
    appended = await stub.AppendEvents(pb.AppendEventsRequest(request_id="r", events=[event(partition_key=keys[0])]))
    assert await rows(database_url, _OFFSETS) == [
        *((2, offset) for offset in range(41)),
        *((5, offset) for offset in range(40)),
    ]
    assert sorted(result.committed.offset for result in answer.results) == sorted([*range(20, 40)] * 2)
    assert appended.events[0].offset == 40


async def test_what_is_refused_takes_no_offset(stub: StoreServiceStub, database_url: str) -> None:
    key, known = "workflow/1", action()
    await stub.TryCommit(commit(key, actions=[known]))
    refused = [commit(key, expected=ABSENT), commit(key, actions=[known]), commit(key, blob_refs=["0" * 64])]
    await stub.BatchTryCommit(pb.BatchTryCommitRequest(items=refused))
    await stub.BatchTryCommit(pb.BatchTryCommitRequest(items=[commit(key), *refused], atomic=True))
    assert (await stub.TryCommit(commit(key))).committed.offset == 1
    assert is_gapless(await rows(database_url, _OFFSETS))


async def test_no_later_offset_is_visible_while_an_earlier_one_is_not_committed(database_url: str) -> None:
    first, second, elsewhere = *islice(keys_in(3), 2), next(keys_in(4))
    async with (
        store_stub(database_url) as one,
        store_stub(database_url) as two,
        store_stub(database_url) as three,
        sql(database_url) as late,
        sql(database_url) as reader,
    ):
        await one.TryCommit(commit(first))
        async with late.transaction():
            # A slow writer: it has the offset 1 and has not committed.
            await hold(late, 3)
            await late.execute(_LATE, 3)
            await late.execute("UPDATE store_partitions SET next_offset = next_offset + 1 WHERE partition = 3")
            writing = [asyncio.create_task(try_commit(one, commit(first)))]
            writing.append(asyncio.create_task(try_commit(two, commit(second))))
            await until_waiting(reader, 2)
            assert await _offsets(reader) == [(3, 0)]
            assert (await three.TryCommit(commit(elsewhere))).committed.offset == 0
            held_until = await late.fetchval("SELECT clock_timestamp()")
        answers = [(await task).committed for task in writing]
        assert sorted(answer.offset for answer in answers) == [2, 3]
        assert await _offsets(reader) == [(3, 0), (3, 1), (3, 2), (3, 3), (4, 0)]
    # What waited is later also by the clock, although its transaction began before.
    assert all(answer.commit_time.ToDatetime(held_until.tzinfo) > held_until for answer in answers)


async def test_a_reader_that_has_read_up_to_an_offset_never_misses_one_before_it(database_url: str) -> None:
    keys = [key for partition in range(3) for key in islice(keys_in(partition), 8)]
    async with AsyncExitStack() as stack:
        stubs = [await stack.enter_async_context(store_stub(database_url)) for _ in range(2)]
        reader = await stack.enter_async_context(sql(database_url))
        writing = asyncio.gather(
            *(_write(stubs[number % 2], keys[number::6], rounds=12) for number in range(6)),
            *(_append(stubs[number], keys[:3], rounds=12) for number in range(2)),
        )
        read: dict[int, list[int]] = {}
        readings = 0
        while not writing.done():
            readings += bool(await _follow(reader, read))
        await writing
        await _follow(reader, read)
    stored = await rows(database_url, _OFFSETS)
    assert readings > 5
    assert [(partition, offset) for partition in sorted(read) for offset in read[partition]] == stored
    assert is_gapless(stored)


async def test_commit_times_grow_with_the_offsets_of_a_partition(database_url: str) -> None:
    keys = list(islice(keys_in(7), 12))
    async with store_stub(database_url) as one, store_stub(database_url) as two:
        await asyncio.gather(
            *(_write(stub, keys[number::4], rounds=10) for number, stub in enumerate((one, two, one, two)))
        )
    moments = await rows(database_url, "SELECT committed_at FROM workflow_commits ORDER BY commit_offset")
    assert len(moments) == 120
    assert moments == sorted(moments)


async def test_replicas_that_race_for_shared_keys_acknowledge_what_the_log_holds(database_url: str) -> None:
    keys = [f"workflow/{number}" for number in range(6)]
    acknowledged: dict[str, set[tuple[int, int, int]]] = {}

    async def write(stubs: list[StoreServiceStub], seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(15):
            sent, expected = action(), chance.choice([ANY, ABSENT, at(1)])
            key = chance.choice(keys)
            while sent.action_id not in acknowledged:
                request = commit(key, actions=[sent], expected=expected)
                # At one replica or at both at once: it takes effect once all the same.
                answers = await asyncio.gather(*(try_commit(stub, request) for stub in stubs[: chance.choice([1, 2])]))
                for answer in answers:
                    if answer.HasField("conflict"):
                        expected = at(answer.conflict.actual_version)
                    else:
                        acknowledged.setdefault(sent.action_id, set()).add(_place(answer))

    async with store_stub(database_url) as one, store_stub(database_url) as two:
        await asyncio.gather(*(write([one, two] if seed % 2 else [two, one], seed) for seed in range(8)))
    entries = await log(database_url)
    assert len(entries) == 8 * 15
    assert {action_id: {(partition, offset, version)} for partition, offset, _, action_id, _, version in entries} == (
        acknowledged
    )
    assert is_gapless([(partition, offset) for partition, offset, *_ in entries])
    versions: dict[str | None, list[int]] = {}
    for *_, key, version in entries:
        versions.setdefault(key, []).append(version)
    assert versions == {key: list(range(1, len(found) + 1)) for key, found in versions.items()}
    states = await rows(database_url, "SELECT key, version FROM workflow_state")
    assert dict(states) == {key: len(found) for key, found in versions.items()}


def _place(answer: pb.TryCommitResponse) -> tuple[int, int, int]:
    """Where a commit's action stands by an answer that acknowledges it: partition, offset, version."""
    committed = answer.committed if answer.HasField("committed") else answer.duplicate.known[0].committed
    return committed.partition, committed.offset, committed.version


async def _write(stub: StoreServiceStub, keys: list[str], rounds: int) -> None:
    for _ in range(rounds):
        await asyncio.gather(*(try_commit(stub, commit(key)) for key in keys))


async def _append(stub: StoreServiceStub, keys: list[str], rounds: int) -> None:
    for number in range(rounds):
        events = [event(partition_key=key) for key in keys]
        await stub.AppendEvents(pb.AppendEventsRequest(request_id=f"{id(stub)} {number}", events=events))


async def _offsets(connection: Connection) -> list[tuple[int, int]]:
    return [(row[0], row[1]) for row in await connection.fetch(_OFFSETS)]


async def _follow(connection: Connection, read: dict[int, list[int]]) -> int:
    """Reads on from the highest offset that was read of each partition; how many there were."""
    found = await connection.fetch(
        "SELECT log.partition, log.commit_offset FROM workflow_commits AS log"
        " LEFT JOIN unnest($1::smallint[], $2::bigint[]) AS cursor (partition, position) USING (partition)"
        " WHERE log.commit_offset > coalesce(cursor.position, -1) ORDER BY 1, 2",
        list(read),
        [offsets[-1] for offsets in read.values()],
    )
    for row in found:
        read.setdefault(row[0], []).append(row[1])
    return len(found)
