"""Revocations that meet creations and each other, from two replicas, and what another session holds in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.stamping.v1 import stamping_pb2 as pb
from omninode.bridge.stamping.v1.stamping_pb2_grpc import StampingServiceStub
from services.chassis.errors import BridgeError, FailedPrecondition
from tests.stamping.node import stamping_stub
from tests.stamping.sample import PATIENCE, creation, revocation, rows
from tests.store.sample import Connection, sql, until_waiting

BROKEN = """
SELECT request_id FROM stamp_requests JOIN stamps USING (namespace, stamp_id)
WHERE released_at IS NULL AND revoked_at IS NOT NULL
UNION ALL
SELECT digest::text FROM stamps
WHERE revoked_at IS NULL AND NOT EXISTS (
    SELECT FROM stamp_requests AS claim
    WHERE claim.namespace = stamps.namespace AND claim.stamp_id = stamps.stamp_id AND claim.released_at IS NULL
)
"""
"""Claims on revoked stamps, and stamps that stand without a claim."""


@pytest.fixture
async def replicas(database_url: str) -> AsyncIterator[tuple[StampingServiceStub, StampingServiceStub]]:
    async with stamping_stub(database_url) as one, stamping_stub(database_url) as two:
        yield one, two


@asynccontextmanager
async def held(database_url: str, statement: str) -> AsyncIterator[Connection]:
    """A session that holds what the statement locks until the block's end; yields one that sees who waits."""
    async with (
        sql(database_url) as holder,
        sql(database_url) as watcher,
        asyncio.timeout(PATIENCE),
        holder.transaction(),
    ):
        await holder.execute(statement)
        yield watcher


def begin(call: Awaitable[Any]) -> asyncio.Future[Any]:
    return asyncio.ensure_future(call)


async def test_a_create_that_meets_the_revocation_of_the_last_claim_makes_the_next_version(
    replicas: tuple[StampingServiceStub, StampingServiceStub], database_url: str
) -> None:
    one, two = replicas
    first = (await one.CreateStamp(creation(request_id="first"))).stamp
    # The revocation has the stamp's lock and waits for its event's number: the create sees the stamp still standing.
    async with held(database_url, "SELECT FROM stamp_log FOR UPDATE") as watcher:
        revoking = begin(one.RevokeStamp(revocation("first")))
        await until_waiting(watcher)
        creating = begin(two.CreateStamp(creation(request_id="second")))
        await until_waiting(watcher, 2)
    assert (await revoking).revoked
    created = await creating
    assert (created.created, created.stamp.version) == (True, 2)
    assert created.stamp.stamp_id != first.stamp_id
    assert not await rows(database_url, BROKEN)


async def test_a_revocation_that_meets_a_create_counts_its_claim(
    replicas: tuple[StampingServiceStub, StampingServiceStub], database_url: str
) -> None:
    one, two = replicas
    stamp = (await one.CreateStamp(creation(request_id="first"))).stamp
    # The batch has found the stamp, and waits for the number of what else it makes.
    async with held(database_url, "SELECT FROM stamp_log FOR UPDATE") as watcher:
        items = [creation(request_id="second"), creation(b"new")]
        creating = begin(two.BatchCreateStamps(pb.BatchCreateStampsRequest(items=items)))
        await until_waiting(watcher)
        revoking = begin(one.RevokeStamp(revocation("first")))
        await until_waiting(watcher, 2)
    results = (await creating).results
    assert (results[0].stamped.stamp, results[0].stamped.created) == (stamp, False)
    revoked = await revoking
    assert (revoked.revoked, revoked.remaining_claim_count) == (False, 1)
    assert not await rows(database_url, BROKEN)


