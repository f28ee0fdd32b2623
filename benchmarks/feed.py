"""What follows the store: projections and feeds, at a steady rate of commits, and as the tables grow."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeAlias

import asyncpg
import grpc

from benchmarks.figure import Figure, median
from benchmarks.load import CALLERS, ROUNDS, drive, stub_of
from benchmarks.server import Measured, mesh
from benchmarks.store import commits
from omninode.bridge.store.v1 import store_pb2
from omninode.bridge.store.v1.store_pb2_grpc import StoreServiceStub

_TICK = 0.01
"""Seconds between two batches of a steady load."""
_PARTITIONS = 16
_WORN_IN = (
    "CREATE TABLE worn AS SELECT repeat(md5(number::text), 30) AS text FROM generate_series(1, 400000) AS number",
    "DROP TABLE worn",
    "CHECKPOINT",
)
"""Fills and frees 400 MB of write-ahead log: a new server makes each of its segments anew, which takes it some ten milliseconds
each and stops whoever commits; one that has run for a while has old ones to use again."""
_OWN = "the commit's own answer in the same run, p99"


async def projection_lag() -> Figure:
    """From a commit to its projection at 2,000 commits/s: GetProjection with min_version, asked at once for one in twenty."""
    async with _store() as (stub, _):
        lags: list[float] = []
        answers: list[float] = []

        async def look(committed: store_pb2.Committed, key: str) -> None:
            request = store_pb2.GetProjectionRequest(key=key, min_version=committed.version)
            request.max_wait.FromSeconds(10)
            answer = await stub.GetProjection(request)
            assert answer.source == store_pb2.PROJECTION_SOURCE_PROJECTION
            lags.append((time.time_ns() - committed.commit_time.ToNanoseconds()) / 1e6)

        looking: list[asyncio.Task[None]] = []

        def on_batch(keys: Sequence[str], results: Sequence[store_pb2.BatchTryCommitResult], took: float) -> None:
            answers.append(took)
            looking.append(asyncio.create_task(look(results[0].committed, keys[0])))

        await _steady(stub, 2000, 3.0, _ignore)
        rate = await _steady(stub, 2000, 15.0, on_batch)
        await asyncio.gather(*looking)
    return _latency("projection_lag", 50, lags, answers, rate)


async def watch_commits() -> Figure:
    """From a commit to its watcher at 1,000 commits/s, by the times of the commits."""
    async with _store() as (stub, _):
        lags: list[float] = []
        answers: list[float] = []

        watching = asyncio.create_task(_watch(stub, lags))
        await _steady(stub, 1000, 3.0, _ignore)
        lags.clear()
        rate = await _steady(stub, 1000, 15.0, lambda _keys, _results, took: answers.append(took))
        watching.cancel()
    return _latency("watch_commits", 20, lags, answers, rate)


def _latency(name: str, ceiling: float, lags: Sequence[float], answers: Sequence[float], rate: float) -> Figure:
    p99, own = (statistics.quantiles(values, n=100)[98] for values in (lags, answers))
    return Figure(
        name,
        p99,
        "ms, p99",
        _OWN,
        own,
        own / p99,
        ceiling=ceiling,
        beside={"p50 ms": statistics.median(lags), "samples": len(lags), "commits/s": rate},
    )


async def read_your_writes() -> Figure:
    """The share of GetProjection with min_version after a commit that the projection answers, max_wait 100 ms; 64 callers."""
    async with _store() as (stub, ours):
        shares, rates = [], []
        for _ in range(ROUNDS + 1):
            sources: list[int] = []

            async def write_and_read(request: store_pb2.TryCommitRequest, sources: list[int] = sources) -> None:
                version = (await stub.TryCommit(request)).committed.version
                asked = store_pb2.GetProjectionRequest(key=request.key, min_version=version)
                asked.max_wait.FromMilliseconds(100)
                sources.append((await stub.GetProjection(asked)).source)

            done = await drive(ours, write_and_read, commits(2000), CALLERS)
            shares.append(sources.count(store_pb2.PROJECTION_SOURCE_PROJECTION) / len(sources))
            rates.append(done.calls_per_second)
    share = median(shares[1:])
    return Figure(
        "read_your_writes",
        share,
        "of the reads",
        "all of them",
        1.0,
        share,
        bar=0.95,
        beside={"writes and reads/s": median(rates[1:])},
    )


async def watch_fanout() -> Figure:
    """Items delivered a second to 100 equal watchers in all, beside one watcher alone; the commits are made as fast as they go."""
    async with _store() as (stub, ours):
        rounds = [(await _delivered(stub, ours, 1), await _delivered(stub, ours, 100)) for _ in range(ROUNDS + 1)]
    one, many = (median([pair[index] for pair in rounds[1:]]) for index in (0, 1))
    return Figure("watch_fanout", many, "items/s to 100 watchers", "one watcher alone", one, many / one)


async def _delivered(stub: StoreServiceStub, ours: Measured, watchers: int) -> float:
    """Items a second to all watchers together."""
    batches, size = 20, 200
    async with grpc.aio.insecure_channel(ours.target) as channel:
        # Undecoded but for the cursor's place: the measuring process has one core for all of them.
        watch: Any = channel.unary_stream(
            "/omninode.bridge.store.v1.StoreService/WatchCommits",
            request_serializer=store_pb2.WatchCommitsRequest.SerializeToString,
        )
        calls = [aiter(watch(store_pb2.WatchCommitsRequest())) for _ in range(watchers)]
        for call in calls:
            await anext(call)
        began = time.perf_counter()
        following = [asyncio.create_task(_follow(call, batches * size)) for call in calls]
        for _ in range(batches):
            await stub.BatchTryCommit(store_pb2.BatchTryCommitRequest(items=commits(size)))
        await asyncio.gather(*following)
        return watchers * batches * size / (time.perf_counter() - began)


_SEEN: dict[bytes, int] = {}


async def _follow(call: AsyncIterator[bytes], wanted: int) -> None:
    """Returns when as many items have come. Equal bytes are looked into once for all watchers."""
    got = 0
    while got < wanted:
        raw = await anext(call)
        if raw not in _SEEN:
            _SEEN[raw] = len(store_pb2.WatchCommitsResponse.FromString(raw).items)
        got += _SEEN[raw]


async def key_growth() -> Figure:
    """Commits a second by batches, and commit to watcher at 500 commits/s, with 1,000 to 1,000,000 keys in the tables."""
    beside: dict[str, float] = {}
    rates: list[float] = []
    there = 0
    async with _store() as (stub, ours):
        for keys in (1_000, 10_000, 100_000, 1_000_000):
            await _commit(stub, ours, keys - there)
            rates.append(await _commit(stub, ours, 12_000))
            lags: list[float] = []
            watching = asyncio.create_task(_watch(stub, lags))
            await _steady(stub, 500, 6.0, _ignore)
            watching.cancel()
            there = keys + 12_000 + 3_000
            beside[f"{keys:,} keys: commits/s"] = rates[-1]
            beside[f"{keys:,} keys: to the watcher, p50 ms"] = statistics.median(lags)
            beside[f"{keys:,} keys: to the watcher, p99 ms"] = statistics.quantiles(lags, n=100)[98]
    return Figure(
        "key_growth",
        rates[-1],
        "commits/s, 1,000,000 keys",
        "with 1,000 keys",
        rates[0],
        rates[-1] / rates[0],
        beside=beside,
    )


async def _commit(stub: StoreServiceStub, ours: Measured, count: int) -> float:
    """Commits as many new keys, 200 a batch, 8 batches at once; commits a second."""
    batches = (store_pb2.BatchTryCommitRequest(items=commits(200)) for _ in range(count // 200))
    return (await drive(ours, stub.BatchTryCommit, batches, 8)).calls_per_second * 200 if count >= 200 else 0.0


async def _watch(stub: StoreServiceStub, lags: list[float]) -> None:
    """Adds what each commit took to the watcher, in milliseconds by the commit's own time."""
    async for response in stub.WatchCommits(store_pb2.WatchCommitsRequest()):
        now = time.time_ns()
        lags.extend((now - item.commit_time.ToNanoseconds()) / 1e6 for item in response.items)


