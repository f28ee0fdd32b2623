"""The peer of the workflow benchmark: DBOS Transact runs a workflow whose steps call the stamping node, in a process of its own.

`python -m benchmarks.dbos_peer URL TARGET COUNT IN_FLIGHT` runs COUNT for each line on stdin and prints how many a second.
"""

from __future__ import annotations

import asyncio
import sys
import time
import uuid

import grpc
import uvloop
from dbos import DBOS

from benchmarks.content import contents
from omninode.bridge.stamping.v1 import stamping_pb2, stamping_pb2_grpc

POOL = 40
"""Connections of its pool: of 8, 20 and 40 the fastest on the machine of the figures."""


async def main(url: str, target: str, count: int, in_flight: int) -> None:
    DBOS(
        config={
            "name": "peer",
            "system_database_url": url.replace("postgresql://", "postgresql+psycopg://"),
            "sys_db_pool_size": POOL,
            "log_level": "ERROR",
            "console_log_level": "ERROR",
        }
    )
    async with grpc.aio.insecure_channel(target) as channel:
        stub = stamping_pb2_grpc.StampingServiceStub(channel)

        @DBOS.step()
        async def hash_generation(content: bytes) -> str:
            return (await stub.Hash(stamping_pb2.HashRequest(content=content))).digest

        @DBOS.step()
        async def stamp_creation(request_id: str, content: bytes) -> str:
            request = stamping_pb2.CreateStampRequest(request_id=request_id, content=content, file_path="answer.py")
            return (await stub.CreateStamp(request)).stamp.stamp_id

        @DBOS.workflow()
        async def stamping(request_id: str, content: bytes) -> str:
            await hash_generation(content)
            return await stamp_creation(request_id, content)

        DBOS.launch()
        while await asyncio.to_thread(sys.stdin.readline):
            pending = iter(contents(count))

            async def caller() -> None:
                for content in pending:  # noqa: B023 (every caller of a round has ended before the next begins)
                    await stamping(uuid.uuid4().hex, content)

            began = time.perf_counter()
            await asyncio.gather(*(caller() for _ in range(in_flight)))
            print(count / (time.perf_counter() - began), flush=True)
        DBOS.destroy()


if __name__ == "__main__":
    _, database_url, stamping_target, *numbers = sys.argv
    uvloop.run(main(database_url, stamping_target, *map(int, numbers)))
