"""The stamping contract as its callers meet it: real stub, real socket, real PostgreSQL."""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest
from blake3 import blake3
from google.protobuf.timestamp_pb2 import Timestamp

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.stamping.v1 import stamping_pb2 as pb
from omninode.bridge.stamping.v1.stamping_pb2_grpc import StampingServiceStub
from services.chassis.errors import AlreadyExists, InvalidArgument, NotFound
from services.stamping.domain import Limits
from tests.stamping.node import stamping_stub
from tests.stamping.sample import SOURCE, creation, revocation, rows, struct
from tests.stamping.test_blake3_vectors import VECTORS, content_of

SMALL = Limits(content_bytes=1000, stamp_bytes=700, batch_bytes=2000, inline_bytes=500)


@pytest.fixture
async def stub(database_url: str) -> AsyncIterator[StampingServiceStub]:
    async with stamping_stub(database_url) as stub:
        yield stub


async def test_hashing_gives_blake3_of_the_bytes_as_they_are(stub: StampingServiceStub) -> None:
    content = b"# ONEX:uid=1,hash=" + b"0" * 64 + b"\n" + SOURCE
    response = await stub.Hash(pb.HashRequest(content=content))
    assert (response.digest, response.size_bytes) == (blake3(content).hexdigest(), len(content))


async def test_a_stream_of_chunks_hashes_as_one_content(stub: StampingServiceStub) -> None:
    chunks = [b"", b"a" * 70_000, b"b", b"c" * 200_000]
    response = await stub.HashStream(iter([pb.HashStreamRequest(chunk=chunk) for chunk in chunks]))
    assert (response.digest, response.size_bytes) == (blake3(b"".join(chunks)).hexdigest(), 270_001)


async def test_a_stamp_holds_what_the_request_gave(stub: StampingServiceStub) -> None:
    request = creation(
        namespace="docs", metadata=struct(author="Ada", lines=2, ratio=0.5, tags=["a", None, True], deep={"x": {}})
    )
    response = await stub.CreateStamp(request)
    stamp = response.stamp
    assert response.created
    assert not response.HasField("stamped_content")
    assert stamp.digest == blake3(SOURCE).hexdigest()
    assert (stamp.namespace, stamp.file_path, stamp.size_bytes, stamp.version) == ("docs", "answer.py", len(SOURCE), 1)
    assert (stamp.metadata_version, stamp.protocol_version, stamp.content_type) == ("0.1", "1.0", "text/x-python")
    assert stamp.intelligence_data == request.metadata
    assert uuid.UUID(stamp.stamp_id).version == 7
    assert uuid.UUID(stamp.op_id).version == 5
    assert stamp.HasField("create_time")
    assert not stamp.HasField("revoke_time")


async def test_stamping_twice_returns_the_first_stamp(stub: StampingServiceStub) -> None:
    first = await stub.CreateStamp(creation(metadata=struct(author="Ada")))
    second = await stub.CreateStamp(creation(metadata=struct(author="Bob"), file_path="other.py"))
    assert second.stamp == first.stamp
    assert (first.created, second.created) == (True, False)


async def test_one_digest_in_two_namespaces_is_two_stamps(stub: StampingServiceStub) -> None:
    first = await stub.CreateStamp(creation(namespace="a"))
    second = await stub.CreateStamp(creation(namespace="b"))
    assert first.stamp.digest == second.stamp.digest
    assert first.stamp.stamp_id != second.stamp.stamp_id
    assert second.created


async def test_sixteen_equal_requests_at_once_make_one_stamp_and_get_one_answer(
    stub: StampingServiceStub, database_url: str
) -> None:
    request = creation()
    answers = await asyncio.gather(*(stub.CreateStamp(request) for _ in range(16)))
    assert all(answer == answers[0] for answer in answers)
    assert answers[0].created
    assert len(await rows(database_url, "SELECT FROM stamps")) == 1
    assert len(await rows(database_url, "SELECT FROM stamp_requests")) == 1
    assert [row["kind"] for row in await rows(database_url, "SELECT kind FROM stamp_events")] == ["created"]


