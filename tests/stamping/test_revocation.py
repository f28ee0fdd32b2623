"""RevokeStamp as its callers meet it: claims released, tombstones, versions, and the same answer to the same request."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.stamping.v1 import stamping_pb2 as pb
from omninode.bridge.stamping.v1.stamping_pb2_grpc import StampingServiceStub
from services.chassis.errors import AlreadyExists, FailedPrecondition, NotFound
from tests.stamping.node import stamping_stub
from tests.stamping.sample import creation, revocation, rows


@pytest.fixture
async def stub(database_url: str) -> AsyncIterator[StampingServiceStub]:
    async with stamping_stub(database_url) as stub:
        yield stub


async def test_releasing_the_only_claim_revokes_the_stamp(stub: StampingServiceStub) -> None:
    created = (await stub.CreateStamp(creation(request_id="build"))).stamp
    answer = await stub.RevokeStamp(revocation("build"))
    assert (answer.revoked, answer.remaining_claim_count) == (True, 0)
    assert answer.stamp.revoke_time.ToDatetime() >= created.create_time.ToDatetime()
    revoked = pb.Stamp()
    revoked.CopyFrom(answer.stamp)
    revoked.ClearField("revoke_time")
    assert revoked == created
    with pytest.raises(NotFound):
        await stub.GetStamp(pb.GetStampRequest(digest=created.digest))
    assert list((await stub.ListStamps(pb.ListStampsRequest(state=pb.STAMP_STATE_REVOKED))).stamps) == [answer.stamp]


async def test_a_stamp_stands_until_its_last_claim_is_released(stub: StampingServiceStub) -> None:
    created = (await stub.CreateStamp(creation(request_id="one"))).stamp
    await stub.CreateStamp(creation(request_id="two"))
    await stub.CreateStamp(creation(request_id="three"))
    # The maker's claim is one like the others.
    first = await stub.RevokeStamp(revocation("one"))
    assert (first.revoked, first.remaining_claim_count, first.stamp) == (False, 2, created)
    assert (await stub.GetStamp(pb.GetStampRequest(digest=created.digest))).stamp == created
    assert (await stub.RevokeStamp(revocation("two"))).remaining_claim_count == 1
    last = await stub.RevokeStamp(revocation("three"))
    assert (last.revoked, last.remaining_claim_count) == (True, 0)
    assert last.stamp.HasField("revoke_time")


async def test_the_same_revocation_again_gets_the_first_answer_whatever_has_happened_since(
    stub: StampingServiceStub,
) -> None:
    await stub.CreateStamp(creation(request_id="one"))
    await stub.CreateStamp(creation(request_id="two"))
    requests = [revocation("one"), revocation("one"), revocation("two"), revocation("two"), revocation("never came")]
    answers = [await stub.RevokeStamp(request) for request in requests]
    assert [answer.revoked for answer in answers] == [False, False, True, False, False]
    await stub.CreateStamp(creation(request_id="three"))
    assert [await stub.RevokeStamp(request) for request in requests] == answers


@pytest.mark.parametrize(
    "change", [{"creation_request_id": "two"}, {"creation_request_id": "other"}, {"reason": "other"}], ids=str
)
@pytest.mark.parametrize("stamped", [True, False], ids=["after the request", "before the request"])
async def test_a_revocations_id_with_another_body_is_refused_and_releases_nothing(
    stub: StampingServiceStub, database_url: str, change: dict[str, str], stamped: bool
) -> None:
    if stamped:
        await stub.CreateStamp(creation(request_id="one"))
        await stub.CreateStamp(creation(request_id="two"))
    await stub.RevokeStamp(revocation("one", request_id="undo"))
    before = await rows(database_url, "SELECT * FROM stamp_requests ORDER BY request_id")
    with pytest.raises(AlreadyExists) as caught:
        await stub.RevokeStamp(
            pb.RevokeStampRequest(
                **{"creation_request_id": "one", "request_id": "undo", "reason": "a mistake", **change}
            )
        )
    assert caught.value.reason == errors_pb2.ERROR_REASON_REQUEST_ID_REUSED
    assert caught.value.metadata["request_id"] == "undo"
    assert await rows(database_url, "SELECT * FROM stamp_requests ORDER BY request_id") == before


async def test_a_revocations_id_is_its_namespaces_own(stub: StampingServiceStub) -> None:
    for namespace in ("a", "b"):
        await stub.CreateStamp(creation(request_id="build", namespace=namespace))
    assert (await stub.RevokeStamp(revocation("build", request_id="undo", namespace="a"))).revoked
    answer = await stub.RevokeStamp(revocation("build", request_id="undo", namespace="b"))
    assert (answer.revoked, answer.stamp.namespace) == (True, "b")


async def test_another_revocation_of_a_released_claim_is_a_result_and_changes_nothing(
    stub: StampingServiceStub,
) -> None:
    await stub.CreateStamp(creation(request_id="one"))
    await stub.CreateStamp(creation(request_id="two"))
    await stub.RevokeStamp(revocation("one"))
    again = await stub.RevokeStamp(revocation("one"))
    assert (again.revoked, again.remaining_claim_count, again.stamp.HasField("revoke_time")) == (False, 1, False)
    last = await stub.RevokeStamp(revocation("two"))
    after = await stub.RevokeStamp(revocation("two"))
    assert (after.revoked, after.remaining_claim_count, after.stamp) == (False, 0, last.stamp)


def refusal(caught: pytest.ExceptionInfo[Any]) -> tuple[int, dict[str, str]]:
    return caught.value.reason, caught.value.metadata


async def test_a_revocation_that_comes_first_refuses_the_late_request(
    stub: StampingServiceStub, database_url: str
) -> None:
    answer = await stub.RevokeStamp(revocation("late", namespace="docs"))
    assert answer == pb.RevokeStampResponse()
    assert await stub.RevokeStamp(revocation("late", namespace="docs")) == pb.RevokeStampResponse()
    with pytest.raises(FailedPrecondition) as caught:
        await stub.CreateStamp(creation(request_id="late", namespace="docs"))
    assert refusal(caught) == (
        errors_pb2.ERROR_REASON_STAMP_REQUEST_REVOKED,
        {"request_id": "late", "namespace": "docs"},
    )
    assert not await rows(database_url, "SELECT FROM stamps UNION ALL SELECT FROM stamp_events")
    assert (await stub.CreateStamp(creation(request_id="late"))).created


async def test_a_request_that_is_sent_again_after_its_revocation_is_refused(stub: StampingServiceStub) -> None:
    request = creation(request_id="build")
    await stub.CreateStamp(request)
    await stub.CreateStamp(creation(request_id="other"))
    await stub.RevokeStamp(revocation("build"))
    with pytest.raises(FailedPrecondition) as caught:
        await stub.CreateStamp(request)
    assert caught.value.reason == errors_pb2.ERROR_REASON_STAMP_REQUEST_REVOKED
    with pytest.raises(AlreadyExists) as reused:
        await stub.CreateStamp(creation(b"another body", request_id="build"))
    assert reused.value.reason == errors_pb2.ERROR_REASON_REQUEST_ID_REUSED


async def test_a_revoked_item_spoils_no_other_of_its_batch(stub: StampingServiceStub) -> None:
    await stub.RevokeStamp(revocation("late"))
    items = [creation(b"one"), creation(b"two", request_id="late"), creation(b"three")]
    results = (await stub.BatchCreateStamps(pb.BatchCreateStampsRequest(items=items))).results
    assert [result.WhichOneof("outcome") for result in results] == ["stamped", "error", "stamped"]
    assert results[1].error.reason == errors_pb2.ERROR_REASON_STAMP_REQUEST_REVOKED
    assert results[1].error.metadata["request_id"] == "late"


async def test_content_stamped_again_after_a_revocation_gets_the_next_version(stub: StampingServiceStub) -> None:
    stamps = []
    for version in (1, 2, 3):
        created = await stub.CreateStamp(creation(request_id=f"build-{version}"))
        assert (created.created, created.stamp.version) == (True, version)
        stamps.append((await stub.RevokeStamp(revocation(f"build-{version}"))).stamp)
    assert len({stamp.stamp_id for stamp in stamps}) == 3
    # A revocation is of the version that its request claimed.
    first = await stub.RevokeStamp(revocation("build-1"))
    assert (first.stamp, first.revoked) == (stamps[0], False)


async def test_claims_of_a_stream_and_of_a_batch_are_released_as_any(stub: StampingServiceStub) -> None:
    header = pb.CreateStampHeader(request_id="stream")
    frames = [pb.CreateStampStreamRequest(header=header), pb.CreateStampStreamRequest(chunk=b"x")]
    await stub.CreateStampStream(iter(frames))
    await stub.BatchCreateStamps(pb.BatchCreateStampsRequest(items=[creation(b"x", request_id="batch")]))
    assert (await stub.RevokeStamp(revocation("stream"))).remaining_claim_count == 1
    assert (await stub.RevokeStamp(revocation("batch"))).revoked


async def test_a_revocation_is_one_event_with_its_reason_and_its_stamps_moment(
    stub: StampingServiceStub, database_url: str
) -> None:
    for name in ("one", "two"):
        await stub.CreateStamp(creation(request_id=name))
    await stub.RevokeStamp(revocation("one", reason="no event"))
    stamp = (await stub.RevokeStamp(revocation("two", reason="withdrawn"))).stamp
    found = await rows(
        database_url, "SELECT event_offset, kind, stamp_id, reason, occurred_at FROM stamp_events ORDER BY event_offset"
    )
    assert [(row["event_offset"], row["kind"], row["reason"]) for row in found] == [
        (0, "created", None),
        (1, "revoked", "withdrawn"),
    ]
    assert {str(row["stamp_id"]) for row in found} == {stamp.stamp_id}
    assert [dict(row) for row in await rows(database_url, "SELECT revoked_at AS at FROM stamps")] == [
        {"at": found[1]["occurred_at"]}
    ]
