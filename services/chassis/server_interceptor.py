"""The server's end of a hop: one interceptor that parses, bounds, counts and logs every call, and turns what a servicer raises
into a status. Servicers neither catch nor abort.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from typing import Any, NoReturn, TypeAlias, cast

import grpc
from google.protobuf.message import DecodeError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from omninode.bridge.errors.v1 import errors_pb2
from services.chassis.call_context import CORRELATION_METADATA, correlation_id, deadline
from services.chassis.errors import BridgeError, DeadlineExceeded, InvalidArgument, Unavailable, from_validation
from services.chassis.status import CODES, Trailers, internal_trailers, to_trailers
from services.chassis.telemetry import CallMetrics, MethodMetrics

_log = logging.getLogger(__name__)
_access_log = logging.getLogger("access")

_Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

_MAX_CORRELATION_ID = 128
"""A longer one is a mistake or an attack; it would stand in every log line."""


class MalformedMessage(InvalidArgument):
    """The bytes are no message of the method's type."""

    reason = errors_pb2.ERROR_REASON_MALFORMED_MESSAGE


class DeadlineTooShort(DeadlineExceeded):
    """The work did not finish within the caller's deadline."""

    reason = errors_pb2.ERROR_REASON_DEADLINE_TOO_SHORT


class ShuttingDown(Unavailable):
    """The node is stopping; another replica, or this one after its restart, will answer."""

    reason = errors_pb2.ERROR_REASON_SHUTTING_DOWN


class CallSettings(BaseModel):
    """How calls are bounded and logged."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    deadline_margin_seconds: float = Field(0.01, ge=0)
    """Taken off the caller's deadline, so that the refusal reaches the caller in its time; one hop takes milliseconds."""
    minimum_work_seconds: float = Field(0.005, ge=0)
    """A call with less than this left after the margin is refused at once: no write of ours commits faster on a busy disk."""
    access_log: bool = False
    """One log line a call. Off by default: the metrics say the same at a tenth of the cost."""


