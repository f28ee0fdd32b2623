"""Blobs: inline and streamed, by their digest, and what a commit refers to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest
from blake3 import blake3

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.store.v1 import store_pb2 as pb
from omninode.bridge.store.v1.store_pb2_grpc import StoreServiceStub
from services.chassis.errors import FailedPrecondition, InvalidArgument, NotFound
from services.store.domain import Limits
from tests.store.node import store_stub
from tests.store.sample import MIB, commit, counts, new_key, rows, sql, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


def content_of(size: int) -> bytes:
    return bytes(range(251)) * (size // 251) + bytes(range(size % 251))


def digest_of(content: bytes) -> str:
    return blake3(content).hexdigest()


def upload(content: bytes, digest: str | None = None, chunk: int = 256 * 1024) -> Iterator[pb.PutBlobRequest]:
    yield pb.PutBlobRequest(header=pb.PutBlobHeader(digest=digest or digest_of(content)))
    for start in range(0, len(content), chunk):
        yield pb.PutBlobRequest(chunk=content[start : start + chunk])


async def download(stub: StoreServiceStub, digest: str) -> list[pb.GetBlobResponse]:
    return [response async for response in stub.GetBlob(pb.GetBlobRequest(digest=digest))]


@pytest.mark.parametrize(
    ("size", "chunk"),
    [
        pytest.param(0, 1, id="empty"),
        pytest.param(11, 4, id="small"),
        pytest.param(MIB, 300_000, id="the largest that is one row"),
        pytest.param(MIB + 1, 300_000, id="a byte more"),
        pytest.param(2 * MIB, MIB, id="two whole rows"),
        pytest.param(5 * MIB + 77, 4 * MIB, id="large, in chunks larger than a row"),
    ],
)
async def test_a_blob_that_was_put_is_got_whole(
    shared_stub: StoreServiceStub, shared_url: str, size: int, chunk: int
) -> None:
    content = content_of(size)
    digest = digest_of(content)
    first = await shared_stub.PutBlob(upload(content, chunk=chunk))
    assert first == pb.PutBlobResponse(digest=digest, size_bytes=size, created=True)
    before = await counts(shared_url)
    again = await shared_stub.PutBlob(upload(content, digest.upper()))
    assert again == pb.PutBlobResponse(digest=digest, size_bytes=size, created=False)
    assert await counts(shared_url) == before
    responses = await download(shared_stub, digest.upper())
    assert b"".join(response.chunk for response in responses) == content
    assert {response.size_bytes for response in responses} == {size}
    assert all(len(response.chunk) <= MIB for response in responses)
    assert len(responses) == max(1, -(-size // MIB))


async def test_one_blob_put_by_many_at_once_is_new_once(stub: StoreServiceStub, database_url: str) -> None:
    content = content_of(2 * MIB)
    answers = await asyncio.gather(*(stub.PutBlob(upload(content)) for _ in range(4)))
    assert sorted(answer.created for answer in answers) == [False, False, False, True]
    stored = await counts(database_url)
    assert (stored["blobs"], stored["chunks"]) == (1, 2)


@pytest.mark.parametrize("size", [11, 3 * MIB], ids=["small", "large"])
async def test_bytes_that_are_not_what_is_said_are_refused_and_leave_nothing(
    shared_stub: StoreServiceStub, shared_url: str, size: int
) -> None:
    content = content_of(size)
    before = await counts(shared_url)
    with pytest.raises(InvalidArgument) as caught:
        await shared_stub.PutBlob(upload(content, "0" * 64))
    assert caught.value.reason == errors_pb2.ERROR_REASON_BLOB_DIGEST_MISMATCH
    assert [violation.field for violation in caught.value.violations] == ["header.digest"]
    assert caught.value.metadata["actual_digest"] == digest_of(content)
    assert await counts(shared_url) == before


async def test_an_upload_that_is_cut_leaves_nothing(stub: StoreServiceStub, database_url: str) -> None:
    content = content_of(3 * MIB)
    async with sql(database_url) as connection:
        for sent in (1, 2 * MIB):

            async def part(sent: int = sent) -> AsyncIterator[pb.PutBlobRequest]:
                for request in upload(content[:sent], digest_of(content)):
                    yield request
                await asyncio.Event().wait()

            call = stub.PutBlob(part())
            putting = asyncio.ensure_future(_ended(call))
            if sent > MIB:
                await until(connection, "EXISTS (SELECT FROM blob_chunks)")
            call.cancel()
            await putting
            await until(connection, "NOT EXISTS (SELECT FROM blob_chunks)")
    assert (await counts(database_url))["blobs"] == 0
    with pytest.raises(NotFound):
        await download(stub, digest_of(content))


async def _ended(call: grpc.aio.StreamUnaryCall[pb.PutBlobRequest, pb.PutBlobResponse]) -> None:
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_a_blob_over_its_bound_is_refused_and_leaves_nothing(database_url: str) -> None:
    async with store_stub(database_url, limits=Limits(blob_bytes=2 * MIB)) as stub:
        await stub.PutBlob(upload(content_of(2 * MIB)))
        before = await counts(database_url)
        with pytest.raises(InvalidArgument) as caught:
            await stub.PutBlob(upload(content_of(2 * MIB + 1)))
    assert caught.value.reason == errors_pb2.ERROR_REASON_CONTENT_TOO_LARGE
    assert caught.value.metadata == {"field": "chunk", "limit_bytes": str(2 * MIB)}
    assert await counts(database_url) == before


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param([], id="nothing"),
        pytest.param([pb.PutBlobRequest(chunk=b"x")], id="a chunk first"),
        pytest.param([pb.PutBlobRequest()], id="an empty message first"),
        pytest.param([*upload(b""), *upload(b"")], id="two headers"),
        pytest.param([*upload(b""), pb.PutBlobRequest()], id="an empty message after the header"),
    ],
)
async def test_a_stream_is_a_header_and_chunks_in_this_order(
    shared_stub: StoreServiceStub, frames: list[pb.PutBlobRequest]
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await shared_stub.PutBlob(iter(frames))
    assert caught.value.reason == errors_pb2.ERROR_REASON_STREAM_OUT_OF_ORDER


async def test_a_commit_carries_blobs_and_refers_to_stored_ones(stub: StoreServiceStub, database_url: str) -> None:
    large, small, empty = content_of(3 * MIB), content_of(MIB), b""
    await stub.PutBlob(upload(large))
    key = new_key()
    blobs = [pb.Blob(digest=digest_of(content).upper(), content=content) for content in (small, empty, empty)]
    references = [digest_of(large), digest_of(small), digest_of(large).upper()]
    for version in (1, 2):
        response = await stub.TryCommit(commit(key, blobs=blobs, blob_refs=references))
        assert response.committed.version == version
    for content in (large, small, empty):
        responses = await download(stub, digest_of(content))
        assert b"".join(response.chunk for response in responses) == content
    assert sorted(await rows(database_url, "SELECT encode(digest, 'hex'), key FROM blob_references")) == sorted(
        (digest_of(content), key) for content in (large, small, empty)
    )


async def test_a_commit_that_refers_to_an_absent_blob_writes_nothing(
    shared_stub: StoreServiceStub, shared_url: str
) -> None:
    carried = pb.Blob(digest=digest_of(b"here"), content=b"here")
    before = await counts(shared_url)
    with pytest.raises(FailedPrecondition) as caught:
        await shared_stub.TryCommit(commit(blobs=[carried], blob_refs=[digest_of(b"here"), digest_of(b"absent")]))
    assert caught.value.reason == errors_pb2.ERROR_REASON_BLOB_MISSING
    assert caught.value.metadata == {"digest": digest_of(b"absent")}
    assert await counts(shared_url) == before


async def test_an_outcome_other_than_committed_stores_no_blob(shared_stub: StoreServiceStub, shared_url: str) -> None:
    carried = pb.Blob(digest=digest_of(b"here"), content=b"here")
    before = await counts(shared_url)
    request = commit(expected=pb.Expectation(version=3), blobs=[carried], blob_refs=[carried.digest])
    assert (await shared_stub.TryCommit(request)).HasField("conflict")
    assert await counts(shared_url) == before


async def references_of(database_url: str, key: str) -> set[str]:
    return {
        digest
        for (digest,) in await rows(
            database_url, "SELECT encode(digest, 'hex') FROM blob_references WHERE key = $1", key
        )
    }


async def test_a_commit_releases_references_of_its_own_key_but_for_those_that_it_names(
    shared_stub: StoreServiceStub, shared_url: str
) -> None:
    key, other = new_key(), new_key()
    names = {name: digest_of(name) for name in (b"goes", b"carried", b"referred", b"stays", b"never there")}
    blobs = [pb.Blob(digest=names[name], content=name) for name in (b"goes", b"carried", b"referred", b"stays")]
    for each in (key, other):
        await shared_stub.TryCommit(commit(each, blobs=blobs))
    released = [names[name] for name in names if name != b"stays"]
    request = commit(key, blobs=blobs[1:2], blob_refs=[names[b"referred"]], released_blob_refs=[*released, *released])
    # Another key's commit in the same statement, which names what this one releases.
    besides = commit(blob_refs=[names[b"goes"]])
    answer = await shared_stub.BatchTryCommit(pb.BatchTryCommitRequest(items=[request, besides]))
    assert all(result.HasField("committed") for result in answer.results)
    assert await references_of(shared_url, key) == {names[name] for name in (b"carried", b"referred", b"stays")}
    assert await references_of(shared_url, other) == {names[name] for name in names if name != b"never there"}
    assert await references_of(shared_url, besides.key) == {names[b"goes"]}


async def test_what_is_not_committed_releases_nothing(shared_stub: StoreServiceStub, shared_url: str) -> None:
    key, digest = new_key(), digest_of(b"kept")
    first = commit(key, blobs=[pb.Blob(digest=digest, content=b"kept")], released_blob_refs=[digest])
    await shared_stub.TryCommit(first)
    for refused, outcome in [
        (commit(key, expected=pb.Expectation(version=7), released_blob_refs=[digest]), "conflict"),
        (commit(key, actions=first.actions, released_blob_refs=[digest]), "duplicate"),
    ]:
        assert (await shared_stub.TryCommit(refused)).WhichOneof("outcome") == outcome
        both = pb.BatchTryCommitRequest(items=[commit(key, released_blob_refs=[digest]), refused], atomic=True)
        assert (await shared_stub.BatchTryCommit(both)).results[0].HasField("not_applied")
    assert await references_of(shared_url, key) == {digest}


async def test_commits_of_one_atomic_batch_refer_and_release_one_after_another(
    shared_stub: StoreServiceStub, shared_url: str
) -> None:
    key, digest = new_key(), digest_of(b"again")

    def refer() -> pb.TryCommitRequest:
        return commit(key, blobs=[pb.Blob(digest=digest, content=b"again")])

    def release() -> pb.TryCommitRequest:
        return commit(key, released_blob_refs=[digest])

    for items, left in (([refer(), release()], set[str]()), ([release(), refer()], {digest})):
        await shared_stub.BatchTryCommit(pb.BatchTryCommitRequest(items=items, atomic=True))
        assert await references_of(shared_url, key) == left


async def test_a_blob_that_nobody_put_is_not_found(shared_stub: StoreServiceStub) -> None:
    with pytest.raises(NotFound) as caught:
        await download(shared_stub, "0" * 64)
    assert caught.value.reason == errors_pb2.ERROR_REASON_BLOB_NOT_FOUND
    assert caught.value.metadata == {"digest": "0" * 64}
