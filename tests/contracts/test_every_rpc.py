"""Every RPC of every node of the running mesh, found by reflection: no input makes one fail, hang or fall."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

from tests.contracts.extreme import fill
from tests.mesh.running import Mesh

DEADLINE = 5.0
"""Seconds; what does not end long before has hung."""
WATCHED = 0.5
"""Seconds for a method that answers with a stream, since a watch ends by nothing else."""


@dataclass(frozen=True, slots=True)
class Rpc:
    """One method of one node."""

    channel: grpc.Channel
    method: MethodDescriptor

    @property
    def path(self) -> str:
        return f"/{self.method.containing_service.full_name}/{self.method.name}"

    def send(self, *payloads: bytes) -> tuple[grpc.StatusCode, Any]:
        """Sends raw messages; the code that the call ended with, and the ended call."""
        streaming = self.method.client_streaming, self.method.server_streaming
        shape = {
            (False, False): self.channel.unary_unary,
            (False, True): self.channel.unary_stream,
            (True, False): self.channel.stream_unary,
            (True, True): self.channel.stream_stream,
        }[streaming]
        call: Any = shape(self.path, None, None)
        request = iter(payloads) if self.method.client_streaming else payloads[0]
        try:
            if self.method.server_streaming:
                answers = call(request, timeout=WATCHED)
                for _ in answers:
                    pass
                return answers.code(), answers
            _, ended = call.with_call(request, timeout=DEADLINE)
        except grpc.RpcError as error:
            ended = error
        return ended.code(), ended


@pytest.fixture(scope="module")
def rpcs(mesh: Mesh) -> Iterator[list[Rpc]]:
    found: list[Rpc] = []
    channels = [grpc.insecure_channel(address) for address in mesh.addresses.values()]
    for channel in channels:
        database: Any = ProtoReflectionDescriptorDatabase(channel)
        pool = DescriptorPool(database)
        for name in database.get_services():
            service = pool.FindServiceByName(name)
            found.extend(Rpc(channel, method) for method in service.methods)
    yield found
    for channel in channels:
        channel.close()


def message_of(rpc: Rpc) -> Message:
    return GetMessageClass(rpc.method.input_type)()


def extremes(rpc: Rpc) -> Iterator[tuple[str, bytes]]:
    for high in (True, False):
        message = message_of(rpc)
        fill(message, high=high)
        yield f"every field {'high' if high else 'low'}", message.SerializeToString()
    for field in rpc.method.input_type.fields:
        if field.containing_oneof and not field.message_type:
            continue
        message = message_of(rpc)
        fill(message, high=True)
        for other in rpc.method.input_type.fields:
            if other is not field:
                message.ClearField(other.name)
        yield f"{field.name} alone", message.SerializeToString()


def noises(rpc: Rpc) -> Iterator[tuple[str, bytes]]:
    seed = random.Random(rpc.path)
    for size in (1, 7, 64, 1000):
        yield f"{size} random bytes", seed.randbytes(size)
    yield "no message", b"\xff" * 16


def is_message(rpc: Rpc, payload: bytes) -> bool:
    try:
        message_of(rpc).ParseFromString(payload)
    except DecodeError:
        return False
    return True


def check(rpc: Rpc, name: str, *payloads: bytes) -> list[str]:
    """What is wrong with the answer to the payloads, in words."""
    code, call = rpc.send(*payloads)
    asked = f"{rpc.path}, {name}: {code}"
    if code in (grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED):
        # Only a watch may stay until the deadline.
        hung = code is grpc.StatusCode.DEADLINE_EXCEEDED and not rpc.method.server_streaming
        return [f"{asked}: it hung"] if hung else []
    if code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
        return [asked]
    status = rpc_status.from_call(call)
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    if status is None or not any(detail.Unpack(info) for detail in status.details):
        return [f"{asked}: no ErrorInfo"]
    if info.reason == "INVALID_FIELD" and not any(detail.Unpack(bad_request) for detail in status.details):
        return [f"{asked}: no field is named"]
    if not all(is_message(rpc, payload) for payload in payloads) and info.reason != "MALFORMED_MESSAGE":
        return [f"{asked}: {info.reason} for what is no message"]
    return []


def alive(rpc: Rpc) -> bool:
    stub: Any = health_pb2_grpc.HealthStub
    answer = stub(rpc.channel).Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def test_reflection_finds_the_contracts_health_and_itself(rpcs: list[Rpc]) -> None:
    paths = {rpc.path for rpc in rpcs}
    assert "/omninode.bridge.stamping.v1.StampingService/CreateStamp" in paths
    assert "/grpc.health.v1.Health/Watch" in paths
    assert "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo" in paths


@pytest.mark.parametrize("kind", ["empty", "noise", "extremes"])
def test_no_input_makes_any_rpc_fail_hang_or_fall(rpcs: list[Rpc], kind: str) -> None:
    wrong: list[str] = []
    for rpc in rpcs:
        inputs = {
            "empty": lambda rpc=rpc: iter([("an empty message", b"")]),
            "noise": lambda rpc=rpc: noises(rpc),
            "extremes": lambda rpc=rpc: extremes(rpc),
        }[kind]()
        for name, payload in inputs:
            wrong += check(rpc, name, payload)
            if rpc.method.client_streaming:
                wrong += check(rpc, f"{name}, twice", payload, payload)
        if rpc.method.client_streaming:
            wrong += check(rpc, "a stream of nothing")
        if not alive(rpc):
            wrong.append(f"{rpc.path}: the node answers no more")
    assert not wrong
