"""Whole workflows through all four nodes: how long one takes, and how many a second beside DBOS Transact."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TypeVar

import asyncpg

from benchmarks.content import contents
from benchmarks.figure import Figure, median
from benchmarks.load import CALLERS, GRPC, ROUNDS, drive, stub_of
from benchmarks.server import Mesh, bare, mesh
from omninode.bridge.orchestrator.v1 import orchestrator_pb2
from omninode.bridge.orchestrator.v1.orchestrator_pb2_grpc import OrchestratorServiceStub
from omninode.bridge.stamping.v1 import stamping_pb2
from omninode.bridge.stamping.v1.stamping_pb2_grpc import StampingServiceStub

NODES = ("stamping", "store", "reducer", "orchestrator")
COUNT = 1000
DBOS_COUNT = 300
"""Workflows a round: some seconds for each side."""
Request = TypeVar("Request")


def requests(count: int) -> list[orchestrator_pb2.RunWorkflowRequest]:
    """Workflows over distinct contents of 1 KiB."""
    return [
        orchestrator_pb2.RunWorkflowRequest(
            submission=orchestrator_pb2.SubmitWorkflowRequest(
                request_id=uuid.uuid4().hex, content=content, file_path="answer.py"
            )
        )
        for content in contents(count)
    ]


async def run_workflow() -> Figure:
    """RunWorkflow on an idle mesh, one after another: the best of three rounds."""
    with bare() as peer:
        async with (
            mesh(*NODES) as nodes,
            stub_of(OrchestratorServiceStub, nodes.targets["orchestrator"]) as stub,
            stub_of(StampingServiceStub, peer.target) as peer_stub,
        ):
            await _settled(stub)
            ours, bares = [], []
            for _ in range(3):
                bares.append([await _milliseconds(peer_stub.Hash, stamping_pb2.HashRequest()) for _ in range(200)])
                ours.append([await _milliseconds(stub.RunWorkflow, request) for request in requests(200)])
    p50 = min(statistics.median(round_) for round_ in ours)
    peer_p50 = min(statistics.median(round_) for round_ in bares)
    return Figure(
        "run_workflow",
        p50,
        "ms, p50",
        f"one call of the bare handler, {GRPC}",
        peer_p50,
        peer_p50 / p50,
        beside={"p99 ms": min(statistics.quantiles(round_, n=100)[98] for round_ in ours)},
    )


async def workflow_throughput() -> Figure:
    """RunWorkflow, 64 in flight, beside DBOS Transact on the same PostgreSQL with the same stamping node."""
    async with (
        mesh(*NODES) as nodes,
        stub_of(OrchestratorServiceStub, nodes.targets["orchestrator"]) as stub,
    ):
        await _settled(stub)
        ours = nodes.measured("orchestrator", "stamping", "store", "reducer")
        async with _dbos(nodes) as next_round:
            rounds = [
                (await next_round(), await drive(ours, stub.RunWorkflow, requests(COUNT), CALLERS))
                for _ in range(ROUNDS + 1)
            ]
    peer_rate = median([peer for peer, _ in rounds[1:]])
    our_rate = median([our.calls_per_second for _, our in rounds[1:]])
    return Figure(
        "workflow_throughput",
        our_rate,
        "workflows/s",
        f"DBOS Transact {version('dbos')}",
        peer_rate,
        our_rate / peer_rate,
        bar=3,
        beside={"CPU us/workflow, four nodes": median([our.cpu_us_per_call for _, our in rounds[1:]])},
    )


async def _settled(stub: OrchestratorServiceStub) -> None:
    """Returns when the orchestrator has its partitions: a workflow has run."""
    for request in requests(20):
        await stub.RunWorkflow(request, wait_for_ready=True)


async def _milliseconds(call: Callable[[Request], Awaitable[object]], request: Request) -> float:
    began = time.perf_counter()
    await call(request)
    return (time.perf_counter() - began) * 1000


@asynccontextmanager
async def _dbos(nodes: Mesh) -> AsyncIterator[Callable[[], Awaitable[float]]]:
    """DBOS as a process, in a database of its own; what it gives runs a round and returns the workflows a second."""
    connection = await asyncpg.connect(nodes.database_url)
    await connection.execute("CREATE DATABASE dbos")
    await connection.close()
    url = nodes.database_url.replace("/omnibridge?", "/dbos?")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.dbos_peer", url, nodes.targets["stamping"], str(DBOS_COUNT), str(CALLERS)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin
    assert process.stdout
    read, write = process.stdout, process.stdin

    async def next_round() -> float:
        write.write(b"\n")
        return float(await read.readline())

    try:
        yield next_round
    finally:
        write.close()
        await process.wait()