async def test_sixteen_callers_of_one_content_get_one_stamp_which_one_of_them_made(
    stub: StampingServiceStub,
) -> None:
    answers = await asyncio.gather(*(stub.CreateStamp(creation(file_path=f"{n}.py")) for n in range(16)))
    assert len({answer.stamp.stamp_id for answer in answers}) == 1
    assert sum(answer.created for answer in answers) == 1
    maker = next(answer for answer in answers if answer.created)
    assert all(answer.stamp == maker.stamp for answer in answers)


async def test_replicas_that_race_for_contents_agree_on_one_stamp_each(database_url: str) -> None:
    contents = [b"content %d" % n for n in range(40)]
    async with (
        stamping_stub(database_url) as one,
        stamping_stub(database_url) as two,
        stamping_stub(database_url) as three,
    ):
        answers = await asyncio.gather(
            *(replica.CreateStamp(creation(content)) for content in contents for replica in (one, two, three))
        )
    by_digest: dict[str, set[str]] = {}
    for answer in answers:
        by_digest.setdefault(answer.stamp.digest, set()).add(answer.stamp.stamp_id)
    assert len(by_digest) == 40
    assert all(len(ids) == 1 for ids in by_digest.values())
    assert sum(answer.created for answer in answers) == 40


async def test_replicas_that_race_with_one_request_id_give_it_to_one_body(database_url: str) -> None:
    async with stamping_stub(database_url) as one, stamping_stub(database_url) as two:
        for attempt in range(20):
            requests = [creation(b"%d %d" % (attempt, n), request_id=f"same-{attempt}") for n in range(2)]
            outcomes = await asyncio.gather(
                one.CreateStamp(requests[0]), two.CreateStamp(requests[1]), return_exceptions=True
            )
            refused = [outcome for outcome in outcomes if isinstance(outcome, AlreadyExists)]
            assert len(refused) == 1, outcomes
    assert len(await rows(database_url, "SELECT FROM stamps")) == 20


async def test_the_same_request_again_gets_the_first_answer(stub: StampingServiceStub) -> None:
    request = creation(embed=True, metadata=struct(a=1))
    first = await stub.CreateStamp(request)
    assert await stub.CreateStamp(request) == first


@pytest.mark.parametrize(
    "change",
    [{"content": b"other"}, {"file_path": "b.py"}, {"metadata": struct(a=1)}, {"embed": True}],
    ids=["content", "file_path", "metadata", "embed"],
)
async def test_a_request_id_with_another_body_is_refused(stub: StampingServiceStub, change: dict[str, Any]) -> None:
    await stub.CreateStamp(creation(request_id="build-17", namespace="docs"))
    with pytest.raises(AlreadyExists) as caught:
        await stub.CreateStamp(creation(**{"request_id": "build-17", "namespace": "docs", **change}))
    assert caught.value.reason == errors_pb2.ERROR_REASON_REQUEST_ID_REUSED
    assert caught.value.metadata == {"request_id": "build-17", "namespace": "docs"}


async def test_a_request_id_is_its_namespaces_own(stub: StampingServiceStub) -> None:
    await stub.CreateStamp(creation(b"one", request_id="r", namespace="a"))
    assert (await stub.CreateStamp(creation(b"two", request_id="r", namespace="b"))).created


async def test_a_stamped_file_stamped_again_keeps_its_digest_and_its_stamp(stub: StampingServiceStub) -> None:
    first = await stub.CreateStamp(creation(embed=True))
    again = await stub.CreateStamp(creation(first.stamped_content, embed=True))
    assert not again.created
    assert again.stamped_content == first.stamped_content
    assert again.stamp == first.stamp


