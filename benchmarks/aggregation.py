"""Streaming aggregation: items a second through the reducer and the store, and from a pane to those who watch it."""

from __future__ import annotations

import asyncio
import gc
import random
import statistics
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence

import grpc

from benchmarks.figure import Figure, median
from benchmarks.load import stub_of
from benchmarks.server import Mesh, mesh
from omninode.bridge.reducer.v1 import aggregation_pb2 as pb
from omninode.bridge.reducer.v1.reducer_pb2_grpc import ReducerServiceStub
from services.reducer.aggregation.aggregation import Aggregation
from services.reducer.aggregation.config import SECOND, Config, Strategy, Tumbling
from services.reducer.aggregation.item import Columns
from services.reducer.aggregation.request import to_batch

_BATCH = 500
_RATE = 60_000
"""Items of one second of event time: as if they came when they happened, at the rate that is asked for."""
_BEGIN = 1_700_000_000 * SECOND
_WATCHERS = 100
_ROUNDS = 3


def batches(count: int, keys: int, seed: int = 1) -> list[pb.ItemColumns]:
    """Items as columns, their keys drawn evenly."""
    draw = random.Random(seed)  # noqa: S311  # the same items in each run
    names = [f"namespace-{number:06}" for number in range(keys)]
    types = ["text/x-python", "application/json", "text/markdown", "image/png"]
    made = []
    for first in range(0, count, _BATCH):
        drawn = [draw.randrange(keys) for _ in range(_BATCH)]
        used = sorted(set(drawn))
        place = {number: at for at, number in enumerate(used)}
        base = len(used)
        made.append(
            pb.ItemColumns(
                first_offset=first + 1,
                event_times_us=[_BEGIN + (first + at) * SECOND // _RATE for at in range(_BATCH)],
                sizes_bytes=[draw.randrange(100_000) for _ in range(_BATCH)],
                texts=[*(names[number] for number in used), *types, "COMPLETED", "FAILED"],
                namespaces=[place[number] for number in drawn],
                file_types=[base + draw.randrange(4) for _ in range(_BATCH)],
                workflow_states=[base + 4 + (draw.random() < 0.1) for _ in range(_BATCH)],
            )
        )
    return made


def configuration() -> pb.AggregationConfig:
    """Tumbling windows of 5 s by namespace; what is measured is counting, not showing open windows."""
    config = pb.AggregationConfig(strategies=[pb.AGGREGATION_STRATEGY_NAMESPACE_GROUPING])
    config.tumbling.size.FromSeconds(5)
    config.allowed_lateness.FromSeconds(1)
    config.early_period.FromSeconds(0)
    return config


async def aggregate_stream() -> Figure:
    """Batches of 500 as columns, 100 keys, tumbling 5 s, one client, commits on; beside the same fold without gRPC and commits."""
    return await _stream("aggregate_stream", 100, 600_000, bar=60_000)


async def aggregate_stream_100k() -> Figure:
    """The same with 100,000 keys, so up to that many open panes in each window."""
    return await _stream("aggregate_stream_100k", 100_000, 600_000)


async def _stream(name: str, keys: int, count: int, bar: float | None = None) -> Figure:
    made = batches(count, keys)
    async with mesh("store", "reducer") as nodes:
        async with stub_of(ReducerServiceStub, nodes.measured("reducer").target) as stub:
            await _feed(stub, made[:200], "warm")
            folded, streamed = [], []
            for number in range(_ROUNDS):
                folded.append(count / _fold_alone(made))
                streamed.append(count / await _feed(stub, made, f"round-{number}"))
            latencies = [await _feed(stub, made[:2], f"thousand-{number}") * 1000 for number in range(20)]
        memory = nodes.measured("reducer").resident_bytes() / 2**20
    ours, peer = median(streamed), median(folded)
    return Figure(
        name,
        ours,
        "items/s",
        "the same fold in one process, no gRPC, no commits",
        peer,
        ours / peer,
        bar,
        bar_on_value=True,
        beside={"ms for 1,000 items": statistics.median(latencies), "reducer MiB": memory},
    )


async def _feed(stub: ReducerServiceStub, made: Sequence[pb.ItemColumns], session: str) -> float:
    """Seconds from the first message to the acknowledgement of the last item."""

    async def requests() -> AsyncIterator[pb.AggregateRequest]:
        yield pb.AggregateRequest(open=pb.OpenSession(session=f"{session}-{uuid.uuid4().hex}", config=configuration()))
        for columns in made:
            yield pb.AggregateRequest(columns=columns)

    began = time.perf_counter()
    last = made[-1].first_offset + _BATCH - 1
    async for response in stub.Aggregate(requests()):
        if response.acknowledgement.offset == last:
            break
    return time.perf_counter() - began


def _fold_alone(made: Sequence[pb.ItemColumns]) -> float:
    config = Config(
        (Strategy.NAMESPACE_GROUPING,), False, Tumbling(5 * SECOND), 0, SECOND, 0, 3600 * SECOND, 0, (), "", 256
    )
    columns: list[Columns] = [
        to_batch(batch, limit=10_000, latest=2 * _BEGIN, payloads=False).columns for batch in made
    ]
    aggregation = Aggregation(config, None)
    # As in a node that serves: its collector of garbage is as patient.
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 100)
    began = time.perf_counter()
    for number, batch in enumerate(columns, start=1):
        aggregation.add(batch)
        if number % 10 == 0:
            aggregation.take()
    aggregation.take()
    seconds = time.perf_counter() - began
    gc.set_threshold(*before)
    gc.unfreeze()
    return seconds


