"""The reducer node over the store: actions on many keys, and on one. Both nodes' CPU time counts."""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Callable, Iterable
from urllib.request import urlopen

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from benchmarks.figure import Figure, median
from benchmarks.load import GRPC, ROUNDS, against_bare, drive, stub_of
from benchmarks.server import Measured, another, bare, mesh
from omninode.bridge.reducer.v1 import reducer_pb2
from omninode.bridge.reducer.v1.reducer_pb2_grpc import ReducerServiceStub
from services.chassis.client import ClientSettings
from services.chassis.routing import routed
from services.cli.mesh import NodeAddress

BATCH = 500
HOT_ACTIONS = 2000

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

    return await _against_bare("reduce_distinct", requests, callers=64, bar=0.35)


async def reduce_hot_key() -> Figure:
    """Reduce on one key, 100 callers; a key a round."""

    def requests() -> Iterable[reducer_pb2.ReduceRequest]:
        workflow_id = uuid.uuid4().hex
        return [submitted(workflow_id), action(workflow_id, "started", {}), *steps(workflow_id, 2000)]

    return await _against_bare("reduce_hot_key", requests, callers=100, before=2, bar=0.4)


async def batch_reduce_hot() -> Figure:
    """BatchReduce on one key, 500 actions a batch, 4 callers; a key a round. Its bar is on the actions in a second."""

    def batches(workflow_id: str) -> list[reducer_pb2.BatchReduceRequest]:
        made = [request.action for request in steps(workflow_id, 20 * BATCH)]
        return [
            reducer_pb2.BatchReduceRequest(actions=made[at : at + BATCH], last_states_only=True)
            for at in range(0, len(made), BATCH)
        ]

    with bare() as peer:
        async with mesh("store", "reducer") as nodes:
            ours = nodes.measured("reducer", "store")
            async with (
                stub_of(ReducerServiceStub, peer.target) as peer_stub,
                stub_of(ReducerServiceStub, ours.target) as stub,
            ):

                async def reduce(request: reducer_pb2.BatchReduceRequest) -> None:
                    response: reducer_pb2.BatchReduceResponse = await stub.BatchReduce(request)
                    for result in response.results:
                        if not result.HasField("committed"):
                            raise RuntimeError(str(result))

                rounds = []
                for _ in range(ROUNDS + 1):
                    workflow_id = uuid.uuid4().hex
                    bare_round = await drive(peer, peer_stub.BatchReduce, batches(workflow_id), 4)
                    await stub.Reduce(submitted(workflow_id))
                    await stub.Reduce(action(workflow_id, "started", {}))
                    rounds.append((bare_round, await drive(ours, reduce, batches(workflow_id), 4)))
    counted = rounds[1:]
    value = BATCH * median([our.calls_per_second for _, our in counted])
    peer_value = BATCH * median([bare_round.calls_per_second for bare_round, _ in counted])
    return Figure(
        "batch_reduce_hot",
        value,
        "actions/s",
        f"bare handler, {GRPC}",
        peer_value,
        value / peer_value,
        5000,
        bar_on_value=True,
        beside={"us server CPU/action": median([our.cpu_us_per_call for _, our in counted]) / BATCH},
    )


async def reduce_hot_routed() -> Figure:
    """Reduce on one key by 100 callers, two reducers: routed by key, and round robin in the same run. None may be given up."""
    async with mesh("store", "reducer") as nodes:
        with another("reducer", nodes) as (second, process):
            first = nodes.addresses["reducer"]
            ours = Measured(first.target, (*nodes.measured("reducer", "store").processes, process))
            async with (
                stub_of(ReducerServiceStub, first.target) as one,
                stub_of(ReducerServiceStub, second.target) as two,
                routed(f"{first.target},{second.target}", ClientSettings(), _Replica) as router,
            ):
                in_turn = itertools.cycle((one, two))

                async def by_key(request: reducer_pb2.ReduceRequest) -> None:
                    _check(await router.call(request.action.key, lambda replica: replica.stub.Reduce(request)))

                async def round_robin(request: reducer_pb2.ReduceRequest) -> None:
                    _check(await next(in_turn).Reduce(request))

                rounds: dict[str, list[tuple[float, float]]] = {"routed": [], "round robin": []}
                for _ in range(ROUNDS):
                    for way, call in (("routed", by_key), ("round robin", round_robin)):
                        workflow_id = uuid.uuid4().hex
                        await call(submitted(workflow_id))
                        await call(action(workflow_id, "started", {}))
                        before = _conflicts(first, second)
                        measured = await drive(ours, call, steps(workflow_id, HOT_ACTIONS), 100)
                        conflicts = (_conflicts(first, second) - before) / HOT_ACTIONS
                        rounds[way].append((conflicts, measured.calls_per_second))
    routed_conflicts, unrouted_conflicts = (median([conflicts for conflicts, _ in rounds[way]]) for way in rounds)
    routed_rate, unrouted_rate = (median([rate for _, rate in rounds[way]]) for way in rounds)
    return Figure(
        "reduce_hot_routed",
        routed_conflicts,
        "conflicts/action",
        "round robin over the same reducers",
        unrouted_conflicts,
        routed_rate / unrouted_rate,
        ceiling=0.005,
        beside={"calls/s": routed_rate, "round robin calls/s": unrouted_rate, "given up": 0},
    )


class _Replica:
    """A stub of one replica."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.stub = ReducerServiceStub(channel)

    async def aclose(self) -> None:
        return


def _check(response: reducer_pb2.ReduceResponse) -> None:
    if response.WhichOneof("outcome") != "committed":
        raise RuntimeError(str(response))


def _conflicts(*nodes: NodeAddress) -> float:
    """The conflicts that the nodes have counted so far."""
    count = 0.0
    for node in nodes:
        with urlopen(node.metrics_url) as answer:  # noqa: S310 (the address is our own)
            text: str = answer.read().decode()
        count += sum(float(line.split()[1]) for line in text.splitlines() if line.startswith("conflict_attempts_total"))
    return count


async def _against_bare(
    name: str, requests: Callable[[], Iterable[reducer_pb2.ReduceRequest]], *, callers: int, bar: float, before: int = 0
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
    return against_bare(name, rounds[1:], bar=bar)