async def test_the_syntax_of_a_block_is_of_the_callers_own_path(stub: StampingServiceStub) -> None:
    await stub.CreateStamp(creation(b"x\n", file_path="a.py", embed=True))
    as_css = await stub.CreateStamp(creation(b"x\n", file_path="a.css", embed=True))
    assert as_css.stamped_content.startswith(b"/* ---BEGIN ONEX STAMP---")


@pytest.mark.parametrize(
    ("content", "path"), [(b'{"a": 1}', "a.json"), (b"\0\1\2", "a.py"), (b"x", "a.unknown"), (b"x", "")], ids=repr
)
async def test_what_has_no_place_for_a_stamp_is_stamped_detached(
    stub: StampingServiceStub, content: bytes, path: str
) -> None:
    response = await stub.CreateStamp(creation(content, file_path=path, embed=True))
    assert response.created
    assert not response.HasField("stamped_content")


async def test_content_at_its_bound_is_stamped_and_its_stamp_is_not_counted(database_url: str) -> None:
    async with stamping_stub(database_url, SMALL) as stub:
        stamped = await stub.CreateStamp(creation(b"#" * 1000, embed=True))
        assert len(stamped.stamped_content) > 1000
        assert not (await stub.CreateStamp(creation(stamped.stamped_content))).created
        with pytest.raises(InvalidArgument) as caught:
            await stub.CreateStamp(creation(b"#" * 1001))
    assert caught.value.reason == errors_pb2.ERROR_REASON_CONTENT_TOO_LARGE
    assert caught.value.metadata == {"field": "content", "size_bytes": "1001", "limit_bytes": "1000"}


async def test_a_batch_answers_each_item_in_order_and_a_bad_one_spoils_no_other(stub: StampingServiceStub) -> None:
    await stub.CreateStamp(creation(b"zero", request_id="taken"))
    items = [
        creation(b"one"),
        creation(b"two", file_path="../two.py"),
        creation(b"one"),
        creation(b"three", request_id="taken"),
        creation(b"four", request_id="", namespace=""),
        creation(b"five", embed=True),
    ]
    results = (await stub.BatchCreateStamps(pb.BatchCreateStampsRequest(items=items))).results
    assert [result.WhichOneof("outcome") for result in results] == [
        "stamped",
        "error",
        "stamped",
        "error",
        "error",
        "stamped",
    ]
    assert results[0].stamped.created
    assert not results[2].stamped.created
    assert results[0].stamped.stamp == results[2].stamped.stamp
    assert [violation.field for violation in results[1].error.field_violations] == ["items[1].file_path"]
    assert results[3].error.reason == errors_pb2.ERROR_REASON_REQUEST_ID_REUSED
    assert [violation.field for violation in results[4].error.field_violations] == [
        "items[4].request_id",
        "items[4].namespace",
    ]
    assert b"ONEX STAMP" in results[5].stamped.stamped_content


async def test_one_request_id_twice_in_a_batch_is_one_request_or_a_refusal(stub: StampingServiceStub) -> None:
    same, other = creation(b"one", request_id="r"), creation(b"two", request_id="r")
    results = (await stub.BatchCreateStamps(pb.BatchCreateStampsRequest(items=[same, same, other]))).results
    assert results[0] == results[1]
    assert results[2].error.reason == errors_pb2.ERROR_REASON_REQUEST_ID_REUSED


async def test_a_full_batch_is_stamped(stub: StampingServiceStub) -> None:
    items = [creation(b"%d" % n) for n in range(500)]
    results = (await stub.BatchCreateStamps(pb.BatchCreateStampsRequest(items=items))).results
    assert [result.stamped.stamp.digest for result in results] == [blake3(item.content).hexdigest() for item in items]


def upload(*frames: pb.CreateStampStreamRequest) -> Any:
    return iter(frames)


def header(**fields: Any) -> pb.CreateStampStreamRequest:
    given = {"request_id": uuid.uuid4().hex, "file_path": "big.bin", **fields}
    return pb.CreateStampStreamRequest(header=pb.CreateStampHeader(**given))


