"""The reducer node over the store: actions on many keys, and on one. Both nodes' CPU time counts."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable

from google.protobuf.timestamp_pb2 import Timestamp

from benchmarks.figure import Figure
from benchmarks.load import ROUNDS, against_bare, drive, stub_of
from benchmarks.server import bare, mesh
from omninode.bridge.reducer.v1 import reducer_pb2
from omninode.bridge.reducer.v1.reducer_pb2_grpc import ReducerServiceStub

NOW = Timestamp(seconds=1_800_000_000)
DIGEST = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"


def action(workflow_id: str, kind: str, payload: dict[str, object]) -> reducer_pb2.ReduceRequest:
    """An action on a workflow."""
    return reducer_pb2.ReduceRequest(
        action=reducer_pb2.Action(
            key=f"workflow/{workflow_id}",
            action_id=str(uuid.uuid4()),
            reducer="stamping_workflow",
            type=kind,
            payload_json=json.dumps(payload),
            occur_time=NOW,
            actor="bench",
        )
    )


def submitted(workflow_id: str) -> reducer_pb2.ReduceRequest:
    """The action that opens a workflow."""
    return action(
        workflow_id,
        "submitted",
        {
            "workflow_id": workflow_id,
            "request_id": workflow_id,
            "namespace": "omninode.services.metadata",
            "file_path": "answer.py",
            "size_bytes": 1024,
            "content_digest": DIGEST,
            "metadata": {},
        },
    )


def steps(workflow_id: str, count: int) -> list[reducer_pb2.ReduceRequest]:
    """Actions that a processing workflow takes any number of."""
    payload: dict[str, object] = {"step": "hash_generation", "attempt_count": 1, "result": {"digest": DIGEST}}
    return [action(workflow_id, "step_completed", payload) for _ in range(count)]


async def reduce_distinct() -> Figure:
    """Reduce on 1,000 keys, 64 callers."""

    def requests() -> list[reducer_pb2.ReduceRequest]:
        ids = [uuid.uuid4().hex for _ in range(1000)]
        opened = [submitted(workflow_id) for workflow_id in ids]
        started = [action(workflow_id, "started", {}) for workflow_id in ids]
        return opened + started + [request for workflow_id in ids for request in steps(workflow_id, 1)]

    return await _against_bare("reduce_distinct", requests, callers=64)


async def reduce_hot_key() -> Figure:
    """Reduce on one key, 100 callers; a key a round."""

    def requests() -> Iterable[reducer_pb2.ReduceRequest]:
        workflow_id = uuid.uuid4().hex
        return [submitted(workflow_id), action(workflow_id, "started", {}), *steps(workflow_id, 2000)]

    return await _against_bare("reduce_hot_key", requests, callers=100, before=2)


async def _against_bare(
    name: str, requests: Callable[[], Iterable[reducer_pb2.ReduceRequest]], *, callers: int, before: int = 0
) -> Figure:
    """`before` requests of each round are made one by one and not counted."""
    with bare() as peer:
        async with mesh("store", "reducer") as nodes:
            ours = nodes.measured("reducer", "store")
            async with (
                stub_of(ReducerServiceStub, peer.target) as peer_stub,
                stub_of(ReducerServiceStub, ours.target) as stub,
            ):

                async def reduce(request: reducer_pb2.ReduceRequest) -> None:
                    response: reducer_pb2.ReduceResponse = await stub.Reduce(request)
                    if response.WhichOneof("outcome") != "committed":
                        raise RuntimeError(f"{request.action.type}: {response}")

                rounds = []
                for _ in range(ROUNDS + 1):
                    bare_round = await drive(peer, peer_stub.Reduce, requests(), callers)
                    made = iter(requests())
                    for _, request in zip(range(before), made, strict=False):
                        await reduce(request)
                    rounds.append((bare_round, await drive(ours, reduce, made, callers)))
    return against_bare(name, rounds[1:], bar=0.3)
