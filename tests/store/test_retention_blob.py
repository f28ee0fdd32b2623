"""Blobs and uploads: what goes, and what meets a commit or an upload that is under way."""

from __future__ import annotations

import asyncio
import uuid
from itertools import islice

import pytest

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.store.v1 import store_pb2 as pb
from omninode.bridge.store.v1.store_pb2_grpc import StoreServiceStub
from services.chassis.errors import FailedPrecondition, NotFound
from services.chassis.postgres_error import TransactionConflict
from services.store.repository.blob import BlobRepository
from services.store.repository.retention.blob import ChunkPlace
from tests.store.sample import MIB, commit, counts, hold, keys_in, rows, sql, until_waiting
from tests.store.sweeping import BRISK, Sweeping, age, project, sweeping, swept, unswept_stub
from tests.store.test_blob import content_of, digest_of, download, upload

pytestmark = pytest.mark.asyncio(loop_scope="module")

PARTITION = 3
KEY, OTHER = islice(keys_in(PARTITION), 2)
DIGEST = digest_of(b"blob")


async def put_old(stub: StoreServiceStub, database_url: str, content: bytes = b"blob") -> None:
    """A blob that nobody refers to, older than such a blob is kept."""
    await stub.PutBlob(upload(content))
    await age(database_url, 25)


async def test_a_blob_that_no_key_refers_to_goes_with_its_chunks_and_others_stay(database_url: str) -> None:
    async with unswept_stub(database_url) as stub:
        used, unused = content_of(2 * MIB), content_of(3 * MIB)
        for content in (used, unused, b"small"):
            await stub.PutBlob(upload(content))
        await stub.TryCommit(commit(KEY, blob_refs=[digest_of(used)]))
        await age(database_url, 23)
        assert await swept(database_url) == {}
        await stub.PutBlob(upload(b"new"))
        await age(database_url, 2)
        await stub.PutBlob(upload(b"newest"))
        assert await swept(database_url) == {"blobs": 2}
        assert len(await download(stub, digest_of(used))) == 2
        for content in (b"new", b"newest"):
            await download(stub, digest_of(content))
        with pytest.raises(NotFound):
            await download(stub, digest_of(unused))
    left = await counts(database_url)
    assert (left["blobs"], left["chunks"]) == (3, 2)


async def test_a_blob_that_is_put_again_is_kept_from_then_on(database_url: str) -> None:
    async with unswept_stub(database_url) as stub:
        contents = [b"small", content_of(2 * MIB), b"inline"]
        for content in contents:
            await put_old(stub, database_url, content)
        inline = pb.Blob(digest=digest_of(b"inline"), content=b"inline")
        assert [(await stub.PutBlob(upload(content))).created for content in contents[:2]] == [False, False]
        await stub.TryCommit(commit(KEY, blobs=[inline]))
        async with sql(database_url) as connection:
            # As if the key had gone at once.
            await connection.execute("DELETE FROM blob_references")
        assert await swept(database_url) == {}
        await age(database_url, 25)
        assert await swept(database_url) == {"blobs": 3}
        assert await counts(database_url) | {"blobs": 0, "chunks": 0} == await counts(database_url)


@pytest.mark.parametrize("size", [1, 3, 1000])
async def test_a_walk_in_batches_of_any_size_passes_what_is_used_and_takes_the_rest(
    database_url: str, size: int
) -> None:
    async with unswept_stub(database_url) as stub:
        for number in range(10):
            await stub.PutBlob(upload(b"%d" % number))
        await stub.TryCommit(commit(KEY, blob_refs=[digest_of(b"%d" % number) for number in range(0, 10, 2)]))
    await age(database_url, 25)
    assert await swept(database_url, BRISK.model_copy(update={"batch_size": size})) == {"blobs": 5}
    assert (await counts(database_url))["blobs"] == 5