class ServerInterceptor(grpc.aio.ServerInterceptor):
    """Parsing, deadline, correlation id, metrics, log and errors of every call of one server."""

    def __init__(self, metrics: CallMetrics, settings: CallSettings) -> None:
        self._metrics = metrics
        self._settings = settings
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self._watches = _Watches()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        method = handler_call_details.method
        handler = self._handlers.get(method)
        if handler is None:
            handler = await continuation(handler_call_details)
            if handler is not None:
                handler = self._handlers[method] = self._wrap(method, handler)
        return handler

    def has_only_watches(self) -> bool:
        """Whether nothing is running but streams that would go on for ever."""
        return self._watches.running <= len(self._watches.tasks)

    def end_watches(self) -> None:
        """Ends the streams that would go on for ever, and those yet to come, with SHUTTING_DOWN."""
        self._watches.close()

    def _wrap(self, method: str, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        kind = _SHAPES[handler.request_streaming, handler.response_streaming]
        behavior = getattr(handler, kind)
        served = _ServedMethod(
            method,
            self._metrics.of(kind, method),
            self._settings,
            endless=handler.response_streaming and _is_endless(method),
            watches=self._watches,
        )
        read = _reader(kind, _parser(method, handler.request_deserializer))
        wrapped = served.streaming(behavior, read) if handler.response_streaming else served.unary(behavior, read)
        # No deserializer: the bytes come here, where a failure to parse them can be a typed refusal.
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        result: grpc.RpcMethodHandler[Any, Any] = make(wrapped, None, _writer(handler.response_serializer))
        return result


class _Watches:
    """The calls of one server that end only when their caller leaves or the server stops."""

    def __init__(self) -> None:
        self.running = 0
        """Calls of any kind."""
        self.tasks: set[asyncio.Task[Any]] = set()
        self.ended: set[asyncio.Task[Any]] = set()
        self.closed = False

    def close(self) -> None:
        self.closed = True
        for task in self.tasks:
            self.ended.add(task)
            task.cancel()


_SHAPES = {
    (False, False): "unary_unary",
    (False, True): "unary_stream",
    (True, False): "stream_unary",
    (True, True): "stream_stream",
}


def _is_endless(method: str) -> bool:
    name = method.rsplit("/", 1)[1]
    return name.startswith("Watch") or name == "ServerReflectionInfo"


def _parser(method: str, deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    def parse(raw: bytes) -> Any:
        try:
            return deserialize(raw) if deserialize else raw
        except (DecodeError, UnicodeDecodeError) as error:
            raise MalformedMessage(metadata={"method": method}) from error

    return parse


def _writer(serialize: Callable[[Any], bytes] | None) -> Callable[[Any], bytes]:
    """What makes bytes of a servicer's response, which may be encoded already: a feed's is, once for all who watch."""

    def write(response: Any) -> bytes:
        return response if isinstance(response, bytes) or serialize is None else serialize(response)

    return write


def _reader(kind: str, parse: Callable[[bytes], Any]) -> Callable[[Any, _Context], Any]:
    """What makes a servicer's first argument of the bytes, or of the stream of them."""
    match kind:
        case "stream_unary":
            return lambda requests, context: _whole(requests, parse, context)
        case "stream_stream":
            return lambda requests, _context: _parsed(requests, parse)
        case _:
            return lambda raw, _context: parse(raw)


async def _parsed(requests: AsyncIterable[bytes], parse: Callable[[bytes], Any]) -> AsyncIterator[Any]:
    async for raw in requests:
        yield parse(raw)


async def _whole(
    requests: AsyncIterable[bytes], parse: Callable[[bytes], Any], context: _Context
) -> AsyncIterator[Any]:
    """The messages of a stream that its caller ended; where it was cut instead, the call is cancelled here.

    grpcio reports a stream that was reset as one that came to its end, and cancels the handler some time later: without this a
    servicer would take a part for the whole. Headers cannot be sent on a reset stream, which tells the two apart.
    """
    async for message in _parsed(requests, parse):
        yield message
    try:
        await context.send_initial_metadata(())
    except Exception as error:
        raise asyncio.CancelledError("the caller left before the end of its stream") from error


class _ServedMethod:
    """One method with everything about it that does not change from call to call."""

    def __init__(
        self, method: str, metrics: MethodMetrics, settings: CallSettings, *, endless: bool, watches: _Watches
    ) -> None:
        self._method = method
        self._metrics = metrics
        self._settings = settings
        self._endless = endless
        self._watches = watches

    def unary(self, behavior: Callable[..., Any], read: Callable[[Any, _Context], Any]) -> Callable[..., Any]:
        async def call(request: Any, context: _Context) -> Any:
            began = self._begin(context)
            try:
                scope = self._scope(context)
                # Branches and not an empty scope: this is the path of every small call, and an async context costs microseconds.
                if scope is None:
                    response = await behavior(read(request, context), context)
                else:
                    async with scope:
                        response = await behavior(read(request, context), context)
            except BaseException as error:
                await self._fail(began, context, error)
            self._end(began, context, grpc.StatusCode.OK)
            return response

        return call

    def streaming(self, behavior: Callable[..., Any], read: Callable[[Any, _Context], Any]) -> Callable[..., Any]:
        async def generate(request: Any, context: _Context) -> AsyncIterator[Any]:
            began = self._begin(context)
            try:
                async with self._scope(context) or nullcontext():
                    async for response in behavior(read(request, context), context):
                        yield response
            except BaseException as error:
                await self._fail(began, context, error)
            self._end(began, context, grpc.StatusCode.OK)

        # The health service's Watch writes to its context instead of yielding.
        return generate if inspect.isasyncgenfunction(behavior) else self.unary(behavior, read)

    def _begin(self, context: _Context) -> float:
        self._metrics.start()
        self._watches.running += 1
        correlation_id.set(_correlation_id_of(context))
        # Not the loop's time: uvloop counts it in whole milliseconds.
        return time.perf_counter()

    def _end(self, began: float, context: _Context, code: grpc.StatusCode) -> None:
        seconds = time.perf_counter() - began
        self._watches.running -= 1
        self._metrics.end(code.name, seconds)
        if self._settings.access_log:
            details = {
                "method": self._method,
                "code": code.name,
                "ms": round(seconds * 1000, 3),
                "peer": context.peer(),
            }
            _access_log.info("call", extra=details)

    async def _fail(self, began: float, context: _Context, error: BaseException) -> NoReturn:
        code, refusal = self._judge(error, context)
        self._end(began, context, code)
        if refusal is None:
            raise error
        await context.abort(code, *refusal)
        raise AssertionError("abort always raises")

    def _scope(self, context: _Context) -> AbstractAsyncContextManager[None] | None:
        """What bounds the call: the caller's deadline, and the server's stop where it would go on for ever; None for neither."""
        remaining = context.time_remaining()
        if remaining is None and not self._endless:
            return None
        return self._bounded(remaining)

    def _judge(self, error: BaseException, context: _Context) -> tuple[grpc.StatusCode, tuple[str, Trailers] | None]:
        """The code of a call that ended with `error`, and its message and trailers; None where the error goes on as it is."""
        match error:
            case BridgeError():
                return CODES[error.code], (error.message, to_trailers(error))
            case ValidationError():
                invalid = from_validation(error)
                return grpc.StatusCode.INVALID_ARGUMENT, (invalid.message, to_trailers(invalid))
            case grpc.aio.AbortError():
                # A servicer of another package has answered already. The stubs call this code an enum; it is its number.
                return CODES.get(cast(int, context.code()), grpc.StatusCode.UNKNOWN), None
            case Exception():
                _log.error("internal error", exc_info=error, extra={"method": self._method})
                message = "internal error"
                return grpc.StatusCode.INTERNAL, (message, internal_trailers(message, correlation_id.get()))
            case _:
                return grpc.StatusCode.CANCELLED, None

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Lets a server that stops end this call, where it is one that would go on for ever."""
        if not self._endless:
            yield
            return
        task = asyncio.current_task()
        assert task is not None
        if self._watches.closed:
            raise ShuttingDown
        self._watches.tasks.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if task not in self._watches.ended:
                raise
            task.uncancel()
            raise ShuttingDown from None
        finally:
            self._watches.tasks.discard(task)
            self._watches.ended.discard(task)

    @asynccontextmanager
    async def _bounded(self, remaining: float | None) -> AsyncIterator[None]:
        with self._watching():
            if remaining is None:
                yield
                return
            budget = remaining - self._settings.deadline_margin_seconds
            if budget < self._settings.minimum_work_seconds:
                raise DeadlineTooShort(
                    "too little of the caller's deadline is left to do the work",
                    metadata={"remaining_ms": str(max(0, round(remaining * 1000)))},
                )
            end = asyncio.get_running_loop().time() + budget
            deadline.set(end)
            try:
                async with asyncio.timeout_at(end) as bound:
                    yield
            except TimeoutError:
                if not bound.expired():
                    raise
                raise DeadlineTooShort(metadata={"remaining_ms": "0"}) from None


def _correlation_id_of(context: _Context) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == CORRELATION_METADATA and isinstance(value, str) and 0 < len(value) <= _MAX_CORRELATION_ID:
            return value
    return os.urandom(16).hex()
