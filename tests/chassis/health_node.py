"""A node that does nothing but answer health checks, as a program: `health_node.py PORT [BEHAVIOUR]`.

BEHAVIOUR: `serve` (default), `ignore-sigterm`, `never-serving`, `fail` (says why and exits 1).
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class Servicer(health_pb2_grpc.HealthServicer):
    def __init__(self, status: int) -> None:
        self._status = status

    async def Check(self, request: health_pb2.HealthCheckRequest, context: object) -> health_pb2.HealthCheckResponse:
        return health_pb2.HealthCheckResponse(status=self._status)


async def main(port: int, behaviour: str) -> None:
    print("url", os.environ.get("DATABASE_URL"), flush=True)
    if behaviour == "fail":
        sys.exit("no such table")
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        ignored = behaviour == "ignore-sigterm"
        asyncio.get_running_loop().add_signal_handler(number, (lambda: None) if ignored else stop.set)
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    health_pb2_grpc.add_HealthServicer_to_server(
        Servicer(NOT_SERVING if behaviour == "never-serving" else SERVING), server
    )
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await stop.wait()
    await server.stop(0)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "serve"))
