"""The client's end of a hop, one interceptor for each of gRPC's four shapes of call: it carries the correlation id and the deadline
on, and raises the other side's refusal again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Generator
from typing import Any

import grpc

from omninode.bridge.errors.v1 import errors_pb2
from services.chassis.call_context import CORRELATION_METADATA, correlation_id, deadline
from services.chassis.errors import Unavailable
from services.chassis.status import from_rpc_error, has_details


class NodeUnavailable(Unavailable):
    """No node of the service answers; whether a call that was under way took effect is not known."""

    reason = errors_pb2.ERROR_REASON_NODE_UNAVAILABLE


_GONE = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
)
"""None of these without details is a node's own word: its bugs come as INTERNAL with a reason."""


def _raised(error: grpc.aio.AioRpcError, method: str | bytes) -> Exception:
    """What the caller sees of `error`. What gRPC itself says of a node that is gone, or that cuts a call off when it stops, would
    tell of addresses and streams, and give no reason.
    """
    refusal = from_rpc_error(error)
    if error.code() in _GONE and not has_details(error):
        service = (method if isinstance(method, str) else method.decode()).split("/")[1]
        return NodeUnavailable(f"{service}: no node answers", metadata={"service": service})
    return refusal or error


class _ClientHop:
    """What each shape of call does before and after: carry on the correlation id and the deadline; raise the refusal again."""

    def __init__(self, default_timeout: float | None = None) -> None:
        self._default_timeout = default_timeout

    def details(self, details: grpc.aio.ClientCallDetails) -> grpc.aio.ClientCallDetails:
        metadata = grpc.aio.Metadata(*(details.metadata or ()))
        if metadata.get(CORRELATION_METADATA) is None:
            metadata.add(CORRELATION_METADATA, correlation_id.get() or os.urandom(16).hex())
        timeout = details.timeout if details.timeout is not None else self._default_timeout
        end = deadline.get()
        if end is not None:
            left = end - asyncio.get_running_loop().time()
            timeout = left if timeout is None else min(timeout, left)
        return grpc.aio.ClientCallDetails(
            details.method, timeout, metadata, details.credentials, details.wait_for_ready
        )

    async def answer(self, continuation: Callable[..., Any], details: grpc.aio.ClientCallDetails, request: Any) -> Any:
        try:
            return await (await self.begin(continuation, details, request))
        except grpc.aio.AioRpcError as error:
            raise _raised(error, details.method) from error

    async def begin(self, continuation: Callable[..., Any], details: grpc.aio.ClientCallDetails, request: Any) -> Any:
        return await continuation(self.details(details), request)

    @staticmethod
    async def read(call: Any, method: str | bytes) -> AsyncIterator[Any]:
        try:
            async for response in call:
                yield response
        except grpc.aio.AioRpcError as error:
            raise _raised(error, method) from error
        finally:
            call.cancel()


class _UploadHop(_ClientHop):
    async def begin(self, continuation: Callable[..., Any], details: grpc.aio.ClientCallDetails, request: Any) -> Any:
        return _keep_status(await super().begin(continuation, details, request))


class _StatusKeeper:
    """A call that keeps the server's status when a later write fails.

    A server may refuse a stream before its end. grpcio then overwrites the refusal with INTERNAL if the failed write is seen after
    it (grpc/grpc issue 36066, open as of grpcio 1.85): the one method that does so is skipped where the call has its status.
    """

    def __init__(self, call: Any) -> None:
        self._call = call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    def set_internal_error(self, error: str) -> None:
        if not self._call.done():
            self._call.set_internal_error(error)


def _keep_status(call: Any) -> Any:
    call._cython_call = _StatusKeeper(call._cython_call)
    return call


class _Answered:
    """A finished call: gRPC awaits what a stream-unary interceptor returns; a unary-unary one may return the message itself."""

    def __init__(self, response: Any) -> None:
        self._response = response

    def __await__(self) -> Generator[None, None, Any]:
        yield from ()
        return self._response

    def done(self) -> bool:
        return True

    def cancel(self) -> bool:
        return False


class _UnaryUnary(_ClientHop, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await self.answer(continuation, client_call_details, request)


class _StreamUnary(_UploadHop, grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return _Answered(await self.answer(continuation, client_call_details, request_iterator))


# The two below begin the call before they return, not at the first read: gRPC binds the caller's handle to it at once.
class _UnaryStream(_ClientHop, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return self.read(await self.begin(continuation, client_call_details, request), client_call_details.method)


class _StreamStream(_UploadHop, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return self.read(
            await self.begin(continuation, client_call_details, request_iterator), client_call_details.method
        )


def client_interceptors(default_timeout: float) -> list[grpc.aio.ClientInterceptor]:
    """The client's end for every shape of call; `default_timeout` (seconds) bounds unary calls that name no deadline."""
    return [_UnaryUnary(default_timeout), _StreamUnary(), _UnaryStream(), _StreamStream()]