_OnBatch: TypeAlias = Callable[[Sequence[str], Sequence[store_pb2.BatchTryCommitResult], float], None]


def _ignore(_keys: Sequence[str], _results: Sequence[store_pb2.BatchTryCommitResult], _milliseconds: float) -> None:
    """Nothing is measured of these commits."""


async def _steady(stub: StoreServiceStub, rate: int, seconds: float, on_batch: _OnBatch) -> float:
    """Commits new keys at a rate, by batches at fixed times however long each takes; commits a second that were reached."""
    size = round(rate * _TICK)

    async def send() -> None:
        request = store_pb2.BatchTryCommitRequest(items=commits(size))
        began = time.perf_counter()
        results = (await stub.BatchTryCommit(request)).results
        on_batch([item.key for item in request.items], results, (time.perf_counter() - began) * 1000)

    loop = asyncio.get_running_loop()
    with _undisturbed():
        began = loop.time()
        sent: list[asyncio.Task[None]] = []
        for number in range(round(seconds / _TICK)):
            await asyncio.sleep(max(0.0, began + number * _TICK - loop.time()))
            sent.append(asyncio.create_task(send()))
        await asyncio.gather(*sent)
    return len(sent) * size / (loop.time() - began)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """No garbage collection of the measuring process, which would count as the store's latency."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@asynccontextmanager
async def _store() -> AsyncIterator[tuple[StoreServiceStub, Measured]]:
    async with mesh("store") as nodes:
        await _wear_in(nodes.database_url)
        ours = nodes.measured("store")
        async with stub_of(StoreServiceStub, ours.target) as stub:
            # Until every partition is held there is nothing to project.
            held = 0
            async for response in stub.WatchLeases(
                store_pb2.WatchLeasesRequest(prefix="store/log/", from_beginning=True)
            ):
                held += len(response.items)
                if held >= _PARTITIONS:
                    break
            yield stub, ours


async def _wear_in(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    for statement in _WORN_IN:
        await connection.execute(statement)
    await connection.close()