async def watch_aggregates() -> Figure:
    """From a commit's acknowledgement to each of 100 watchers of one feed, by the time of their process."""
    async with mesh("store", "reducer") as nodes, stub_of(ReducerServiceStub, nodes.measured("reducer").target) as stub:
        lags, answers = await _lags(nodes, stub)
    p99, own = (statistics.quantiles(values, n=100)[98] for values in (lags, answers))
    return Figure(
        "watch_aggregates",
        p99,
        "ms, p99",
        "the writer's own acknowledgement in the same run, p99",
        own,
        own / p99,
        ceiling=100,
        beside={"p50 ms": statistics.median(lags), "samples": len(lags)},
    )


async def _lags(nodes: Mesh, stub: ReducerServiceStub) -> tuple[list[float], list[float]]:
    """Milliseconds from the writer's acknowledgement to each watcher, and from the item to that acknowledgement."""
    session = f"watched-{uuid.uuid4().hex}"
    sent: dict[int, float] = {}
    acknowledged: dict[int, float] = {}
    seen: list[tuple[int, float]] = []
    total = 100

    async def watch(target: str) -> None:
        async with grpc.aio.insecure_channel(target) as channel:
            follow = ReducerServiceStub(channel).WatchAggregates
            async for response in follow(pb.WatchAggregatesRequest(session=session)):
                now = time.perf_counter()
                counts = [pane.count for pane in response.items]
                if counts:
                    seen.append((max(counts), now))
                    if max(counts) >= total:
                        return

    async def requests() -> AsyncIterator[pb.AggregateRequest]:
        config = configuration()
        config.max_wait.FromMilliseconds(10)
        yield pb.AggregateRequest(open=pb.OpenSession(session=session, config=config))
        for offset in range(1, total + 1):
            sent[offset] = time.perf_counter()
            yield pb.AggregateRequest(
                columns=pb.ItemColumns(first_offset=offset, event_times_us=[_BEGIN + offset], sizes_bytes=[1])
            )
            await asyncio.sleep(0.05)

    watching = [asyncio.create_task(watch(nodes.measured("reducer").target)) for _ in range(_WATCHERS)]
    await asyncio.sleep(1)
    async for response in stub.Aggregate(requests()):
        if response.HasField("acknowledgement") and response.acknowledgement.offset:
            acknowledged[response.acknowledgement.offset] = time.perf_counter()
            if response.acknowledgement.offset == total:
                break
    await asyncio.gather(*watching)
    answers = [(acknowledged[offset] - sent[offset]) * 1000 for offset in acknowledged]
    return list(_between(acknowledged, seen)), answers


def _between(acknowledged: dict[int, float], seen: Sequence[tuple[int, float]]) -> Iterator[float]:
    for count, moment in seen:
        if count in acknowledged:
            yield max(0.0, moment - acknowledged[count]) * 1000