async def test_what_a_key_referred_to_goes_with_it_although_the_walk_has_passed_it(database_url: str) -> None:
    async with unswept_stub(database_url) as stub:
        for name in (b"one", b"both"):
            await stub.PutBlob(upload(name))
        await stub.TryCommit(commit(OTHER, blob_refs=[digest_of(b"both")]))
        await stub.TryCommit(commit(KEY, blob_refs=[digest_of(b"one"), digest_of(b"both")], final=True))
    await project(database_url)
    await age(database_url, 25)
    async with sweeping(database_url) as running:
        assert await running.sweeper.sweep() == {}
        await age(database_url, 31 * 24)
        assert (await running.sweeper.sweep())["blobs"] == 1
    assert await rows(database_url, "SELECT encode(digest, 'hex') FROM blobs") == [(digest_of(b"both"),)]


async def test_a_blob_that_its_last_key_released_goes_with_the_next_sweep(database_url: str) -> None:
    large = content_of(2 * MIB)
    both = [DIGEST, digest_of(large)]
    async with unswept_stub(database_url) as stub, sweeping(database_url) as running:
        for content in (b"blob", large):
            await stub.PutBlob(upload(content))
        for key in (KEY, OTHER):
            await stub.TryCommit(commit(key, blob_refs=both))
        for key, taken in ((KEY, 0), (OTHER, 2)):
            # The walk is over.
            assert await running.sweeper.sweep() == {}
            await stub.TryCommit(commit(key, released_blob_refs=both))
            assert (await running.sweeper.sweep())["blobs"] == taken
    left = await counts(database_url)
    assert (left["blobs"], left["chunks"]) == (0, 0)


@pytest.mark.parametrize("size", [1, 3, 1000])
async def test_released_blobs_go_in_batches_of_any_size_and_those_that_are_used_stay(
    database_url: str, size: int
) -> None:
    digests = [digest_of(b"%d" % number) for number in range(8)]
    async with unswept_stub(database_url) as stub, sql(database_url) as holder:
        await stub.TryCommit(
            commit(KEY, blobs=[pb.Blob(digest=digest_of(b"%d" % n), content=b"%d" % n) for n in range(8)])
        )
        await stub.TryCommit(commit(OTHER, blob_refs=digests[:3]))
        await stub.TryCommit(commit(KEY, released_blob_refs=digests))
        async with holder.transaction():
            await holder.execute("SELECT FROM blobs WHERE digest = $1 FOR KEY SHARE", bytes.fromhex(digests[4]))
            brisk = BRISK.model_copy(update={"batch_size": size})
            assert await swept(database_url, brisk) == {"blobs": 4}
        assert await swept(database_url, brisk) == {"blobs": 1}
    # Those are passed by the next sweep.
    assert await rows(database_url, "SELECT count(released), count(*) FROM blobs") == [(0, 3)]


