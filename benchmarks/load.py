"""Closed-loop callers: a fixed number of calls, a fixed number of them at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import grpc

from benchmarks.server import Measured
from omninode.bridge.stamping.v1 import stamping_pb2_grpc

Request = TypeVar("Request")

_LIMIT = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Round:
    """One round against one server."""

    calls_per_second: float
    cpu_us_per_call: float


@asynccontextmanager
async def stub_of(server: Measured) -> AsyncIterator[stamping_pb2_grpc.StampingServiceStub]:
    """A plain gRPC stub, the same for both sides: none of our client's interceptors."""
    options = [("grpc.max_receive_message_length", _LIMIT), ("grpc.max_send_message_length", _LIMIT)]
    async with grpc.aio.insecure_channel(server.target, options=options) as channel:
        await asyncio.wait_for(channel.channel_ready(), 30)
        yield stamping_pb2_grpc.StampingServiceStub(channel)


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