def chunk(content: bytes) -> pb.CreateStampStreamRequest:
    return pb.CreateStampStreamRequest(chunk=content)


async def test_a_streamed_content_is_stamped_by_its_raw_bytes(stub: StampingServiceStub) -> None:
    stamped = (await stub.CreateStamp(creation(embed=True))).stamped_content
    response = await stub.CreateStampStream(
        upload(header(file_path="answer.py"), chunk(stamped[:10]), chunk(stamped[10:]))
    )
    assert response.created
    assert response.stamp.digest == blake3(stamped).hexdigest()
    assert response.stamp.size_bytes == len(stamped)


async def test_an_empty_stream_behind_its_header_is_empty_content(stub: StampingServiceStub) -> None:
    response = await stub.CreateStampStream(upload(header()))
    assert (response.stamp.digest, response.stamp.size_bytes) == (blake3(b"").hexdigest(), 0)


@pytest.mark.parametrize(
    "frames",
    [
        (),
        (chunk(b"x"),),
        (pb.CreateStampStreamRequest(),),
        (header(), header()),
        (header(), pb.CreateStampStreamRequest()),
    ],
    ids=["nothing", "a chunk first", "an empty message first", "two headers", "an empty message later"],
)
async def test_a_stream_out_of_order_is_refused(
    stub: StampingServiceStub, frames: tuple[pb.CreateStampStreamRequest, ...]
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await stub.CreateStampStream(upload(*frames))
    assert caught.value.reason == errors_pb2.ERROR_REASON_STREAM_OUT_OF_ORDER


async def test_validation_finds_a_true_stamp_and_its_ledger_entry(stub: StampingServiceStub) -> None:
    created = await stub.CreateStamp(creation(embed=True))
    response = await stub.ValidateStamp(pb.ValidateStampRequest(content=created.stamped_content, file_path="answer.py"))
    assert response.valid
    assert response.digest == created.stamp.digest
    assert response.ledger_stamp == created.stamp
    (stamp,) = response.stamps
    assert (stamp.form, stamp.digest_rule, stamp.valid, stamp.invalid_reason) == (
        pb.STAMP_FORM_BLOCK,
        pb.DIGEST_RULE_RAW,
        True,
        "",
    )
    assert (stamp.found_digest, stamp.current_digest, stamp.line) == (created.stamp.digest, created.stamp.digest, 1)
    assert stamp.fields["stamp_id"] == created.stamp.stamp_id


async def test_validation_catches_one_changed_byte(stub: StampingServiceStub) -> None:
    stamped = (await stub.CreateStamp(creation(embed=True))).stamped_content
    changed = stamped.replace(b"42", b"43")
    response = await stub.ValidateStamp(pb.ValidateStampRequest(content=changed, file_path="answer.py"))
    assert not response.valid
    assert not response.HasField("ledger_stamp")
    assert response.stamps[0].found_digest == blake3(SOURCE).hexdigest()
    assert response.stamps[0].current_digest == blake3(SOURCE.replace(b"42", b"43")).hexdigest()
    assert response.stamps[0].invalid_reason


async def test_content_without_a_stamp_is_no_error_and_not_valid(stub: StampingServiceStub) -> None:
    response = await stub.ValidateStamp(pb.ValidateStampRequest(content=SOURCE, file_path="answer.py"))
    assert not response.valid
    assert not response.stamps


async def test_the_earlier_bridges_stamp_is_verified_by_its_own_rule_and_replaced(
    stub: StampingServiceStub,
) -> None:
    body = b"print(1)\n\n\n\nprint(2)\n"
    digest = blake3(b"print(1)\n\nprint(2)").hexdigest().encode()
    content = b"# ONEX:uid=7,hash=" + digest + b",ts=2024-05-01T12:00:00Z\n" + body
    response = await stub.ValidateStamp(pb.ValidateStampRequest(content=content, file_path="a.py"))
    assert response.valid
    assert response.stamps[0].form == pb.STAMP_FORM_LIGHTWEIGHT
    assert response.stamps[0].digest_rule == pb.DIGEST_RULE_NORMALIZED_TEXT
    stamped = await stub.CreateStamp(creation(content, file_path="a.py", embed=True))
    assert b"ONEX:uid" not in stamped.stamped_content
    assert stamped.stamp.digest == blake3(body).hexdigest()


async def test_quoted_and_foreign_blocks_are_reported_and_not_judged(stub: StampingServiceStub) -> None:
    block = (await stub.CreateStamp(creation(embed=True))).stamped_content.removesuffix(SOURCE)
    content = (
        b"text = '''\n" + block + b"'''\n# === OmniNode:Metadata ===\n# author: Ada\n# === /OmniNode:Metadata ===\n"
    )
    response = await stub.ValidateStamp(pb.ValidateStampRequest(content=content, file_path="a.py"))
    assert not response.stamps
    assert [(quoted.form, quoted.line) for quoted in response.quoted] == [(pb.STAMP_FORM_BLOCK, 2)]
    assert response.foreign[0].fields["author"] == "Ada"


async def test_a_stamp_is_found_by_its_digest_in_either_case(stub: StampingServiceStub) -> None:
    created = await stub.CreateStamp(creation(namespace="docs"))
    for digest in (created.stamp.digest, created.stamp.digest.upper()):
        assert (await stub.GetStamp(pb.GetStampRequest(digest=digest, namespace="docs"))).stamp == created.stamp
    with pytest.raises(NotFound) as caught:
        await stub.GetStamp(pb.GetStampRequest(digest=created.stamp.digest, namespace="other"))
    assert caught.value.reason == errors_pb2.ERROR_REASON_STAMP_NOT_FOUND


async def walk(stub: StampingServiceStub, **query: Any) -> list[pb.Stamp]:
    stamps: list[pb.Stamp] = []
    token = ""
    while True:
        page = await stub.ListStamps(pb.ListStampsRequest(page_token=token, **query))
        stamps.extend(page.stamps)
        token = page.next_page_token
        if not token:
            return stamps


async def test_a_walk_over_pages_equals_the_list_newest_first(stub: StampingServiceStub) -> None:
    created = [(await stub.CreateStamp(creation(b"%d" % n))).stamp for n in range(11)]
    whole = list((await stub.ListStamps(pb.ListStampsRequest())).stamps)
    assert whole == created[::-1]
    for size in (1, 2, 5, 10, 11, 12):
        assert await walk(stub, page_size=size) == whole


async def test_stamps_made_during_a_walk_make_it_neither_skip_nor_repeat(stub: StampingServiceStub) -> None:
    before = [(await stub.CreateStamp(creation(b"%d" % n))).stamp for n in range(6)]
    first = await stub.ListStamps(pb.ListStampsRequest(page_size=3))
    await stub.CreateStamp(creation(b"late"))
    second = await stub.ListStamps(pb.ListStampsRequest(page_size=3, page_token=first.next_page_token))
    assert [*first.stamps, *second.stamps] == before[::-1]


async def test_a_list_is_filtered_by_what_it_is_asked(stub: StampingServiceStub) -> None:
    python = (await stub.CreateStamp(creation(b"a", file_path="src/a.py"))).stamp
    css = (await stub.CreateStamp(creation(b"b", file_path="style/b.css"))).stamp
    await stub.CreateStamp(creation(b"c", namespace="other"))
    assert await walk(stub, content_type="text/css") == [css]
    assert await walk(stub, file_path_prefix="src/") == [python]
    assert await walk(stub, created_after=css.create_time) == [css]
    assert await walk(stub, created_before=css.create_time) == [python]
    assert await walk(stub, state=pb.STAMP_STATE_ACTIVE) == [css, python]
    assert await walk(stub, state=pb.STAMP_STATE_REVOKED) == []


async def test_a_page_token_of_another_query_is_refused(stub: StampingServiceStub) -> None:
    for n in range(2):
        await stub.CreateStamp(creation(b"%d" % n))
    token = (await stub.ListStamps(pb.ListStampsRequest(page_size=1))).next_page_token
    for request in (
        pb.ListStampsRequest(page_token=token, content_type="text/css"),
        pb.ListStampsRequest(page_token=token[:-3]),
    ):
        with pytest.raises(InvalidArgument) as caught:
            await stub.ListStamps(request)
        assert caught.value.reason == errors_pb2.ERROR_REASON_PAGE_TOKEN_MISMATCH


async def test_a_protocol_block_is_checked_in_both_forms(stub: StampingServiceStub) -> None:
    good = {
        "metadata_version": "0.1",
        "name": "tool",
        "namespace": "omninode.tools",
        "version": "1.2.3",
        "entrypoint": "tool.py",
        "protocols_supported": ["O.N.E. v0.1"],
    }
    response = await stub.ValidateProtocol(pb.ValidateProtocolRequest(metadata=struct(**good)))
    assert response.valid, response
    response = await stub.ValidateProtocol(pb.ValidateProtocolRequest(metadata=struct(**{**good, "version": "1.2"})))
    assert [violation.field for violation in response.violations] == ["version"]
    lines = "".join(f"{key}: {value!r}\n" for key, value in good.items())
    assert (await stub.ValidateProtocol(pb.ValidateProtocolRequest(block=lines))).valid
    assert not (await stub.ValidateProtocol(pb.ValidateProtocolRequest(block="]["))).valid


BAD: dict[str, tuple[str, Callable[[StampingServiceStub], Any]]] = {
    "an empty namespace": ("namespace", lambda stub: stub.CreateStamp(creation(namespace=""))),
    "a malformed namespace": ("namespace", lambda stub: stub.CreateStamp(creation(namespace="a/b"))),
    "a namespace over its bound": ("namespace", lambda stub: stub.CreateStamp(creation(namespace="n" * 256))),
    "a namespace with a newline at its end": ("namespace", lambda stub: stub.CreateStamp(creation(namespace="a\n"))),
    "a path that climbs": ("file_path", lambda stub: stub.CreateStamp(creation(file_path="a/../b"))),
    "an absolute path": ("file_path", lambda stub: stub.CreateStamp(creation(file_path="/etc/passwd"))),
    "a path with NUL": ("file_path", lambda stub: stub.CreateStamp(creation(file_path="a\0b"))),
    "a path over its bound": ("file_path", lambda stub: stub.CreateStamp(creation(file_path="p" * 4097))),
    "no request_id": ("request_id", lambda stub: stub.CreateStamp(creation(request_id=""))),
    "a request_id over its bound": ("request_id", lambda stub: stub.CreateStamp(creation(request_id="r" * 256))),
    "a request_id that does not print": ("request_id", lambda stub: stub.CreateStamp(creation(request_id="a\nb"))),
    "metadata with NaN": ("metadata.a", lambda stub: stub.CreateStamp(creation(metadata=struct(a=math.nan)))),
    "metadata with NUL": ("metadata.a[0]", lambda stub: stub.CreateStamp(creation(metadata=struct(a=["\0"])))),
    "metadata over its bound": ("metadata", lambda stub: stub.CreateStamp(creation(metadata=struct(a="x" * 70_000)))),
    "a batch of 0": ("items", lambda stub: stub.BatchCreateStamps(pb.BatchCreateStampsRequest())),
    "a batch of 501": (
        "items",
        lambda stub: stub.BatchCreateStamps(pb.BatchCreateStampsRequest(items=[creation()] * 501)),
    ),
    "a batch over 12 MiB": (
        "items",
        lambda stub: stub.BatchCreateStamps(pb.BatchCreateStampsRequest(items=[creation(bytes(6_400_000))] * 2)),
    ),
    "a header without request_id": ("request_id", lambda stub: stub.CreateStampStream(upload(header(request_id="")))),
    "hashing 10 MiB and a byte": (
        "content",
        lambda stub: stub.Hash(pb.HashRequest(content=bytes(10 * 1024 * 1024 + 1))),
    ),
    "stamping 10 MiB and a byte": ("content", lambda stub: stub.CreateStamp(creation(bytes(10 * 1024 * 1024 + 1)))),
    "validating over the bound": (
        "content",
        lambda stub: stub.ValidateStamp(pb.ValidateStampRequest(content=bytes(10 * 1024 * 1024 + 1))),
    ),
    "validating in no namespace": ("namespace", lambda stub: stub.ValidateStamp(pb.ValidateStampRequest(namespace=""))),
    "no protocol block": ("source", lambda stub: stub.ValidateProtocol(pb.ValidateProtocolRequest())),
    "a protocol block over its bound": (
        "block",
        lambda stub: stub.ValidateProtocol(pb.ValidateProtocolRequest(block="x" * 65_537)),
    ),
    "no digest": ("digest", lambda stub: stub.GetStamp(pb.GetStampRequest())),
    "a digest of 63 digits": ("digest", lambda stub: stub.GetStamp(pb.GetStampRequest(digest="a" * 63))),
    "a negative page size": ("page_size", lambda stub: stub.ListStamps(pb.ListStampsRequest(page_size=-1))),
    "an unknown state": (
        "state",
        lambda stub: stub.ListStamps(pb.ListStampsRequest(state=cast(pb.StampState.ValueType, 99))),
    ),
    "a time out of range": (
        "created_after",
        lambda stub: stub.ListStamps(pb.ListStampsRequest(created_after=Timestamp(seconds=2**62))),
    ),
    "revoking nothing": ("creation_request_id", lambda stub: stub.RevokeStamp(revocation(""))),
    "a revocation without an id": ("request_id", lambda stub: stub.RevokeStamp(revocation("r", request_id=""))),
    "a revocation in no namespace": ("namespace", lambda stub: stub.RevokeStamp(revocation("r", namespace=""))),
    "a reason over its bound": ("reason", lambda stub: stub.RevokeStamp(revocation("r", reason="r" * 1025))),
    "a reason with NUL": ("reason", lambda stub: stub.RevokeStamp(revocation("r", reason="a\0b"))),
    "a made-up page token": ("page_token", lambda stub: stub.ListStamps(pb.ListStampsRequest(page_token="next"))),
}


@pytest.mark.parametrize(("field", "call"), BAD.values(), ids=BAD.keys())
async def test_bad_input_is_refused_by_the_name_of_its_field_and_nothing_is_written(
    stub: StampingServiceStub, database_url: str, field: str, call: Callable[[StampingServiceStub], Any]
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await call(stub)
    assert [violation.field for violation in caught.value.violations] == [field]
    assert caught.value.metadata["field"] == field
    assert not await rows(database_url, "SELECT FROM stamps UNION ALL SELECT FROM stamp_requests")


async def test_every_field_at_fault_is_named_at_once(stub: StampingServiceStub) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await stub.CreateStamp(pb.CreateStampRequest(namespace="", file_path="/"))
    assert [violation.field for violation in caught.value.violations] == ["request_id", "namespace", "file_path"]


async def test_the_nodes_digests_equal_the_official_vectors(stub: StampingServiceStub) -> None:
    for length, digest in VECTORS.items():
        content = content_of(length)
        chunks = [pb.HashStreamRequest(chunk=content[at : at + 999]) for at in range(0, length, 999)]
        assert (await stub.Hash(pb.HashRequest(content=content))).digest == digest
        assert (await stub.HashStream(iter(chunks))).digest == digest
        assert (await stub.CreateStamp(creation(content, file_path=""))).stamp.digest == digest