async def test_a_create_that_meets_its_own_tombstone_in_the_making_is_refused(
    replicas: tuple[StampingServiceStub, StampingServiceStub], database_url: str
) -> None:
    one, two = replicas
    # The tombstone is there and waits for a revocation of the same id, which is taken back in the end.
    taken = "INSERT INTO stamp_revocations VALUES ('omninode.services.metadata', 'undo', 'x', '', false, 0)"
    async with sql(database_url) as holder, sql(database_url) as watcher, asyncio.timeout(PATIENCE):
        transaction = holder.transaction()
        await transaction.start()
        await holder.execute(taken)
        revoking = begin(one.RevokeStamp(revocation("both", request_id="undo")))
        await until_waiting(watcher)
        creating = begin(two.CreateStamp(creation(request_id="both")))
        await until_waiting(watcher, 2)
        await transaction.rollback()
    assert await revoking == pb.RevokeStampResponse()
    with pytest.raises(FailedPrecondition) as caught:
        await creating
    assert caught.value.reason == errors_pb2.ERROR_REASON_STAMP_REQUEST_REVOKED
    assert not await rows(database_url, "SELECT FROM stamps")


async def test_a_revocation_that_meets_its_request_in_the_making_releases_it(
    replicas: tuple[StampingServiceStub, StampingServiceStub], database_url: str
) -> None:
    one, two = replicas
    async with held(database_url, "SELECT FROM stamp_log FOR UPDATE") as watcher:
        creating = begin(two.CreateStamp(creation(request_id="both")))
        await until_waiting(watcher)
        revoking = begin(one.RevokeStamp(revocation("both")))
        await until_waiting(watcher, 2)
    created, revoked = await creating, await revoking
    assert created.created
    assert (revoked.revoked, revoked.stamp.stamp_id) == (True, created.stamp.stamp_id)
    assert not await rows(database_url, BROKEN)


async def test_a_request_and_its_revocation_at_once_have_one_order(
    replicas: tuple[StampingServiceStub, StampingServiceStub], database_url: str
) -> None:
    one, two = replicas
    for attempt in range(30):
        name = f"both-{attempt}"
        created, revoked = await asyncio.gather(
            one.CreateStamp(creation(b"%d" % attempt, request_id=name)),
            two.RevokeStamp(revocation(name)),
            return_exceptions=True,
        )
        assert isinstance(revoked, pb.RevokeStampResponse), revoked
        if revoked.HasField("stamp"):
            assert isinstance(created, pb.CreateStampResponse), created
            assert revoked.revoked
        else:
            assert isinstance(created, FailedPrecondition), created
    assert not await rows(database_url, BROKEN)
    assert not await rows(database_url, "SELECT FROM stamps WHERE revoked_at IS NULL")


async def test_sixteen_revocations_of_one_claim_at_once_revoke_once(
    replicas: tuple[StampingServiceStub, StampingServiceStub], database_url: str
) -> None:
    await replicas[0].CreateStamp(creation(request_id="first"))
    answers = await asyncio.gather(*(replicas[n % 2].RevokeStamp(revocation("first")) for n in range(16)))
    assert sum(answer.revoked for answer in answers) == 1
    assert {answer.remaining_claim_count for answer in answers} == {0}
    assert len({answer.stamp.SerializeToString() for answer in answers}) == 1
    assert len(await rows(database_url, "SELECT FROM stamp_events WHERE kind = 'revoked'")) == 1


async def test_sixteen_equal_revocations_at_once_get_one_answer(
    replicas: tuple[StampingServiceStub, StampingServiceStub], database_url: str
) -> None:
    await replicas[0].CreateStamp(creation(request_id="first"))
    for name in ("first", "never came"):
        request = revocation(name)
        answers = await asyncio.gather(*(replicas[n % 2].RevokeStamp(request) for n in range(16)))
        assert all(answer == answers[0] for answer in answers)
        assert answers[0].revoked == (name == "first")
    assert len(await rows(database_url, "SELECT FROM stamp_revocations")) == 2


