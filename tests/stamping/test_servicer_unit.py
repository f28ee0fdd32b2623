"""The handlers that need no ledger, driven by grpcio-testing: no socket, no event loop of a server, no database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import grpc_testing
import pytest
from blake3 import blake3

from omninode.bridge.stamping.v1 import stamping_pb2 as pb
from services.stamping.domain import Limits
from services.stamping.servicer import StampingServicer

SERVICE = pb.DESCRIPTOR.services_by_name["StampingService"]


class _Blocking:
    """The asyncio handlers as grpcio-testing calls handlers: blocking, with requests from a plain iterator."""

    def __init__(self, servicer: StampingServicer) -> None:
        self._servicer = servicer

    def __getattr__(self, name: str) -> Any:
        handler = getattr(self._servicer, name)
        streams = SERVICE.methods_by_name[name].client_streaming

        def call(request: Any, context: Any) -> Any:
            return asyncio.run(handler(_aiter(request) if streams else request, context))

        return call


async def _aiter(requests: Iterator[Any]) -> AsyncIterator[Any]:
    for request in requests:
        yield request


@pytest.fixture
def server() -> Any:
    ledger: Any = SimpleNamespace(stamps=None, revocations=None)  # none of these handlers may reach for it
    nothing: Any = None
    limits = Limits(inline_bytes=10)
    servicer = StampingServicer(ledger, nothing, nothing, limits, new_id=lambda: pytest.fail("no id is needed"))
    return grpc_testing.server_from_dictionary({SERVICE: _Blocking(servicer)}, grpc_testing.strict_real_time())


@pytest.mark.parametrize(
    "content", [b"", b"small", b"large enough for a thread"], ids=["empty", "inline", "in a thread"]
)
def test_hash_needs_neither_socket_nor_ledger(server: Any, content: bytes) -> None:
    call = server.invoke_unary_unary(SERVICE.methods_by_name["Hash"], (), pb.HashRequest(content=content), None)
    response, _, _, _ = call.termination()
    assert response == pb.HashResponse(digest=blake3(content).hexdigest(), size_bytes=len(content))


def test_a_stream_is_hashed_as_it_comes(server: Any) -> None:
    call = server.invoke_stream_unary(SERVICE.methods_by_name["HashStream"], (), None)
    for chunk in (b"one", b"two"):
        call.send_request(pb.HashStreamRequest(chunk=chunk))
    call.requests_closed()
    response, _, _, _ = call.termination()
    assert response == pb.HashStreamResponse(digest=blake3(b"onetwo").hexdigest(), size_bytes=6)


def test_a_protocol_block_is_checked_without_a_ledger(server: Any) -> None:
    request = pb.ValidateProtocolRequest(block="name: tool\n")
    call = server.invoke_unary_unary(SERVICE.methods_by_name["ValidateProtocol"], (), request, None)
    response, _, _, _ = call.termination()
    assert not response.valid
    assert "version" in [violation.field for violation in response.violations]
