"""What the store refuses: INVALID_ARGUMENT with the reason and the field, and nothing written.

One node serves all cases, because each leaves its database as it was.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any, cast

import pytest
from blake3 import blake3
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.store.v1 import store_pb2 as pb
from omninode.bridge.store.v1.store_pb2_grpc import StoreServiceStub
from services.chassis.errors import InvalidArgument
from tests.store.sample import MIB, action, at, commit, counts, event, milliseconds

pytestmark = pytest.mark.asyncio(loop_scope="module")


def with_action(**fields: Any) -> pb.TryCommitRequest:
    return commit(actions=[action(**fields)])


def with_event(**fields: Any) -> pb.TryCommitRequest:
    return with_action(events=[event(**fields)])


def with_provenance(**fields: Any) -> pb.TryCommitRequest:
    return with_action(provenance=pb.Provenance(**fields))


def with_projection(**fields: Any) -> pb.TryCommitRequest:
    return commit(projection=pb.ProjectionInput(**fields))


def with_guard(**fields: Any) -> pb.TryCommitRequest:
    return commit(guards=[pb.Guard(**{"lease": "a", "epoch": 1, "condition": pb.GUARD_CONDITION_HELD, **fields})])


TWICE = action()
COMMITS: dict[str, tuple[str, pb.TryCommitRequest]] = {
    "no key": ("key", pb.TryCommitRequest(expected=at(0), state_json="{}", actions=[action()])),
    "a key without a collection": ("key", commit("workflow")),
    "a key with an empty collection": ("key", commit("/1")),
    "a key with an empty id": ("key", commit("workflow/")),
    "a key with a collection that is no name": ("key", commit("work flow/1")),
    "a key with a collection of 64": ("key", commit("w" * 64 + "/1")),
    "a key with an id of 441": ("key", commit("w/" + "1" * 441)),
    "a key with a newline at its end": ("key", commit("workflow/1\n")),
    "a key with NUL": ("key", commit("workflow/\0")),
    "no expectation": ("expected", commit(expected=pb.Expectation())),
    "an expected version below 0": ("expected.version", commit(expected=at(-1))),
    "no state": ("state_json", commit(state_json="")),
    "a state that is no JSON": ("state_json", commit(state_json="{")),
    "a state that is text behind JSON": ("state_json", commit(state_json="{} {}")),
    "a state that is a list": ("state_json", commit(state_json="[{}]")),
    "a state that is null": ("state_json", commit(state_json="null")),
    "a state with NaN": ("state_json", commit(state_json='{"a": NaN}')),
    "a state of 1 MiB and a byte": ("state_json", commit(state_json='{"a": "' + "x" * (MIB - 8) + '"}')),
    "a state with U+0000": ("state_json", commit(state_json='{"a": "\0"}')),
    "a state with an escaped U+0000": ("state_json", commit(state_json='{"a": ["\\u0000"]}')),
    "a state with U+0000 behind an escaped backslash": ("state_json", commit(state_json='{"a": "\\\\\\u0000"}')),
    "a state with U+0000 in a name": ("state_json", commit(state_json='{"\\u0000": 1}')),
    "a state with U+0000 in a value that is given again": (
        "state_json",
        commit(state_json='{"a": "\\u0000", "a": 1}'),
    ),
    "a state too deep to read": ("state_json", commit(state_json='{"a":' * 5000 + "1" + "}" * 5000)),
    "a schema version below 0": ("schema_version", commit(schema_version=-1)),
    "no action": ("actions", commit(actions=[])),
    "501 actions": ("actions", commit(actions=[action() for _ in range(501)])),
    "an action twice": ("actions", commit(actions=[TWICE, action(), TWICE])),
    "an action_id that is no UUID": ("actions[0].action_id", with_action(action_id="1")),
    "no action_id": (
        "actions[0].action_id",
        commit(actions=[pb.CommitAction(fingerprint=b"f" * 32, type="started")]),
    ),
    "a fingerprint of 31 bytes": ("actions[0].fingerprint", with_action(fingerprint=b"f" * 31)),
    "no action type": ("actions[0].type", with_action(type="")),
    "an action type that is no name": ("actions[0].type", with_action(type="a b")),
    "101 events of an action": ("actions[0].events", with_action(events=[event()] * 101)),
    "an event_id of the sender's": ("actions[0].events[0].event_id", with_event(event_id=str(uuid.uuid4()))),
    "an event of no kind": (
        "actions[0].events[0].kind",
        with_event(kind=cast("pb.EventKind.ValueType", 0)),
    ),
    "an event of an unknown kind": (
        "actions[0].events[0].kind",
        with_event(kind=cast("pb.EventKind.ValueType", 9)),
    ),
    "an event of no type": ("actions[0].events[0].event_type", with_event(event_type="")),
    "an event of no topic": ("actions[0].events[0].topic", with_event(topic="")),
    "a topic that is no name": ("actions[0].events[0].topic", with_event(topic="a/b")),
    "a partition_key over its bound": ("actions[0].events[0].partition_key", with_event(partition_key="k" * 513)),
    "a payload that is no object": ("actions[0].events[0].payload_json", with_event(payload_json="1")),
    "a payload over its bound": (
        "actions[0].events[0].payload_json",
        with_event(payload_json='{"a": "' + "x" * (256 * 1024) + '"}'),
    ),
    "a payload with U+0000": ("actions[0].events[0].payload_json", with_event(payload_json='{"a": "\\u0000"}')),
    "65 headers": ("actions[0].events[0].headers", with_event(headers={str(number): "" for number in range(65)})),
    "headers over their bound": (
        "actions[0].events[0].headers",
        with_event(headers={"a": "x" * 5000, "b": "x" * 5000}),
    ),
    "a header with NUL": ("actions[0].events[0].headers.a", with_event(headers={"a": "\0"})),
    "an effect_id over its bound": ("actions[0].provenance.effect_id", with_provenance(effect_id="e" * 513)),
    "an actor with NUL": ("actions[0].provenance.actor", with_provenance(actor="\0")),
    "a time that is none": (
        "actions[0].provenance.occur_time",
        with_provenance(occur_time=Timestamp(seconds=2**62)),
    ),
    "a correlation id over its bound": (
        "actions[0].provenance.correlation_id",
        with_provenance(correlation_id="c" * 129),
    ),
    "a tag over its bound": ("projection.tag", with_projection(tag="t" * 256)),
    "a namespace with NUL": ("projection.namespace", with_projection(namespace="\0")),
    "17 indices": ("projection.indices", with_projection(indices={str(number): "" for number in range(17)})),
    "extras that are no object": ("projection.extras_json", with_projection(extras_json="[]")),
    "extras over their bound": ("projection.extras_json", with_projection(extras_json='{"a": "' + "x" * 65_536 + '"}')),
    "17 blobs": ("blobs", commit(blobs=[pb.Blob(digest=blake3(b"").hexdigest())] * 17)),
    "a blob of 1 MiB and a byte": (
        "blobs[0].content",
        commit(blobs=[pb.Blob(digest="0" * 64, content=bytes(MIB + 1))]),
    ),
    "a blob's digest of 63 digits": ("blobs[0].digest", commit(blobs=[pb.Blob(digest="0" * 63)])),
    "a blob_ref that is no digest": ("blob_refs[1]", commit(blob_refs=["0" * 64, "g" * 64])),
    "101 blob_refs": ("blob_refs", commit(blob_refs=["0" * 64] * 101)),
    "a released reference that is no digest": ("released_blob_refs[0]", commit(released_blob_refs=["0" * 63])),
    "101 released references": ("released_blob_refs", commit(released_blob_refs=["0" * 64] * 101)),
    "17 guards": ("guards", commit(guards=[with_guard().guards[0]] * 17)),
    "a guard of no lease": ("guards[0].lease", with_guard(lease="")),
    "a guard of a malformed lease": ("guards[0].lease", with_guard(lease="a//b")),
    "a guard with a negative epoch": ("guards[0].epoch", with_guard(epoch=-1)),
    "a guard that asks nothing": (
        "guards[0].condition",
        with_guard(condition=cast("pb.GuardCondition.ValueType", 0)),
    ),
}

Call = Callable[[StoreServiceStub], Any]


def append(*events: pb.Event, request_id: str = "r") -> Call:
    return lambda stub: stub.AppendEvents(pb.AppendEventsRequest(request_id=request_id, events=events))


def acquire(**fields: Any) -> Call:
    given = {"name": "a", "owner": "o", "ttl": milliseconds(1000), **fields}
    return lambda stub: stub.AcquireLease(pb.AcquireLeaseRequest(**given))


def renew(**fields: Any) -> Call:
    given = {"owner": "o", "ttl": milliseconds(1000), "leases": [pb.LeaseEpoch(name="a", epoch=1)], **fields}
    return lambda stub: stub.RenewLeases(pb.RenewLeasesRequest(**given))


def release(**fields: Any) -> Call:
    given = {"name": "a", "owner": "o", "epoch": 1, **fields}
    return lambda stub: stub.ReleaseLease(pb.ReleaseLeaseRequest(**given))


def put(digest: str) -> Call:
    return lambda stub: stub.PutBlob(iter([pb.PutBlobRequest(header=pb.PutBlobHeader(digest=digest))]))


def get_blob(digest: str) -> Call:
    async def read(stub: StoreServiceStub) -> None:
        async for _ in stub.GetBlob(pb.GetBlobRequest(digest=digest)):
            pass

    return read


def list_open(**fields: Any) -> Call:
    return lambda stub: stub.ListOpenKeys(pb.ListOpenKeysRequest(**{"collection": "workflow", **fields}))


def list_leases(**fields: Any) -> Call:
    return lambda stub: stub.ListLeases(pb.ListLeasesRequest(**fields))


def batch(*items: pb.TryCommitRequest) -> Call:
    return lambda stub: stub.BatchTryCommit(pb.BatchTryCommitRequest(items=items))


OTHERS: dict[str, tuple[str, Call]] = {
    "a batch of 0 commits": ("items", batch()),
    "a batch of 501 commits": ("items", batch(*[commit()] * 501)),
    "a state of no key": ("key", lambda stub: stub.GetState(pb.GetStateRequest())),
    "a state of a key without a collection": ("key", lambda stub: stub.GetState(pb.GetStateRequest(key="1"))),
    "a batch of 0 keys": ("keys", lambda stub: stub.BatchGetStates(pb.BatchGetStatesRequest())),
    "a batch of 501 keys": ("keys", lambda stub: stub.BatchGetStates(pb.BatchGetStatesRequest(keys=["a/b"] * 501))),
    "open keys of no collection": ("collection", list_open(collection="")),
    "open keys of what is no collection": ("collection", list_open(collection="a/b")),
    "open keys of a negative partition": ("partitions[1]", list_open(partitions=[0, -1])),
    "a negative page of open keys": ("page_size", list_open(page_size=-1)),
    "events by no request_id": ("request_id", append(event(partition_key="k"), request_id="")),
    "events by a request_id over its bound": ("request_id", append(event(partition_key="k"), request_id="r" * 256)),
    "events by a request_id that does not print": ("request_id", append(event(partition_key="k"), request_id="\n")),
    "no events": ("events", append()),
    "501 events": ("events", append(*[event(partition_key="k")] * 501)),
    "an event without a partition_key": ("events[1].partition_key", append(event(partition_key="k"), event())),
    "an appended event of no type": ("events[0].event_type", append(event(partition_key="k", event_type=""))),
    "a blob of no digest": ("digest", put("")),
    "a blob of what is no digest": ("digest", put("g" * 64)),
    "getting a blob of what is no digest": ("digest", get_blob("0" * 63)),
    "a lease of no name": ("name", acquire(name="")),
    "a lease with an empty segment": ("name", acquire(name="a//b")),
    "a lease with a slash at its end": ("name", acquire(name="a/")),
    "a lease with a space": ("name", acquire(name="a b")),
    "a lease over its bound": ("name", acquire(name="a" * 256)),
    "a lease of no owner": ("owner", acquire(owner="")),
    "an owner that does not print": ("owner", acquire(owner="a\tb")),
    "a lease of no duration": ("ttl", acquire(ttl=Duration())),
    "a lease of 99 ms": ("ttl", acquire(ttl=milliseconds(99))),
    "a lease of more than an hour": ("ttl", acquire(ttl=milliseconds(3_600_001))),
    "a duration that is none": ("ttl", acquire(ttl=Duration(seconds=2**62))),
    "renewing no leases": ("leases", renew(leases=[])),
    "renewing 501 leases": ("leases", renew(leases=[pb.LeaseEpoch(name="a")] * 501)),
    "renewing a malformed name": ("leases[0].name", renew(leases=[pb.LeaseEpoch(name="/")])),
    "renewing with a negative epoch": ("leases[0].epoch", renew(leases=[pb.LeaseEpoch(name="a", epoch=-1)])),
    "renewing for 99 ms": ("ttl", renew(ttl=milliseconds(99))),
    "releasing a malformed name": ("name", release(name="/")),
    "releasing with a negative epoch": ("epoch", release(epoch=-1)),
    "leases of a malformed prefix": ("prefix", list_leases(prefix="a b")),
    "a negative page of leases": ("page_size", list_leases(page_size=-1)),
}


@pytest.mark.parametrize(("field", "request_"), COMMITS.values(), ids=COMMITS.keys())
async def test_a_bad_commit_is_refused_by_the_name_of_its_field_and_nothing_is_written(
    shared_stub: StoreServiceStub, shared_url: str, field: str, request_: pb.TryCommitRequest
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await shared_stub.TryCommit(request_)
    check(caught.value, field)
    result = (await shared_stub.BatchTryCommit(pb.BatchTryCommitRequest(items=[request_]))).results[0]
    assert (result.error.code, result.error.reason) == (3, errors_pb2.ERROR_REASON_INVALID_FIELD)
    assert [violation.field for violation in result.error.field_violations] == [f"items[0].{field}"]
    assert not any((await counts(shared_url)).values())


@pytest.mark.parametrize(("field", "call"), OTHERS.values(), ids=OTHERS.keys())
async def test_bad_input_is_refused_by_the_name_of_its_field_and_nothing_is_written(
    shared_stub: StoreServiceStub, shared_url: str, field: str, call: Call
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await call(shared_stub)
    check(caught.value, field)
    assert not any((await counts(shared_url)).values())


def check(refusal: InvalidArgument, field: str) -> None:
    assert refusal.reason == errors_pb2.ERROR_REASON_INVALID_FIELD
    assert [violation.field for violation in refusal.violations] == [field]
    assert refusal.metadata["field"] == field


async def test_a_blob_that_is_not_what_it_is_said_to_be_is_refused_and_nothing_is_written(
    shared_stub: StoreServiceStub, shared_url: str
) -> None:
    blobs = [pb.Blob(digest=blake3(b"a").hexdigest(), content=b"a"), pb.Blob(digest="0" * 64, content=b"b")]
    with pytest.raises(InvalidArgument) as caught:
        await shared_stub.TryCommit(commit(blobs=blobs))
    assert caught.value.reason == errors_pb2.ERROR_REASON_BLOB_DIGEST_MISMATCH
    assert [violation.field for violation in caught.value.violations] == ["blobs[1].digest"]
    assert caught.value.metadata["actual_digest"] == blake3(b"b").hexdigest()
    assert not any((await counts(shared_url)).values())


@pytest.mark.parametrize(
    "call", [list_open(page_token="next"), list_leases(page_token="next")], ids=["open keys", "leases"]
)
async def test_a_made_up_page_token_is_refused(shared_stub: StoreServiceStub, call: Call) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await call(shared_stub)
    assert caught.value.reason == errors_pb2.ERROR_REASON_PAGE_TOKEN_MISMATCH
    assert [violation.field for violation in caught.value.violations] == ["page_token"]


async def test_every_field_at_fault_is_named_at_once(shared_stub: StoreServiceStub) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await shared_stub.TryCommit(
            commit("1", state_json="[]", actions=[action("1"), action(type="")], schema_version=-1)
        )
    assert [violation.field for violation in caught.value.violations] == [
        "key",
        "state_json",
        "schema_version",
        "actions[0].action_id",
        "actions[1].type",
    ]