async def test_of_two_bodies_with_one_revocations_id_at_once_one_is_refused(
    replicas: tuple[StampingServiceStub, StampingServiceStub], database_url: str
) -> None:
    for attempt in range(10):
        names = [f"{attempt}-{n}" for n in range(2)]
        for name in names:
            await replicas[0].CreateStamp(creation(name.encode(), request_id=name))
        outcomes = await asyncio.gather(
            *(
                replica.RevokeStamp(revocation(name, request_id=f"undo-{attempt}"))
                for replica, name in zip(replicas, names, strict=True)
            ),
            return_exceptions=True,
        )
        refused = [outcome for outcome in outcomes if isinstance(outcome, BridgeError)]
        assert [error.reason for error in refused] == [errors_pb2.ERROR_REASON_REQUEST_ID_REUSED], outcomes
    assert len(await rows(database_url, "SELECT FROM stamps WHERE revoked_at IS NOT NULL")) == 10
    assert not await rows(database_url, BROKEN)


async def test_of_two_revocations_of_the_last_two_claims_one_revokes(
    replicas: tuple[StampingServiceStub, StampingServiceStub], database_url: str
) -> None:
    one, two = replicas
    await one.CreateStamp(creation(request_id="first"))
    await one.CreateStamp(creation(request_id="second"))
    async with held(database_url, "SELECT FROM stamps FOR UPDATE") as watcher:
        revoking = [begin(one.RevokeStamp(revocation("first"))), begin(two.RevokeStamp(revocation("second")))]
        await until_waiting(watcher, 2)
    answers = await asyncio.gather(*revoking)
    assert sorted((answer.revoked, answer.remaining_claim_count) for answer in answers) == [(False, 1), (True, 0)]
    assert not await rows(database_url, BROKEN)


WAITS = {
    "a revocation for another of its id": (
        "INSERT INTO stamp_revocations VALUES ('omninode.services.metadata', 'undo', 'x', '', false, 0)",
        lambda stub: stub.RevokeStamp(revocation("first", request_id="undo")),
    ),
    "a request for another of its id": (
        "INSERT INTO stamp_requests VALUES ('omninode.services.metadata', 'taken', NULL, NULL, false, now())",
        lambda stub: stub.CreateStamp(creation(b"new", request_id="taken")),
    ),
}


@pytest.mark.parametrize(("taken", "call"), WAITS.values(), ids=WAITS.keys())
async def test_who_waits_for_a_row_does_not_hold_the_numbers_of_the_events(
    replicas: tuple[StampingServiceStub, StampingServiceStub],
    database_url: str,
    taken: str,
    call: Callable[[StampingServiceStub], Awaitable[Any]],
) -> None:
    one, two = replicas
    await one.CreateStamp(creation(request_id="first"))
    async with held(database_url, taken) as watcher:
        waiting = begin(call(one))
        await until_waiting(watcher)
        assert (await two.CreateStamp(creation(b"other"))).created
        assert not waiting.done()
    with pytest.raises(BridgeError):
        await waiting


async def test_creations_and_revocations_of_few_contents_at_once_end_without_deadlock(
    replicas: tuple[StampingServiceStub, StampingServiceStub], database_url: str
) -> None:
    contents = [b"%d" % n for n in range(5)]

    async def churn(replica: StampingServiceStub, worker: int) -> None:
        for turn in range(8):
            items = [creation(content, request_id=f"{worker}-{turn}-{content.decode()}") for content in contents]
            ordered = items if worker % 2 else items[::-1]
            results = (await replica.BatchCreateStamps(pb.BatchCreateStampsRequest(items=ordered))).results
            assert all(result.WhichOneof("outcome") == "stamped" for result in results), results
            await asyncio.gather(*(replica.RevokeStamp(revocation(item.request_id)) for item in items))

    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*(churn(replicas[worker % 2], worker) for worker in range(6)))
    assert not await rows(database_url, BROKEN)
    versions = await rows(database_url, "SELECT max(version) = count(*) AS whole FROM stamps GROUP BY digest")
    assert [row["whole"] for row in versions] == [True] * len(contents)
    offsets = await rows(database_url, "SELECT event_offset FROM stamp_events ORDER BY event_offset")
    assert [row["event_offset"] for row in offsets] == list(range(len(offsets)))
