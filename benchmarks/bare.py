"""The bare handler: a grpc.aio server on uvloop whose methods only build their answers. `python -m benchmarks.bare`."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any

import grpc
import uvloop

from omninode.bridge.stamping.v1 import stamping_pb2 as pb

SERVICE = "omninode.bridge.stamping.v1.StampingService"
DIGEST = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"


async def hash_unary(request: pb.HashRequest, _context: object) -> pb.HashResponse:
    return pb.HashResponse(digest=DIGEST, size_bytes=len(request.content))


async def hash_stream(requests: AsyncIterator[pb.HashStreamRequest], _context: object) -> pb.HashStreamResponse:
    size = 0
    async for request in requests:
        size += len(request.chunk)
    return pb.HashStreamResponse(digest=DIGEST, size_bytes=size)


async def create_stamp(request: pb.CreateStampRequest, _context: object) -> pb.CreateStampResponse:
    stamp = pb.Stamp(
        stamp_id="0197c0de-0000-7000-8000-000000000000",
        digest=DIGEST,
        namespace="omninode.services.metadata",
        op_id="6ba7b810-9dad-51d1-80b4-00c04fd430c8",
        version=1,
        metadata_version="0.1",
        protocol_version="1.0",
        content_type="text/plain",
        size_bytes=len(request.content),
        file_path=request.file_path,
    )
    return pb.CreateStampResponse(stamp=stamp, created=True)


def handlers() -> dict[str, Any]:
    """The three methods that are measured, with the contract's own messages."""
    return {
        "Hash": grpc.unary_unary_rpc_method_handler(
            hash_unary, pb.HashRequest.FromString, pb.HashResponse.SerializeToString
        ),
        "HashStream": grpc.stream_unary_rpc_method_handler(
            hash_stream, pb.HashStreamRequest.FromString, pb.HashStreamResponse.SerializeToString
        ),
        "CreateStamp": grpc.unary_unary_rpc_method_handler(
            create_stamp, pb.CreateStampRequest.FromString, pb.CreateStampResponse.SerializeToString
        ),
    }


async def main() -> None:
    limit = 16 * 1024 * 1024
    server = grpc.aio.server(
        options=[("grpc.max_receive_message_length", limit), ("grpc.max_send_message_length", limit)]
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers()),))
    server.add_insecure_port(f"127.0.0.1:{os.environ['OMNIBRIDGE_STAMPING__SERVER__PORT']}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(main())
