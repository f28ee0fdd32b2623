"""Closed-loop callers: a fixed number of calls, a fixed number of them at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import grpc

from benchmarks.figure import Figure, median
from benchmarks.server import Measured

Request = TypeVar("Request")
Stub = TypeVar("Stub")

ROUNDS = 5
"""Rounds that count, after one to warm up; of each benchmark the median is taken."""
CALLERS = 64
"""Calls in flight against a server."""
GRPC = f"grpcio {grpc.__version__}"
_LIMIT = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Round:
    """One round against one server."""

    calls_per_second: float
    cpu_us_per_call: float


@asynccontextmanager
async def stub_of(make: Callable[[grpc.aio.Channel], Stub], target: str) -> AsyncIterator[Stub]:
    """A plain gRPC stub, the same for both sides: none of our client's interceptors."""
    options = [("grpc.max_receive_message_length", _LIMIT), ("grpc.max_send_message_length", _LIMIT)]
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        await asyncio.wait_for(channel.channel_ready(), 30)
        yield make(channel)


async def drive(
    server: Measured, call: Callable[[Request], Awaitable[object]], requests: Iterable[Request], callers: int
) -> Round:
    """Makes every request once, `callers` at a time, and says how fast that went and what it cost the server."""
    pending = iter(requests)
    made = 0

    async def caller() -> None:
        nonlocal made
        for request in pending:
            await call(request)
            made += 1

    cpu, began = server.cpu_seconds(), time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    seconds = time.perf_counter() - began
    return Round(made / seconds, (server.cpu_seconds() - cpu) / made * 1e6)


def against_bare(name: str, rounds: Sequence[tuple[Round, Round]], bar: float) -> Figure:
    """The figure of rounds of (bare handler, ours): the CPU time of a call, the bare handler's over ours."""
    ours = median([our.cpu_us_per_call for _, our in rounds])
    peer = median([bare.cpu_us_per_call for bare, _ in rounds])
    return Figure(
        name,
        ours,
        "us server CPU/call",
        f"bare handler, {GRPC}",
        peer,
        peer / ours,
        bar,
        beside={
            "calls/s": median([our.calls_per_second for _, our in rounds]),
            "bare calls/s": median([bare.calls_per_second for bare, _ in rounds]),
        },
    )
