"""The bare handler: a grpc.aio server on uvloop whose methods only build their answers. `python -m benchmarks.bare PORT`."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
import uvloop
from google.protobuf.timestamp_pb2 import Timestamp

from omninode.bridge.reducer.v1 import reducer_pb2
from omninode.bridge.stamping.v1 import stamping_pb2 as pb
from omninode.bridge.store.v1 import store_pb2

STATE = '{"state":"PENDING","workflow_id":"w","namespace":"omninode.services.metadata","file_path":"answer.py"}'
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


async def try_commit(request: store_pb2.TryCommitRequest, _context: object) -> store_pb2.TryCommitResponse:
    committed = store_pb2.Committed(version=1, partition=3, offset=7, commit_time=Timestamp(seconds=1_700_000_000))
    return store_pb2.TryCommitResponse(committed=committed)


async def reduce(request: reducer_pb2.ReduceRequest, _context: object) -> reducer_pb2.ReduceResponse:
    return reducer_pb2.ReduceResponse(committed=_folded())


async def batch_reduce(request: reducer_pb2.BatchReduceRequest, _context: object) -> reducer_pb2.BatchReduceResponse:
    results = [reducer_pb2.BatchReduceResult(committed=_folded()) for _ in request.actions]
    return reducer_pb2.BatchReduceResponse(results=results)


def _folded() -> reducer_pb2.Folded:
    committed = store_pb2.Committed(version=1, partition=3, offset=7, commit_time=Timestamp(seconds=1_700_000_000))
    folded = reducer_pb2.Folded(version=1, state_json=STATE, commit=committed)
    folded.events.add(
        kind=store_pb2.EVENT_KIND_EVENT, event_type="STATE_TRANSITION", topic="workflow", payload_json="{}"
    )
    return folded


def services() -> Mapping[str, Mapping[str, Any]]:
    """The methods that are measured, with the contracts' own messages, by service."""
    return {
        "omninode.bridge.stamping.v1.StampingService": {
            "Hash": grpc.unary_unary_rpc_method_handler(
                hash_unary, pb.HashRequest.FromString, pb.HashResponse.SerializeToString
            ),
            "HashStream": grpc.stream_unary_rpc_method_handler(
                hash_stream, pb.HashStreamRequest.FromString, pb.HashStreamResponse.SerializeToString
            ),
            "CreateStamp": grpc.unary_unary_rpc_method_handler(
                create_stamp, pb.CreateStampRequest.FromString, pb.CreateStampResponse.SerializeToString
            ),
        },
        "omninode.bridge.store.v1.StoreService": {
            "TryCommit": grpc.unary_unary_rpc_method_handler(
                try_commit, store_pb2.TryCommitRequest.FromString, store_pb2.TryCommitResponse.SerializeToString
            ),
        },
        "omninode.bridge.reducer.v1.ReducerService": {
            "Reduce": grpc.unary_unary_rpc_method_handler(
                reduce, reducer_pb2.ReduceRequest.FromString, reducer_pb2.ReduceResponse.SerializeToString
            ),
            "BatchReduce": grpc.unary_unary_rpc_method_handler(
                batch_reduce,
                reducer_pb2.BatchReduceRequest.FromString,
                reducer_pb2.BatchReduceResponse.SerializeToString,
            ),
        },
    }


async def main(port: int) -> None:
    limit = 16 * 1024 * 1024
    server = grpc.aio.server(
        options=[("grpc.max_receive_message_length", limit), ("grpc.max_send_message_length", limit)]
    )
    for service, methods in services().items():
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, dict(methods)),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
