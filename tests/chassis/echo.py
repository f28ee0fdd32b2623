"""A service with one method of each shape whose behaviour a test gives: the transport's laws need no node."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeAlias

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from prometheus_client import CollectorRegistry

from omninode.bridge.stamping.v1 import stamping_pb2
from omninode.bridge.stamping.v1.stamping_pb2 import HashRequest, HashResponse
from services.chassis.client import ClientSettings, connect
from services.chassis.server import Server, ServerSettings

SERVICE: ServiceDescriptor = stamping_pb2.DESCRIPTOR.services_by_name["StampingService"]
"""Any descriptor does: the echo service is registered under its own name and borrows this one for health."""
PATH = "/test.Echo/"

Answers: TypeAlias = AsyncGenerator[HashResponse, None]
Behavior: TypeAlias = Callable[[HashRequest], Awaitable[HashResponse]]
Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


async def answer(request: HashRequest) -> HashResponse:
    """The behaviour of a test that does not care: the content's size."""
    return HashResponse(size_bytes=len(request.content))


class Echo:
    """The four shapes over one behaviour."""

    def __init__(self, behavior: Behavior = answer) -> None:
        self._behavior = behavior
        self.metadata: list[dict[str, str | bytes]] = []
        self.remaining: list[float | None] = []
        self.whole_uploads = 0
        """Uploads that were read to their end."""

    def _note(self, context: Context) -> None:
        self.metadata.append(dict(context.invocation_metadata() or ()))
        self.remaining.append(context.time_remaining())

    async def unary(self, request: HashRequest, context: Context) -> HashResponse:
        self._note(context)
        return await self._behavior(request)

    async def upload(self, requests: AsyncIterator[HashRequest], context: Context) -> HashResponse:
        self._note(context)
        answers = [await self._behavior(request) async for request in requests]
        self.whole_uploads += 1
        return HashResponse(size_bytes=sum(answer.size_bytes for answer in answers))

    async def download(self, request: HashRequest, context: Context) -> AsyncIterator[HashResponse]:
        self._note(context)
        yield HashResponse(digest="first")
        yield await self._behavior(request)

    async def both(self, requests: AsyncIterator[HashRequest], context: Context) -> AsyncIterator[HashResponse]:
        self._note(context)
        async for request in requests:
            yield await self._behavior(request)

    def register(self, _servicer: object, server: grpc.aio.Server) -> None:
        def shape(name: str, behavior: Any) -> Any:
            make = getattr(grpc, f"{name}_rpc_method_handler")
            return make(behavior, HashRequest.FromString, HashResponse.SerializeToString)

        handlers = {
            "Unary": shape("unary_unary", self.unary),
            "Upload": shape("stream_unary", self.upload),
            "Download": shape("unary_stream", self.download),
            "WatchDownload": shape("unary_stream", self.download),
            "Both": shape("stream_stream", self.both),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))


class Caller:
    """Calls the echo service; messages in and out."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel

    async def unary(self, content: bytes = b"", **options: Any) -> HashResponse:
        call = self.channel.unary_unary(PATH + "Unary", HashRequest.SerializeToString, HashResponse.FromString)
        response: HashResponse = await call(HashRequest(content=content), **options)
        return response

    async def upload(self, *contents: bytes, **options: Any) -> HashResponse:
        async def requests() -> AsyncIterator[HashRequest]:
            for content in contents:
                yield HashRequest(content=content)

        call = self.channel.stream_unary(PATH + "Upload", HashRequest.SerializeToString, HashResponse.FromString)
        response: HashResponse = await call(requests(), **options)
        return response

    async def download(self, content: bytes = b"", *, method: str = "Download", **options: Any) -> Answers:
        call = self.channel.unary_stream(PATH + method, HashRequest.SerializeToString, HashResponse.FromString)
        # Who leaves is gone at once, not when the generator within is finalized.
        async with aclosing(_reading(call(HashRequest(content=content), **options))) as responses:
            async for response in responses:
                yield response

    async def both(self, *contents: bytes, **options: Any) -> Answers:
        async def requests() -> AsyncIterator[HashRequest]:
            for content in contents:
                yield HashRequest(content=content)

        call = self.channel.stream_stream(PATH + "Both", HashRequest.SerializeToString, HashResponse.FromString)
        async for response in _reading(call(requests(), **options)):
            yield response


async def _reading(call: Any) -> Answers:
    try:
        async for response in call:
            yield response
    finally:
        # As every gRPC client must: leaving the loop alone does not end the call.
        call.cancel()


@asynccontextmanager
async def serving(
    echo: Echo, *, registry: CollectorRegistry | None = None, **settings: Any
) -> AsyncIterator[tuple[Server, str]]:
    """A started server of `echo` and its target."""
    options = {"drain_notice_seconds": 0, "drain_seconds": 5, **settings}
    server = Server(ServerSettings(**options), registry or CollectorRegistry())
    server.add(echo.register, echo, SERVICE)
    await server.start()
    try:
        yield server, f"127.0.0.1:{server.port}"
    finally:
        await server.stop()


@asynccontextmanager
async def calling(target: str, settings: ClientSettings | None = None) -> AsyncIterator[Caller]:
    """A caller of `target` through the chassis' own channel."""
    async with connect(target, settings) as channel:
        yield Caller(channel)