@pytest.mark.parametrize("is_before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("way", ["carries", "puts"])
async def test_a_blob_that_is_put_again_is_kept_as_new_whoever_releases_it(
    database_url: str, way: str, is_before: bool
) -> None:
    async with unswept_stub(database_url) as stub:
        await stub.PutBlob(upload(b"blob"))
        await stub.TryCommit(commit(KEY, blob_refs=[DIGEST]))
        if not is_before:
            await stub.TryCommit(commit(KEY, released_blob_refs=[DIGEST]))
        if way == "carries":
            await stub.TryCommit(commit(OTHER, blobs=[pb.Blob(digest=DIGEST, content=b"blob")]))
            await stub.TryCommit(commit(OTHER, released_blob_refs=[DIGEST]))
        else:
            await stub.PutBlob(upload(b"blob"))
        if is_before:
            await stub.TryCommit(commit(KEY, released_blob_refs=[DIGEST]))
        assert await swept(database_url) == {}
        await age(database_url, 25)
        assert await swept(database_url) == {"blobs": 1}


async def test_who_releases_a_blob_to_which_he_does_not_refer_leaves_it_to_who_put_it(database_url: str) -> None:
    async with unswept_stub(database_url) as stub:
        await stub.PutBlob(upload(b"blob"))
        await stub.TryCommit(commit(KEY, released_blob_refs=[DIGEST]))
        assert await swept(database_url) == {}


async def test_one_batch_releases_a_blob_and_carries_it(database_url: str) -> None:
    async with unswept_stub(database_url) as stub:
        blob = pb.Blob(digest=DIGEST, content=b"blob")
        await stub.TryCommit(commit(KEY, blobs=[blob]))
        both = [commit(KEY, released_blob_refs=[DIGEST]), commit(OTHER, blobs=[blob])]
        answer = await stub.BatchTryCommit(pb.BatchTryCommitRequest(items=both, atomic=True))
        assert [result.committed.version for result in answer.results] == [2, 1]
        assert await swept(database_url) == {}
        await download(stub, DIGEST)


async def test_a_commit_that_waits_for_a_blob_holds_none_that_it_releases(database_url: str) -> None:
    async with unswept_stub(database_url) as stub, sql(database_url) as holder, sql(database_url) as watcher:
        await stub.PutBlob(upload(b"other"))
        other = pb.Blob(digest=digest_of(b"other"), content=b"other")
        await stub.TryCommit(commit(KEY, blobs=[pb.Blob(digest=DIGEST, content=b"blob")]))
        async with holder.transaction():
            await holder.execute("SELECT FROM blobs WHERE digest = $1 FOR UPDATE", bytes.fromhex(other.digest))
            releasing = asyncio.ensure_future(stub.TryCommit(commit(KEY, blobs=[other], released_blob_refs=[DIGEST])))
            await until_waiting(watcher)
            await holder.execute("SELECT FROM blobs WHERE digest = $1 FOR UPDATE NOWAIT", bytes.fromhex(DIGEST))
        await releasing
        assert await swept(database_url) == {"blobs": 1}


async def test_a_commit_does_not_wait_for_a_blob_that_it_releases(database_url: str) -> None:
    async with unswept_stub(database_url) as stub, sql(database_url) as holder:
        await stub.TryCommit(commit(KEY, blobs=[pb.Blob(digest=DIGEST, content=b"blob")]))
        async with holder.transaction():
            await holder.execute("SELECT FROM blobs WHERE digest = $1 FOR UPDATE", bytes.fromhex(DIGEST))
            await stub.TryCommit(commit(KEY, released_blob_refs=[DIGEST]))
        await age(database_url, 25)
        assert await swept(database_url) == {"blobs": 1}


@pytest.mark.parametrize("is_released", [False, True], ids=["old", "released"])
async def test_a_blob_to_which_a_commit_refers_that_is_under_way_stays(database_url: str, is_released: bool) -> None:
    async with unswept_stub(database_url) as stub, sql(database_url) as holder, sql(database_url) as watcher:
        await put_old(stub, database_url)
        if is_released:
            for fields in ({"blob_refs": [DIGEST]}, {"released_blob_refs": [DIGEST]}):
                await stub.TryCommit(commit(OTHER, **fields))
        async with holder.transaction():
            # The commit has seen the blob and waits for its partition.
            await hold(holder, PARTITION)
            committing = asyncio.ensure_future(stub.TryCommit(commit(KEY, blob_refs=[DIGEST])))
            await until_waiting(watcher)
            assert await swept(database_url) == {}
        assert (await committing).committed.version == 1
        assert await swept(database_url) == {}
        await download(stub, DIGEST)


@pytest.mark.parametrize("way", ["refers", "carries", "puts"])
async def test_who_comes_to_a_blob_that_a_sweep_deletes_waits_and_finds_it_gone(database_url: str, way: str) -> None:
    async with unswept_stub(database_url) as stub, sql(database_url) as holder, sql(database_url) as watcher:
        await put_old(stub, database_url, content_of(2 * MIB))
        digest = digest_of(content_of(2 * MIB))
        await put_old(stub, database_url)
        async with holder.transaction():
            # The sweep has deleted the blob and comes to its chunks.
            await holder.execute("LOCK TABLE blob_chunks IN SHARE MODE")
            async with sweeping(database_url) as running:
                both = [bytes.fromhex(name) for name in (DIGEST, digest)]
                sweep = asyncio.ensure_future(running.retention.blobs.drop(both, BRISK.blob))
                await until_waiting(watcher)
                late: asyncio.Future[object]
                if way == "refers":
                    late = asyncio.ensure_future(stub.TryCommit(commit(KEY, blob_refs=[DIGEST])))
                elif way == "carries":
                    blob = pb.Blob(digest=DIGEST, content=b"blob")
                    late = asyncio.ensure_future(stub.TryCommit(commit(KEY, blobs=[blob])))
                else:
                    late = asyncio.ensure_future(stub.PutBlob(upload(b"blob")))
                await until_waiting(watcher, 2)
                await holder.execute("COMMIT; BEGIN")
                assert await sweep == 2
        if way == "refers":
            with pytest.raises(FailedPrecondition) as caught:
                await late
            assert caught.value.reason == errors_pb2.ERROR_REASON_BLOB_MISSING
        else:
            await late
            await download(stub, DIGEST)


async def test_an_upload_that_did_not_end_goes_when_its_last_chunk_is_old(database_url: str) -> None:
    dead, resting = uuid.UUID(int=1), uuid.UUID(int=2)
    async with unswept_stub(database_url) as stub:
        await put_old(stub, database_url, content_of(2 * MIB))
        await stub.TryCommit(commit(KEY, blob_refs=[digest_of(content_of(2 * MIB))]))
    async with sql(database_url) as connection:
        await connection.execute(
            "INSERT INTO blob_chunks SELECT upload_id, position, '', now() - interval '25 hours'"
            " FROM unnest($1::uuid[]) AS upload_id CROSS JOIN generate_series(0, 4) AS position",
            [dead, resting],
        )
        await connection.execute(
            "UPDATE blob_chunks SET created_at = now() - interval '23 hours' WHERE upload_id = $1 AND position = 4",
            resting,
        )
        assert await swept(database_url, BRISK.model_copy(update={"batch_size": 2})) == {"blobs": 1}
        ids = [row["upload_id"] for row in await connection.fetch("SELECT DISTINCT upload_id FROM blob_chunks")]
        assert dead not in ids
        assert resting in ids
    await age(database_url, 2)
    assert await swept(database_url) == {"blobs": 1}
    assert (await counts(database_url))["chunks"] == 2


async def test_an_upload_that_ends_after_it_was_swept_is_refused(database_url: str) -> None:
    async with sweeping(database_url) as running, sql(database_url) as holder, sql(database_url) as watcher:
        blobs, upload_id = await resting_upload(running, database_url)
        async with holder.transaction():
            # The sweep holds the upload and comes to the blobs.
            await holder.execute("LOCK TABLE blobs IN ACCESS EXCLUSIVE MODE")
            sweep = asyncio.ensure_future(running.retention.blobs.drop_uploads([upload_id], BRISK.blob))
            await until_waiting(watcher)
            ending = asyncio.ensure_future(blobs.add_upload(DIGEST, 5, upload_id))
            await until_waiting(watcher, 2)
        assert await sweep == 1
        with pytest.raises(TransactionConflict):
            await ending
    assert (await counts(database_url))["blobs"] == 0


async def test_an_upload_that_ends_while_it_is_swept_is_whole(database_url: str) -> None:
    async with sweeping(database_url) as running, sql(database_url) as holder, sql(database_url) as watcher:
        blobs, upload_id = await resting_upload(running, database_url)
        held = holder.transaction()
        await held.start()
        # The end of the upload waits for another one of the same blob.
        await holder.execute(
            "INSERT INTO blobs (digest, size_bytes, content, created_at) VALUES ($1, 0, '', now())",
            bytes.fromhex(DIGEST),
        )
        ending = asyncio.ensure_future(blobs.add_upload(DIGEST, 5, upload_id))
        await until_waiting(watcher)
        assert await running.retention.blobs.drop_uploads([upload_id], BRISK.blob) == 0
        await held.rollback()
        assert await ending is True
        assert await running.retention.blobs.drop_uploads([upload_id], BRISK.blob) == 0
        assert await blobs.find_chunk(upload_id, 0) == b"chunk"


async def resting_upload(running: Sweeping, database_url: str) -> tuple[BlobRepository, uuid.UUID]:
    """An upload whose end did not come for longer than one is kept."""
    blobs, upload_id = BlobRepository(running.database), uuid.UUID(int=1)
    await blobs.add_chunk(upload_id, 0, b"chunk")
    await age(database_url, 25)
    found, _ = await running.retention.blobs.list_uploads(BRISK.blob, ChunkPlace(), 10)
    assert found == [upload_id]
    return blobs, upload_id
